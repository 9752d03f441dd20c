"""How photographs of any size become tensors of one size: random crops for training, the centre for everything else.

The two customary forms: training takes a random part of the image, of random area and shape, and resizes it (Szegedy
et al. 2015, "Going deeper with convolutions", section 6, with the area and shapes of the usual ImageNet recipes);
testing resizes the short side and takes the centre. Everything is Pillow's: JPEG draft mode where the file is much
larger than the result, bilinear resizing with antialiasing, RGB whatever the file's mode; grey of 16 bits is brought to
8, and floats and whole numbers of 32 bits, whose white is not known, are refused. EXIF rotation is not applied.

    view = ResizeCrop(224)
    view.centre(image)                               # (224, 224, 3) uint8
    view.random(image, np.random.default_rng(derive(seed, "crop", epoch, index)))
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

SHAPES = (3 / 4, 4 / 3)
"""Width over height of a random crop."""

TRIES = 10

UNSCALED = ("I", "F")
"""Pillow's modes of which nobody knows which number is white."""


@dataclass(frozen=True)
class ResizeCrop:
    """Images of one size from images of any size.

    Args:
        size: side of the square result in pixels.
        resize: side to which the short side is resized before the centre is taken; None for 8/7 of `size`, as 256 goes
            with 224.
        area: the least share of the image's area that a random crop covers; 0.08 is ImageNet's, more is gentler.

    Raises:
        ValueError: `resize` is less than `size`, or `area` is not in (0, 1].
    """

    size: int
    resize: int | None = None
    area: float = 0.08

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size is {self.size}, but images need at least one pixel; give 224 or the like.")
        if self.resize is not None and self.resize < self.size:
            raise ValueError(f"resize is {self.resize}, less than size {self.size}; give at least the size.")
        if not 0 < self.area <= 1:
            raise ValueError(f"area is {self.area:g}, but must be a share of the image in (0, 1], like 0.08.")

    @property
    def key(self) -> str:
        """What hashes of data say of it, which must not change with the name of this class."""
        return f"View(size={self.size!r}, resize={self.resize!r}, area={self.area!r})"

    @property
    def short_side(self) -> int:
        """What the short side is resized to before the centre is taken."""
        return self.resize or round(self.size * 8 / 7)

    def centre(self, image: Image.Image) -> np.ndarray:
        """The short side resized to `short_side`, and the centre: (size, size, 3) uint8."""
        # Twice the size, so that the resizing that counts is Pillow's and not the decoder's.
        scale = self.short_side / min(image.size)
        width, height = (round(side * scale) for side in image.size)
        image.draft("RGB", (2 * width, 2 * height))
        resized = to_rgb(image).resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        return np.asarray(resized.crop((left, top, left + self.size, top + self.size)))

    def random(self, image: Image.Image, draw: np.random.Generator) -> np.ndarray:
        """A random part, resized: (size, size, 3) uint8, a pure function of the image and the generator's state."""
        left, top, width, height = self.box(image.size, draw)
        full = image.size
        image.draft("RGB", _draft_size(full, (width, height), self.size))
        across, down = image.size[0] / full[0], image.size[1] / full[1]
        # Cut off at the border, beyond which rounding may point.
        right, bottom = min((left + width) * across, image.size[0]), min((top + height) * down, image.size[1])
        box = (left * across, top * down, right, bottom)
        return np.asarray(to_rgb(image).resize((self.size, self.size), Image.Resampling.BILINEAR, box=box))

    def box(self, size: tuple[int, int], draw: np.random.Generator) -> tuple[int, int, int, int]:
        """Left, top, width and height of a random part: area uniform in [`area`, 1], shape log-uniform in 3:4 to 4:3.

        A part that does not fit is drawn again, ten times; then it is the largest centred one of an allowed shape.
        """
        width, height = size
        low, high = (math.log(shape) for shape in SHAPES)
        for area, shape in zip(draw.uniform(self.area, 1, TRIES), np.exp(draw.uniform(low, high, TRIES)), strict=True):
            w = round(math.sqrt(width * height * area * shape))
            h = round(math.sqrt(width * height * area / shape))
            if 0 < w <= width and 0 < h <= height:
                return int(draw.integers(width - w + 1)), int(draw.integers(height - h + 1)), w, h
        shape = min(max(width / height, SHAPES[0]), SHAPES[1])
        w, h = min(width, round(height * shape)), min(height, round(width / shape))
        return (width - w) // 2, (height - h) // 2, w, h


def _draft_size(full: tuple[int, int], part: tuple[int, int], size: int) -> tuple[int, int]:
    """How large a draft of the whole image must be for the part to have `size` pixels in it, and some to spare."""
    scale = max(size / part[0], size / part[1])
    return max(1, math.ceil(full[0] * scale)), max(1, math.ceil(full[1] * scale))


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB, 8 bits a channel; grey of 16 bits is divided by 257 and rounded, so that white stays white.

    Raises:
        ValueError: it holds floats or whole numbers of 32 bits.
    """
    if image.mode in UNSCALED:
        raise ValueError(f"The image {unscaled(image.mode)}.")
    if image.mode.startswith("I;16"):
        # Pillow's own conversion cuts everything above 255 off.
        deep = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((deep + 128) // 257).astype(np.uint8))
    # `convert` would copy an image that is RGB already.
    return image if image.mode == "RGB" else image.convert("RGB")


def unscaled(mode: str) -> str:
    """What is wrong with an image of such a mode, and the remedy."""
    kind = "floats" if mode == "F" else "whole numbers of 32 bits"
    return f"is of {kind} (mode {mode}), of which nothing says which number is white; save it with 8 bits a channel"
