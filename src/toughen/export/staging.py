"""A folder that appears whole or not at all, and never over anything that somebody else put there.

    with staged(Path("exports/mine")) as folder:
        (folder / "README.md").write_text("...")

It is made in `.export-NAME` beside its place. What a kill leaves there, the next export to the same place puts right.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toughen.errors import Option, UsageError
from toughen.models.exported import CONFIG, is_exported, read_config
from toughen.storage import files


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but the config itself, by name."""
    return {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.name != CONFIG}


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_foreign(out: Path) -> None:
    """Refuse a place that holds anything but an export as it was written.

    Raises:
        ValueError: with the first file that is in the way.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"{out} is a file; give a folder as ", Option("out"))
    names = sorted(path.name for path in out.iterdir())
    if not names:
        return
    if not is_exported(out):
        raise UsageError(f"{out} exists and holds other things, such as {names[0]}; give another ", Option("out"))
    read_config(out)
    written = files.read_json(out / CONFIG).get("files", {})
    for name in names:
        path = out / name
        if name != CONFIG and not (path.is_file() and sha256(path) == written.get(name)):
            raise UsageError(
                f"{path} is not as toughen export wrote it; give another ", Option("out"), f", or delete {out}"
            )


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A new folder that takes the name `out` when the context ends well, and is gone when it does not.

    An export that is there already, untouched since, is replaced.

    Raises:
        ValueError: see `refuse_foreign`.
        Locked: another process exports to the same place.
        OSError: the place cannot be made or written.
    """
    out = Path(os.path.realpath(out))
    place = out.with_name(f".export-{out.name}")
    fresh, former = place / "new", place / "former"
    with files.lock(place):
        try:
            _put_back(former, out)
            files.delete(fresh)
            refuse_foreign(out)
            fresh.mkdir()
            yield fresh
            for path in fresh.iterdir():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            files.sync_folder(fresh)
            refuse_foreign(out)
            if out.exists():
                os.rename(out, former)
            files.point("before rename")
            os.rename(fresh, out)
            files.sync_folder(out.parent)
        finally:
            _put_back(former, out)
            files.delete(place)


def _put_back(former: Path, out: Path) -> None:
    """An export that was set aside for a new one that never came."""
    if former.exists() and not out.exists():
        os.rename(former, out)
