"""What an evaluation does in which order: a plan yields stages, and sees what became of each before the next.

    def plan(state):                                        # a cascade of two attacks
        yield AttackStage("pgd-20", state.unbroken, AttackSpec(name="pgd"))
        yield AttackStage("square", state.unbroken, AttackSpec(name="square"))

A stage attacks or corrupts some of the examples; its work is cut into units of fixed size, each a pure function of the
examples in it, which is what makes an evaluation resumable and shareable. A plan may look at all outcomes so far, and
must be a deterministic function of them.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from toughen.attacks import AttackSpec
from toughen.attacks.contract import Attack
from toughen.outcomes import Outcomes
from toughen.threat import Threat


@dataclass(frozen=True, eq=False)
class SideAttack:
    """An attack in a ball of its own: run on every correctly classified example, reported alone, never worst-case.

    Args:
        attack: the attack.
        threat: its ball, such as `L2(UNBOUNDED)` beside an evaluation in Linf.
    """

    attack: AttackSpec | Attack
    threat: Threat


UNBOUNDED = 1e6
"""A radius that holds every image of fewer than 10^12 pixels: any example at all counts."""


@dataclass(frozen=True, eq=False)
class Stage:
    """What is done to some of the examples.

    Args:
        label: its name in the table, used once.
        rows: positions of the examples (M,), ascending.
    """

    label: str
    rows: Tensor


@dataclass(frozen=True, eq=False)
class AttackStage(Stage):
    """One attack on some of the examples.

    Args:
        label: see `Stage`.
        rows: see `Stage`.
        attack: the attack.
        threat: a ball of its own, for an attack aside.
        donors: positions of broken examples (M,), which are broken again for the attack to start from; for an
            attack that takes donors.
    """

    attack: AttackSpec | Attack
    threat: Threat | None = None
    donors: Tensor | None = None


class EvaluationState:
    """What is known so far.

    Attributes:
        index: example ids (N,), by position.
        clean: the outcomes without an attack.
        parts: the outcomes of every stage so far.
        unbroken: positions of the examples not yet broken, ascending.
        highest: the highest margin that any attack reached on each example (N,), -inf where none was run.
    """

    def __init__(self, clean: Outcomes, index: Tensor) -> None:
        self.index = index
        self._order = index.argsort()
        self.clean = clean
        self.parts = [clean]
        self.unbroken = self._of(clean.index[clean.survived])
        self.highest = torch.full((len(index),), -torch.inf)

    @property
    def broken(self) -> Tensor:
        """Positions of all other examples, ascending."""
        everyone = torch.arange(len(self.index))
        return everyone[~torch.isin(everyone, self.unbroken)]

    @property
    def outcomes(self) -> Outcomes:
        """The whole table."""
        return Outcomes.concatenate(self.parts)

    def add(self, part: Outcomes) -> None:
        """Take in the outcomes of a stage; one aside breaks nobody."""
        self.parts.append(part)
        if not part.aside.any():
            rows = self._places(part.index)
            self.highest[rows] = torch.maximum(self.highest[rows], torch.from_numpy(part.margin.copy()))
            broken = self._of(part.index[~part.survived])
            self.unbroken = self.unbroken[~torch.isin(self.unbroken, broken)]

    def _places(self, ids: np.ndarray) -> Tensor:
        """Positions of ids, in the order of the ids."""
        return self._order[torch.searchsorted(self.index, torch.from_numpy(ids.copy()), sorter=self._order)]

    def _of(self, ids: np.ndarray) -> Tensor:
        return torch.isin(self.index, torch.from_numpy(ids.copy())).nonzero().squeeze(1)


Plan = Callable[[EvaluationState], Iterator[Stage]]


def cascade(suite: Mapping[str, AttackSpec | Attack | SideAttack], *, independent: bool = False) -> Plan:
    """Every attack on what none before it broke, or, `independent`, on all that is classified correctly."""

    def plan(state: EvaluationState) -> Iterator[Stage]:
        correct = state.unbroken
        for label, member in suite.items():
            if isinstance(member, SideAttack):
                yield AttackStage(label, correct, member.attack, member.threat)
            else:
                yield AttackStage(label, correct if independent else state.unbroken, member)

    return plan
