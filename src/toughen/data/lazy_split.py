"""A split whose images stay encoded where they are, and are decoded when somebody asks for them.

It has the interface of `Split`, so that whoever takes a part, counts, or asks for the pixels need not know which of the
two it holds. Its pixels are those of the centre view; random views are drawn by the batches of training.

    test = LazySplit(found.parts["test"].images, labels, key="...", view=ResizeCrop(224))
    test.take(torch.arange(100)).images              # (100, 3, 224, 224) uint8
"""

import math
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from toughen.data.crops import UNSCALED, ResizeCrop, to_rgb, unscaled
from toughen.data.image_source import ImageSource, holds_pixels
from toughen.errors import UsageError, image_size
from toughen.parallel.ranks import cores

# What Pillow raises on broken images, format by format.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)

CHANNELS = {"L": 1, "RGB": 3}

# Up to so many pixels an image, a thread a core took 1.15 to 1.4 times as long as one (32 and 64 px, two busy cores);
# whether they gain on larger images with cores to spare was not measured.
SMALL = 64 * 64

BLOCK = 4096
"""Images that are read at once where all are wanted."""


@dataclass(frozen=True, eq=False)
class LazySplit:
    """Encoded images and their labels.

    Args:
        encoded: the images, and perhaps others that `rows` leaves out.
        labels: (N,) int64 class indices, or (N, K) float32 probabilities.
        key: what tells `encoded` from all other collections (see `RawDataset.key`).
        view: what the images are made into; None takes them as they are, which must all be of one size and mode, L or
            RGB.
        rows: (N,) int64, which of `encoded` these are; all of them by default.
    """

    encoded: ImageSource
    labels: Tensor
    key: str
    view: ResizeCrop | None = None
    rows: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def __post_init__(self) -> None:
        if not len(self.rows):
            object.__setattr__(self, "rows", torch.arange(len(self.labels)))

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> "LazySplit":
        """The examples at `indices` ((M,) int64, or a mask (N,) bool), in that order."""
        return LazySplit(self.encoded, self.labels[indices], self.key, self.view, self.rows[indices])

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image; as they are, that of the first."""
        if self.view:
            return 3, self.view.size, self.view.size
        with self._opened(0) as image:
            mode, (width, height) = image.mode, image.size
        if mode not in CHANNELS:
            raise UsageError(
                f"{self.name(0)} is of mode {mode}, but images as they are must be {' or '.join(CHANNELS)}; "
                "convert them, or give ",
                image_size(like=224),
                ", which makes all of them RGB of one size.",
            )
        return CHANNELS[mode], height, width

    @cached_property
    def images(self) -> Tensor:
        """(N, C, H, W) uint8: every image in its centre view, decoded once, large ones with a thread a core."""
        pixels = np.empty((len(self), *self.shape), np.uint8)
        if self.reads_pixels:
            for start in range(0, len(self), BLOCK):
                numbers = np.arange(start, min(start + BLOCK, len(self)))
                pixels[numbers[0] : numbers[-1] + 1] = self.read_pixels(numbers).transpose(0, 3, 1, 2)
            return torch.from_numpy(pixels)

        def fill(number: int) -> None:
            pixels[number] = self.decode(number).transpose(2, 0, 1)

        if math.prod(self.shape[1:]) <= SMALL:
            for number in range(len(self)):
                fill(number)
            return torch.from_numpy(pixels)
        # Pillow decodes and resizes photographs outside the interpreter's lock.
        with ThreadPoolExecutor(cores()) as pool:
            for _ in pool.map(fill, range(len(self))):
                pass
        return torch.from_numpy(pixels)

    def float_images(self) -> Tensor:
        """The images as (N, C, H, W) float32 in [0, 1]."""
        return self.images.float().div_(255)

    @property
    def reads_pixels(self) -> bool:
        """Whether images are numbers that are taken as they are: then there is nothing to decode."""
        return self.view is None and holds_pixels(self.encoded)

    def read_pixels(self, numbers: np.ndarray) -> np.ndarray:
        """(n, H, W, C) uint8: the images at `numbers` (n,) at once, where `reads_pixels`.

        Raises:
            ValueError: their file has changed, ends too soon, or cannot be read.
        """
        assert holds_pixels(self.encoded)
        try:
            return self.encoded.read_pixels(self.rows.numpy()[numbers])
        except OSError as error:
            raise _unreadable(self.name(int(numbers[0])), error) from error

    def decode(self, number: int, draw: np.random.Generator | None = None) -> np.ndarray:
        """One image in its centre view or, with a generator, a random one; without a view as it is: (H, W, C) uint8.

        Raises:
            ValueError: the image is broken, or is not like the others; says which file it is.
        """
        with self._opened(number) as image:
            if self.view:
                return self.view.centre(image) if draw is None else self.view.random(image, draw)
            image.load()
        channels, height, width = self.shape
        if (CHANNELS.get(image.mode), *image.size) != (channels, width, height):
            mode = next(mode for mode, count in CHANNELS.items() if count == channels)
            raise UsageError(
                f"{self.name(number)} is {image.mode} of {image.size[0]}x{image.size[1]} pixels, but the first image "
                f"is {mode} of {width}x{height}; bring all images to one mode and size, or give ",
                image_size(like=224),
                ", to crop and resize them.",
            )
        return np.asarray(image).reshape(height, width, channels)

    def check(self, number: int) -> None:
        """Decode one image as cheaply as shows that `decode` can: a JPEG at an eighth of its size.

        Raises:
            ValueError: as for `decode`.
        """
        if self.view is None:
            self.decode(number)
            return
        with self._opened(number) as image:
            image.draft("RGB", (1, 1))
            to_rgb(image).load()

    def name(self, number: int) -> str:
        """Where one image is, for messages."""
        return self.encoded.name(int(self.rows[number]))

    @contextmanager
    def _opened(self, number: int) -> Iterator[Image.Image]:
        """One image; what turns out to be wrong with it is said with its name."""
        name = self.name(number)
        try:
            with self.encoded.open(int(self.rows[number])) as image:
                if image.mode in UNSCALED:
                    raise ValueError(f"{name} {unscaled(image.mode)}.")
                yield image
        except BROKEN as error:
            if type(error) is ValueError and name in str(error):
                raise
            if isinstance(error, OSError) and error.errno is not None:
                # The system's word, unlike Pillow's: the file is gone, or may not or cannot be read.
                raise _unreadable(name, error) from error
            kind = type(error).__name__
            raise ValueError(f"DA412 {name} is a broken image ({kind}); remove or replace it.") from error


def _unreadable(name: str, error: OSError) -> ValueError:
    return ValueError(f"DA412 {name} cannot be read ({error.strerror}); restore or remove it.")
