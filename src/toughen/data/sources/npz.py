"""Images in numpy's .npz files.

Such a file holds uint8 images, (N, H, W, C), (N, C, H, W) or (N, H, W), and integer labels (N,) by names like
`train_images` and `train_labels`, `x_train` and `y_train`, or `image` and `label` alone, which is one part, as are the
two that numpy calls `arr_0` and `arr_1`; `classes` may name the classes. No pickled object is ever read. Images that
are not compressed stay in the file until they are asked for; compressed ones are read whole, or, where that is too much
for memory, unpacked once (`data.unpacked`).

    found = find_npz(Path("1m.npz"))
"""

import contextlib
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from toughen.data import decode
from toughen.data.cache import DAMAGE
from toughen.data.file_pixels import FilePixels
from toughen.data.files import LARGE, SPLITS, files_keys, split_of, unreadable, what_it_is
from toughen.data.image_source import ArrayImages, Collection, RawDataset
from toughen.data.unpacked import Member, unpack, unpacked
from toughen.storage.limits import check_zip, shown

KINDS = {
    "image": ("image", "images", "img", "imgs", "x", "data"),
    "label": ("label", "labels", "y", "target", "targets"),
    "probabilities": ("probabilities",),
}


def find_npz(path: Path, *, unlabelled: bool = False, one_of_many: bool = False) -> RawDataset:
    """The images and labels in an .npz file.

    Args:
        path: the file.
        unlabelled: whether labels may be missing; they are -1 then.
        one_of_many: whether it belongs to others that are large together: then it is not read whole, and has no key.

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
            if not one_of_many and path.stat().st_size < LARGE and (bad := archive.testzip()):
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
        images = _images(path, names["image"], unpack_all=one_of_many)
        if part == "train" and not len(images):
            raise ValueError(f"{names['image']} in {path} holds no images; give a file with some.")
        labels = _labels(path, names, len(images), unlabelled)
        parts[part] = Collection(images, labels)
    classes = tuple(str(name) for name in _array(path, "classes")) if "classes" in members else ()
    return RawDataset(path.stem, parts, classes, "" if one_of_many else files_keys({"npz": path}, "npz")[0])


def compressed_images(path: Path) -> list[Member]:
    """The arrays of images in a file that are compressed; none where it is no archive, as `find_npz` will say."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    except DAMAGE:
        return []
    images = [members[kinds["image"]] for kinds in _by_part(path, list(members)).values()]
    return [(path, info) for info in images if info.compress_type != zipfile.ZIP_STORED]


def _by_part(path: Path, members: list[str]) -> dict[str, dict[str, str]]:
    """By split and kind ("image", "label", "probabilities"), the arrays' names."""
    found: dict[str, dict[str, str]] = {}
    if set(members) == {"arr_0", "arr_1"}:
        # What np.savez makes of arrays without names, in the order in which everybody gives them.
        return {"train": {"image": "arr_0", "label": "arr_1"}}
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
    if not found:
        raise ValueError(
            f"{path} holds {shown(members) or 'no array'}, but no images; call the arrays train_images and "
            "train_labels, x_train and y_train, or image and label."
        )
    return found


def _images(path: Path, member: str, *, unpack_all: bool) -> ArrayImages | FilePixels:
    where = f"{member} in {path}"
    with _opened(path, member) as (file, info):
        shape, fortran, dtype = _header(path, member, file, info.file_size)
        header = file.tell()
    if dtype != np.uint8:
        scaled = "if they are in [0, 1], save (images * 255).round().astype('uint8')"
        remedy = scaled if dtype.kind == "f" else "convert them"
        raise ValueError(f"{where} is {dtype}, but images must be uint8; {remedy}.")
    last = _channels_last(shape, where)
    stored = info.compress_type == zipfile.ZIP_STORED
    if not stored and not unpack_all and info.file_size <= decode.IN_MEMORY:
        pixels = _array(path, member)
        # (N, H, W, C) from any of the three forms, not copied.
        pixels = pixels[..., None] if pixels.ndim == 3 else pixels if last else pixels.transpose(0, 2, 3, 1)
        return ArrayImages(pixels, where)
    if not stored:
        unpack([(path, info)])
    place = path if stored else unpacked(path, info)
    start = header + (_content(path, info) if stored else 0)
    return FilePixels(str(place), start, shape, fortran, last, where, place.stat().st_mtime_ns)


def _content(path: Path, info: zipfile.ZipInfo) -> int:
    """Where in an archive the bytes of a member begin."""
    with path.open("rb") as file:
        # The local header of a zip member is 30 bytes, its name and its extra field, whose length only it knows.
        file.seek(info.header_offset + 26)
        name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    return info.header_offset + 30 + name + extra


def _labels(path: Path, names: dict[str, str], n: int, unlabelled: bool) -> np.ndarray:
    if "probabilities" in names:
        labels = _array(path, names["probabilities"])
        if labels.ndim != 2 or labels.dtype.kind != "f":
            raise ValueError(
                f"{names['probabilities']} in {path} is {labels.dtype} of shape {labels.shape}, but must be floats of "
                "shape (N, K)."
            )
        labels = labels.astype(np.float32, copy=False)
    elif "label" in names:
        labels = _array(path, names["label"])
        labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise ValueError(
                f"{names['label']} in {path} is {labels.dtype} of shape {labels.shape}, but must be class indices, "
                "integers of shape (N,)."
            )
        labels = labels.astype(np.int64, copy=False)
    elif unlabelled:
        labels = np.full(n, -1)
    else:
        raise ValueError(f"{path} holds {names['image']} without labels; add the labels to the file.")
    if len(labels) != n:
        raise ValueError(f"{path} holds {n} images and {len(labels)} labels of one part; give one label an image.")
    return labels


def _array(path: Path, member: str) -> np.ndarray:
    """A whole array, its checksum checked."""
    with _opened(path, member) as (file, info):
        _header(path, member, file, info.file_size)
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)


@contextlib.contextmanager
def _opened(path: Path, member: str) -> Iterator[tuple[Any, zipfile.ZipInfo]]:
    """An array's file in an archive, and what the archive says of it; damage is said with both names."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{member}.npy") as file:
            yield file, archive.getinfo(f"{member}.npy")
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


def _channels_last(shape: tuple[int, ...], where: str) -> bool:
    """Whether the channels are the last axis and not the second."""
    if len(shape) == 3:
        return True
    last, second = (len(shape) == 4 and shape[axis] in (1, 3) for axis in (-1, 1))
    if last == second:
        raise ValueError(
            f"{where} is of shape {shape}, but must be (N, H, W, C), (N, C, H, W) or (N, H, W) with 1 or 3 channels"
            f"{', and not so small that both fit' if last else ''}; {'reshape' if len(shape) < 3 else 'transpose'} it."
        )
    return last
