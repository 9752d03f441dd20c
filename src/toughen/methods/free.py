"""Free adversarial training (Free: Shafahi et al. 2019, algorithm 2): one backward pass for weights and perturbation.

    Free(threat=Linf(8 / 255), replays=8)

Each minibatch is replayed m times. A replay's backward pass yields the gradient of the weights, for the optimiser's
step, and that of the perturbation, for an ascent step of full size eps:

    theta <- theta - tau grad_theta mean loss(x + delta, y);   delta <- project(delta + eps steepest(grad_delta))

delta belongs to the slot in the batch, not to the image: it is zero once, before the first minibatch, and never reset,
so that the next minibatch starts from the perturbation of the last. Later codes read the algorithm otherwise; their
readings are options, and what they differ in is said there. Official settings and traps: docs/methods/free.md.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from toughen.data import Batch
from toughen.losses import cross_entropy
from toughen.methods.base import Kind, Objective, Robust, Spec, State
from toughen.parallel import ranks
from toughen.settings import Count
from toughen.threat import per_example

Memory = Literal["slot", "batch", "image"]
KINDS: dict[Memory, dict[str, Kind]] = {"slot": {"delta": "slot"}, "batch": {}, "image": {"delta": "index"}}


class Free(Robust, frozen=True):
    """Free training, in the paper's form unless an option says otherwise; with eps = 0 it is `Natural(replays)`.

    Cost: m forwards and m backwards of a minibatch, whatever the options.

    Attributes:
        name: "free".
        replays: m, optimiser steps on each minibatch; 8 is the paper's choice for CIFAR, 4 for ImageNet.
        memory: where a minibatch's first perturbation comes from. "slot": the row of the minibatch before, as in the
            paper. "batch": zero, so that the first replay is a step of natural training (FastAT_Benchmark's code, which
            also has `clip_delta`). "image": what the same image was left with an epoch ago (the idea of ATTA, Zheng et
            al. 2020, without its alignment of crops); it moves with no crop or flip, so it suits data without
            augmentation. It keeps an image's size for each training example, on every rank and in every checkpoint:
            614 MB for CIFAR-10.
        clip_delta: after each step also clip delta so that x + delta lies in [0, 1], and feed the model x + delta as it
            is (fast_adversarial's train_free.py). The first replay of a minibatch can then leave [0, 1], where delta
            was clipped for another image or crop. Without it x + delta is clipped on its way into the model, and delta
            stays as it is where that happens.
    """

    name: Literal["free"] = "free"
    replays: Count = 8
    memory: Memory = "slot"
    clip_delta: bool = False

    @property
    def state_kinds(self) -> Mapping[str, Kind]:
        """One perturbation for each slot of the batch, for each training example, or none."""
        return KINDS[self.memory]

    @property
    def robust_training(self) -> bool:
        """Unless a minibatch's only step is at delta = 0, which is natural training."""
        return self.replays > 1 or self.memory != "batch"

    @property
    def steps_per_batch(self) -> int:
        """The replays: the budget counts optimiser steps, so m = 8 sees an eighth of the minibatches."""
        return self.replays

    def init(self, spec: Spec) -> State:
        """delta = 0 for every slot or training example."""
        if self.memory == "batch":
            return {}
        rows = spec.slots if self.memory == "slot" else spec.examples
        return {"delta": torch.zeros(rows, *spec.shape, device=spec.device, dtype=spec.dtype)}

    def losses(self, model: nn.Module, batch: Batch, state: State) -> Iterator[Objective]:
        """The loss at x + delta, `replays` times; a short batch uses and moves the first slots."""
        threat = self.ball
        delta = self._remembered(batch, state)
        for _ in range(self.replays):
            at = delta.clone().requires_grad_()
            yield partial(self._loss, model, batch, at)
            # The loop's backward pass has just left it here; its scale (the mean's 1/N) does not matter to `steepest`.
            assert at.grad is not None
            step = per_example(threat.eps, delta) * threat.steepest(at.grad)
            delta = threat.project(delta + step)
            if self.clip_delta:
                delta = torch.minimum(torch.maximum(delta, -batch.x), 1 - batch.x)
        self._remember(batch, state, delta)

    def _loss(self, model: nn.Module, batch: Batch, delta: Tensor) -> Tensor:
        x = batch.x + delta
        # Clipped as in the official code, which the paper's text leaves out: where x + delta leaves [0, 1] the gradient
        # is zero and that entry of delta stays as it is.
        return cross_entropy(model(x if self.clip_delta else _clipped(x)), batch.y)

    def _remembered(self, batch: Batch, state: State) -> Tensor:
        if self.memory == "batch":
            return torch.zeros_like(batch.x)
        return state["delta"][: len(batch.x)] if self.memory == "slot" else state["delta"][batch.index]

    def _remember(self, batch: Batch, state: State, delta: Tensor) -> None:
        if self.memory == "slot":
            state["delta"][: len(delta)] = delta
        elif self.memory == "image":
            index, rows = (ranks.gather(part, batch.size) for part in (batch.index, delta))
            state["delta"][index] = rows


def _clipped(x: Tensor) -> Tensor:
    """x in [0, 1], with a gradient within and on the bounds, as in the official code.

    That of torch's own `clamp` is 0 on the bounds from torch 2.14 on: there delta would never leave 0 where an image is
    black or white.
    """
    return torch.where((x < 0) | (x > 1), x.detach().clamp(0, 1), x)
