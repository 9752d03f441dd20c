"""Defocus, glass, motion, zoom and Gaussian blur."""

import functools
from typing import cast

import numpy as np
from numpy.typing import NDArray

from toughen.corruptions.base import Generators, Images, to_levels
from toughen.corruptions.filters import along_line, clipped_zoom, gaussian

# Fourier coefficients at once: more of them leave the cache, and the transform takes twice as long.
TRANSFORMED = 1 << 15


def gaussian_blur(images: Images, sigma: float, rngs: Generators) -> Images:
    """A Gaussian; edges are repeated."""
    return to_levels(gaussian(images / 255.0, sigma))


def defocus_blur(images: Images, disk: tuple[float, float], rngs: Generators) -> Images:
    """A disk with a soft edge, as an open aperture draws a point; the image is mirrored at its edges.

    The convolution goes through Fourier space, exact to about 1e-13 of a level.
    """
    from scipy import fft

    height, width = images.shape[-2:]
    margin = len(disk_kernel(*disk)) // 2
    first = 2 * margin
    # The cast, since the analyser reads None out of SciPy here.
    high, wide = (cast("int", fft.next_fast_len(side + first, real=True)) for side in (height, width))
    response = disk_response(*disk, high, wide)
    planes = images.reshape(-1, height, width)
    out = np.empty_like(planes)
    step = max(1, TRANSFORMED // response.size)
    # As large as the transform, which would copy it to that size otherwise, twice.
    padded = np.zeros((step, high, wide))
    for start in range(0, len(planes), step):
        block = slice(start, start + step)
        chosen = padded[: len(planes[block])]
        mirror_into(chosen, planes[block], margin)
        # One axis at a time: the two-dimensional inverse takes twice as long.
        spectrum = np.asarray(fft.fft(fft.rfft(chosen), axis=-2, overwrite_x=True))
        # Real and imaginary parts alike.
        spectrum.view(np.float64)[...] *= response
        rows = np.asarray(fft.ifft(spectrum, axis=-2, overwrite_x=True))[:, margin : margin + height]
        # Below 0 and above 255 by rounding at most, which the truncation takes away.
        out[block] = np.asarray(fft.irfft(rows, wide))[..., margin : margin + width]
    return out.reshape(images.shape)


def mirror_into(padded: NDArray[np.float64], planes: Images, margin: int) -> None:
    """Write planes (N, H, W) into the corner of `padded`, with `margin` pixels mirrored at the edge on each side.

    What `np.pad` does, which takes as long as a third of a transform.
    """
    height, width = planes.shape[-2:]
    rows, columns = mirrored_places(height, margin), mirrored_places(width, margin)
    inner = padded[:, margin : margin + height]
    inner[..., margin : margin + width] = planes
    inner[..., :margin] = planes[..., columns[:margin]]
    inner[..., margin + width : width + 2 * margin] = planes[..., columns[margin + width :]]
    padded[:, :margin] = inner[:, rows[:margin]]
    padded[:, margin + height : height + 2 * margin] = inner[:, rows[margin + height :]]


@functools.lru_cache(maxsize=64)
def mirrored_places(length: int, margin: int) -> NDArray[np.int64]:
    """(length + 2 margin,): which place of an axis each place of the mirrored one shows."""
    return np.pad(np.arange(length), margin, mode="reflect")


@functools.lru_cache(maxsize=16)
def disk_response(radius: float, softness: float, height: int, width: int) -> NDArray[np.float64]:
    """(height, width + 1 or 2): the disk in Fourier space, each value twice.

    It is symmetric, so that correlation and convolution are one, and real around its centre.
    """
    kernel = disk_kernel(radius, softness).astype(np.float64)
    plane = np.zeros((height, width))
    plane[: len(kernel), : len(kernel)] = kernel
    centred = np.roll(plane, (-(len(kernel) // 2), -(len(kernel) // 2)), (0, 1))
    return np.repeat(np.fft.rfft2(centred).real, 2, axis=1)


@functools.cache
def disk_kernel(radius: float, softness: float) -> NDArray[np.float32]:
    """(K, K), sums to about 1: a disk of whole pixels, smoothed by 3 or 5 taps of a Gaussian of width `softness`."""
    side = 8 if radius <= 8 else int(radius)
    reach = 1 if radius <= 8 else 2
    y, x = np.mgrid[-side : side + 1, -side : side + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.float32)
    disk /= disk.sum()
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * softness**2))
    weights = (weights / weights.sum()).astype(np.float32)
    # Rows, then columns, each product and sum rounded once, as the processor's fused operation does.
    for _ in range(2):
        padded = np.pad(disk, ((0, 0), (reach, reach)), mode="reflect")
        shifted = [padded[:, i : i + len(disk)] for i in range(2 * reach + 1)]
        smooth = shifted[reach] * weights[reach]
        for i in range(1, reach + 1):
            pair = (shifted[reach - i] + shifted[reach + i]).astype(np.float64)
            smooth = (pair * weights[reach + i] + smooth).astype(np.float32)
        disk = np.ascontiguousarray(smooth.T)
    # Far out the Gaussian leaves weights of 1e-22.
    margin = int(np.flatnonzero(disk.max(axis=0) > 1e-12)[0])
    return disk[margin : len(disk) - margin, margin : len(disk) - margin]


def glass_blur(images: Images, glass: tuple[float, int, int], rngs: Generators) -> Images:
    """A blur, pixels that take the colour of a neighbour, and the blur again.

    The definition walks over the pixels from the last to the first and lets each take the colour that a random
    neighbour has by then. (It means to swap the two; its assignment reads the first pixel after it is written, so that
    nothing is put into the neighbour. The published files were made so.) `walk` finds the same result at once.
    """
    sigma, reach, passes = glass
    levels = (gaussian(images / 255.0, sigma) * 255).astype(np.uint8)
    for image, rng in zip(levels, rngs, strict=True):
        flat = image.reshape(len(image), -1)
        height, width = image.shape[-2:]
        for _ in range(passes):
            inner = (max(height - 2 * reach, 0), max(width - 2 * reach, 0))
            moves = rng.integers(-reach, reach, (2, *inner), np.int8)
            flat[:] = flat[:, walk(height, width, reach, moves)]
    return to_levels(gaussian(levels / 255.0, sigma))


def walk(height: int, width: int, reach: int, moves: NDArray[np.int8]) -> NDArray[np.int32]:
    """Where each pixel's colour comes from after one walk over the image.

    Each pixel points to the neighbour that it takes from. A neighbour that the walk has passed (one later in the
    image) hands on what it took itself; any other hands on its own. So the colour comes from the end of a chain of
    pointers, and following all chains at once, twice as far each time, finds the ends in a few steps.

    Args:
        height: of the image.
        width: of the image.
        reach: the walk visits rows and columns reach + 1 .. size - reach.
        moves: (2, height - 2 reach, width - 2 reach) steps in -reach .. reach - 1, down and to the right.

    Returns:
        (height * width,) flat indices.
    """
    n = height * width
    # Node i is pixel i as the walk leaves it, node n + i the pixel as it was.
    link = np.arange(n, 2 * n, dtype=np.int32)
    steps = moves[0].astype(np.int32) * width + moves[1]
    inner = (slice(reach + 1, height - reach + 1), slice(reach + 1, width - reach + 1))
    neighbour = link.reshape(height, width)[inner] + steps
    link.reshape(height, width)[inner] = np.where(steps > 0, neighbour - n, neighbour)
    open_ends = np.flatnonzero(link < n)
    while len(open_ends):
        followed = link[link[open_ends]]
        link[open_ends] = followed
        open_ends = open_ends[followed < n]
    return link - n


def motion_blur(images: Images, line: tuple[int, float], rngs: Generators) -> Images:
    """A trail that fades, along a line at up to 45 degrees from the horizontal."""
    out = np.empty_like(images)
    for image, target, rng in zip(images, out, rngs, strict=True):
        blurred = along_line(image.astype(np.float64), *line, angle=rng.uniform(-45, 45))
        target[...] = np.clip(blurred, 0, 255, out=blurred)
    return out


def zoom_blur(images: Images, zoom: tuple[float, float, float, str], rngs: Generators) -> Images:
    """The mean of the image and of enlargements of it, as when a lens zooms during the exposure."""
    start, stop, step, part = zoom
    height, width = images.shape[-2:]
    pixels = (images / 255.0).astype(np.float32)
    total = np.zeros_like(pixels)
    factors = np.arange(start, stop, step)
    for factor in factors:
        # In single precision, as the definition adds up.
        total += clipped_zoom(pixels, factor, part)[..., :height, :width].astype(np.float32)
    return to_levels((pixels + total) / (len(factors) + 1))
