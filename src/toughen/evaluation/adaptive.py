"""The suite `adaptive`: the verdict of AutoAttack at a fraction of its passes.

    evaluate(model, x, y, threat=Linf(8 / 255), suite="adaptive")

AutoAttack spends nearly all of its passes on examples that never break. Adaptive Auto Attack (Liu et al. 2022) asks
where to start and whom to leave alone, and so does this suite, round by round:

- Short rounds on everyone from undirected starts break what breaks easily, and give each survivor its best margin, the
  nearest that it came to breaking.
- Longer rounds lean towards one class each, by rank (`diversified_pgd`), and go to the survivors with the best margins
  only, fewer with every round.
- The last rounds, with many restarts, go to the very few that nearly broke, and lean towards the ranks that broke most
  of what the directed rounds were given.

Deviations from the paper: ranks count from the logits at the random start and not at the clean image, the ranks of the
last rounds follow from the rounds' yields instead of a fixed table, and there is no second schedule for masked models:
that a model hides its gradients is said by the audit, not guessed by the attack.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from toughen.attacks import AttackSpec
from toughen.evaluation.plan import AttackStage, EvaluationState, Stage


@dataclass(frozen=True)
class Round:
    """One round.

    Args:
        share: of the survivors that are attacked, those with the best margins.
        steps: of the ascent.
        rank: of the class that the start leans towards; 0 for none, -1 and -2 for the ranks with the best and the
            second best yield so far.
        last_step: length of the last step as a share of eps.
        restarts: starts for each example.
    """

    share: float
    steps: int
    rank: int
    last_step: float = 0.001
    restarts: int = 1


ROUNDS = (
    Round(1, 8, 0, 0.1),
    Round(1, 8, 0, 0.1),
    Round(1, 8, 1, 0.1),
    Round(0.7, 25, 2),
    Round(0.6, 30, 3),
    Round(0.5, 30, 4),
    Round(0.4, 35, 5),
    Round(0.3, 40, 6),
    Round(0.2, 45, 7),
    Round(0.1, 50, 8),
    Round(0.1, 50, -1, restarts=4),
    Round(0.065, 55, -2, restarts=4),
    Round(0.03, 60, -1, restarts=25),
    Round(0.03, 60, -2, restarts=25),
)
"""Shares and steps are those of Adaptive Auto Attack's code, whose last round of 50 restarts is two of 25 here
(docs/methods/multi_targeted.md, The suite adaptive)."""


@dataclass(frozen=True)
class Adaptive:
    """The plan of a sequence of rounds (see `plan.Plan`)."""

    rounds: tuple[Round, ...] = ROUNDS

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """The rounds by label, for the record."""
        return {
            _label(number): {"name": "diversified_pgd", **asdict(item)} for number, item in enumerate(self.rounds, 1)
        }

    @property
    def members(self) -> dict[str, AttackSpec]:
        """What each round would be if nothing were learnt."""
        return {_label(number): _spec(item, max(item.rank, 0)) for number, item in enumerate(self.rounds, 1)}

    @property
    def shares(self) -> dict[str, float]:
        """The share of the survivors that each round attacks."""
        return {_label(number): item.share for number, item in enumerate(self.rounds, 1)}

    def __call__(self, state: EvaluationState) -> Iterator[Stage]:
        """The stages, each chosen by the outcomes of those before it."""
        yields: dict[int, float] = {}
        for number, item in enumerate(self.rounds, 1):
            rank = item.rank if item.rank >= 0 else _by_yield(yields, -item.rank)
            rows = nearest(state, item.share)
            before = len(state.unbroken)
            yield AttackStage(_label(number), rows, _spec(item, rank))
            if item.rank > 0 and len(rows):
                yields[rank] = (before - len(state.unbroken)) / len(rows)


def _spec(item: Round, rank: int) -> AttackSpec:
    settings = {"steps": item.steps, "rank": rank, "last_step": item.last_step, "restarts": item.restarts}
    return AttackSpec.model_validate({"name": "diversified_pgd", **settings})


def nearest(state: EvaluationState, share: float) -> Tensor:
    """The unbroken examples that came nearest to breaking: positions, ascending; at least one while there are any."""
    unbroken = state.unbroken
    many = min(len(unbroken), max(1, round(share * len(unbroken))))
    order = state.highest[unbroken].argsort(descending=True, stable=True)
    return unbroken[order[:many]].sort().values


def _by_yield(yields: dict[int, float], place: int) -> int:
    """The rank with the place-th best yield; of equals the more likely class."""
    ranked = sorted(yields, key=lambda rank: (-yields[rank], rank))
    return ranked[place - 1] if place <= len(ranked) else place


def _label(number: int) -> str:
    return f"adaptive-{number:02d}"
