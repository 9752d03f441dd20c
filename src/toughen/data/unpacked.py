"""Compressed arrays that are too large for memory, unpacked once into the cache, from where rows are read.

The space that this takes is said first, and looked for. What is there is whole: an array is written under another name,
its checksum compared, and renamed; one process does it while others wait.

    unpack([(path, info)])
    unpacked(path, info)                                 # $TOUGHEN_CACHE/unpacked/1m-image-0f3a....npy
"""

import hashlib
import shutil
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from toughen.data.cache import DAMAGE, folder
from toughen.progress import Notice
from toughen.storage import files

Member = tuple[Path, zipfile.ZipInfo]
"""An archive and what is in it of an array."""

SPARE = 2**28
"""Bytes that are left free."""

BLOCK = 2**24


def unpacked(path: Path, member: zipfile.ZipInfo) -> Path:
    """The file that an array of an archive is unpacked to, whether it is there or not.

    It is called by what is in it, as far as the archive's directory says, so that a changed archive is unpacked anew
    and a moved one is not.
    """
    mark = hashlib.sha256(f"{member.filename} {member.CRC} {member.compress_size} {member.file_size}".encode())
    name = f"{path.stem}-{Path(member.filename).stem}-{mark.hexdigest()[:16]}.npy"
    return folder() / "unpacked" / name


def unpack(members: Sequence[Member]) -> None:
    """Unpack what is not there yet.

    Warns:
        Notice: before anything is written, how much it takes and how much is free.

    Raises:
        ValueError: the disk has not so much space or cannot be written, or an array is damaged.
    """
    home = folder() / "unpacked"
    if all(unpacked(*member).is_file() for member in members):
        return
    first = members[0][0]
    try:
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / ".lock"):
            for left in home.glob(".tmp-*"):
                # Of a process that was killed, for nobody else holds the lock.
                files.delete(left)
            missing = [member for member in members if not unpacked(*member).is_file()]
            if missing:
                _tell(missing, home)
            for path, member in missing:
                _unpack_one(path, member)
    except OSError as error:
        raise ValueError(
            f"{first} is compressed and too large for memory, and cannot be unpacked into {home} ({error.strerror}); "
            f"{REMEDY}."
        ) from error


REMEDY = (
    "set the environment variable TOUGHEN_CACHE to a folder on a disk with more room, or save the arrays without "
    "compression (numpy.savez)"
)


def _tell(missing: Sequence[Member], home: Path) -> None:
    """Say how much will be written, or refuse where it cannot be."""
    needed, free = sum(member.file_size for _, member in missing), shutil.disk_usage(home).free
    paths = list(dict.fromkeys(path for path, _ in missing))
    what = f"{paths[0]} is" if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} other files are"
    if needed + SPARE > free:
        raise ValueError(
            f"{what} compressed and too large for memory: unpacked it takes {_size(needed)}, and {home} has "
            f"{_size(free)} free; {REMEDY}."
        )
    warnings.warn(
        f"{what} compressed and too large for memory: unpacked once, into {home}, which takes {_size(needed)} of the "
        f"{_size(free)} that are free there and some minutes",
        Notice,
        stacklevel=2,
    )


def _unpack_one(path: Path, member: zipfile.ZipInfo) -> None:
    def write(temporary: Path) -> None:
        # To the end, where the checksum is compared.
        with zipfile.ZipFile(path) as archive, archive.open(member) as source, temporary.open("wb") as file:
            shutil.copyfileobj(source, file, BLOCK)

    try:
        files.replace_by(unpacked(path, member), write)
    except OSError:
        raise
    except DAMAGE as error:
        name = member.filename.removesuffix(".npy")
        raise ValueError(f"{name} in {path} is damaged ({type(error).__name__}); fetch the file again.") from error


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
