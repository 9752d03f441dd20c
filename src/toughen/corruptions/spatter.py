"""Spatter: drops of water, or of mud, on the lens.

Mud is flat colour. Water is brighter where its drops slope: the definition finds the drops' edges (Canny), takes the
distance to the nearest edge, and embosses it. Those steps are written here for the small integers that they work on,
and equal OpenCV's.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from toughen.corruptions.base import Generators, Images, to_levels
from toughen.corruptions.filters import gaussian
from toughen.corruptions.weather import grey

WATER = np.array([175, 238, 238], np.float32) / np.float32(255)
MUD = np.array([63, 42, 20], np.float32) / np.float32(255)
EMBOSS = ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))
# No distance to an edge counts for more.
FAR = 20
# Chamfer steps: to a neighbour, to a diagonal one, and as the knight moves, in 65536ths.
STRAIGHT, DIAGONAL, KNIGHT = (round(length * 65536) for length in (1.0, 1.4, 2.1969))
# tan(22.5 degrees) in 32768ths.
TAN = 13573


def spatter(images: Images, liquid: tuple[float, float, float, float, float, str], rngs: Generators) -> Images:
    """Blurred noise above a threshold is liquid. An image on which no drop falls stays as it is."""
    mean, deviation, blur, threshold, strength, kind = liquid
    count, channels, height, width = images.shape
    colour = (WATER if kind == "water" else MUD)[:, None, None]
    colour = grey(colour) if channels == 1 else colour
    noise = np.empty((count, height, width), np.float32)
    for plane, rng in zip(noise, rngs, strict=True):
        rng.standard_normal(out=plane, dtype=np.float32)
    layer = gaussian(noise * np.float32(deviation) + np.float32(mean), blur)
    layer[layer < threshold] = 0
    pixels = images / np.float32(255)
    if kind == "water":
        pixels += (np.float32(strength) * relief(layer))[:, None] * colour
    else:
        cover = gaussian((layer > threshold).astype(np.float32), strength)[:, None]
        cover[cover < 0.8] = 0
        pixels = pixels * (1 - cover) + colour * cover
    return to_levels(pixels)


def relief(layer: NDArray[np.floating]) -> NDArray[np.float32]:
    """How bright water of this thickness (N, H, W) is, 0 .. 1 at most."""
    levels = (layer * 255).astype(np.uint8)
    distance = edge_distance(edges(levels, 50, 150))
    ramp = equalised(box(np.minimum(distance, np.float32(FAR))).astype(np.uint8))
    around = around_mirrored(ramp).astype(np.int16)
    height, width = levels.shape[1:]
    slope = sum(
        weight * around[:, y : y + height, x : x + width]
        for y, row in enumerate(EMBOSS)
        for x, weight in enumerate(row)
        if weight
    )
    shine = levels * np.rint(box(np.clip(slope, 0, 255).astype(np.float32)))
    return shine / np.maximum(shine.max(axis=(1, 2), keepdims=True), np.float32(1))


def around_mirrored(planes: NDArray[Any]) -> NDArray[Any]:
    """(N, H, W) with one more pixel on each side, the edge not repeated."""
    rows, columns = (np.r_[1, :n, n - 2] for n in planes.shape[1:])
    return planes.take(rows, axis=1).take(columns, axis=2)


def box(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean over 3 x 3 pixels, the image mirrored at its edges."""
    around = around_mirrored(planes)
    rows = around[:, :-2] + around[:, 1:-1] + around[:, 2:]
    return (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) * np.float32(1 / 9)


def edges(levels: NDArray[np.uint8], low: int, high: int) -> NDArray[np.bool_]:
    """Canny's edges: where the Sobel gradient, as |x| + |y|, peaks across its direction.

    Args:
        levels: (N, H, W).
        low: a peak above it is an edge if it touches one above `high`, at once or through others.
        high: a peak above it is an edge.
    """
    from scipy import ndimage

    p = np.pad(levels.astype(np.int16), ((0, 0), (1, 1), (1, 1)), mode="edge")
    down = p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]
    right = p[:, :, :-2] + 2 * p[:, :, 1:-1] + p[:, :, 2:]
    gx, gy = down[:, :, 2:] - down[:, :, :-2], right[:, 2:] - right[:, :-2]
    strength = np.pad(abs(gx) + abs(gy), ((0, 0), (1, 1), (1, 1)))
    n, y, x = np.nonzero(strength[:, 1:-1, 1:-1] > low)
    gx, gy = gx[n, y, x].astype(np.int32), gy[n, y, x].astype(np.int32)
    gentle, slope = abs(gx) * TAN, abs(gy) << 15
    across = slope < gentle
    upright = slope > gentle + (abs(gx) << 16)
    # The neighbours lie across, down, or on the diagonal that the signs choose.
    dy = np.where(across, 0, 1)
    dx = np.where(across, 1, np.where(upright, 0, np.where((gx ^ gy) < 0, -1, 1)))
    here = strength[n, y + 1, x + 1]
    before, after = strength[n, y + 1 - dy, x + 1 - dx], strength[n, y + 1 + dy, x + 1 + dx]
    peak = (here > before) & np.where(across | upright, here >= after, here > after)
    found = np.zeros(levels.shape, bool)
    found[n[peak], y[peak], x[peak]] = True
    certain = found & (strength[:, 1:-1, 1:-1] > high)
    if np.array_equal(certain, found):
        return found
    touching = np.zeros((3, 3, 3), bool)
    touching[1] = True
    labels = np.empty(found.shape, np.int32)
    ndimage.label(found, touching, output=labels)
    kept = np.zeros(int(labels.max()) + 1, bool)
    kept[labels[certain]] = True
    return kept[labels]


def edge_distance(edge: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Chamfer distance (1, 1.4, 2.1969) to the nearest edge pixel, exact below `FAR`, `FAR` or more beyond.

    Of (N, H, W). The nearest edge in a row is found by two scans; of those of the rows within `FAR`, the best counts.
    """
    height, width = edge.shape[1:]
    columns = np.arange(width, dtype=np.int16)
    left = np.maximum.accumulate(np.where(edge, columns, np.int16(-FAR)), axis=2)
    right = np.minimum.accumulate(np.where(edge, columns, np.int16(width + FAR))[:, :, ::-1], axis=2)[:, :, ::-1]
    across = np.minimum(np.minimum(columns - left, right - columns), FAR)
    best = across.astype(np.float32)
    for dy in range(1, min(FAR, height)):
        # A row this far away cannot help any more.
        if best.max() <= dy:
            break
        reached = CHAMFER[dy].take(across)
        np.minimum(best[:, dy:], reached[:, :-dy], out=best[:, dy:])
        np.minimum(best[:, :-dy], reached[:, dy:], out=best[:, :-dy])
    return best


def _chamfer() -> NDArray[np.float32]:
    """The length of the shortest path over dy rows and dx columns, each 0 .. `FAR`."""
    dy, dx = np.mgrid[: FAR + 1, : FAR + 1]
    long, short = np.maximum(dy, dx), np.minimum(dy, dx)
    gentle = short * KNIGHT + (long - 2 * short) * STRAIGHT
    steep = (long - short) * KNIGHT + (2 * short - long) * DIAGONAL
    return (np.where(2 * short <= long, gentle, steep) / 65536).astype(np.float32)


CHAMFER = _chamfer()


def equalised(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, H, W) with grey levels spread so that each is as frequent as any; the lowest becomes 0."""
    out = np.empty_like(levels)
    for plane, target in zip(levels, out, strict=True):
        counts = np.bincount(plane.reshape(-1), minlength=256)
        lowest = int(plane.min())
        rest = plane.size - counts[lowest]
        counts[lowest] = 0
        if rest:
            scale = np.float32(255) / np.float32(rest)
            table = np.clip(np.rint(counts.cumsum().astype(np.float32) * scale), 0, 255)
            target[...] = table.astype(np.uint8)[plane]
        else:
            target[...] = plane
    return out
