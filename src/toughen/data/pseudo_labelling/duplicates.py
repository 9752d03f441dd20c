"""Which images of a pool are also in a test set: exactly by distance, and by likeness to the eye.

Extra training data must not hold test images. What counts is the L2 distance over all pixels; Carmon et al. 2019 drop
images within 2000/255 of any test image, pixels in [0, 1] (docs/methods/extra_data.md). Copies that were brightened,
mirrored or compressed lie further away: they are found by the correlation of low frequencies, to be reported, not
removed.

    found = near(pool, test_images)                  # the nearest test image of each, and how far it is
    copies = found.within(2000 / 255)                # (N,) bool
    Reference(test_images).alike(images).correlation # (N,), 1 for the same picture

Ten thousand test images and a million of a pool are ten thousand million distances of 3,072 pixels: hours of a core by
brute force, minutes here, with the same integers as a result. How that is possible:

The filter. Let P be an orthonormal projection (the cosines of `dct` in which the test set has most
energy) and R a = |a - P a|. By Pythagoras and the triangle inequality,
|a - b|^2 = |P a - P b|^2 + |(a - P a) - (b - P b)|^2 >= |P a - P b|^2 + (R a - R b)^2. So the distance of (P a, R a)
and (P b, R b), a few hundred numbers, is never more than that of the images. It is computed for all pairs, as one
matrix product.

Its rounding. With u = (P a, R a), |u| = |a|; the product adds up k + 3 terms whose sizes sum to at most
(|a| + |b|)^2, so float32 errs by at most (k + 3) 2^-24 (|a| + |b|)^2, and by a few units more for the entries
themselves. Twice that is granted (`_slack`).

The exact part. For the test image that the filter says is nearest, the squared distance U is computed in integers.
No test image whose filtered distance exceeds U can be nearer or as near; for the others, some ten of ten thousand on
CIFAR-10, the integers are computed as well, and the smallest is the answer, of equal ones the first.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from toughen.data.base import Examples
from toughen.data.pseudo_labelling.dct import CENTRE, lowest, mirrored
from toughen.devices import float64_home

DIMENSIONS = 256
"""Cosines that the filter keeps. On CIFAR-10 half of them leave four times as many candidates."""

FREQUENCIES = 32
"""Cosines of each axis to choose them from."""

LIKENESS_FREQUENCIES = 8

BOUND = 0.9
"""Correlation from which two pictures are called alike. On CIFAR-10 it holds for copies that were brightened by 20 %,
zoomed by a pixel, given noise of 10/255 or compressed by JPEG at quality 75, mirrored or not, and for one training
image in a hundred."""

_NEVER = torch.iinfo(torch.int64).max
_SEGMENT = 256  # squares of 8-bit differences: 256 of them add up to less than 2^24, exactly in float32
_PAIRS = 2**20  # pixels of the pairs that are compared at a time
_DENSE = 500  # candidates of an image from which a float64 product is faster than comparing pair by pair
_BLOCK = 2**24  # distances at a time: 64 MiB


class Images(Protocol):
    """N images, of which some can be taken."""

    @property
    def images(self) -> Tensor:
        """(N, C, H, W) uint8."""
        ...

    def __len__(self) -> int: ...

    def take(self, indices: Tensor) -> Self:
        """Some of them."""
        ...


Pool = Examples | Images
"""Where extra images come from: a `Split`, a `LazySplit`, or whatever gives its images some at a time."""


@dataclass(frozen=True, eq=False)
class Nearest:
    """The nearest test image of each image.

    Args:
        squared: (N,) int64, the squared distance with pixels in 0 to 255.
        index: (N,) int64, the position of that test image, of equally near ones the first.
    """

    squared: Tensor
    index: Tensor

    @property
    def distance(self) -> Tensor:
        """(N,) float64, the L2 distance with pixels in [0, 1]."""
        return self.squared.double().sqrt() / 255

    def within(self, threshold: float) -> Tensor:
        """(N,) bool, whether the distance is at most `threshold`, pixels in [0, 1]."""
        return self.squared <= squared_limit(threshold)


@dataclass(frozen=True, eq=False)
class Alike:
    """The test image that looks most like each image.

    Args:
        correlation: (N,) float32 in [-1, 1], of low frequencies without the mean; blind to brightness and contrast.
        index: (N,) int64, the position of that test image.
        mirrored: (N,) bool, whether it is the mirror image that looks like it.
    """

    correlation: Tensor
    index: Tensor
    mirrored: Tensor


def near(pool: Pool, test_images: Tensor, *, block: int = 1024, device: torch.device | str = "cpu") -> Nearest:
    """The nearest test image of every pool image by L2 distance over all pixels, exactly.

    Args:
        pool: N images (C, H, W), taken `block` at a time.
        test_images: (T, C, H, W) uint8.
        block: images at a time.
        device: where the work is done.

    Raises:
        ValueError: no test images, or images of another shape.
    """
    reference = Reference(test_images, device=device)
    # Made at once: a small result kept between two blocks' large tensors fragments the heap (measured: by 4 GiB over a
    # million images).
    squared, index = torch.empty(len(pool), dtype=torch.int64), torch.empty(len(pool), dtype=torch.int64)
    for start in range(0, len(pool), block):
        rows = slice(start, min(start + block, len(pool)))
        found = reference.nearest(pool.take(torch.arange(rows.start, rows.stop)).images)
        squared[rows], index[rows] = found.squared, found.index
    return Nearest(squared, index)


def squared_limit(threshold: float) -> int:
    """The largest squared distance of 8-bit images, pixels in 0 to 255, that is within a threshold in units of [0, 1].

    A threshold such as 2000/255 is a float and means the fraction that was written: 2000^2 is within.

    Raises:
        ValueError: it is negative or not finite.
    """
    if not 0 <= threshold < 2**20:
        raise ValueError(f"threshold is {threshold}, but must be a distance with pixels in [0, 1], like 2000/255.")
    return int((255 * threshold) ** 2 * (1 + 1e-12))


class Reference:
    """A test set, made ready for being compared with.

    Args:
        test_images: (T, C, H, W) uint8, kept on the device.
        device: where the work is done; one without float64 leaves it to the host.

    Raises:
        ValueError: there are no test images, or they are not uint8 (T, C, H, W).
    """

    def __init__(self, test_images: Tensor, *, device: torch.device | str = "cpu") -> None:
        if test_images.dtype != torch.uint8 or test_images.ndim != 4 or not len(test_images):
            raise ValueError(
                f"test_images are {test_images.dtype} of shape {tuple(test_images.shape)}, but must be one or more "
                "images, uint8 (T, C, H, W)."
            )
        self._device = float64_home(device)
        self._shape = test_images.shape[1:]
        self._pixels = _flat(test_images.to(self._device))
        blocks = test_images.split(self._rows())
        # Twice through the images rather than all coefficients at once, which take more memory than all the rest.
        energy = torch.stack([self._measured(some)[0].square().sum(0) for some in blocks]).sum(0)
        self._kept = energy.topk(min(DIMENSIONS, len(energy))).indices
        parts, low = [], []
        for some in blocks:
            spectrum, norm, lowest_few = self._measured(some)
            parts.append(self._features(spectrum, norm))
            low.append(lowest_few)
        features = torch.cat(parts)
        self._norm = features.double().norm(dim=1).max()
        squares = features.double().square().sum(1).float()
        self._right = torch.cat([features, squares[:, None], torch.ones_like(squares)[:, None]], 1).T.contiguous()
        # Half-way to equal weight for all frequencies: with none two skies correlate, with all of it noise counts.
        spread = torch.cat(low).square().mean(0).sqrt()
        self._weight = torch.where(spread > 0, spread, 1).rsqrt()
        self._weight[:, 0, 0] *= torch.arange(len(spread), device=self._device) > 0
        self._low = self._normalised(torch.cat(low)).T.contiguous()

    def nearest(self, images: Tensor) -> Nearest:
        """See `near`; images (N, C, H, W) uint8."""
        self._check(images)
        rows = max(1, min(self._rows(), _BLOCK // len(self._pixels)))
        parts = [self._nearest(some.to(self._device)) for some in images.split(rows)]
        return Nearest(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def alike(self, images: Tensor) -> Alike:
        """The test image that looks most like each of the images (N, C, H, W) uint8, or most like its mirror image."""
        self._check(images)
        rows = max(1, min(self._rows(), _BLOCK // len(self._pixels)))
        return Alike(*(torch.cat(column) for column in zip(*map(self._alike, images.split(rows)), strict=True)))

    def _rows(self) -> int:
        """Images whose transform fits into some tens of megabytes."""
        return max(1, min(1024, 2**22 // self._shape.numel()))

    def _check(self, images: Tensor) -> None:
        if images.dtype != torch.uint8 or images.shape[1:] != self._shape:
            raise ValueError(
                f"The images are {images.dtype} of shape {tuple(images.shape)}, but the test images are uint8 of shape "
                f"{tuple(self._shape)} each; bring both to one shape."
            )

    def _measured(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Low frequencies (N, k), squared norm of the centred pixels (N,), and the lowest frequencies (N, C, 8, 8)."""
        on_device = images.to(self._device)
        spectrum = lowest(on_device, FREQUENCIES)
        norm = (on_device.double() - CENTRE).square().flatten(1).sum(1)
        # A copy, because a view would keep all coefficients.
        return spectrum.flatten(1), norm, spectrum[:, :, :LIKENESS_FREQUENCIES, :LIKENESS_FREQUENCIES].clone()

    def _features(self, spectrum: Tensor, norm: Tensor) -> Tensor:
        """(P a, R a) of the module's docstring, (N, k + 1) float32."""
        kept = spectrum[:, self._kept]
        rest = (norm - kept.square().sum(1)).clamp_min(0).sqrt()
        return torch.cat([kept, rest[:, None]], 1).float()

    def _nearest(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = _flat(images)
        features = self._features(*self._measured(images)[:2])
        squares = features.double().square().sum(1).float()
        left = torch.cat([-2 * features, torch.ones_like(squares)[:, None], squares[:, None]], 1)
        with _full_precision():
            filtered = left @ self._right
        each = torch.arange(len(images), device=self._device)
        reached = _squared(pixels, self._pixels, each, filtered.argmin(1))
        candidates = filtered <= (reached.double() + self._slack(features)).float()[:, None]
        del filtered
        best = torch.full((len(images),), _NEVER, dtype=torch.int64, device=self._device)
        # Distance and position in one integer, so that one minimum finds the nearest and, of equals, the first.
        total = len(self._pixels)
        dense = candidates.sum(1) > _DENSE
        some = dense.nonzero().squeeze(1)
        if len(some):
            best[some] = self._all_distances(pixels[some])
        row, column = (candidates & ~dense[:, None]).nonzero(as_tuple=True)
        best.scatter_reduce_(0, row, _squared(pixels, self._pixels, row, column) * total + column, "amin")
        return (best // total).cpu(), (best % total).cpu()

    def _all_distances(self, pixels: Tensor) -> Tensor:
        """For some images the minimum over all test images of squared distance times T plus position, as integers."""
        a, total = pixels.double(), len(self._pixels)
        best = torch.full((len(a),), _NEVER, dtype=torch.int64, device=self._device)
        position = torch.arange(total, device=self._device)
        for rows in position.split(max(1, 2**23 // a.shape[1])):
            b = self._pixels[rows].double()
            # Sums of products of 8-bit numbers: whole numbers far below 2^53, so exact in any order.
            squared = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * (a @ b.T)
            best = torch.minimum(best, (squared.long() * total + rows).amin(1))
        return best

    def _slack(self, features: Tensor) -> Tensor:
        """What rounding may add to a filtered distance, (N,) float64."""
        return 2 * (self._right.shape[0] + 8) * 2.0**-24 * (features.double().norm(dim=1) + self._norm) ** 2

    def _normalised(self, low: Tensor) -> Tensor:
        # A flat image has no frequencies but rounding, which must not be blown up to a picture.
        return F.normalize((low * self._weight).flatten(1), dim=1, eps=1e-3).float()

    def _alike(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low = self._measured(images)[2]
        with _full_precision():
            straight, first = (self._normalised(low) @ self._low).max(1)
            turned, second = (self._normalised(mirrored(low)) @ self._low).max(1)
        flipped = turned > straight
        return torch.maximum(straight, turned).cpu(), torch.where(flipped, second, first).cpu(), flipped.cpu()


def _flat(images: Tensor) -> Tensor:
    """(N, pixels) uint8, filled up with zeros to whole segments."""
    flat = images.flatten(1)
    return F.pad(flat, (0, -flat.shape[1] % _SEGMENT))


def _squared(a: Tensor, b: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Squared distances (M,) int64 of the pairs a[row], b[column], in integers."""
    parts = [torch.empty(0, dtype=torch.int64, device=a.device)]
    size = max(1, _PAIRS // a.shape[1])
    for i, j in zip(row.split(size), column.split(size), strict=True):
        difference = a[i].float().sub_(b[j])
        segments = difference.square_().view(len(i), a.shape[1] // _SEGMENT, _SEGMENT).sum(2)
        parts.append(segments.sum(1, dtype=torch.float64).long())
    return torch.cat(parts)


@contextmanager
def _full_precision() -> Iterator[None]:
    """float32 products in float32, whatever the process has asked for: the bound on rounding relies on it."""
    found = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(found)
