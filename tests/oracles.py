"""Classifiers whose most damaging perturbation is known exactly, as the judges of every attack."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

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
    """The linear problem of RELIABILITY G11: weights randn / sqrt(768) x 8, a small bias, x uniform.

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
