"""What a training method is: a frozen record of settings that says what one batch asks of the optimiser.

    class Natural(Method, frozen=True):
        name: Literal["natural"] = "natural"

        def losses(self, model, batch, state):
            yield lambda: cross_entropy(model(batch.x), batch.y)

For each optimiser step that a batch is to have, `losses` yields an *objective*: a function of no arguments that
computes the per-example losses (N,) on fixed inputs. The loop calls it, takes the step and resumes the generator, which
may then read gradients that this very backward pass has left on its inputs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from toughen.counting import Passes, count_on_toy
from toughen.data import Batch
from toughen.naming import Settings
from toughen.noise import Stream
from toughen.threat import Threat

Objective = Callable[[], Tensor]
State = dict[str, Tensor]
Kind = Literal["slot", "index", "replicated"]


@dataclass(frozen=True)
class Spec:
    """What a method may know before its first batch.

    Attributes:
        shape: of one image, (C, H, W).
        slots: rows of this rank's batches.
        examples: training examples in all; `Batch.index` runs below it.
        classes: number of classes.
        device: where the state lives.
        dtype: of the weights and of whatever state goes with images.
    """

    shape: tuple[int, int, int]
    slots: int
    examples: int
    classes: int
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32


class Method(Settings, frozen=True):
    """A training method; see the module's text. A subclass gives `name` a literal type and writes `losses`.

    Attributes:
        name: its name in `METHODS`.
        state_kinds: for each tensor of the state what its first dimension counts: "slot", rows of the batch (row i of
            the global batch lives on rank i mod world); "index", training examples; "replicated", anything that is
            equal on all ranks.
        forwards: for each forward pass of an objective what kind of image it sees, "clean" or "robust": the
            accuracy on the batch is shown under that name.
    """

    name: str
    state_kinds: ClassVar[dict[str, Kind]] = {}
    forwards: ClassVar[tuple[Literal["clean", "robust"], ...]] = ("clean",)

    @property
    def steps_per_batch(self) -> int:
        """Optimiser steps that each batch takes."""
        return 1

    def resolved(self, threat: Threat) -> Self:
        """This method with the run's threat model, unless it has one of its own or needs none."""
        if "threat" not in type(self).model_fields or getattr(self, "threat", None) is not None:
            return self
        return self.model_copy(update={"threat": threat})

    def init(self, spec: Spec) -> State:
        """The state before the first batch: named tensors, saved with the run, changed in place by `losses`."""
        return {}

    def losses(self, model: nn.Module, batch: Batch, state: State) -> Iterator[Objective]:
        """Yield one objective for each optimiser step.

        Args:
            model: the classifier in training mode; attacks go through `modes.plain(model)`.
            batch: images (N, C, H, W) in [0, 1], labels, indices and the noise of this batch.
            state: what `init` returned.
        """
        raise NotImplementedError

    def passes(self, *, channels: int = 1, classes: int = 10) -> Passes:
        """Passes of one batch, all its steps together, counted on a tiny model."""
        spec = Spec(shape=(channels, 8, 8), slots=2, examples=2, classes=classes)

        def train(model: nn.Module, x: Tensor, y: Tensor) -> None:
            rows = torch.arange(len(x))
            batch = Batch(x=x, y=y, index=rows, noise=Stream(("toy",), rows, block=len(x)), size=len(x))
            for objective in self.losses(model, batch, self.init(spec)):
                objective().mean().backward()

        return count_on_toy(train, channels=channels, classes=classes)


def required_threat(threat: Threat | None, name: str) -> Threat:
    """The threat model of a method, once it has one.

    Raises:
        ValueError: when neither the method nor the run has given one.
    """
    if threat is None:
        raise ValueError(f"method {name} has no threat model; give it one, like threat=Linf(8 / 255)")
    return threat
