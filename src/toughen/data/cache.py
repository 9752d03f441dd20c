"""Decoded data sets kept on disk, so that images are decoded once and read back in well under a second.

One uncompressed .npz file a data set, in `$TOUGHEN_CACHE`, else `$XDG_CACHE_HOME/toughen`, else `~/.cache/toughen`. The
file carries the data's fingerprint, which is checked on reading. The cache is a convenience: whatever goes wrong with
it, the data are decoded again.

    path = entry("parquet", key)
    data = read(path, "cifar10") or write(path, decode())
"""

import contextlib
import lzma
import os
import re
import tempfile
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from toughen.data.base import ImageData, Split

# What numpy and zipfile raise on damaged bytes: a header may name another compression, or more memory than there is.
DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    tokenize.TokenError,
    SyntaxError,
    AttributeError,
    OverflowError,
)


def folder() -> Path:
    """Where decoded data are kept."""
    own, xdg = os.environ.get("TOUGHEN_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own)
    # os.path, because Path.expanduser raises where there is no home.
    return Path(xdg or os.path.expanduser("~/.cache")) / "toughen"


def entry(kind: str, key: str) -> Path:
    """The file of a data set of some kind ("parquet", "hub-cifar10"), by a key that says which version of it."""
    return folder() / f"{re.sub('[^A-Za-z0-9-]', '_', kind)}-{re.sub('[^A-Za-z0-9]', '_', key)[:64]}.npz"


def read(path: Path, name: str) -> ImageData | None:
    """The data set in a cache file, or None where the file is missing or damaged.

    Args:
        path: from `entry`.
        name: the name that the data set shall have.
    """
    try:
        # Opened here, because numpy leaves a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
        data = from_arrays(name, arrays, tuple(str(label) for label in arrays["classes"]))
        intact = data.fingerprint == str(arrays["fingerprint"])
    except DAMAGE:
        return None
    return data if intact else None


def write(path: Path, data: ImageData) -> ImageData:
    """Keep `data` in a cache file, whole or not at all, and return it; where that is impossible, just return it.

    Data that are not decoded are not kept.
    """
    splits = {name: split for name, split in data.splits.items() if isinstance(split, Split)}
    if len(splits) == len(data.splits):
        arrays = {"classes": np.array(data.classes), "fingerprint": np.array(data.fingerprint)}
        for name, split in splits.items():
            arrays |= {f"{name}_images": split.images.numpy(), f"{name}_labels": split.labels.numpy()}
        _save(path, arrays)
    return data


def read_images(path: Path) -> torch.Tensor | None:
    """The images (N, C, H, W) uint8 of an extra set in a cache file, or None where it is missing or damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            # The archive's checksum is checked on the way.
            images = stored["images"]
    except DAMAGE:
        return None
    return torch.from_numpy(images) if images.dtype == np.uint8 and images.ndim == 4 else None


def write_images(path: Path, images: torch.Tensor) -> None:
    """Keep the images of an extra set in a cache file, as `write` does."""
    _save(path, {"images": images.numpy()})


def read_marks(path: Path) -> np.ndarray | None:
    """The marks (N,) bool in a cache file, or None where it is missing or damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            marks = stored["marks"]
    except DAMAGE:
        return None
    return marks if marks.dtype == bool and marks.ndim == 1 else None


def write_marks(path: Path, marks: np.ndarray) -> None:
    """Keep marks in a cache file, as `write` does."""
    _save(path, {"marks": marks})


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".part", delete=False) as file:
            part = Path(file.name)
            try:
                np.savez(file, allow_pickle=False, **arrays)
                file.close()
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)


def from_arrays(name: str, arrays: dict[str, np.ndarray], classes: tuple[str, ...]) -> ImageData:
    """A data set from arrays `<split>_images` (N, C, H, W) or (N, H, W) uint8 and `<split>_labels` (N,) integers.

    Raises:
        KeyError: there is no training or no test split.
        ValueError: the data contradict themselves.
    """

    def split(part: str) -> Split:
        images = torch.from_numpy(arrays[f"{part}_images"])
        labels = torch.from_numpy(arrays[f"{part}_labels"].astype(np.int64))
        return Split(images if images.ndim == 4 else images[:, None], labels)

    validation = split("validation") if "validation_images" in arrays else None
    return ImageData(name, split("train"), validation, split("test"), classes)
