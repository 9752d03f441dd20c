"""The published corrupted test sets: CIFAR-10-C and CIFAR-100-C, which are arrays, and ImageNet-C, JPEG files.

Hendrycks & Dietterich (2019) published the images that they measured on. They are read as they are, never resized, and
only those that are asked for. Their order must be that of the test images, which their labels tell.

    published = open_published(Path("CIFAR-10-C"), test.labels)
    published.names                                      # the corruptions that are there
    published.take("fog", 3, torch.arange(100)).images   # (100, 3, 32, 32) uint8
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from toughen.corruptions import CORRUPTIONS, SEVERITIES
from toughen.data.base import Split
from toughen.data.lazy_split import LazySplit
from toughen.data.sources.image_folder import FileImages
from toughen.settings import known

LABELS = "labels.npy"
ENDINGS = (".jpeg", ".jpg", ".png")


def open_published(folder: Path, labels: Tensor | None = None) -> "Published":
    """The published set in a folder.

    Args:
        folder: of `NAME.npy` files (uint8, (5 n, H, W, C), the five severities one after another) with `labels.npy`, or
            of `NAME/SEVERITY/CLASS/*.JPEG`, whose classes are numbered in the order of their folders' names.
        labels: (m,) int64, classes of the first m test images, where they are known. JPEG files may be in the order of
            the class folders or in that of the file names, whichever gives these labels.

    Raises:
        ValueError: the folder holds no such set, it is damaged, or it is in another order than the test images.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give the unpacked folder of CIFAR-10-C, CIFAR-100-C or ImageNet-C.")
    arrays = tuple(name for name in CORRUPTIONS if (folder / f"{name}.npy").is_file())
    if arrays:
        return _open_arrays(folder, arrays, labels)
    names = tuple(name for name in CORRUPTIONS if (folder / name).is_dir())
    if names:
        return _open_files(folder, names, labels)
    raise ValueError(
        f"{folder} holds neither NAME.npy files, as CIFAR-10-C does, nor NAME/SEVERITY/CLASS folders, as ImageNet-C "
        f"does; NAME is one of {', '.join(CORRUPTIONS)}."
    )


@dataclass(frozen=True, eq=False)
class PublishedArrays:
    """CIFAR-10-C or CIFAR-100-C: n images for every corruption and severity, in one order.

    Args:
        folder: where it is.
        names: the corruptions that are there, in the papers' order.
        labels: class indices (n,) int64.
    """

    folder: Path
    names: tuple[str, ...]
    labels: Tensor

    def take(self, name: str, severity: int, rows: Tensor) -> Split:
        """Some images of a corruption and severity: rows (M,) int64 of the n.

        Raises:
            ValueError: the corruption is not there, or its images are not what they must be; names the file.
        """
        _check_cell(self, name, severity)
        path, n = self.folder / f"{name}.npy", len(self.labels)
        array = _pixels(path)
        per_severity = len(array) // len(SEVERITIES)
        if per_severity < n:
            raise ValueError(
                f"{path} holds {per_severity} images a severity, but there are labels for {n}; fetch the file again."
            )
        pixels = np.asarray(array[(severity - 1) * per_severity + rows.numpy()])
        return Split(torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))), self.labels[rows])


@dataclass(frozen=True, eq=False)
class PublishedFiles:
    """ImageNet-C (folder, names and labels as in `PublishedArrays`).

    Args:
        files: `CLASS/FILE` of every image, the same under every corruption and severity.
        checked: corruptions and severities of which it is known that they hold these files.
    """

    folder: Path
    names: tuple[str, ...]
    labels: Tensor
    files: tuple[str, ...]
    checked: set[Path] = field(default_factory=set)

    def take(self, name: str, severity: int, rows: Tensor) -> Split:
        """See `PublishedArrays.take`."""
        _check_cell(self, name, severity)
        cell = self.folder / name / str(severity)
        if cell not in self.checked:
            self._check_files(cell)
        found = LazySplit(FileImages(str(cell), self.files), self.labels, key=str(cell)).take(rows)
        return Split(found.images, found.labels)

    def _check_files(self, cell: Path) -> None:
        there = set(_listing(cell))
        for lost, what in ((set(self.files) - there, "lacks"), (there - set(self.files), "alone holds")):
            if lost:
                raise ValueError(
                    f"{cell} {what} {min(lost)}; every corruption and severity must hold the same {len(self.files)} "
                    "images: unpack the set again."
                )
        self.checked.add(cell)


Published = PublishedArrays | PublishedFiles
"""A published set of images, in either layout."""


def _check_cell(published: Published, name: str, severity: int) -> None:
    """Refuse a corruption that is not there, or a severity other than 1 to 5."""
    known(name, CORRUPTIONS, "corruption")
    if name not in published.names:
        raise ValueError(f"{published.folder} has no {name}; it has {', '.join(published.names)}.")
    if severity not in SEVERITIES:
        raise ValueError(f"severity is {severity}; it must be 1, 2, 3, 4 or 5.")


def _open_arrays(folder: Path, names: tuple[str, ...], labels: Tensor | None) -> PublishedArrays:
    path = folder / LABELS
    if not path.is_file():
        if labels is None:
            raise ValueError(f"{folder} has no {LABELS}; copy it from the published set, or give the test labels.")
        return PublishedArrays(folder, names, labels)
    found = _loaded(path)
    fives = len(SEVERITIES)
    if found.ndim != 1 or found.dtype.kind not in "iu" or not len(found) or len(found) % fives:
        raise ValueError(
            f"{path} is {found.dtype} of shape {found.shape}, but must hold whole numbers, the classes of the images "
            "five times over; fetch the file again."
        )
    every = found.astype(np.int64).reshape(fives, -1)
    if (every != every[0]).any():
        raise ValueError(f"{path} has other labels at one severity than at another; fetch the file again.")
    published = torch.from_numpy(every[0].copy())
    if labels is not None:
        _check_order(published, labels, path)
    return PublishedArrays(folder, names, published)


def _open_files(folder: Path, names: tuple[str, ...], labels: Tensor | None) -> PublishedFiles:
    cells = (folder / name / str(severity) for name in names for severity in SEVERITIES)
    first = next((cell for cell in cells if cell.is_dir()), None)
    listing = _listing(first) if first is not None else []
    if not listing:
        raise ValueError(f"{first or folder / names[0] / '1'} holds no CLASS/*.JPEG; unpack the published set there.")
    number = {name: place for place, name in enumerate(sorted({file.partition("/")[0] for file in listing}))}

    def classes(files: Iterable[str]) -> Tensor:
        return torch.tensor([number[file.partition("/")[0]] for file in files], dtype=torch.int64)

    by_name = sorted(listing, key=lambda file: file.partition("/")[2])
    n = 0 if labels is None else len(labels)
    in_order = (files for files in (listing, by_name) if labels is None or torch.equal(classes(files[:n]), labels))
    files = next(in_order, listing)
    if labels is not None:
        _check_order(classes(files), labels, folder)
    return PublishedFiles(folder, names, classes(files), tuple(files))


def _check_order(published: Tensor, labels: Tensor, where: Path) -> None:
    """Refuse labels that are not those of the first test images."""
    if len(published) < len(labels):
        raise ValueError(
            f"{where} has {len(published)} images a severity, but there are {len(labels)} test images; give the "
            "corrupted set of these images, or a limit."
        )
    other = (published[: len(labels)] != labels).nonzero()
    if len(other):
        row = int(other[0])
        raise ValueError(
            f"{where} says that image {row} is of class {int(published[row])}, but the test image {row} is of class "
            f"{int(labels[row])}; give the corrupted set of these test images, in their order."
        )


def _listing(cell: Path) -> list[str]:
    """`CLASS/FILE` of every image, in the order of the class folders, then of the file names."""
    try:
        folders = sorted(entry.name for entry in os.scandir(cell) if entry.is_dir())
    except OSError:
        raise ValueError(f"{cell} is no folder of class folders; unpack the published set again.") from None
    return [
        f"{name}/{file}"
        for name in folders
        for file in sorted(os.listdir(cell / name))
        if file.lower().endswith(ENDINGS) and not file.startswith(".")
    ]


def _pixels(path: Path) -> np.ndarray:
    array = _loaded(path)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] not in (1, 3) or len(array) % len(SEVERITIES):
        raise ValueError(
            f"{path} is {array.dtype} of shape {array.shape}, but must be uint8 of shape (5 n, H, W, 3), the n images "
            "at severity 1, then 2, to 5; fetch the file again."
        )
    return array


def _loaded(path: Path) -> np.ndarray:
    """An array, memory-mapped; never a pickle."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is no whole .npy file of numbers ({error}); fetch it again.") from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"{path} is an archive, but must be a single array; unpack it.")
    return array
