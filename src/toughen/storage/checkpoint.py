"""Checkpoints of a run: tensors as safetensors, the rest as JSON, and a manifest over all of it. Never pickle.

A checkpoint is a folder that appears at once: a kill or a full disk at any moment leaves the old state or the new one,
both whole. Its manifest holds the size and SHA-256 of every file (no common format notices one flipped bit), and
nothing is used before all of them hold.

    with lock(run):
        found = latest_checkpoint(run, warn=print)    # None: nothing to resume; raises Damaged: there was something
        save_checkpoint(run, 1600, {"weights": model.state_dict()}, {"log": log.flush()})
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toughen.storage import files as store
from toughen.storage.files import Damaged, decode, delete, encode, naming, read_json, read_limited, sync_folder

if TYPE_CHECKING:
    from torch import Tensor

_FORMAT = 1
_GROUP = re.compile(r"[A-Za-z0-9._-]+")
_FILE = re.compile(r"[A-Za-z0-9._-]+\.safetensors|state\.json")
_STEP = re.compile(r"step-([0-9]{9,})")

Files = dict[str, dict[str, Any]]  # name -> {"size": bytes, "sha256": hexadecimal}


def _entry(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _is_entry(item: tuple[str, object]) -> bool:
    match item:
        case name, {"size": int(), "sha256": str(), **rest}:
            return _FILE.fullmatch(name) is not None and not rest
    return False


def _manifest(step: int, files: Files) -> bytes:
    body = {"format": _FORMAT, "step": step, "files": dict(sorted(files.items()))}
    return encode({**body, "sha256": hashlib.sha256(encode(body)).hexdigest()}, indent=1)


def _read_manifest(folder: Path) -> tuple[int, Files]:
    """Step and files of a checkpoint, from a manifest that is byte for byte what `_manifest` writes."""
    try:
        data = read_limited(folder / "MANIFEST.json")
        value = decode(data, folder / "MANIFEST.json")
    except FileNotFoundError as error:
        raise Damaged(folder, "MANIFEST.json is missing") from error
    except ValueError as error:
        raise Damaged(folder, "MANIFEST.json cannot be read") from error
    match value:
        case {"format": int(other)} if other != _FORMAT:
            raise Damaged(folder, f"MANIFEST.json has format {other}, this toughen reads format {_FORMAT}")
        case {"step": int(step), "files": {"state.json": _, **_rest} as files} if all(map(_is_entry, files.items())):
            if data == _manifest(step, files):
                return step, files
    raise Damaged(folder, "MANIFEST.json is not as it was written")


@contextmanager
def _failing_media(folder: Path) -> Iterator[None]:
    """A file that is gone or that the disk cannot read is damage; a refused permission is not."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EIO, errno.ENOENT, errno.ENOTDIR):
            raise
        raise Damaged(folder, f"{error.strerror}: {Path(error.filename or folder).name}") from error


def _inventory(folder: Path) -> tuple[int, Files]:
    """Step and files of a checkpoint whose files are there, alone and of the right size; contents are not read."""
    with _failing_media(folder):
        step, files = _read_manifest(folder)
        named = _STEP.fullmatch(folder.name)
        if named and int(named[1]) != step:
            raise Damaged(folder, f"MANIFEST.json is of step {step}")
        found = {entry.name: entry for entry in os.scandir(folder) if entry.name != "MANIFEST.json"}
        for name in sorted(found.keys() - files.keys()):
            raise Damaged(folder, f"{name} is not in the manifest")
        for name, entry in files.items():
            if name not in found:
                raise Damaged(folder, f"{name} is missing")
            if not found[name].is_file(follow_symlinks=False):
                raise Damaged(folder, f"{name} is not a plain file")
            if (size := found[name].stat().st_size) != entry["size"]:
                raise Damaged(folder, f"{name} has {size} bytes, not {entry['size']}")
    return step, files


def _verify(folder: Path) -> tuple[int, Files]:
    """`_inventory`, and every file has its SHA-256."""
    step, files = _inventory(folder)
    for name, entry in files.items():
        with _failing_media(folder), naming(folder / name), open(folder / name, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                raise Damaged(folder, f"hash mismatch in {name}")
    return step, files


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint whose files have all been verified.

    Attributes:
        path: its folder.
        step: optimiser steps taken when it was saved.
        state: what was given as `state`.
        files: size and SHA-256 of each file.
    """

    path: Path
    step: int
    state: dict[str, Any]
    files: Files = field(repr=False)

    def has(self, name: str) -> bool:
        """Whether there is a group of tensors called `name`."""
        return f"{name}.safetensors" in self.files

    def file(self, name: str) -> Path:
        """The file of a group, to be read elsewhere or carried on by `save_checkpoint`."""
        if not self.has(name):
            groups = ", ".join(file.removesuffix(".safetensors") for file in self.files if file != "state.json")
            raise ValueError(f"{self.path} has no tensors {name!r}; it has: {groups or 'none'}.")
        return self.path / f"{name}.safetensors"

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of a group, on the CPU, from the very bytes whose hash is checked here once more.

        Raises:
            ValueError: there is no such group.
            Damaged: the file has changed since the checkpoint was loaded.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = self.file(name)
        with _failing_media(self.path), naming(path):
            data = path.read_bytes()
        if _entry(data) != self.files[path.name]:
            raise Damaged(self.path, f"hash mismatch in {path.name}")
        try:
            return load(data)
        except (SafetensorError, KeyError) as error:
            raise Damaged(self.path, f"{path.name} is not a safetensors file: {error}") from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint after reading it through once: every file of the manifest is there and intact, and no other.

    Raises:
        Damaged: it is not so; the sentence names the file.
        OSError: it may not be read.
    """
    step, files = _verify(path)
    try:
        state = read_json(path / "state.json")
    except ValueError as error:
        raise Damaged(path, "state.json cannot be read") from error
    if not isinstance(state, dict):
        raise Damaged(path, "state.json is not an object")
    return Checkpoint(path, step, state, files)


def _named_steps(folder: Path) -> list[str]:
    """Names of the checkpoints in a folder, newest first by number."""
    names = [entry.name for entry in os.scandir(folder) if _STEP.fullmatch(entry.name)] if folder.is_dir() else []
    return sorted(names, key=_number, reverse=True)


def _number(name: str) -> int:
    return int(name.removeprefix("step-"))


def _clean(folder: Path) -> None:
    """Delete what a killed writer left, and put back a checkpoint that it had set aside and not yet replaced."""
    for path in folder.glob(".tmp-*"):
        delete(path)
    for path in folder.glob(".replaced-step-*"):
        target = folder / path.name.removeprefix(".replaced-")
        if target.exists():
            delete(path)
        else:
            os.rename(path, target)


def latest_checkpoint(run: Path, *, warn: Callable[[str], None], clean: bool = True) -> Checkpoint | None:
    """The newest whole checkpoint of a run, or None; of damaged ones beyond the one that LATEST names nothing is said.

    Cleaning deletes what a killed writer left in the run folder and its checkpoints, and points LATEST where it would
    have, so it needs `lock(run)` held.

    Args:
        run: the run folder.
        warn: is given one sentence (CK321) for each damaged checkpoint that is passed over.
        clean: whether to clean up first; who only reads does not.

    Raises:
        Damaged: there are checkpoints and none is whole.
    """
    folder = run / "checkpoints"
    if clean:
        _clean(run)
        _clean(folder)
    names, beyond, failures = _named_steps(folder), set[str](), dict[str, str]()
    with suppress(FileNotFoundError, NotADirectoryError, ValueError):
        pointed = read_limited(folder / "LATEST").decode(errors="replace").strip()
        # An unreadable pointer says nothing about the checkpoints, each of which is verified by itself.
        if _STEP.fullmatch(pointed):
            beyond = {name for name in names if _number(name) > _number(pointed)}
            names = sorted({*names, pointed}, key=_number, reverse=True)
    for name in names:
        try:
            found = load_checkpoint(folder / name)
        except Damaged as error:
            failures[name] = error.reason
            continue
        for bad in [bad for bad in failures if bad not in beyond]:
            count = max(0, _number(bad) - found.step)
            steps = f"{count} step{'' if count == 1 else 's'}"
            warn(f"CK321 {bad} is incomplete or damaged ({failures[bad]}). Using {name}; {steps} will be repeated.")
        if clean and name in beyond:
            store.write_text(folder / "LATEST", name + "\n")
        return found
    if failures:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failures.items())
        raise Damaged(folder, f"no checkpoint in it is whole: {reasons}")
    return None


def _refuse_non_finite(group: str, tensors: Mapping[str, Tensor]) -> None:
    import torch

    for name, tensor in tensors.items():
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        # isfinite is missing for some 8-bit floats
        wide = tensor.detach().float() if tensor.element_size() == 1 else tensor.detach()
        if not torch.isfinite(wide).all():
            raise ValueError(f"CK322 {group}: {name} holds NaN or infinity, so no checkpoint is written.")


def serialise(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Tensors as a safetensors file; equal bytes for equal tensors, and metadata of one entry at most."""
    from safetensors.torch import save

    plain: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        # safetensors refuses tensors that share memory (tied weights, views of one buffer)
        plain[name] = value.clone() if place in storages else value
        storages.add(place)
    return save(plain, metadata)


def _encode_state(state: Mapping[str, Any]) -> bytes:
    data = encode(state, indent=1)
    if json.loads(data) != state:
        raise ValueError("The state does not survive JSON: use lists for tuples and strings as keys.")
    return data


def _bring(source: Path, target: Path, entry: dict[str, Any], outlived: list[str]) -> None:
    # Linked only from what is about to go: a bit flipped in a file that two checkpoints share would take both.
    for twin in (target.parents[1] / name / target.name for name in outlived):
        with suppress(OSError):
            if _entry(twin.read_bytes()) == entry:
                store.point(f"before link {target.name}")
                return os.link(twin, target)
    return store.write_new(target, source.read_bytes())


def _carried(source: Path) -> dict[str, Any]:
    """Size and hash of a file as its own checkpoint knows them, so that damage since then is not signed anew."""
    _, files = _read_manifest(source.parent)
    if source.suffix != ".safetensors" or source.name not in files:
        raise ValueError(f"{source} is not a file of tensors in a checkpoint.")
    return files[source.name]


def _publish(temporary: Path, final: Path, files: Files) -> None:
    """Give a complete checkpoint its name, unless an equal one has it."""
    if final.exists():
        with suppress(Damaged):
            if _verify(final)[1] == files:
                return
        # a folder cannot be renamed over another: between the two renames `_clean` knows how to go back
        store.point("before setting aside")
        os.rename(final, final.with_name(f".replaced-{final.name}"))
    store.point("before rename")
    os.rename(temporary, final)
    store.point("after rename")
    sync_folder(final.parent)


def _outlived(folder: Path, step: int, keep: int) -> list[str]:
    """All but the newest `keep` checkpoints up to `step`; folders that lack a file do not count as kept."""
    names = [name for name in _named_steps(folder) if _number(name) <= step]
    while names and keep:
        with suppress(Damaged):
            _inventory(folder / names.pop(0))
            keep -= 1
    return names


def _prune(folder: Path, step: int, keep: int) -> None:
    for name in _outlived(folder, step, keep):
        # first out of sight: a folder half deleted would look like a damaged checkpoint
        store.point(f"before pruning {name}")
        doomed = store.temporary_in(folder)
        os.rename(folder / name, doomed)
        store.point(f"within pruning {name}")
        delete(doomed)
        store.point(f"after pruning {name}")


def save_checkpoint(
    run: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    *,
    carry: Mapping[str, Path] = {},
    keep: int = 2,
) -> Path:
    """Write RUN/checkpoints/step-NNNNNNNNN at once, point LATEST at it and prune; the caller holds `lock(run)`.

    A step that is there already, whole and with equal contents, as when a resumed run comes by again, is kept.

    Args:
        run: the run folder; made when missing.
        step: optimiser steps taken so far.
        tensors: groups of tensors, each written as NAME.safetensors; of any device and layout, sharing memory or not.
        state: whatever else is to be restored; must come back from JSON equal.
        carry: groups to bring along unchanged, NAME to a file of an earlier checkpoint, best of the newest: older ones
            may be pruned. Where a checkpoint that is pruned now holds the same, its file is linked and not copied.
        keep: how many checkpoints are left, this one included; incomplete ones do not count, later steps stay.

    Returns:
        The checkpoint's folder.

    Raises:
        ValueError: a tensor is not finite (CK322), a name or the state cannot be written; nothing has been written.
        Damaged: a carried file, or what was read back, is not what it should be.
        OSError: the disk is full or refuses; the earlier checkpoints and LATEST are as they were, or already new.
    """
    if step < 0 or keep < 1:
        raise ValueError(f"step must be at least 0 and keep at least 1, got {step} and {keep}.")
    for group in (*tensors, *carry):
        if not _GROUP.fullmatch(group) or (group in tensors and group in carry):
            raise ValueError(f"{group!r} must be letters, digits, '.', '_' or '-', and either in tensors or in carry.")
    encoded = _encode_state(state)
    for group, members in tensors.items():
        _refuse_non_finite(group, members)
    brought = {f"{group}.safetensors": source for group, source in carry.items()}
    files = {name: _carried(source) for name, source in brought.items()} | {"state.json": _entry(encoded)}
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:09d}"
    temporary = store.temporary_in(folder)
    try:
        store.point("before the folder")
        temporary.mkdir()
        for group, members in tensors.items():
            data = serialise(members)
            store.write_new(temporary / f"{group}.safetensors", data)
            files[f"{group}.safetensors"] = _entry(data)
        outlived = _outlived(folder, step - 1, keep - 1)
        for name, source in brought.items():
            _bring(source, temporary / name, files[name], outlived)
        store.write_new(temporary / "state.json", encoded)
        store.write_new(temporary / "MANIFEST.json", _manifest(step, files))
        sync_folder(temporary)
        _verify(temporary)
        _publish(temporary, final, files)
    finally:
        _clean(folder)
    store.point("before LATEST")
    store.write_text(folder / "LATEST", final.name + "\n")
    store.point("after LATEST")
    # The checkpoint is there; what cannot be pruned now is left to a later save.
    with suppress(OSError):
        _prune(folder, step, keep)
    return final
