"""Classifiers whose most damaging perturbation is known exactly, as the judges of every attack."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product

import torch
from torch import Tensor, nn

from toughen.losses import margin
from toughen.noise import generator

EPS = 2 / 255


class Affine(nn.Module):
    """Logits W x + b."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        return x.flatten(1) @ self.weight.T + self.bias


@dataclass(frozen=True, eq=False)
class LinearProblem:
    """A linear classifier with images that it classifies correctly, and the truth about them.

    Attributes:
        model: 10 classes, images (3, 16, 16).
        x: images (N, 3, 16, 16), uniform in [0, 1].
        y: the model's own labels (N,).
    """

    model: Affine
    x: Tensor
    y: Tensor

    def best_linf(self, eps: float = EPS) -> Tensor:
        """The highest margin that any point of the Linf ball and of [0, 1] has, (N,): positive where breakable.

        The margin towards class k is linear, with weights w_k - w_y: each pixel goes its own way as far as it may.
        """
        x, weight = self.x.double().flatten(1), self.model.weight.detach().double()
        toward = weight.unsqueeze(0) - weight[self.y].unsqueeze(1)
        pushed = (x.unsqueeze(1) + eps * toward.sign()).clamp(0, 1)
        bias = self.model.bias.detach().double()
        margins = (pushed * toward).sum(2) + bias - bias[self.y].unsqueeze(1)
        return margins.scatter(1, self.y.unsqueeze(1), -torch.inf).amax(1)

    def breakable(self, eps: float = EPS) -> Tensor:
        """Whether any point of the Linf ball breaks the example, (N,)."""
        return self.best_linf(eps) > 0

    def distance_l2(self) -> Tensor:
        """L2 distance to the nearest decision boundary, [0, 1] disregarded: a lower bound, exact in the interior."""
        x, weight = self.x.double().flatten(1), self.model.weight.detach().double()
        logits = x @ weight.T + self.model.bias.detach().double()
        gaps = logits.gather(1, self.y.unsqueeze(1)) - logits
        lengths = (weight.unsqueeze(0) - weight[self.y].unsqueeze(1)).norm(dim=2)
        return (gaps / lengths).scatter(1, self.y.unsqueeze(1), torch.inf).amin(1)


def linear_problem(
    seed: int = 0, *, n: int = 300, dtype: torch.dtype = torch.float32, inner: bool = False
) -> LinearProblem:
    """The linear problem of docs/methods/black_box.md: weights randn / sqrt(768) x 8, a small bias, x uniform.

    Args:
        seed: of the draws.
        n: images.
        dtype: of everything.
        inner: keep the images in [0.3, 0.7], so that [0, 1] is out of reach and `distance_l2` exact.
    """
    draw = generator("linear-problem", seed)
    weight = torch.randn(10, 768, generator=draw, dtype=torch.float64) / 768**0.5 * 8
    bias = torch.randn(10, generator=draw, dtype=torch.float64) * 0.1
    x = torch.rand(n, 3, 16, 16, generator=draw, dtype=torch.float64)
    x = (0.3 + 0.4 * x if inner else x).to(dtype)
    model = Affine(weight.to(dtype), bias.to(dtype))
    with torch.no_grad():
        y = model(x).argmax(1)
    return LinearProblem(model, x, y)


class TinyReLU(nn.Module):
    """Logits V relu(W x + b) + c."""

    def __init__(self, weight: Tensor, bias: Tensor, out: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.out, self.shift = nn.Parameter(out), nn.Parameter(shift)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        return (x.flatten(1) @ self.weight.T + self.bias).relu() @ self.out.T + self.shift


@dataclass(frozen=True, eq=False)
class ReLUProblem:
    """A tiny ReLU network with images that it classifies correctly, and the truth about them.

    Attributes:
        model: 5 classes, 8 hidden units, images (1, 2, W).
        x: images (N, 1, 2, W), uniform in [0, 1].
        y: the model's own labels (N,).
    """

    model: TinyReLU
    x: Tensor
    y: Tensor

    def best_margin(self, eps: float) -> Tensor:
        """The highest margin that any point of the Linf ball and of [0, 1] has, (N,): positive where breakable.

        Where no hidden unit changes sign the logits are linear, so the highest margin lies on a corner of such a piece
        of the box: j units are at zero and all but j pixels at an end of their range. Every such point is solved for
        and tried; one that rounding puts outside is moved into the box, so that no value is higher than the truth.
        """
        x, exact = self.x.double().flatten(1), copy.deepcopy(self.model).double()
        low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
        best = x.new_full((len(x),), -torch.inf)
        for points in _corners(exact.weight.detach(), exact.bias.detach(), low, high):
            inside = ((points >= low.unsqueeze(1) - 1e-9) & (points <= high.unsqueeze(1) + 1e-9)).all(2)
            image, corner = inside.nonzero(as_tuple=True)
            there = points[image, corner].clamp(low[image], high[image])
            with torch.no_grad():
                best.scatter_reduce_(0, image, margin(exact(there), self.y[image]), "amax")
        return best


def _corners(weight: Tensor, bias: Tensor, low: Tensor, high: Tensor) -> Iterator[Tensor]:
    """Where as many of the planes weight x + bias = 0 and of the box's faces meet as x has pixels: pieces (N, M, D)."""
    units, pixels = weight.shape
    for j in range(min(units, pixels) + 1):
        ends = torch.tensor(list(product((False, True), repeat=pixels - j)), dtype=torch.bool)
        for at_zero, free in product(combinations(range(units), j), combinations(range(pixels), j)):
            rows, columns = torch.tensor(at_zero, dtype=torch.int64), torch.tensor(free, dtype=torch.int64)
            fixed = torch.tensor([p for p in range(pixels) if p not in free], dtype=torch.int64)
            given = torch.where(ends, high[:, None, fixed], low[:, None, fixed])
            points = low.new_empty(len(low), len(ends), pixels)
            points[..., fixed] = given
            square = weight[rows][:, columns]
            # Planes that are parallel meet nowhere, or in a line, whose ends are other corners.
            if square.det().abs() < 1e-12:
                continue
            level = -bias[rows] - given @ weight[rows][:, fixed].T
            points[..., columns] = torch.linalg.solve(square, level.mT).mT
            yield points


def relu_problem(seed: int = 0, *, n: int = 50, width: int = 2, dtype: torch.dtype = torch.float64) -> ReLUProblem:
    """A random tiny ReLU network on images (1, 2, width), with its own labels.

    Args:
        seed: of the draws.
        n: images.
        width: of the images, 2 or 3: the corners to try are 1,462 or 22,180.
        dtype: of everything.
    """
    draw = generator("relu-problem", seed, width)
    pixels = 2 * width

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    weight = random(8, pixels)
    # Planes through random points of the box, so that the units do change sign in it.
    bias = -(weight * torch.rand(8, pixels, generator=draw, dtype=torch.float64)).sum(1)
    out, shift = random(5, 8), random(5) * 0.1
    x = torch.rand(n, 1, 2, width, generator=draw, dtype=torch.float64).to(dtype)
    model = TinyReLU(*(tensor.to(dtype) for tensor in (weight, bias, out, shift)))
    with torch.no_grad():
        y = model(x).argmax(1)
    return ReLUProblem(model, x, y)


class RowByRow(nn.Module):
    """Four classes by products and sums of each row alone, so that not even rounding knows who else is there."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(5)
        self.inner = nn.Parameter(torch.randn(6, 32, generator=draw, dtype=torch.float64) / 2)
        self.outer = nn.Parameter(torch.randn(4, 6, generator=draw, dtype=torch.float64) * 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = (x.flatten(1).unsqueeze(1) * self.inner).sum(2).sin()
        return (hidden.unsqueeze(1) * self.outer).sum(2)

    def images(self, n: int) -> tuple[Tensor, Tensor]:
        """Images (n, 2, 4, 4) and what it says of them."""
        x = torch.rand(n, 2, 4, 4, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
        return x, self(x).argmax(1)
