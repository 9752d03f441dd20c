"""The suite `adaptive`: the verdict of AutoAttack at a fraction of its passes.

    evaluate(model, x, y, threat=Linf(8 / 255), suite="adaptive")

AutoAttack spends nearly all of its passes on examples that never break. Adaptive Auto Attack (Liu et al. 2022) asks
where to start and whom to leave alone, and so does this suite, stage by stage:

- Two short ascents on everyone from undirected starts break what breaks easily, and give each survivor its best margin,
  the nearest that it came to breaking.
- Longer ascents go to the survivors with the best margins, fewer with every stage. Each aims at one class after
  another, that of the nearest linearised boundary first: MALT's order (Melamed et al. 2024).
- What an ascent of the margin cannot see is looked for among the nearest: by a boundary attack (FAB) and by a search
  without gradients (Square).
- Whichever of the three kinds still broke something in its last stage goes on, longer or to more examples, until it
  breaks nothing or has attacked all. So a sound model costs next to nothing more, and one whose gradients mislead does.

Deviations from Adaptive Auto Attack: its classes are ranked by confidence, it has neither a boundary attack nor a
search, and for masked models a second schedule of ascents.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from torch import Tensor

from toughen.attacks import AttackSpec
from toughen.evaluation.plan import AttackStage, EvaluationState, Stage


@dataclass(frozen=True)
class Round:
    """One stage.

    Args:
        share: of the survivors that are attacked, those with the best margins.
        attack: the attack.
        after: the label of an earlier round that must have broken something, or this one is left out.
        donors: whether the attack is given the examples that are broken so far, to start from.
    """

    share: float
    attack: AttackSpec
    after: str | None = None
    donors: bool = False


def _ascent(steps: int, ranks: int = 0, restarts: int = 1, last_step: float = 0.001) -> AttackSpec:
    aims: dict[str, Any] = {"rank": 1, "ranks": ranks, "order": "distance"} if ranks else {}
    settings = {"name": "diversified_pgd", "steps": steps, "last_step": last_step, "restarts": restarts, **aims}
    return AttackSpec.model_validate(settings)


_BOUNDARY = AttackSpec(name="fab", steps=60, targets=3, stop_inside=True)


def _search(queries: int) -> AttackSpec:
    return AttackSpec(name="square", queries=queries)


def _rounds() -> dict[str, Round]:
    rounds = {
        "adaptive-01": Round(1, _ascent(8, last_step=0.1)),
        "adaptive-02": Round(1, _ascent(8, last_step=0.1)),
        "adaptive-03": Round(0.7, _ascent(25, ranks=2)),
        "adaptive-04": Round(0.4, _ascent(35, ranks=2)),
        "adaptive-05": Round(0.2, _ascent(50, ranks=4)),
    }
    hard = _ascent(60, ranks=3, restarts=2)
    further: dict[str, tuple[tuple[float, AttackSpec], ...]] = {
        "ascent": ((0.05, hard), (0.15, hard), (0.45, hard), (1, hard)),
        "boundary": ((0.05, _BOUNDARY), (0.15, _BOUNDARY), (0.45, _BOUNDARY), (1, _BOUNDARY)),
        "search": ((0.1, _search(500)), (0.1, _search(3000)), (0.3, _search(1500)), (1, _search(1000))),
    }
    for stage in range(4):
        for kind, stages in further.items():
            after = f"adaptive-{kind}-{stage}" if stage else None
            rounds[f"adaptive-{kind}-{stage + 1}"] = Round(*stages[stage], after)
    return rounds


ROUNDS: Mapping[str, Round] = _rounds()


@dataclass(frozen=True)
class Adaptive:
    """The plan of a sequence of rounds (see `plan.Plan`)."""

    rounds: Mapping[str, Round] = field(default_factory=lambda: ROUNDS)

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """The rounds by label, for the record."""
        return {
            label: {
                **item.attack.model_dump(mode="json"),
                "share": item.share,
                "after": item.after,
                "donors": item.donors,
            }
            for label, item in self.rounds.items()
        }

    @property
    def members(self) -> dict[str, AttackSpec]:
        """The attack of each round."""
        return {label: item.attack for label, item in self.rounds.items()}

    def with_attacks(self, attacks: Mapping[str, Any]) -> Self:
        """The plan with other attacks in its rounds, by label."""
        return replace(self, rounds={key: replace(item, attack=attacks[key]) for key, item in self.rounds.items()})

    @property
    def shares(self) -> dict[str, float]:
        """The share of the survivors that each round attacks; none, where that hangs on what an earlier one broke."""
        return {label: 0.0 if item.after else item.share for label, item in self.rounds.items()}

    def __call__(self, state: EvaluationState) -> Iterator[Stage]:
        """The stages, each chosen by the outcomes of those before it."""
        broke: dict[str, int] = {}
        for label, item in self.rounds.items():
            if item.after is not None and not broke.get(item.after):
                continue
            before = len(state.unbroken)
            donors = state.broken if item.donors else None
            yield AttackStage(label, nearest(state, item.share), item.attack, donors=donors)
            broke[label] = before - len(state.unbroken)


def nearest(state: EvaluationState, share: float) -> Tensor:
    """The unbroken examples that came nearest to breaking: positions, ascending; at least one while there are any."""
    unbroken = state.unbroken
    many = min(len(unbroken), max(1, round(share * len(unbroken))))
    order = state.highest[unbroken].argsort(descending=True, stable=True)
    return unbroken[order[:many]].sort().values
