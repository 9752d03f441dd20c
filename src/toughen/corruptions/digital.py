"""Elastic deformation, pixelation and JPEG compression."""

from collections.abc import Callable
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from toughen.corruptions.base import Generators, Images, to_levels
from toughen.corruptions.filters import gaussian, sample


def elastic_transform(images: Images, shares: tuple[float, float, float], rngs: Generators) -> Images:
    """Pixels are displaced by a smooth random field, after a random affine map where the constants have one.

    The affine map looks up at exact places; the definition's library rounds them to 1/32 of a pixel.
    """
    strength, width, affine = shares
    height, breadth = images.shape[-2:]
    rows, columns = np.mgrid[:height, :breadth].astype(np.float64)
    out = np.empty_like(images)
    for image, target, rng in zip(images, out, rngs, strict=True):
        pixels = image / 255.0
        if affine:
            pixels = sample(pixels, *affine_places(rows, columns, affine * height, rng), mirror="reflect")
        if strength:
            field = gaussian(
                rng.uniform(-1, 1, (2, height, breadth)), (width * height, width * breadth), mode="reflect", truncate=3
            )
            field *= strength * height
            pixels = sample(pixels, rows + field[0], columns + field[1], mirror="symmetric")
        target[...] = to_levels(pixels)
    return out


def affine_places(
    rows: NDArray[np.float64], columns: NDArray[np.float64], reach: float, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where each pixel of the mapped image comes from: three points around the middle move by up to `reach` pixels."""
    height, width = rows.shape
    x, y, side = height // 2, width // 2, min(height, width) // 3
    # The definition takes rows for columns; on square images, which it is for, that makes no difference.
    before = np.array([[x + side, y + side], [x + side, y - side], [x - side, y - side]], np.float64)
    after = before + rng.uniform(-reach, reach, (3, 2))
    back = np.linalg.solve(np.column_stack([after, np.ones(3)]), before)
    return (
        columns * back[0, 1] + rows * back[1, 1] + back[2, 1],
        columns * back[0, 0] + rows * back[1, 0] + back[2, 0],
    )


def pixelate(images: Images, size: tuple[float, str], rngs: Generators) -> Images:
    """Made smaller by averaging over boxes, then larger again."""
    share, enlarge = size
    height, width = images.shape[-2:]
    small = max(1, int(width * share)), max(1, int(height * share))
    method = Image.Resampling.NEAREST if enlarge == "nearest" else Image.Resampling.BOX
    return through_pillow(images, lambda x: x.resize(small, Image.Resampling.BOX).resize((width, height), method))


def jpeg_compression(images: Images, quality: int, rngs: Generators) -> Images:
    """Through Pillow's JPEG encoder and back; a grey image as a grey JPEG."""

    def coded(image: Image.Image) -> Image.Image:
        file = BytesIO()
        image.save(file, "JPEG", quality=quality)
        file.seek(0)
        return JpegImageFile(file)

    return through_pillow(images, coded)


def through_pillow(images: Images, change: Callable[[Image.Image], Image.Image]) -> Images:
    """Change each image as a Pillow image of its own.

    All are cut from one sheet and pasted into it: the way into Pillow and out of it costs as much as coding a small
    image.
    """
    count, channels, height, width = images.shape
    flat = [images[:, c].reshape(count * height, width) for c in range(channels)]
    # Not `fromarray`, which asks more of an array than coding a small image leaves time for.
    bands = [Image.frombuffer("L", (width, count * height), band, "raw", "L", 0, 1) for band in flat]
    sheet = bands[0].copy() if channels == 1 else Image.merge("RGB", bands)
    if count == 1:
        sheet = change(sheet)
    else:
        for top in range(0, count * height, height):
            sheet.paste(change(sheet.crop((0, top, width, top + height))), (0, top))
    out = np.empty_like(images)
    for channel, band in enumerate("L" if channels == 1 else "RGB"):
        out[:, channel] = np.frombuffer(sheet.tobytes("raw", band), np.uint8).reshape(count, height, width)
    return out
