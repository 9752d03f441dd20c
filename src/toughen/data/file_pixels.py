"""Images that stay in a file, as numbers that are not compressed: read row by row when somebody asks for them.

They are not mapped into memory: what is read and let go is the system's to keep, a file that is cut short is an error
and not the end of the process, and a file that was changed meanwhile is noticed.

    images = FilePixels("1m.npz", start=250, shape=(1_000_000, 32, 32, 3), ...)
    images.read_pixels(np.array([17, 3]))                       # (2, 32, 32, 3) uint8: 6 KiB are read
"""

import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from PIL import Image

from toughen.data.image_source import ArrayImages, PixelSource


@dataclass(frozen=True, eq=False)
class FilePixels:
    """An array of images in a file.

    Args:
        path: the file.
        start: where in it the numbers begin, in bytes.
        shape: of the array: (N, H, W, C), (N, C, H, W) or (N, H, W), uint8.
        fortran: whether the first axis runs fastest and not the last; then it is mapped, for its rows lie in pieces.
        channels_last: whether a fourth axis is the channels.
        where: what the array is called in messages.
        changed: when the file was last changed, in nanoseconds.
    """

    path: str
    start: int
    shape: tuple[int, ...]
    fortran: bool
    channels_last: bool
    where: str
    changed: int

    def __len__(self) -> int:
        return self.shape[0]

    def read_pixels(self, rows: np.ndarray) -> np.ndarray:
        """(n, H, W, C) uint8: the images at `rows` (n,), read from the file.

        Raises:
            ValueError: the file has changed, or ends too soon.
            OSError: it cannot be read.
        """
        with open(self.path, "rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_mtime_ns != self.changed:
                raise ValueError(f"{self.path} was changed while it is used; restore it, or begin anew.")
            if self.fortran:
                pixels = np.array(np.memmap(file, np.uint8, "r", self.start, self.shape, "F")[rows])
            else:
                pixels = np.empty((len(rows), *self.shape[1:]), np.uint8)
                self._read(file, rows, pixels)
        if pixels.ndim == 3:
            return pixels[..., None]
        return pixels if self.channels_last else pixels.transpose(0, 2, 3, 1)

    def _read(self, file: io.FileIO, rows: np.ndarray, pixels: np.ndarray) -> None:
        size = math.prod(self.shape[1:])
        # Rows that lie one after the other are one stretch.
        ends = [*(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)] if len(rows) else []
        for begin, end in pairwise([0, *ends]):
            file.seek(self.start + int(rows[begin]) * size)
            left = pixels[begin:end].reshape(-1).data
            while left.nbytes:
                if not (count := file.readinto(left)):
                    raise ValueError(f"{self.path} ends before all of {self.where}; fetch it again.")
                left = left[count:]

    def open(self, number: int) -> Image.Image:
        """One image, of mode L or RGB."""
        return ArrayImages(self.read_pixels(np.array([number]))).open(0)

    def name(self, number: int) -> str:
        """Its place."""
        return f"image {number} of {self.where}"


@dataclass(frozen=True, eq=False)
class JoinedPixels:
    """Several arrays of images, one after the other.

    Args:
        parts: the arrays, of images of one size.
    """

    parts: Sequence[PixelSource]

    @cached_property
    def ends(self) -> np.ndarray:
        """How many images there are up to the end of each part."""
        return np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def read_pixels(self, rows: np.ndarray) -> np.ndarray:
        """(n, H, W, C) uint8: the images at `rows` (n,), each part read once.

        Raises:
            ValueError, OSError: as for `FilePixels.read_pixels`.
        """
        which = np.searchsorted(self.ends, rows, side="right")
        pixels = np.empty((len(rows), *self.parts[0].read_pixels(rows[:0]).shape[1:]), np.uint8)
        for number in np.unique(which):
            chosen = which == number
            pixels[chosen] = self.parts[number].read_pixels(rows[chosen] - self._before(number))
        return pixels

    def open(self, number: int) -> Image.Image:
        """One image."""
        part, row = self._place(number)
        return part.open(row)

    def name(self, number: int) -> str:
        """Its place."""
        part, row = self._place(number)
        return part.name(row)

    def _place(self, number: int) -> tuple[PixelSource, int]:
        which = int(np.searchsorted(self.ends, number, side="right"))
        return self.parts[which], number - self._before(which)

    def _before(self, which: int) -> int:
        return int(self.ends[which - 1]) if which else 0
