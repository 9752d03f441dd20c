"""Gaussian, shot, impulse and speckle noise.

Each value of each channel draws for itself. Draws are in single precision and on the scale of grey levels: both change
the result with a probability of about 1e-7 a value.
"""

import functools

import numpy as np
from numpy.typing import NDArray

from toughen.corruptions.base import ROUND_TRIP, Generators, Images


def gaussian_noise(images: Images, deviation: float, rngs: Generators) -> Images:
    """x + n, n normal with the same standard deviation everywhere."""
    out = np.empty_like(images)
    for image, target, rng in zip(images, out, rngs, strict=True):
        noise = rng.standard_normal(image.shape, np.float32)
        noise *= np.float32(255 * deviation)
        noise += image
        target[...] = np.clip(noise, 0, 255, out=noise)
    return out


def speckle_noise(images: Images, deviation: float, rngs: Generators) -> Images:
    """x + x n, n normal: noise that grows with brightness."""
    out = np.empty_like(images)
    for image, target, rng in zip(images, out, rngs, strict=True):
        noise = rng.standard_normal(image.shape, np.float32)
        noise *= np.float32(deviation)
        noise += 1
        noise *= image
        target[...] = np.clip(noise, 0, 255, out=noise)
    return out


def shot_noise(images: Images, photons: int, rngs: Generators) -> Images:
    """k / photons, k Poisson with mean x photons: what a sensor counts that is full at `photons`.

    A pixel's grey level has one of 256 distributions, so that draws come from tables (Walker's alias method): a random
    column of the level's table holds two outcomes, and the column's threshold decides between them.
    """
    threshold, first, second = poisson_tables(photons)
    columns = threshold.shape[1]
    bits = columns.bit_length() - 1
    out = np.empty_like(images)
    for image, target, rng in zip(images, out, rngs, strict=True):
        draw = rng.integers(0, 1 << 32, image.shape, np.uint32)
        column = draw & np.uint32(columns - 1)
        place = (image.astype(np.uint32) << np.uint32(bits)) + column
        draw >>= np.uint32(bits)
        low = draw < threshold.take(place)
        target[...] = np.where(low, first.take(column), second.take(place))
    return out


@functools.cache
def poisson_tables(photons: int) -> tuple[NDArray[np.uint32], Images, Images]:
    """Alias tables of min(Poisson(level / 255 x photons), photons) for all grey levels.

    Returns:
        Thresholds (256, K) in units of K / 2^32, K a power of two; grey levels (K,) below them, (256, K) above.
    """
    from scipy import special

    columns = 1 << photons.bit_length()
    counts = np.arange(photons + 1)
    rates = np.arange(256)[:, None] / 255.0 * photons
    chance = np.zeros((256, columns))
    chance[:, : photons + 1] = np.exp(special.xlogy(counts, rates) - rates - special.gammaln(counts + 1))
    # All that would be brighter than white is white.
    chance[:, photons] = special.gammainc(photons, rates[:, 0])
    chance *= columns / chance.sum(axis=1, keepdims=True)
    share, other = np.ones_like(chance), np.tile(np.arange(columns), (256, 1))
    rows = np.arange(256)
    poor = chance.copy()
    for _ in range(columns - 1):
        # The emptiest column is filled up by the fullest and is done.
        least, most = poor.argmin(axis=1), chance.argmax(axis=1)
        share[rows, least], other[rows, least] = np.minimum(chance[rows, least], 1), most
        chance[rows, most] -= 1 - share[rows, least]
        poor[rows, most] = chance[rows, most]
        poor[rows, least], chance[rows, least] = np.inf, -np.inf
    levels = (np.minimum(np.arange(columns) / float(photons), 1) * 255).astype(np.uint8)
    return (share * (2**32 // columns)).astype(np.uint32), levels, levels[other]


def impulse_noise(images: Images, share: float, rngs: Generators) -> Images:
    """A share of the values is lost: half of them become black, half white."""
    out = ROUND_TRIP[images]
    for target, rng in zip(out, rngs, strict=True):
        draw = rng.random(target.shape, np.float32)
        target[draw < share / 2] = 0
        target[draw >= 1 - share / 2] = 255
    return out
