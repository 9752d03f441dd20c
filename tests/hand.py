"""Training worked out by hand in the tests of wrappers: PGD, a step of SGD and mixing in plain torch, in float64."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from steps import SHAPE
from toughen.noise import Stream, derive

EPS, STEP, STEPS = 0.1, 0.04, 3
PGD = {"name": "pgd", "steps": STEPS, "step_size": STEP}


def soft_loss(logits: Tensor, y: Tensor) -> Tensor:
    """-sum_k y_k log p_k for each row."""
    return -(y * torch.log(torch.softmax(logits, 1))).sum(1)


def attacked(model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor], noise: Stream) -> Tensor:
    """PGD in the Linf ball of EPS with BatchNorm in inference mode, from the start that `pgd` draws."""
    model.eval()
    start = EPS * noise.child("attack", "pgd", 0).uniform(SHAPE, dtype=torch.float64)
    x_adv = (x + start).clamp(0, 1)
    for _ in range(STEPS):
        x_adv = x_adv.detach().requires_grad_()
        (g,) = torch.autograd.grad(loss(model(x_adv)).sum(), x_adv)
        x_adv = (x + (x_adv.detach() - x + STEP * g.sign()).clamp(-EPS, EPS)).clamp(0, 1)
    model.train()
    return x_adv.detach()


def descend(model: nn.Module, loss: Tensor) -> None:
    """One step of plain SGD at the rate of `steps.sgd_steps`."""
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    with torch.no_grad():
        for p, g in zip(model.parameters(), gradients, strict=True):
            p -= 0.1 * g


def drawn(alpha: float, n: int, *purpose: str, number: int = 0) -> tuple[float, list[int]]:
    """lambda and the partners of batch `number` of `steps.batch`."""
    draw = np.random.default_rng(derive(0, "train", number, *purpose))
    return float(draw.beta(alpha, alpha)), draw.permutation(n).tolist()


def assert_close(model: nn.Module, hand: nn.Module) -> None:
    """Weights and running statistics agree to 1e-10."""
    for (name, a), b in zip(model.state_dict().items(), hand.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-10), name
