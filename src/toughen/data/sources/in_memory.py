"""Data sets of Python: anything with a length and items, or images and labels side by side.

data = from_pairs("mine", (images, labels), (test_images, test_labels))
data = from_pairs("theirs", their_train, their_test, classes=("cat", "dog"))     # items (image, label)
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from toughen.data.base import ImageData
from toughen.data.crops import ResizeCrop
from toughen.data.decode import make_image_data
from toughen.data.image_source import ArrayImages, Collection, ImageSource, RawDataset
from toughen.models.inputs import as_labels


class Items(Protocol):
    """A map-style data set, as torch and its relatives call it."""

    def __len__(self) -> int:
        """How many items there are."""
        ...

    def __getitem__(self, number: int, /) -> Any:
        """An image and its label; the image is Pillow's, a uint8 tensor (C, H, W), or an array (H, W, C) or (H, W)."""
        ...


Pairs = Items | tuple[Any, Any]
"""A data set of (image, label) items, or a tuple of images and labels: tensors, arrays, sequences."""


@dataclass(frozen=True, eq=False)
class ItemImages:
    """Images that a sequence gives out one by one.

    Args:
        items: images, or tuples that begin with one.
        where: what they are called in messages.
    """

    items: Any
    where: str

    def __len__(self) -> int:
        return len(self.items)

    def open(self, number: int) -> Image.Image:
        """One image."""
        item = self.items[number]
        return _image(item[0] if isinstance(item, tuple | list) else item, self.name(number))

    def name(self, number: int) -> str:
        """Its place."""
        return f"Example {number} of {self.where}"


def from_pairs(
    name: str,
    train: Pairs,
    test: Pairs | None = None,
    classes: Sequence[str] | None = None,
    validation: Pairs | None = None,
    *,
    view: ResizeCrop | None = None,
) -> ImageData:
    """A data set from Python objects, with the rules of `toughen.data.decode` for what is missing.

    A map-style data set must give the same item for the same number each time, so no random augmentation. Its items
    are read once for their labels; a tuple (images, labels) of sequences spares that.

    Args:
        name: what the data are called in tables and run folders.
        train: (image, label) items; or a tuple of images and labels, of which the images are a uint8 tensor
            (N, C, H, W), a uint8 array (N, H, W, C) or (N, H, W), or a sequence of images.
        test: likewise; None sets a fifth of train aside.
        classes: names of the classes; their numbers by default.
        validation: likewise; None draws validation images from train.
        view: what the images are made into when they are asked for; None takes them as they are, into memory.

    Returns:
        The data set. Of images that stay where they are (with a view, or above 4 GiB) the fingerprint is made from name
        and labels, and of tensors and arrays the pixels too.

    Raises:
        ValueError: an image is not uint8, or the parts contradict one another.
    """
    given = {"train": train, "validation": validation, "test": test}
    there = {part: pairs for part, pairs in given.items() if pairs is not None}
    parts = {part: _collection(f"the {part} split of {name}", pairs) for part, pairs in there.items()}
    digest = hashlib.sha256(name.encode())
    for part, collection in parts.items():
        digest.update(f"{part}{collection.labels.shape}".encode() + collection.labels.tobytes())
        if isinstance(collection.images, ArrayImages):
            digest.update(np.ascontiguousarray(collection.images.pixels).data)
    return make_image_data(RawDataset(name, parts, tuple(classes or ()), digest.hexdigest()), view)


def _collection(where: str, pairs: Pairs) -> Collection:
    if not isinstance(pairs, tuple):
        items = ItemImages(pairs, where)
        return Collection(items, _labels([pairs[number][1] for number in range(len(pairs))], len(pairs), where))
    if len(pairs) != 2:
        raise ValueError(f"T{where[1:]} is a tuple of {len(pairs)}, but must be one of images and labels; give both.")
    images, labels = pairs
    numbers = hasattr(images, "dtype")
    encoded: ImageSource = ArrayImages(_pixels(images, where), where) if numbers else ItemImages(images, where)
    return Collection(encoded, _labels(labels, len(encoded), where))


def _labels(labels: Any, n: int, where: str) -> np.ndarray:
    if not n:
        return np.zeros(0, np.int64)
    try:
        return as_labels(labels, n).cpu().numpy()
    except ValueError as error:
        raise ValueError(f"T{where[1:]}: {error}.") from None


def _pixels(images: Any, where: str) -> np.ndarray:
    """(N, H, W, C) uint8 from a tensor (N, C, H, W) or an array (N, H, W, C) or (N, H, W)."""
    tensor = isinstance(images, Tensor)
    array = images.cpu().numpy() if tensor else np.asarray(images)
    if array.dtype != np.uint8:
        raise ValueError(
            f"The images of {where} are {array.dtype}, but must be uint8; convert floats in [0, 1] by "
            "(images * 255).round() and then to uint8."
        )
    array = array.transpose(0, 2, 3, 1) if tensor and array.ndim == 4 else array
    array = array[..., None] if not tensor and array.ndim == 3 else array
    if array.ndim != 4 or array.shape[-1] not in (1, 3):
        raise ValueError(
            f"The images of {where} are of shape {tuple(images.shape)}, but must be (N, C, H, W) in a tensor, and "
            "(N, H, W, C) or (N, H, W) in an array, with 1 or 3 channels; transpose them."
        )
    return array


def _image(image: Any, where: str) -> Image.Image:
    if isinstance(image, Image.Image):
        # A copy, because a view asks an image for a draft of itself, and the data set may keep this one.
        return image.copy()
    if not hasattr(image, "dtype"):
        kind = type(image).__name__
        raise ValueError(f"{where} is of type {kind}, but must be a PIL image or uint8 numbers; convert it.")
    return ArrayImages(_pixels(image[None], where)).open(0)
