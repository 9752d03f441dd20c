"""How far an evaluation is, and how long the rest will take.

    forecast = {"apgd-ce": Cost(cost_standing(attack, threat, channels=3, classes=10), share=1.0)}
    with watching({model}, show, lambda: forecast, n=1000, passes=passes) as watch:
        ...

An example that never breaks takes an exact number of passes under each attack, which a toy model tells that nothing
breaks. Times the examples that stand, over the passes per second so far, this bounds the time left from above.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from toughen.attacks import AttackSpec
from toughen.attacks.contract import Attack
from toughen.evaluation.plan import SideAttack
from toughen.models.cost import Passes, counted
from toughen.threat import Threat


class Status(NamedTuple):
    """Where an evaluation is.

    Attributes:
        attack: that runs.
        done: examples that it is done with.
        attempted: examples that it attempts.
        accuracy: share of all examples not yet broken; for clean, of those done.
        seconds_left: at most, as things stand; None where an attack's cost is not known.
    """

    attack: str
    done: int
    attempted: int
    accuracy: float
    seconds_left: float | None


Progress = Callable[[Status], None]


class Cost(NamedTuple):
    """What an attack will cost.

    Attributes:
        passes: forward and backward passes of an example that stands; None where not known.
        share: of the standing examples that it attacks.
    """

    passes: int | None
    share: float


class _Unbreakable(nn.Module):
    """Its label 0 leads by more than any perturbation can move."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, classes).outer(torch.linspace(-1, 1, inputs)) / inputs)
        self.lead = torch.zeros(classes)
        self.lead[0] = 100.0

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.lead


def cost_standing(
    attack: AttackSpec | Attack | SideAttack, threat: Threat, *, channels: int, classes: int
) -> int | None:
    """Forward and backward passes of an example that the attack does not break; None for a function of the user's."""
    if isinstance(attack, SideAttack):
        attack, threat = attack.attack, attack.threat
    if not isinstance(attack, AttackSpec):
        return None
    model = _Unbreakable(channels * 64, classes)
    x, y = torch.full((1, channels, 8, 8), 0.5), torch.zeros(1, dtype=torch.long)
    ball = type(threat)(float(torch.as_tensor(threat.eps).max()))
    try:
        with counted(model) as passes:
            attack(model, x, y, threat=ball)
    except ValueError:
        # What the attack refuses here, such as too few classes, it will refuse there with its own sentence.
        return None
    return passes.example_forwards + passes.example_backwards


class ProgressWatch:
    """Tells `show` about once a second, and after every unit.

    Args:
        show: gets a `Status`.
        forecast: the cost of each attack, in order.
        n: examples in all.
        passes: of the model so far.
    """

    def __init__(self, show: Progress, forecast: Mapping[str, Cost], n: int, passes: Passes) -> None:
        self._show, self._forecast, self._n, self._passes = show, forecast, n, passes
        self._started = self._shown = time.monotonic()
        self._attack, self._attempted, self._standing, self._done, self._lost = "", 0, n, 0, 0
        self._earlier = 0

    def enter(self, attack: str, attempted: int, standing: int) -> None:
        """A stage begins."""
        self._attack, self._attempted, self._standing = attack, attempted, standing
        self._done = self._lost = 0
        self._earlier = self._taken()

    def unit(self, done: int, lost: int) -> None:
        """So many examples of the stage are done in all, and so many of those that stood are lost."""
        self._done, self._lost, self._earlier = done, lost, self._taken()
        self._tell()

    def tick(self, *_: object) -> None:
        """A pass of the model."""
        if time.monotonic() - self._shown > 1:
            self._tell()

    def _taken(self) -> int:
        return self._passes.example_forwards + self._passes.example_backwards

    def _tell(self) -> None:
        self._shown = time.monotonic()
        left = self._standing - self._lost
        accuracy = left / self._n if self._attack in self._forecast else 1 - self._lost / max(1, self._done)
        self._show(Status(self._attack, self._done, self._attempted, accuracy, self._seconds_left(left)))

    def _seconds_left(self, standing: int) -> float | None:
        labels = list(self._forecast)
        place = labels.index(self._attack) if self._attack in labels else -1
        here = self._forecast[self._attack].passes if place >= 0 else 1
        later = 0.0
        for passes, share in (self._forecast[label] for label in labels[place + 1 :]):
            if passes is None:
                return None
            later += standing * share * passes
        if here is None:
            return None
        rest = max(0, here * (self._attempted - self._done) - (self._taken() - self._earlier))
        elapsed = self._shown - self._started
        return (rest + later) * elapsed / max(1, self._taken())


@contextmanager
def watching(
    models: Collection[nn.Module],
    show: Progress | None,
    forecast: Callable[[], Mapping[str, Cost]],
    n: int,
    passes: Passes,
) -> Iterator[ProgressWatch | None]:
    """A `ProgressWatch` that also sees every pass of the models; None, and nothing worked out, where nobody looks."""
    if show is None:
        yield None
        return
    watch = ProgressWatch(show, forecast(), n, passes)
    handles = [model.register_forward_hook(watch.tick) for model in models]
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()
