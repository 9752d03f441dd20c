"""Bounds on files from strangers, looked at before a library believes what their headers say. No torch.

    check_zip(Path("images.npz"))                     # no bomb, and no directory of a million entries
    check_safetensors(Path("model.safetensors"))      # no header that takes longer to read than the weights

Whatever passes is about as much work as it is large. What is no zip archive or no safetensors file passes too: the
library that reads it says so.
"""

import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path

DIRECTORY = 2**24
"""Bytes of a zip archive's directory: some 200,000 names."""

HEADER = 2**22
"""Bytes of the header of a safetensors file: some 40,000 tensors."""

FREE = 2**26
"""Bytes that an archive may unpack to however small it is: labels sorted by class shrink a thousandfold."""

RATIO = 100
"""Beyond that, how many times its own size."""

_END, _LOCATOR, _END64 = (b"PK\5\6", 22), (b"PK\6\7", 20), (b"PK\6\6", 56)


def check_zip(path: Path, *, free: int = FREE, ratio: int = RATIO) -> None:
    """Refuse a zip archive that is small and would become very large, or has more members than anybody writes.

    Args:
        path: the file.
        free: bytes that it may unpack to in any case.
        ratio: and otherwise this many times its size.

    Raises:
        ValueError: says which; or an OSError of reading the file.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 2**16 - 100))
        directory = _directory(file.read())
    if directory > DIRECTORY:
        raise ValueError(
            f"{path} lists {directory:,} bytes of names, more than any archive of arrays; it is not opened."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error):
        return
    unpacked = sum(member.file_size for member in members)
    if unpacked > max(free, ratio * size):
        raise ValueError(
            f"{path} has {size:,} bytes and would unpack to {unpacked:,}, as bombs do; it is not opened. Where you "
            "made it yourself, save it without compression."
        )


def _directory(tail: bytes) -> int:
    """Bytes of an archive's directory, from the archive's end as `zipfile` reads it; 0 for what is no archive."""
    (sign, length), (locates, before), (sign64, length64) = _END, _LOCATOR, _END64
    at = len(tail) - length
    if not (tail[at:].startswith(sign) and tail.endswith(b"\0\0")):
        at = tail.rfind(sign)
    if at < 0 or len(tail) < at + length:
        return 0
    at64 = at - before - length64
    if tail[at - before :].startswith(locates) and at64 >= 0 and tail[at64:].startswith(sign64):
        return struct.unpack_from("<Q", tail, at64 + 40)[0]
    return struct.unpack_from("<I", tail, at + 12)[0]


def check_safetensors(path: Path) -> None:
    """Refuse a safetensors file whose header is longer than those of real models.

    Raises:
        ValueError: it is; or an OSError of reading the file.
    """
    with path.open("rb") as file:
        start = file.read(9)
        beyond = file.seek(0, 2) < HEADER
    # Another first byte than that of JSON is no header's, and what is shorter is damaged: the library says so.
    if len(start) == 9 and start[8:] == b"{" and not beyond and (length := struct.unpack("<Q", start[:8])[0]) > HEADER:
        raise ValueError(
            f"{path} begins with a header of {length:,} bytes, where {HEADER:,} are allowed; fetch it again"
        )


def shown(names: Iterable[object], limit: int = 8) -> str:
    """A few names out of a file, for a message: none can end the line, command a terminal or fill the screen."""
    texts = [str(name) for name in names]
    some = [text if text.isprintable() and len(text) <= 80 else ascii(text)[:80] for text in texts[:limit]]
    return ", ".join(some) + (f" and {len(texts) - limit} more" if len(texts) > limit else "")
