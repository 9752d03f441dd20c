"""The tools that several corruptions use: blurs along both axes or a line, enlargement, looking up between pixels."""

import math

import numpy as np
from numpy.typing import NDArray

Planes = NDArray[np.floating]


def gaussian(
    planes: Planes, sigma: float | tuple[float, float], *, mode: str = "nearest", truncate: float = 4
) -> Planes:
    """A Gaussian blur over the last two axes. Overwrites `planes`, and returns them."""
    from scipy import ndimage

    return ndimage.gaussian_filter(planes, sigma, output=planes, mode=mode, truncate=truncate, axes=(-2, -1))


def along_line(planes: NDArray[np.float64], radius: int, sigma: float, angle: float) -> NDArray[np.float64]:
    """Half a Gaussian of 2 radius + 1 taps along a line at `angle` degrees: each tap shifts by whole pixels.

    Edges are repeated. A line that is longer than the image is cut off there, and the image darkens.
    """
    height, width = planes.shape[-2:]
    taps = 2 * radius + 1
    # The factor cancels, but for the last bit, on which the truncation of flat colours depends.
    weights = np.exp(-(np.arange(taps) ** 2) / (2 * sigma**2)) / (np.sqrt(2 * np.pi) * sigma)
    weights /= weights.sum()
    y, x = taps * np.sin(np.deg2rad(angle)), taps * np.cos(np.deg2rad(angle))
    length = math.hypot(y, x)
    shifts = [(-math.ceil(i * y / length - 0.5), -math.ceil(i * x / length - 0.5)) for i in range(taps)]
    inside = [abs(dy) < height and abs(dx) < width for dy, dx in shifts]
    shifts = shifts[: inside.index(False)] if False in inside else shifts
    margins = tuple((max(0, *d), max(0, *(-v for v in d))) for d in zip(*shifts, strict=True))
    padded = np.pad(planes, ((0, 0),) * (planes.ndim - 2) + margins, mode="edge")
    (top, _), (left, _) = margins
    out, term = np.zeros_like(planes), np.empty_like(planes)
    for weight, (dy, dx) in zip(weights, shifts, strict=False):
        moved = padded[..., top - dy : top - dy + height, left - dx : left - dx + width]
        out += np.multiply(moved, weight, out=term)
    return out


def clipped_zoom(planes: Planes, factor: float, part: str) -> NDArray[np.float64]:
    """The middle of the last two axes, enlarged by `factor` to no less than the size that there was.

    Args:
        planes: (..., H, W).
        factor: >= 1.
        part: "centre" cuts the result to (..., H, W) around its centre, "corner" leaves all of it.
    """
    height, width = planes.shape[-2:]
    rows, columns = math.ceil(height / factor), math.ceil(width / factor)
    top, left = (height - rows) // 2, (width - columns) // 2
    kept = planes[..., top : top + rows, left : left + columns]
    out = _stretch(np.swapaxes(_stretch(np.swapaxes(kept, -1, -2), factor), -1, -2), factor)
    if part == "corner":
        return out
    top, left = (out.shape[-2] - height) // 2, (out.shape[-1] - width) // 2
    return out[..., top : top + height, left : left + width]


def _stretch(planes: Planes, factor: float) -> NDArray[np.float64]:
    """Linear interpolation along the last axis that keeps its two end points; double precision."""
    n = planes.shape[-1]
    size = round(n * factor)
    at = np.arange(size) * ((n - 1) / (size - 1))
    low = np.floor(at).astype(np.intp)
    share = at - low
    # scipy.ndimage.zoom gives 0 where rounding has carried the last point beyond the end.
    inside = at <= n - 1
    low_share, high_share = (1 - share) * inside, share * inside
    return planes[..., np.minimum(low, n - 1)] * low_share + planes[..., np.minimum(low + 1, n - 1)] * high_share


def sample(planes: Planes, y: NDArray[np.float64], x: NDArray[np.float64], mirror: str) -> NDArray[np.float64]:
    """Bilinear look-up in (C, H, W) at (H', W') places; beyond the edge the image is mirrored.

    Args:
        planes: what is looked up.
        y: rows, real.
        x: columns, real.
        mirror: "symmetric" repeats the edge pixel (cba|abc), "reflect" does not (cb|abc).
    """
    height, width = planes.shape[-2:]
    top, left = np.floor(y), np.floor(x)
    down, right = y - top, x - left
    top, left = top.astype(np.intp), left.astype(np.intp)
    flat = planes.reshape(len(planes), -1)
    out = np.zeros((len(planes), *y.shape))
    for dy, row_share in ((0, 1 - down), (1, down)):
        rows = mirrored(height, mirror).take(top + dy, mode="wrap") * width
        for dx, column_share in ((0, 1 - right), (1, right)):
            index = rows + mirrored(width, mirror).take(left + dx, mode="wrap")
            out += flat.take(index, axis=1) * (row_share * column_share)
    return out


def mirrored(n: int, mirror: str) -> NDArray[np.intp]:
    """One period of the indices of a line that goes on as its mirror image, which repeats the edge or does not."""
    forth = np.arange(n)
    return np.concatenate([forth, forth[::-1] if mirror == "symmetric" else forth[-2:0:-1]])
