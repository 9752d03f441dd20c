"""Exponential moving averages of the weights, several decay rates in one run (Gowal et al. 2020, section 4.5.1).

    averages = Averages(model, decays=(0.995, 0.999))
    averages.update(model, step=0)              # after each optimiser step, counted from 0

theta' <- tau theta' + (1 - tau) theta from theta'_0 = theta_0. An average does not influence training. BatchNorm's
buffers are not averaged: those of the raw model are copied, as the paper's code evaluates theta'
(docs/methods/weights.md, Weight averaging).
With a warm start, as in the paper's released code, tau is min(tau, (1 + t) / (10 + t)) at step t.
"""

import copy
from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

BUFFERS = "copied from the weights, not averaged"  # recorded in a run's summary


class Averages:
    """One average per decay rate, each a model of its own.

    Args:
        model: the plain model before its first step.
        decays: tau, each in [0, 1).
        warm_start: whether tau rises to its value, so that the initial weights are forgotten sooner.
    """

    def __init__(self, model: nn.Module, decays: Sequence[float], *, warm_start: bool = False):
        self._warm_start = warm_start
        # Not torch's AveragedModel, which asks the device at every step how many it has averaged.
        self._models = {decay: copy.deepcopy(model).requires_grad_(False) for decay in decays}

    def update(self, model: nn.Module, step: int) -> None:
        """Move every average towards the weights after the optimiser's `step`-th step, and copy the buffers."""
        for decay, average in self._models.items():
            now = min(decay, (1 + step) / (10 + step)) if self._warm_start else decay
            moved: list[Tensor] = [p.detach() for p in average.parameters()]
            weights: list[Tensor] = [p.detach() for p in model.parameters()]
            get_ema_multi_avg_fn(now)(moved, weights, 0)
            for copied, buffer in zip(average.buffers(), model.buffers(), strict=True):
                copied.copy_(buffer)

    def models(self) -> dict[str, nn.Module]:
        """The averaged models by name, like `average-0.995`, in the order of the decay rates."""
        return {average_name(decay): average for decay, average in self._models.items()}


def average_name(decay: float) -> str:
    """The name of an average in metrics and checkpoints."""
    return f"average-{decay:g}"
