"""Models that clip their images to [0, 1]: where that takes the gradient of black and white pixels, the audit says so.

torch's `clamp` does from 2.14 on, `hardtanh` and a pair of ReLUs always did. What attacks then leave alone may break.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toughen.evaluation import evaluate
from toughen.testing import toys
from toughen.threat import Linf

# Two pixels in five are black or white.
X = (1.8 * torch.rand(60, *toys.SHAPE, generator=torch.Generator().manual_seed(0)) - 0.4).clamp(0, 1)


class Clipped(nn.Module):
    def __init__(self, clip: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.clip, self.net = clip, toys.normed()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.clip(x))


LOSING = {
    "hardtanh": lambda x: F.hardtanh(x, 0, 1),
    "a pair of ReLUs": lambda x: 1 - F.relu(1 - F.relu(x)),
}
KEEPING = {
    "as it is": lambda x: x,
    "between others": lambda x: torch.where(x < 0, 0.0, torch.where(x > 1, 1.0, x)),
    "pooled": lambda x: F.max_pool2d(x, 3, 1, 1),
}


def found(clip: Callable[[Tensor], Tensor]) -> tuple[float, list[str]]:
    """Robust accuracy, and what the audit says."""
    result = evaluate(Clipped(clip), X, toys.normed()(X).argmax(1), threat=Linf(0.03), suite="pgd-20")
    assert result.audit is not None
    return result.robust_accuracy, [str(finding) for finding in result.audit.findings if finding.code == "EV210"]


@pytest.mark.parametrize("clip", LOSING.values(), ids=LOSING)
def test_a_lost_gradient_is_found(clip: Callable[[Tensor], Tensor]):
    robust, said = found(clip)
    # The clip changes no image of [0, 1], and yet the same attack breaks less.
    assert robust > found(KEEPING["as it is"])[0]
    (sentence,) = said
    assert "leave that out, for images are in [0, 1]." in sentence


@pytest.mark.parametrize("clip", KEEPING.values(), ids=KEEPING)
def test_a_gradient_that_is_there_is_not_missed(clip: Callable[[Tensor], Tensor]):
    assert found(clip)[1] == []


def test_clamp_is_told_by_what_it_does():
    x = torch.tensor([0.0, 0.5, 1.0], requires_grad=True)
    x.clamp(0, 1).sum().backward()
    assert x.grad is not None
    assert bool(found(lambda x: x.clamp(0, 1))[1]) == bool((x.grad == 0).any())
