"""Images as they lie in files, tables, archives or arrays: opened one by one, when somebody asks for one.

What a source finds is a `RawDataset`: its parts (train, validation, test), each a `Collection` of encoded images and
their labels. From there `data.load` makes a data set that is decoded once and kept in memory, or one that is streamed.

    found = RawDataset("pets", {"train": Collection(ArrayImages(pixels), labels)}, ("cat", "dog"), key="...")
    found.parts["train"].images.open(17)                     # a PIL image
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeGuard

import numpy as np
from PIL import Image


class ImageSource(Protocol):
    """Some images that can be opened by number, in any order and from any process: picklable and without state.

    Those whose bytes cannot change unnoticed may say so with a property `sources`: the files that the images are read
    from, none where they are in memory. Then it is remembered which of them were found whole (`data.integrity`).
    """

    def __len__(self) -> int:
        """How many there are."""
        ...

    def open(self, number: int) -> Image.Image:
        """One image: its header read, its pixels perhaps not yet, so that a JPEG's draft mode is still possible.

        Raises:
            ValueError: its header cannot be read.
        """
        ...

    def name(self, number: int) -> str:
        """Where one image is, for messages: its file, or its place in a table or archive."""
        ...


class PixelSource(ImageSource, Protocol):
    """Images that are numbers already, so that many are read at once and none can be broken."""

    def read_pixels(self, rows: np.ndarray, /) -> np.ndarray:
        """(n, H, W, C) uint8: the images at `rows` (n,), in that order."""
        ...


def holds_pixels(source: ImageSource) -> TypeGuard[PixelSource]:
    """Whether images are numbers already."""
    return hasattr(source, "read_pixels")


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Images that are decoded already.

    Args:
        pixels: (N, H, W, C) uint8 with C = 1 or 3.
        where: what the array is called in messages.
    """

    pixels: np.ndarray
    where: str = "the array"

    def __len__(self) -> int:
        return len(self.pixels)

    def read_pixels(self, rows: np.ndarray) -> np.ndarray:
        """(n, H, W, C) uint8: the images at `rows` (n,)."""
        return self.pixels[rows]

    def open(self, number: int) -> Image.Image:
        """One image, of mode L or RGB."""
        pixels = self.pixels[number]
        return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)

    def name(self, number: int) -> str:
        """Its place."""
        return f"image {number} of {self.where}"


@dataclass(frozen=True, eq=False)
class Collection:
    """The images and labels of one part of a source.

    Args:
        images: N encoded images.
        labels: (N,) int64 class indices; -1 where there is none, which only an extra set may hold. Or (N, K) float32
            probabilities, likewise.
        key: what tells this part from all others, where its source can tell; else the source's key is taken.
    """

    images: ImageSource
    labels: np.ndarray
    key: str = ""


@dataclass(frozen=True, eq=False)
class RawDataset:
    """What a source holds, before anything is decoded.

    Args:
        name: what the data are called in tables and run folders.
        parts: by name, "train", "validation" and "test", those that there are.
        classes: names of the classes, in the order of their indices; empty where the source does not say, and then they
            are called by their numbers.
        key: what tells these data from all others, made from the contents of small sources, and from names and sizes of
            the files of large ones (see the source).
        notes: what was done to read them, for the user.
    """

    name: str
    parts: Mapping[str, Collection]
    classes: tuple[str, ...]
    key: str
    notes: tuple[str, ...] = ()
