"""Exponential moving averages of the weights, several decay rates in one run (Limits, section 4.5.1).

    averages = Averages(model, decays=(0.995, 0.999))
    averages.update(model)                      # after each optimiser step

theta' <- tau theta' + (1 - tau) theta from theta'_0 = theta_0. An average does not influence training. BatchNorm's
buffers are not averaged: those of the raw model are copied, as the paper's code evaluates theta' (facts: METHODS 1.9).
"""

from collections.abc import Sequence

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class Averages:
    """One average per decay rate, each a model of its own.

    Args:
        model: the plain model before its first step.
        decays: tau, each in [0, 1).
    """

    def __init__(self, model: nn.Module, decays: Sequence[float]):
        self._models = {
            average_name(decay): AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=False)
            for decay in decays
        }
        # torch's first update copies the weights; made here, it copies the initial ones.
        self.update(model)

    def update(self, model: nn.Module) -> None:
        """Move every average towards the weights and copy the buffers."""
        for average in self._models.values():
            average.update_parameters(model)

    def models(self) -> dict[str, nn.Module]:
        """The averaged models by name, like `average-0.995`, in the order of the decay rates."""
        return {name: average.module for name, average in self._models.items()}


def average_name(decay: float) -> str:
    """The name of an average in metrics and checkpoints."""
    return f"average-{decay:g}"
