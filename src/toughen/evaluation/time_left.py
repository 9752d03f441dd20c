"""How far an evaluation is, and how long the rest will take.

    forecast = {"apgd-ce": Cost(cost_if_unbroken(attack, threat, channels=3, classes=10), share=1.0)}
    with watching({model}, show, lambda: forecast, n=1000, passes=passes) as watch:
        ...

An example that never breaks takes an exact number of passes under each attack, which a toy model tells that nothing
breaks; one that breaks takes fewer. The forecast is that the rest of an attack's examples break as often, and take as
many passes, as those that it is done with, that the attacks after it break nobody, and that passes go on as fast as so
far. While an attack is done with no example yet, nothing is forecast to break, and the time is that at most.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from toughen.attacks import ATTACKS, AttackSpec
from toughen.attacks.contract import Attack
from toughen.evaluation.plan import SideAttack
from toughen.models.cost import Passes, counted
from toughen.outcomes import CLEAN
from toughen.threat import Threat


class Status(NamedTuple):
    """Where an evaluation is.

    Attributes:
        attack: that runs.
        done: examples that it is done with.
        attempted: examples that it attempts.
        accuracy: share of all examples not yet broken; for the clean images and corruptions, share of those done that
            are classified correctly.
        seconds_left: of the whole evaluation, as forecast; None where an attack's cost is not known.
        number: of the attack in its order, from 1, the clean images being the first.
        total: of attacks, the clean images among them.
    """

    attack: str
    done: int
    attempted: int
    accuracy: float
    seconds_left: float | None
    number: int
    total: int


StatusCallback = Callable[[Status], None]


class Cost(NamedTuple):
    """What an attack will cost.

    Attributes:
        passes: forward and backward passes of an example that it does not break; None where not known.
        share: of the examples not yet broken that it attacks.
        alone: whether it takes all examples, its accuracy being shown alone, over those that it is done with.
        correct: whether it attacks all that are classified correctly, whatever broke before.
    """

    passes: int | None
    share: float
    alone: bool = False
    correct: bool = False


class Passed(NamedTuple):
    """Examples that were seen to be done, and the passes that they took."""

    examples: int
    passes: int


class _Unbreakable(nn.Module):
    """Its label 0 leads by more than any perturbation can move."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, classes).outer(torch.linspace(-1, 1, inputs)) / inputs)
        self.lead = torch.zeros(classes)
        self.lead[0] = 100.0

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.lead


def cost_if_unbroken(
    attack: AttackSpec | Attack | SideAttack, threat: Threat, *, channels: int, classes: int
) -> int | None:
    """Forward and backward passes of an example that the attack does not break; None for a function of the user's.

    Counted once in a process for each attack, ball and problem: the thousands of AutoAttack take seconds.
    """
    if isinstance(attack, SideAttack):
        attack, threat = attack.attack, attack.threat
    if not isinstance(attack, AttackSpec):
        return None
    eps = float(torch.as_tensor(threat.eps).max())
    key = (ATTACKS[attack.name], repr(attack), type(threat), eps, channels, classes)
    if key not in _COSTS:
        _COSTS[key] = _counted(attack, type(threat)(eps), channels, classes)
    return _COSTS[key]


_COSTS: dict[tuple[Any, ...], int | None] = {}


def _counted(attack: AttackSpec, ball: Threat, channels: int, classes: int) -> int | None:
    model = _Unbreakable(channels * 64, classes)
    x, y = torch.full((1, channels, 8, 8), 0.5), torch.zeros(1, dtype=torch.long)
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

    def __init__(self, show: StatusCallback, forecast: Mapping[str, Cost], n: int, passes: Passes) -> None:
        self._show, self._forecast, self._n, self._passes = show, forecast, n, passes
        self._started = self._shown = time.monotonic()
        self._attack, self._attempted, self._unbroken, self._correct = "", 0, n, n
        self._done = self._wrong = self._lost = self._earlier = 0
        self._measured = Passed(0, 0)

    def enter(self, attack: str, attempted: int, unbroken: int) -> None:
        """A stage begins."""
        self._attack, self._attempted, self._unbroken = attack, attempted, unbroken
        self._done = self._wrong = self._lost = 0
        self._earlier, self._measured = self._taken(), Passed(0, 0)

    def unit(self, done: int, wrong: int, lost: int) -> None:
        """So many examples of the stage are done in all, so many of them wrong, and so many newly broken."""
        if passes := self._taken() - self._earlier:
            # Not one that was found done: it took none.
            self._measured = Passed(self._measured.examples + done - self._done, self._measured.passes + passes)
        self._done, self._wrong, self._lost, self._earlier = done, wrong, lost, self._taken()
        if self._attack == CLEAN:
            self._correct = self._n - lost
        self._tell()

    def tick(self, *_: object) -> None:
        """A pass of the model."""
        if time.monotonic() - self._shown > 1:
            self._tell()

    def _taken(self) -> int:
        return self._passes.example_forwards + self._passes.example_backwards

    def _tell(self) -> None:
        self._shown = time.monotonic()
        labels = [CLEAN, *self._forecast]
        place = labels.index(self._attack)
        costs = [Cost(1, 1.0, alone=True), *self._forecast.values()][place:]
        accuracy = 1 - self._wrong / max(1, self._done) if costs[0].alone else (self._unbroken - self._lost) / self._n
        seconds = self._seconds_left(costs)
        self._show(Status(self._attack, self._done, self._attempted, accuracy, seconds, place + 1, len(labels)))

    def _seconds_left(self, costs: Sequence[Cost]) -> float | None:
        """Time for the rest of this attack and for those that follow, whose costs these are."""
        if any(cost.passes is None for cost in costs):
            return None
        togo = self._attempted - self._done
        # As many of them break, and as few passes do for them, as of those that are done.
        unbroken = self._unbroken - self._lost * (1 + togo / max(1, self._done))
        correct = unbroken if self._attack == CLEAN else self._correct
        measured = self._measured
        each = measured.passes / measured.examples if measured.examples else costs[0].passes or 0
        passes = max(0.0, each * togo - (self._taken() - self._earlier))
        for cost in costs[1:]:
            attacked = self._n if cost.alone else correct if cost.correct else unbroken
            passes += (cost.passes or 0) * cost.share * attacked
        return passes * (self._shown - self._started) / max(1, self._taken())


@contextmanager
def watching(
    models: Collection[nn.Module],
    show: StatusCallback | None,
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
