"""Snow, frost and fog."""

import functools
import math
from importlib import resources

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from toughen.corruptions.base import Generators, Images, to_levels
from toughen.corruptions.filters import along_line, clipped_zoom

PHOTOGRAPHS = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg", "frost6.jpg")
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def grey(planes: NDArray[np.floating]) -> NDArray[np.floating]:
    """(3, ...) -> (1, ...), as the eye weighs red, green and blue."""
    return np.tensordot(LUMA.astype(planes.dtype), planes, 1)[None]


def snow(images: Images, flakes: tuple[float, float, float, float, int, float, float, str], rngs: Generators) -> Images:
    """The image whitens, and a layer of blurred flakes is added, once upright and once turned by 180 degrees."""
    mean, deviation, zoom, threshold, radius, sigma, share, part = flakes
    height, width = images.shape[-2:]
    out = np.empty_like(images)
    for image, target, rng in zip(images, out, rngs, strict=True):
        layer = clipped_zoom(rng.normal(mean, deviation, (height, width)), zoom, part)
        layer[layer < threshold] = 0
        layer = along_line(np.clip(layer, 0, 1), radius, sigma, rng.uniform(-135, -45))
        layer = (np.round(layer[:height, :width] * 255) / 255).astype(np.float32)
        pixels = image.astype(np.float32) / np.float32(255)
        light = grey(pixels) if len(pixels) == 3 else pixels
        pixels = share * pixels + (1 - share) * np.maximum(pixels, light * 1.5 + 0.5)
        target[...] = to_levels(pixels + (layer + layer[::-1, ::-1]))
    return out


def frost(images: Images, mix: tuple[float, float, int, int], rngs: Generators) -> Images:
    """A random part of a photograph of ice on glass is added."""
    clear, ice, stride, count = mix
    channels, height, width = images.shape[1:]
    out = np.empty_like(images)
    for image, target, rng in zip(images, out, rngs, strict=True):
        photograph = ice_on_glass(int(rng.integers(count)), stride, height, width)
        top = rng.integers(photograph.shape[1] - height)
        left = rng.integers(photograph.shape[2] - width)
        crop = photograph[:, top : top + height, left : left + width].astype(np.float32)
        layer = (grey(crop) if channels == 1 else crop) * np.float32(ice)
        layer += image * np.float32(clear)
        target[...] = np.clip(layer, 0, 255, out=layer)
    return out


@functools.lru_cache(maxsize=24)
def ice_on_glass(number: int, stride: int, height: int, width: int) -> Images:
    """One of the six photographs, (3, H', W'), larger than the image on both sides.

    Args:
        number: 0 .. 5.
        stride: 1 enlarges the photograph by 1.1; more takes one pixel of so many, from the middle of each.
        height: of the image.
        width: of the image.
    """
    with (
        resources.as_file(resources.files("toughen.corruptions") / "frost" / PHOTOGRAPHS[number]) as path,
        Image.open(path) as f,
    ):
        pixels = np.asarray(f.convert("RGB")).transpose(2, 0, 1)
    pixels = np.ascontiguousarray(pixels[:, stride // 2 :: stride, stride // 2 :: stride])
    rows, columns = pixels.shape[1:]
    if stride > 1 and rows > height and columns > width:
        return pixels
    # The larger of the two where both are too small, either where it alone is.
    factor = 1.1 * max(1, height / rows, width / columns)
    return enlarged(pixels, math.ceil(rows * factor), math.ceil(columns * factor))


def enlarged(planes: Images, height: int, width: int) -> Images:
    """Cubic interpolation with a = -0.75 in fixed point of 11 bits, edges repeated: OpenCV's for eight bits."""
    rows, row_weights = _cubic(planes.shape[1], height)
    columns, column_weights = _cubic(planes.shape[2], width)
    across = np.zeros((len(planes), planes.shape[1], width), np.int32)
    for index, weight in zip(columns, column_weights, strict=True):
        across += planes[:, :, index] * weight
    # Half of 2^22, so that the shift rounds.
    both = np.full((len(planes), height, width), 1 << 21, np.int32)
    for index, weight in zip(rows, row_weights, strict=True):
        both += across[:, index] * weight[:, None]
    return np.clip(both >> 22, 0, 255).astype(np.uint8)


def _cubic(n: int, size: int) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """Four indices and four weights, in 2048ths, for each of `size` places on a line of `n`."""
    at = ((np.arange(size) + 0.5) * (n / size) - 0.5).astype(np.float32)
    low = np.floor(at)
    t = at - low
    a = np.float32(-0.75)
    weights = np.empty((4, size), np.float32)
    weights[0] = ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a
    weights[1] = ((a + 2) * t - (a + 3)) * t * t + 1
    weights[2] = ((a + 2) * (1 - t) - (a + 3)) * (1 - t) * (1 - t) + 1
    weights[3] = 1 - weights[0] - weights[1] - weights[2]
    indices = np.clip(low.astype(np.intp) + np.arange(-1, 3)[:, None], 0, n - 1)
    return indices, np.rint(weights * 2048).astype(np.int32)


def fog(images: Images, cloud: tuple[float, float], rngs: Generators) -> Images:
    """A random cloud is added, and all is darkened to the brightness that there was."""
    thickness, decay = cloud
    height, width = images.shape[-2:]
    side = 1 << (max(images.shape[1:]) - 1).bit_length()
    clouds = plasma(side, decay, len(images), rngs)[:, None, :height, :width]
    pixels = images / np.float32(255)
    brightest = pixels.max(axis=(1, 2, 3), keepdims=True)
    pixels += np.float32(thickness) * clouds
    pixels *= brightest / (brightest + np.float32(thickness))
    return to_levels(pixels)


def plasma(side: int, decay: float, n: int, rngs: Generators) -> NDArray[np.float32]:
    """Plasma fractals by the diamond-square algorithm, on a torus: (n, side, side) in [0, 1].

    From coarse to fine, the middle of each square and then of each diamond becomes the mean of its four neighbours
    plus noise, whose range shrinks by `decay` from one scale to the next.

    Args:
        side: a power of two.
        decay: > 1.
        n: how many.
        rngs: one generator each.
    """
    noise = np.empty((n, side * side), np.float32)
    for row, rng in zip(noise, rngs, strict=True):
        rng.random(out=row, dtype=np.float32)
    noise *= 2
    noise -= 1
    heights = np.zeros((n, side, side), np.float32)
    step, reach, used = side, 100.0, 0
    while step >= 2:
        half, cells = step // 2, side // step
        corners = heights[:, ::step, ::step]
        draws = noise[:, used : used + 3 * cells * cells].reshape(n, 3, cells, cells) * np.float32(reach * reach)
        used += 3 * cells * cells
        pairs = corners + np.roll(corners, -1, axis=1)
        middles = (pairs + np.roll(pairs, -1, axis=2)) / 4 + draws[:, 0]
        heights[:, half::step, half::step] = middles
        heights[:, ::step, half::step] = (
            middles + np.roll(middles, 1, axis=1) + corners + np.roll(corners, -1, axis=2)
        ) / 4 + draws[:, 1]
        heights[:, half::step, ::step] = (
            middles + np.roll(middles, 1, axis=2) + corners + np.roll(corners, -1, axis=1)
        ) / 4 + draws[:, 2]
        step //= 2
        reach /= decay
    heights -= heights.min(axis=(1, 2), keepdims=True)
    heights /= heights.max(axis=(1, 2), keepdims=True)
    return heights
