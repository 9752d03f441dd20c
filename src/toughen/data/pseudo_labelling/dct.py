"""The lowest frequencies of images: an orthonormal cosine transform over channels, rows and columns, cut off.

Natural images have most of their energy there, so that a few hundred numbers say nearly how far two images are apart.
Along each axis of length n, coefficient k of values v is sqrt(2/n) * sum_i v_i cos(pi (i + 1/2) k / n), the first one
divided by sqrt(2) (the DCT-II). Over three channels the first is their mean, so grey and colour come apart too.

    spectrum = lowest(images, 8)                     # (N, C, 8, 8) float64
    mirrored(spectrum) == lowest(images.flip(3), 8)  # up to rounding
"""

import math

import torch
from torch import Tensor

from toughen.devices import float64_home, in_float64

CENTRE = 127.5
"""What is subtracted from pixels first: differences of images do not change, and numbers are smaller."""


def basis(length: int, count: int, device: torch.device) -> Tensor:
    """The first `count` cosines of an axis, (count, length) float64 with orthonormal rows."""
    place = torch.arange(length, dtype=torch.float64, device=device) + 0.5
    frequency = torch.arange(count, dtype=torch.float64, device=device)
    rows = torch.cos(math.pi / length * frequency[:, None] * place) * math.sqrt(2 / length)
    rows[0] /= math.sqrt(2)
    return rows


def lowest(images: Tensor, frequencies: int) -> Tensor:
    """The lowest cosine coefficients of images.

    Args:
        images: (N, C, H, W) uint8.
        frequencies: how many of each axis, at most; all of an axis that has fewer. Of the channels all are kept.

    Returns:
        (N, C, min(H, frequencies), min(W, frequencies)) float64, of pixels in 0 to 255, on the host where the
        device has none.
    """
    _, channels, height, width = images.shape
    home = float64_home(images.device)
    across = basis(width, min(width, frequencies), home)
    down = basis(height, min(height, frequencies), home)
    colours = basis(channels, channels, home)
    spectrum = down @ ((in_float64(images) - CENTRE) @ across.T)
    return torch.einsum("dc,nchw->ndhw", colours, spectrum)


def mirrored(spectrum: Tensor) -> Tensor:
    """The coefficients of the images mirrored left to right: every other column of them changes its sign."""
    signs = torch.ones(spectrum.shape[-1], dtype=spectrum.dtype, device=spectrum.device)
    signs[1::2] = -1
    return spectrum * signs
