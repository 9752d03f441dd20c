"""Images in numpy's .npz files.

Such a file holds uint8 images, (N, H, W, C), (N, C, H, W) or (N, H, W), and integer labels (N,) by names like
`train_images` and `train_labels`, `x_train` and `y_train`, or `image` and `label` alone, which is one part; `classes`
may name the classes. No pickled object is ever read. Images that are not compressed stay in the file until they are
asked for.

    found = find_npz(Path("1m.npz"))
"""

import functools
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from toughen.data.cache import DAMAGE
from toughen.data.files import LARGE, SPLITS, files_keys, split_of, unreadable, what_it_is
from toughen.data.image_source import ArrayImages, Collection, RawDataset
from toughen.storage.limits import check_zip, shown

KINDS = {
    "image": ("image", "images", "x", "data"),
    "label": ("label", "labels", "y", "target", "targets"),
    "probabilities": ("probabilities",),
}


@dataclass(frozen=True, eq=False)
class NpzImages:
    """Images in an uncompressed .npz file, mapped into memory by each process when it first asks.

    Args:
        path: the file.
        member: the name of the array in it.
        changed: when the file was last changed, in nanoseconds.
    """

    path: str
    member: str
    changed: int

    @property
    def pixels(self) -> np.ndarray:
        """(N, H, W, C) uint8."""
        return _mapped(self.path, self.member, self.changed)

    def __len__(self) -> int:
        return len(self.pixels)

    def open(self, number: int) -> Image.Image:
        """One image, of mode L or RGB."""
        return ArrayImages(self.pixels, self.path).open(number)

    def name(self, number: int) -> str:
        """Its place."""
        return f"image {number} of {self.member} in {self.path}"


def find_npz(path: Path, *, unlabelled: bool = False) -> RawDataset:
    """The images and labels in an .npz file.

    Args:
        path: the file.
        unlabelled: whether labels may be missing; they are -1 then.

    Raises:
        ValueError: the file is something else or damaged, or its arrays are not what they must be; says which.
    """
    try:
        check_zip(path)
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            # The checksums; nobody waits for those of many gigabytes.
            if path.stat().st_size < LARGE and (bad := archive.testzip()):
                raise zipfile.BadZipFile(bad)
    except DAMAGE as error:
        kind = what_it_is(path)
        kind = "a damaged .npz file" if kind == "a zip archive" else kind
        raise ValueError(f"{path} is {kind}, not a whole .npz file of numpy's; fetch or write it again.") from error
    by_part = _by_part(path, members)
    parts = {}
    for part in SPLITS:
        if part not in by_part:
            continue
        names = by_part[part]
        images = _images(path, names["image"])
        if part == "train" and not len(images):
            raise ValueError(f"{names['image']} in {path} holds no images; give a file with some.")
        labels = _labels(path, names, len(images), unlabelled)
        parts[part] = Collection(images, labels)
    classes = tuple(str(name) for name in _array(path, "classes")) if "classes" in members else ()
    return RawDataset(path.stem, parts, classes, files_keys({"npz": path}, "npz")[0])


def _by_part(path: Path, members: list[str]) -> dict[str, dict[str, str]]:
    """By split and kind ("image", "label", "probabilities"), the arrays' names."""
    found: dict[str, dict[str, str]] = {}
    for member in members:
        words = member.lower().split("_")
        kind = next((kind for kind, names in KINDS.items() for word in words if word in names), None)
        rest = [word for word in words if kind and word not in KINDS[kind]]
        part = "train" if not rest else split_of(rest[0]) if len(rest) == 1 else None
        if kind is None or part is None:
            continue
        if kind in found.setdefault(part, {}):
            raise ValueError(
                f"{path} holds {found[part][kind]} and {member}, which both say {part} {kind}; leave one of them out."
            )
        found[part][kind] = member
    found = {part: names for part, names in found.items() if "image" in names}
    if "train" not in found:
        raise ValueError(
            f"{path} holds {shown(members) or 'no array'}, but no training images; call the arrays train_images "
            "and train_labels, x_train and y_train, or image and label."
        )
    return found


def _images(path: Path, member: str) -> ArrayImages | NpzImages:
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"{member}.npy")
        with archive.open(info) as file:
            shape, _, dtype = _header(path, member, file, info.file_size)
    if dtype != np.uint8:
        scaled = "if they are in [0, 1], save (images * 255).round().astype('uint8')"
        remedy = scaled if dtype.kind == "f" else "convert them"
        raise ValueError(f"{member} in {path} is {dtype}, but images must be uint8; {remedy}.")
    _channels_last(shape, f"{member} in {path}")
    if info.compress_type == zipfile.ZIP_STORED:
        return NpzImages(str(path), member, path.stat().st_mtime_ns)
    return ArrayImages(_in_channels_last(_array(path, member), f"{member} in {path}"), f"{member} in {path}")


def _labels(path: Path, names: dict[str, str], n: int, unlabelled: bool) -> np.ndarray:
    if "probabilities" in names:
        labels = _array(path, names["probabilities"])
        if labels.ndim != 2 or labels.dtype.kind != "f":
            raise ValueError(
                f"{names['probabilities']} in {path} is {labels.dtype} of shape {labels.shape}, but must be floats of "
                "shape (N, K)."
            )
        labels = labels.astype(np.float32)
    elif "label" in names:
        labels = _array(path, names["label"])
        labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise ValueError(
                f"{names['label']} in {path} is {labels.dtype} of shape {labels.shape}, but must be class indices, "
                "integers of shape (N,)."
            )
        labels = labels.astype(np.int64)
    elif unlabelled:
        labels = np.full(n, -1)
    else:
        raise ValueError(f"{path} holds {names['image']} without labels; add the labels to the file.")
    if len(labels) != n:
        raise ValueError(f"{path} holds {n} images and {len(labels)} labels of one part; give one label an image.")
    return labels


def _array(path: Path, member: str) -> np.ndarray:
    """A whole array, its checksum checked."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{member}.npy") as file:
            _header(path, member, file, archive.getinfo(f"{member}.npy").file_size)
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)
    except DAMAGE as error:
        if type(error) is ValueError and str(path) in str(error):
            raise
        raise ValueError(f"{member} in {path} is damaged ({type(error).__name__}); fetch the file again.") from error


def _header(path: Path, member: str, file: Any, size: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran's order, and type of an array, from the beginning of its file of so many bytes."""
    try:
        read = np.lib.format.read_array_header_1_0
        if np.lib.format.read_magic(file) != (1, 0):
            read = np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except DAMAGE as error:
        raise ValueError(f"{member} in {path} is damaged ({type(error).__name__}); fetch the file again.") from error
    if dtype.hasobject:
        raise ValueError(
            f"{member} in {path} is an array of Python objects, which are never read; save it as an array of numbers."
        )
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"{member} in {path} is damaged (its shape is {shape}); fetch the file again.")
    return shape, fortran, dtype


@functools.lru_cache(maxsize=16)
def _mapped(path: str, member: str, changed: int) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"{member}.npy")
        with archive.open(info) as file:
            shape, fortran, _ = _header(Path(path), member, file, info.file_size)
            offset = file.tell()
    with open(path, "rb") as file:
        # The local header of a zip member is 30 bytes, its name and its extra field, whose length only it knows.
        file.seek(info.header_offset + 26)
        name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    start = info.header_offset + 30 + name + extra + offset
    pixels = np.memmap(path, np.uint8, "r", start, shape, "F" if fortran else "C")
    return _in_channels_last(pixels, path)


def _channels_last(shape: tuple[int, ...], where: str) -> bool:
    """Whether the channels are the last axis and not the second."""
    if len(shape) == 3:
        return True
    last, second = (len(shape) == 4 and shape[axis] in (1, 3) for axis in (-1, 1))
    if last == second:
        raise ValueError(
            f"{where} is of shape {shape}, but must be (N, H, W, C), (N, C, H, W) or (N, H, W) with 1 or 3 channels"
            f"{', and not so small that both fit' if last else ''}; transpose it."
        )
    return last


def _in_channels_last(pixels: np.ndarray, where: str) -> np.ndarray:
    """(N, H, W, C) from any of the three forms, not copied."""
    if pixels.ndim == 3:
        return pixels[..., None]
    return pixels if _channels_last(pixels.shape, where) else pixels.transpose(0, 2, 3, 1)
