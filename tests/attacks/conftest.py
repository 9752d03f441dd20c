"""Models whose best adversarial example is known, and small networks for what holds on any."""

import pytest
import torch
from torch import Tensor, nn

from toughen.testing import toys

SHAPE = (2, 4, 4)


class Linear(nn.Module):
    """Two classes, logits W x + b, in float64."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(2, 32, generator=draw, dtype=torch.float64) / 4)
        self.bias = nn.Parameter(torch.tensor([0.3, -0.2], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias

    def uphill(self, y: Tensor) -> Tensor:
        """The constant direction in which every loss of label y rises: the other class's weights less its own."""
        return (self.weight[1 - y] - self.weight[y]).detach().reshape(len(y), *SHAPE)


@pytest.fixture
def linear() -> Linear:
    return Linear()


@pytest.fixture
def smooth() -> nn.Module:
    return toys.network(dtype=torch.float64)


@pytest.fixture
def normed() -> nn.Module:
    """With BatchNorm whose running statistics are far from any batch's."""
    return toys.normed()


@pytest.fixture
def x() -> Tensor:
    """Eight images in the whole of [0, 1], in float64."""
    return torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def inner(x: Tensor) -> Tensor:
    """Eight images at least 0.3 away from 0 and 1."""
    return 0.3 + 0.4 * x


@pytest.fixture
def y() -> Tensor:
    return torch.tensor([0, 1, 1, 0, 0, 1, 0, 1])
