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
import tokenize
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from toughen.data.base import ImageData, Split
from toughen.data.files import write_npz

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
        arrays = _arrays(path)
        data = from_arrays(name, arrays, tuple(str(label) for label in arrays["classes"]))
        data = replace(data, test_part=str(arrays["test_part"]), notes=tuple(map(str, arrays["notes"])))
        return data if data.fingerprint == str(arrays["fingerprint"]) else None
    except DAMAGE:
        return None


def write(path: Path, data: ImageData) -> ImageData:
    """Keep `data` in a cache file, whole or not at all, and return it; where that is impossible, just return it.

    Data that are not decoded are not kept.
    """
    splits = {name: split for name, split in data.splits.items() if isinstance(split, Split)}
    if len(splits) == len(data.splits):
        arrays = {"classes": np.array(data.classes), "fingerprint": np.array(data.fingerprint)}
        arrays |= {"test_part": np.array(data.test_part), "notes": np.array(data.notes, np.str_)}
        for name, split in splits.items():
            arrays |= {f"{name}_images": split.images.numpy(), f"{name}_labels": split.labels.numpy()}
        write_arrays(path, **arrays)
    return data


def read_array(path: Path, name: str, dtype: type, ndim: int) -> np.ndarray | None:
    """An array in a cache file, or None where the file is missing or damaged, or the array of another kind."""
    try:
        array = _arrays(path)[name]
    except DAMAGE:
        return None
    return array if array.dtype == dtype and array.ndim == ndim else None


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Keep arrays in a cache file, as `write` does."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_npz(path, arrays)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    # Opened here, because numpy leaves a damaged file open. Each array's checksum is checked on the way.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        return dict(stored)


def from_arrays(name: str, arrays: dict[str, np.ndarray], classes: tuple[str, ...]) -> ImageData:
    """A data set from arrays `<split>_images` (N, C, H, W) or (N, H, W) uint8 and `<split>_labels` (N,) integers.

    Raises:
        KeyError: there is no test split.
        ValueError: the data contradict themselves.
    """

    def split(part: str) -> Split:
        images = torch.from_numpy(arrays[f"{part}_images"])
        labels = torch.from_numpy(arrays[f"{part}_labels"].astype(np.int64))
        return Split(images if images.ndim == 4 else images[:, None], labels)

    validation = split("validation") if "validation_images" in arrays else None
    test = split("test")
    train = split("train") if "train_images" in arrays else test.take(torch.arange(0))
    return ImageData(name, train, validation, test, classes)
