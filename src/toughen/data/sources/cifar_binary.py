"""CIFAR's binary files: data_batch_1.bin to data_batch_5.bin and test_batch.bin, or CIFAR-100's train.bin and test.bin.

A record is the label (in CIFAR-100 the coarse and the fine one, of which the fine one is taken) and 3,072 bytes, red,
green, blue, row by row (Krizhevsky 2009, the data's page). The classes' names are read from batches.meta.txt or
fine_label_names.txt.

    found = find_binary(Path("cifar-10-batches-bin"))
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toughen.data.files import files_keys, unreadable
from toughen.data.image_source import ArrayImages, Collection, RawDataset

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class BinaryLayout:
    """Which files make a data set, and what a record begins with.

    Args:
        train: the training files.
        test: the test file.
        names: the file with a class's name a line.
        labels: bytes before the pixels; the last one is the label.
        classes: how many classes there are.
    """

    train: tuple[str, ...]
    test: str
    names: str
    labels: int
    classes: int


CIFAR10 = BinaryLayout(tuple(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin", "batches.meta.txt", 1, 10)
CIFAR100 = BinaryLayout(("train.bin",), "test.bin", "fine_label_names.txt", 2, 100)


def layout_of(folder: Path) -> BinaryLayout | None:
    """The layout of which a folder holds a training file, or None."""
    return next((kind for kind in (CIFAR10, CIFAR100) if any((folder / name).exists() for name in kind.train)), None)


def find_binary(folder: Path) -> RawDataset:
    """The images and labels in a folder of CIFAR's binary files.

    Raises:
        ValueError: a file is missing or is not made of whole records; says which.
    """
    layout = layout_of(folder)
    assert layout
    parts = {"train": [folder / name for name in layout.train], "test": [folder / layout.test]}
    read = {part: np.concatenate([_records(path, layout) for path in paths]) for part, paths in parts.items()}
    names = folder / layout.names
    classes = tuple(names.read_text().split()) if names.exists() else ()
    files = {f"{part}/{path.name}": path for part, paths in parts.items() for path in paths}
    key, keys = files_keys(files, "binary", classes)
    collections = {part: _collection(records, layout, str(folder), keys[part]) for part, records in read.items()}
    return RawDataset(folder.resolve().name, collections, classes, key)


def _collection(records: np.ndarray, layout: BinaryLayout, where: str, key: str) -> Collection:
    pixels = records[:, layout.labels :].reshape(-1, *SHAPE).transpose(0, 2, 3, 1)
    return Collection(ArrayImages(pixels, where), records[:, layout.labels - 1].astype(np.int64), key)


def _records(path: Path, layout: BinaryLayout) -> np.ndarray:
    if not path.exists():
        raise ValueError(f"{path.parent} is not complete: {path.name} is missing; fetch it.")
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise unreadable(path, error) from error
    length = layout.labels + PIXELS
    if not len(content) or len(content) % length:
        raise ValueError(
            f"{path} has {len(content)} bytes, which are no whole records of {length}; fetch the file again."
        )
    records = content.reshape(-1, length)
    labels = records[:, layout.labels - 1]
    if len(outside := (labels >= layout.classes).nonzero()[0]):
        raise ValueError(
            f"Record {outside[0]} of {path} has label {labels[outside[0]]}, but its {layout.classes} classes allow 0 "
            f"to {layout.classes - 1}; fetch the file again, or take the record out."
        )
    return records
