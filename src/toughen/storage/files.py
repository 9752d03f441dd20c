"""Files of a run folder: text and JSON replaced at once, a log that can be cut back, a lock. No pickle, no torch.

Whatever is written here is first written under another name in the same folder, brought to the disk and renamed, so
that a kill or a full disk at any moment leaves the old file or the new one, whole. `storage.checkpoint` builds on it.

    with lock(run), Log.resume(run / "metrics.jsonl", length=state["log"]) as log:
        log.write({"step": 1600, "loss": 1.25})
        write_json(run / "summary.json", {"log": log.flush()})

The writer of a run folder holds `lock(run)`; readers need not.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

_JSON_LIMIT = 64 * 2**20
_CHUNK = 16 * 2**20
_OWNER = re.compile(r"pid [0-9]+ on \S+")


class Damaged(ValueError):
    """What was stored is not what is there.

    Args:
        path: the checkpoint or file that cannot be used.
        reason: a clause that names the file at fault.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"CK321 {self.args[0]} is incomplete or damaged ({self.reason})."


class Locked(RuntimeError):
    """Another process is writing the run folder."""


def point(name: str) -> None:
    """A stage of the writer has been reached. Does nothing: the tests put their faults and kills here."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an OSError the path that Python leaves out when a write, and not an open, fails."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def temporary_in(folder: Path) -> Path:
    """A name, in the same folder and so on the same file system, for what is not complete yet."""
    return folder / f".tmp-{os.getpid()}-{os.urandom(4).hex()}"


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    point(f"before fsync of {folder.name}/")
    handle = os.open(folder, os.O_RDONLY)
    try:
        with naming(folder):
            os.fsync(handle)
    finally:
        os.close(handle)
    point(f"after fsync of {folder.name}/")


def write_new(path: Path, data: bytes) -> None:
    """Write a file that must not exist yet and bring its bytes, though not yet its name, to the disk."""
    point(f"before {path.name}")
    with naming(path), open(path, "xb") as file:
        for start in range(0, len(data), _CHUNK):
            file.write(memoryview(data)[start : start + _CHUNK])
            file.flush()
            point(f"within {path.name}")
        os.fsync(file.fileno())
    point(f"after {path.name}")


def delete(path: Path) -> None:
    """Delete a file or folder; what cannot be deleted now stays under its temporary name until the next cleaning."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def set_aside(folder: Path) -> Path:
    """Give a folder the first free name of the form `NAME.before-N`; returns it.

    Raises:
        Locked: another process writes it.
        OSError: it cannot be renamed.
    """
    number = 1
    while (kept := folder.with_name(f"{folder.name}.before-{number}")).exists():
        number += 1
    with lock(folder):
        # Not in here: what the lock writes would be left in the other folder.
        pass
    folder.rename(kept)
    return kept


def is_set_aside(folder: Path) -> bool:
    """Whether a folder has its name from `set_aside`: what it holds counts no more."""
    return re.search(r"\.before-[0-9]+$", folder.name) is not None


def write_text(path: Path, text: str) -> None:
    """Replace a file by `text` (UTF-8) at once: after a crash it is the old one or the new one.

    Raises:
        OSError: the disk is full, or the folder is missing or may not be written; the old file is untouched.
    """
    temporary = temporary_in(path.parent)
    try:
        write_new(temporary, text.encode())
        point(f"before rename to {path.name}")
        os.replace(temporary, path)
    finally:
        delete(temporary)
    sync_folder(path.parent)


def replace_by(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file under a temporary name, bring it to the disk and give it its own name at once.

    Raises:
        OSError: as for `write_text`; the old file is untouched.
    """
    temporary = temporary_in(path.parent)
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        point(f"before rename to {path.name}")
        os.replace(temporary, path)
    finally:
        delete(temporary)
    sync_folder(path.parent)


def encode(value: object, indent: int | None = None) -> bytes:
    """Strict JSON of at most 64 MiB; raises ValueError for anything else."""
    try:
        data = json.dumps(value, allow_nan=False, indent=indent).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"This cannot be written as JSON ({error}).") from error
    if len(data) > _JSON_LIMIT:
        raise ValueError(f"This is {len(data)} bytes of JSON; at most {_JSON_LIMIT} are read back.")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return result


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is not a finite number")
    return value


def _not_a_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a finite number")


def decode(data: bytes, path: Path) -> Any:
    """The value of strict JSON; raises ValueError, naming `path`, for anything else."""
    try:
        return json.loads(data.decode(), object_pairs_hook=_unique, parse_float=_finite, parse_constant=_not_a_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file of toughen's ({error}).") from error


def read_limited(path: Path) -> bytes:
    """The bytes of a regular file of at most 64 MiB."""
    if not path.is_file() and path.exists():
        raise ValueError(f"{path} is not a file.")
    with naming(path), open(path, "rb") as file:
        data = file.read(_JSON_LIMIT + 1)
    if len(data) > _JSON_LIMIT:
        raise ValueError(f"{path} is larger than the {_JSON_LIMIT} bytes that a JSON file of toughen's may have.")
    return data


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in the whole lines of a log of at most 64 MiB, of which a running run may be writing another.

    Raises:
        ValueError, OSError: as for `read_json`.
    """
    data = read_limited(path)
    whole = data[: data.rfind(b"\n") + 1]
    return [record for line in whole.splitlines() if isinstance(record := decode(line, path), dict)]


def write_json(path: Path, value: object) -> None:
    """Replace a file by `value` as strict JSON, at once, keys in their order.

    Raises:
        ValueError: `value` holds NaN, infinity or what JSON has no form for.
        OSError: see `write_text`.
    """
    write_text(path, encode(value, indent=1).decode() + "\n")


def read_json(path: Path) -> Any:
    """The value in a strict JSON file of at most 64 MiB.

    Raises:
        ValueError: too large, not UTF-8, not JSON, a number that is not finite, or a key twice; the path is named.
        OSError: there is no such file, or it cannot be read.
    """
    return decode(read_limited(path), path)


class Log:
    """A file of strict JSON lines whose length is part of a checkpoint, so that a resumed run's log has equal bytes.

    Args:
        path: the file; lines are appended to what is there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_symlink():
            raise ValueError(f"{path} is a link, and lines are written to no other folder; replace it by a file.")
        # unbuffered, so that no line waits in a buffer that a kill loses or a forked worker writes once more
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (the log outlives this function; `close` closes it)
        self._torn = False
        try:
            self._length = os.fstat(self._file.fileno()).st_size
            sync_folder(path.parent)
        except OSError:
            self.close()
            raise

    @classmethod
    def resume(cls, path: Path, length: int) -> Log:
        """Open a log cut back to its first `length` bytes, as `flush` returned them; 0 starts afresh.

        Raises:
            Damaged: there are fewer bytes than that, or they do not end with a line.
        """
        size = path.stat().st_size if path.exists() else 0
        if size < length:
            raise Damaged(path, f"{path.name} has {size} bytes, and the checkpoint counts on {length}")
        if length:
            with open(path, "rb") as file:
                file.seek(length - 1)
                if file.read(1) != b"\n":
                    raise Damaged(path, f"{path.name} has no end of a line at byte {length}")
        log = cls(path)
        try:
            log._cut(length)
        except OSError:
            log.close()
            raise
        return log

    @property
    def length(self) -> int:
        """Bytes of all lines so far, on the disk or on their way to it."""
        return self._length

    def _cut(self, length: int) -> None:
        self._torn = True
        self._file.truncate(length)
        self._torn, self._length = False, length

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one line, or, when the disk refuses, nothing.

        Raises:
            ValueError: the record holds NaN, infinity or what JSON has no form for.
            OSError: the disk is full; the lines before are intact.
        """
        line = memoryview(encode(record) + b"\n")
        done = 0
        try:
            with naming(self.path):
                # Half a line, which the disk would not let go either.
                if self._torn:
                    self._cut(self._length)
                while done < len(line):
                    done += self._file.write(line[done:])
        except OSError:
            self._cut(self._length)
            raise
        self._length += len(line)

    def flush(self) -> int:
        """Bring all lines to the disk; returns the length in bytes."""
        with naming(self.path):
            os.fsync(self._file.fileno())
        return self._length

    def close(self) -> None:
        """Close the file; `flush` first if the lines must survive a power cut."""
        self._file.close()

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _owner(path: Path) -> str:
    """Who holds the lock, as far as the side file tells: it is a courtesy, and only the lock is the truth."""
    with suppress(OSError, ValueError):
        text = read_limited(path).decode().strip()
        if _OWNER.fullmatch(text):
            return f" ({text})"
    return ""


@contextmanager
def lock(run: Path) -> Iterator[None]:
    """Hold the run folder, made when missing, for writing; the system lets go of it however the process ends.

    Raises:
        Locked: another process, or another place in this one, holds it (RN531).
        OSError: the folder cannot be made or written.
    """
    from filelock import FileLock, Timeout

    run.mkdir(parents=True, exist_ok=True)
    guard = FileLock(run / ".lock", timeout=0)
    owner = run / ".lock-owner"
    try:
        guard.acquire()
    except Timeout:
        raise Locked(f"RN531 The run folder {run} is being written by another process{_owner(owner)}.") from None
    try:
        with suppress(OSError):
            write_text(owner, f"pid {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        with suppress(OSError):
            owner.unlink()
        guard.release()
