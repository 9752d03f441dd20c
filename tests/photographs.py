"""Small JPEG photographs of different sizes, and the `Encoded` of their files."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from toughen.data.crops import ResizeCrop
from toughen.data.lazy_split import LazySplit


@dataclass(frozen=True)
class Files:
    """Images in files of their own."""

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, number: int) -> Image.Image:
        return Image.open(self.paths[number])

    def name(self, number: int) -> str:
        return str(self.paths[number])


def photograph(number: int, width: int, height: int) -> Image.Image:
    """A smooth colour image that differs from number to number."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3)).astype(np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def write_photographs(folder: Path, n: int) -> Files:
    """n files: JPEGs of several sizes and shapes, a grey one and a CMYK one, and a PNG among them."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(n):
        image = photograph(number, 40 + 7 * (number % 5), 30 + 11 * (number % 4))
        suffix, mode = {3: ("png", "RGB"), 5: ("jpg", "L"), 6: ("jpg", "CMYK")}.get(number, ("jpg", "RGB"))
        paths.append(folder / f"{number:03}.{suffix}")
        image.convert(mode).save(paths[-1])
    return Files(tuple(paths))


def stored_photographs(folder: Path, n: int = 23, view: ResizeCrop | None = ResizeCrop(16)) -> LazySplit:  # noqa: B008
    """They as a split with 7 classes."""
    return LazySplit(write_photographs(folder, n), torch.arange(n) % 7, "photographs", view)
