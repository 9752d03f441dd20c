"""Adversarial weight perturbation (Wu et al. 2020, AWP): a step takes the gradient at the worst weights nearby.

    weights = perturbable(model)
    with perturbed(weights, gradient(model, weights, [loss]), gamma=0.005):       # theta + v
        loss().backward()
    optimizer.step()                                                            # theta again, gradient as at theta + v

v_l = gamma ||theta_l|| g_l / ||g_l|| for every weight tensor l of two or more dimensions, where g is the gradient of
the very loss that is about to be descended: one step of the paper's algorithm 1 (equations 9 and 10, K2 = 1) from
v = 0. The method is not asked: its objective is a function, and is simply called twice.

Deviations from the authors' code, each towards the paper's text: theta is restored before the optimiser's step and not
after it (so that weight decay sees theta), exactly and not by subtraction, and no copy of the model is kept.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from toughen.modes import batch_statistics
from toughen.parallel import ranks


def perturbable(model: nn.Module) -> list[nn.Parameter]:
    """The weights of convolution and linear layers; biases and normalisation stay as they are (their code)."""
    return [p for p in model.parameters() if p.requires_grad and p.ndim > 1]


def gradient(wrapped: nn.Module, weights: list[nn.Parameter], losses: Sequence[Callable[[], Tensor]]) -> list[Tensor]:
    """The gradient of a sum of losses by the weights, averaged over ranks; `.grad` of nothing is touched.

    Running statistics of BatchNorm stay as they are: only the second call of the loss is the step's.

    Args:
        wrapped: the model, perhaps in DistributedDataParallel.
        weights: by which to differentiate.
        losses: this rank's, scaled so that the mean over ranks of their sum is the global mean.
    """
    whole = [torch.zeros_like(w) for w in weights]
    with ranks.unsynchronised(wrapped), batch_statistics(wrapped):
        for loss in losses:
            for total, g in zip(whole, torch.autograd.grad(loss(), weights, allow_unused=True), strict=True):
                if g is not None:
                    total += g
    return [ranks.total(g) / ranks.world() for g in whole]


@contextmanager
def perturbed(weights: list[nn.Parameter], gradients: list[Tensor], gamma: float) -> Iterator[None]:
    """The weights at theta + v, and at theta again when the context ends.

    Args:
        weights: theta.
        gradients: their gradients g, of the same shapes.
        gamma: ||v_l|| / ||theta_l||.
    """
    found = [w.detach().clone() for w in weights]
    with torch.no_grad():
        for weight, g in zip(weights, gradients, strict=True):
            length = g.norm()
            # A layer without a gradient is not moved. NaN must pass: the guard against it looks at the loss.
            weight.add_(g * torch.where(length == 0, 0.0, gamma * weight.norm() / length))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, before in zip(weights, found, strict=True):
                weight.copy_(before)
