"""Free adversarial training (Free, algorithm 2): one backward pass updates the weights and the perturbation.

    Free(threat=Linf(8 / 255), replays=8)

Each minibatch is replayed m times. A replay's backward pass yields the gradient of the weights, for the optimiser's
step, and that of the perturbation, for an ascent step of full size eps:

    theta <- theta - tau grad_theta mean loss(x + delta, y);   delta <- project(delta + eps steepest(grad_delta))

delta belongs to the slot in the batch, not to the image: it is zero once, before the first minibatch, and never reset,
so that the next minibatch starts from the perturbation of the last.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from toughen.data import Batch
from toughen.losses import cross_entropy
from toughen.methods.base import Kind, Objective, Robust, Spec, State
from toughen.naming import Count
from toughen.threat import per_example


def _loss(model: nn.Module, batch: Batch, delta: Tensor) -> Tensor:
    # Clipped as in the official code, which the paper's text leaves out: where x + delta leaves [0, 1] the gradient is
    # zero and that entry of delta stays as it is.
    return cross_entropy(model((batch.x + delta).clamp(0, 1)), batch.y)


class Free(Robust, frozen=True):
    """Free training in the paper's form; with eps = 0 it is `Natural(replays)`.

    Attributes:
        name: "free".
        replays: m, optimiser steps on each minibatch; 8 is the paper's choice for CIFAR, 4 for ImageNet.
    """

    name: Literal["free"] = "free"
    replays: Count = 8

    @property
    def state_kinds(self) -> Mapping[str, Kind]:
        """One perturbation for each slot of the batch."""
        return {"delta": "slot"}

    @property
    def steps_per_batch(self) -> int:
        """The replays: the budget counts optimiser steps, so m = 8 sees an eighth of the minibatches."""
        return self.replays

    def init(self, spec: Spec) -> State:
        """delta = 0 for every slot of the batch."""
        return {"delta": torch.zeros(spec.slots, *spec.shape, device=spec.device, dtype=spec.dtype)}

    def losses(self, model: nn.Module, batch: Batch, state: State) -> Iterator[Objective]:
        """The loss at x + delta, `replays` times; a short batch uses and moves the first slots."""
        threat = self.ball
        slots = state["delta"][: len(batch.x)]
        for _ in range(self.replays):
            delta = slots.clone().requires_grad_()
            yield partial(_loss, model, batch, delta)
            # The loop's backward pass has just left it here; its scale (the mean's 1/N) does not matter to `steepest`.
            assert delta.grad is not None
            step = per_example(threat.eps, slots) * threat.steepest(delta.grad)
            slots.copy_(threat.project(slots + step))
