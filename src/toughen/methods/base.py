"""What a training method is: a frozen record of settings that says what one batch asks of the optimiser.

    class Natural(Method, frozen=True):
        name: Literal["natural"] = "natural"

        def losses(self, model, batch, state):
            yield lambda: cross_entropy(model(batch.x), batch.y)

For each optimiser step that a batch is to have, `losses` yields an *objective*: a function of no arguments that
computes the per-example losses (N,) on fixed inputs. The loop calls it, takes the step and resumes the generator, which
may then read gradients that this very backward pass has left on its inputs.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from toughen.data import Batch
from toughen.models.cost import Passes, count_on_toy
from toughen.noise import Stream
from toughen.settings import Positive, Settings
from toughen.threat import Threat

Objective = Callable[[], Tensor]
State = dict[str, Tensor]
Kind = Literal["slot", "index", "replicated"]
Seen = Literal["clean", "robust"]


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
        soft_labels: whether labels may be probabilities (N, K), so that mixup and label smoothing can wrap it.
        divisible: whether a batch may be given in parts, see `training.parts`; not where its images meet one another.
    """

    soft_labels: ClassVar[bool] = True
    divisible: ClassVar[bool] = True

    name: str

    @property
    def state_kinds(self) -> Mapping[str, Kind]:
        """For each tensor of the state what its first dimension counts.

        "slot": rows of the batch (row i of the global batch lives on rank i mod world); "index": training examples,
        all of them on every rank; "replicated": anything that is equal on all ranks.
        """
        return {}

    @property
    def forwards(self) -> tuple[Seen, ...]:
        """For each forward pass of an objective what kind of image it sees, "clean" or "robust".

        The accuracy on the batch is shown under that name.
        """
        return ("clean",)

    @property
    def robust_training(self) -> bool:
        """Whether it asks for robustness: if not, the best weights are those of the highest clean accuracy."""
        return True

    @property
    def steps_per_batch(self) -> int:
        """Optimiser steps that each batch takes."""
        return 1

    @property
    def second_derivatives(self) -> bool:
        """Whether a gradient is differentiated, which compiled graphs cannot do."""
        return False

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

    def metrics(self, state: State) -> dict[str, Any]:
        """What the state has to say in a line of the log: plain numbers, lists and dicts of them."""
        return {}

    def passes(self, *, calls: int = 1, channels: int = 1, classes: int = 10) -> Passes:
        """Passes of one batch, all its steps together, counted on a tiny model.

        Args:
            calls: how often each objective is run; weight perturbation runs it twice.
            channels: of the tiny model's images.
            classes: of the tiny model.
        """
        spec = Spec(shape=(channels, 8, 8), slots=2, examples=2, classes=classes)

        def train(model: nn.Module, x: Tensor, y: Tensor) -> None:
            rows = torch.arange(len(x))
            noise = Stream(("toy",), rows, block=len(x))
            batch = Batch(x=x, y=y, index=rows, noise=noise, size=len(x), classes=classes)
            for objective in self.losses(model, batch, self.typical_state(spec)):
                for _ in range(calls):
                    objective().mean().backward()

        return count_on_toy(train, channels=channels, classes=classes)

    def typical_state(self, spec: Spec) -> State:
        """A state amid a run, where batches cost what most of them do."""
        return self.init(spec)

    def predicted(self, batches: int) -> float:
        """Cost of a run in natural steps (see `counting`)."""
        return batches * self.passes().natural_steps


METHODS: dict[str, type[Method]] = {}
"""Every method by name: those of this package, which `registry.py` lists, and yours, as in `METHODS["mine"] = Mine`.

It stands here, below the methods, because a method may have another as a field, by name (`wrapper.AnyMethod`)."""


class Robust(Method, frozen=True):
    """A method that trains within a ball.

    Attributes:
        threat: the ball; the run's unless given.
        radius_scale: its radius is multiplied by this in training alone (Limits, section 4.2.2: 1.1 and 1.2).
    """

    threat: Threat | None = None
    radius_scale: Positive = 1.0

    @property
    def forwards(self) -> tuple[Seen, ...]:
        """The attacked batch, once."""
        return ("robust",)

    @property
    def ball(self) -> Threat:
        """The ball of training.

        Raises:
            ValueError: when neither the method nor the run has given a threat model.
        """
        if self.threat is None:
            raise ValueError(f"method {self.name} has no threat model; give it one, like threat=Linf(8 / 255)")
        return self.threat.scaled(self.radius_scale)


def classes_only(y: Tensor, name: str) -> None:
    """Refuse probabilities, for a method that needs to know the class.

    Raises:
        ValueError: y is (N, K).
    """
    if y.ndim != 1:
        raise ValueError(
            f"method {name} needs class numbers (N,), but the labels are probabilities {tuple(y.shape)}; train without "
            "mixup and label smoothing, or take another method, such as trades"
        )
