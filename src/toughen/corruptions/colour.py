"""Brightness and saturation, through HSV, and contrast.

Everything is in double precision and in the order in which scikit-image computes, so that the truncation to grey
levels falls on the same side.
"""

import numpy as np
from numpy.typing import NDArray

from toughen.corruptions.base import Generators, Images, to_levels

Plane = NDArray[np.float64]
# Which of (value, middle, least) the red, green and blue of each sixth of the hue circle are.
SECTORS = np.array([[0, 1, 2], [1, 0, 2], [2, 0, 1], [2, 1, 0], [1, 2, 0], [0, 2, 1]])


def brightness(images: Images, added: float, rngs: Generators) -> Images:
    """A constant is added to the value in HSV; to the image itself where it is grey."""
    pixels = images / 255.0
    if images.shape[1] == 1:
        return to_levels(np.clip(pixels + added, 0, 1))
    sector, part, saturation, value = hsv(pixels)
    return rgb(sector, part, saturation, np.clip(value + added, 0, 1))


def saturate(images: Images, change: tuple[float, float], rngs: Generators) -> Images:
    """The saturation in HSV is multiplied and moved; a grey image has none and stays as it is."""
    factor, added = change
    pixels = images / 255.0
    if images.shape[1] == 1:
        return to_levels(pixels)
    sector, part, saturation, value = hsv(pixels)
    return rgb(sector, part, np.clip(saturation * factor + added, 0, 1), value)


def contrast(images: Images, factor: float, rngs: Generators) -> Images:
    """The distance from the channel's mean over the image shrinks."""
    levels = np.arange(256) / 255.0
    out = np.empty_like(images)
    for image, target in zip(images, out, strict=True):
        # Summed pixel after pixel, as a mean over the first two axes of (H, W, C) is.
        means = (levels[image].reshape(len(image), -1).cumsum(axis=1)[:, -1] / image[0].size)[:, None]
        table = to_levels((levels - means) * factor + means)
        for channel, plane in enumerate(image):
            target[channel] = table[channel][plane]
    return out


def hsv(pixels: NDArray[np.float64]) -> tuple[NDArray[np.intp], Plane, Plane, Plane]:
    """(N, 3, H, W) in [0, 1] -> four (N, H, W): sixth of the hue circle, place within it, saturation, value."""
    red, green, blue = np.moveaxis(pixels, 1, 0)
    value = np.maximum(np.maximum(red, green), blue)
    spread = value - np.minimum(np.minimum(red, green), blue)
    colourless = spread == 0
    over = np.where(colourless, 1.0, spread)
    # Of two channels that are equally bright, the later one says the hue.
    hue = np.where(
        blue == value,
        4.0 + (red - green) / over,
        np.where(green == value, 2.0 + (blue - red) / over, (green - blue) / over),
    )
    hue[colourless] = 0
    hue /= 6.0
    # Not numpy's remainder, which is slow: the hue lies in (-1/6, 5/6].
    hue[hue < 0] += 1.0
    hue *= 6
    sector = np.floor(hue)
    hue -= sector
    saturation = spread / np.where(value == 0, 1.0, value)
    return sector.astype(np.intp) % 6, hue, saturation, value


def rgb(sector: NDArray[np.intp], part: Plane, saturation: Plane, value: Plane) -> Images:
    """The way back, to grey levels (N, 3, H, W)."""
    least = value * (1 - saturation)
    middle = value * (1 - np.where(sector % 2 == 1, part, 1 - part) * saturation)
    ranked = (to_levels(value), to_levels(middle), to_levels(least))
    out = np.empty((len(value), 3, *value.shape[1:]), np.uint8)
    for channel in range(3):
        out[:, channel] = np.choose(SECTORS[:, channel][sector], ranked)
    return out
