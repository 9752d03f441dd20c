"""The result of an evaluation: its table of outcomes, and what must be known to run it again.

Example:
    evaluation.summary()["robust_accuracy"]      # recomputed from the table, like every number
    evaluation.write(folder)                     # result.json and examples.parquet
    evaluation = Evaluation.read(folder)
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from toughen.attacks import AttackSpec
from toughen.attacks.contract import Attack
from toughen.evaluation.audit.findings import Audit
from toughen.evaluation.plan import SideAttack
from toughen.outcomes import CLEAN, Outcomes, Tally, interval
from toughen.storage import files

RESULT = "result.json"
EXAMPLES = "examples.parquet"


def describe(attack: AttackSpec | Attack | SideAttack) -> dict[str, Any]:
    """What a record says of an attack, in JSON's types: a spec's name and every setting, or a function's name."""
    if isinstance(attack, SideAttack):
        return {**describe(attack.attack), "threat": str(attack.threat)}
    if isinstance(attack, AttackSpec):
        return {"name": attack.name, **{key: _plain(value) for key, value in attack.settings.items()}}
    if isinstance(attack, functools.partial):
        return {**describe(attack.func), **{key: _plain(value) for key, value in attack.keywords.items()}}
    return {"function": _plain(attack)}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return value.tolist()
    # Not repr: it holds the address of a function, and two records of one evaluation would differ.
    return getattr(value, "__qualname__", type(value).__qualname__) if callable(value) else str(value)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What `evaluate` found.

    Args:
        outcomes: the table from which every number is recomputed.
        threat: the threat model as text, such as "linf:8/255".
        suite: name of the suite, or "custom".
        settings: every attack of the suite by label, with its settings, in the order in which they ran.
        seed: seed of the attacks' random draws.
        seconds: wall-clock time.
        notes: what a reader should know, such as a batch size that was halved.
        device: where it ran, such as "cpu" or "cuda:0".
        torch: version of torch.
        identity: what this is an evaluation of, for a folder that is asked for another one (see `resume`).
        audit: whether the figures can be believed; None where it was left out.
        idle_passes: forward and backward passes of single examples, among all of them, that attacks made for nothing:
            where the device would have to be waited for, broken examples leave every ten steps.
    """

    outcomes: Outcomes
    threat: str
    suite: str
    settings: dict[str, dict[str, Any]]
    seed: int
    seconds: float
    notes: tuple[str, ...]
    device: str
    torch: str
    identity: dict[str, Any]
    audit: Audit | None = None
    idle_passes: int = 0

    @property
    def n(self) -> int:
        """Examples evaluated."""
        return self.outcomes.n

    @property
    def clean_accuracy(self) -> float:
        """Share of the examples classified correctly."""
        return self.outcomes.clean_accuracy

    @property
    def robust_accuracy(self) -> float:
        """Share of the examples that survived the clean image and every attack."""
        return self.outcomes.robust_accuracy

    @property
    def clean_interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the clean accuracy."""
        return interval(self.outcomes.clean_correct, self.n)

    @property
    def robust_interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the robust accuracy."""
        return interval(self.outcomes.robust_correct, self.n)

    @property
    def unreliable(self) -> bool:
        """Whether the audit found a reason not to believe the robust accuracy."""
        return self.audit is not None and self.audit.unreliable

    @property
    def forwards(self) -> int:
        """Forward passes times examples in them: those of the table, and the referee's one or two."""
        table = self.outcomes
        attacked = table.attack != CLEAN
        return int(table.forwards.sum()) + int(attacked.sum()) + int((attacked & ~table.survived).sum())

    @property
    def backwards(self) -> int:
        """Backward passes times examples in them."""
        return int(self.outcomes.backwards.sum())

    def summary(self) -> dict[str, Any]:
        """Everything but the table, in JSON's types; accuracies are fractions.

        `forwards` and `backwards` are passes times examples in them. They are those of "attacks", in which every
        attack is listed with its own, plus the referee's forward passes: one of each example that an attack
        returned, and a second one of what is reported as broken.
        """
        return {
            "clean_accuracy": self.clean_accuracy,
            "robust_accuracy": self.robust_accuracy,
            "clean_interval": list(self.clean_interval),
            "robust_interval": list(self.robust_interval),
            "n": self.n,
            "threat": self.threat,
            "suite": self.suite,
            "seed": self.seed,
            "attacks": self._attacks(),
            "marginal": self.outcomes.marginal_examples,
            "forwards": self.forwards,
            "backwards": self.backwards,
            "idle_passes": self.idle_passes,
            "notes": list(self.notes),
            "unreliable": self.unreliable,
            "audit": self.audit and self.audit.to_json(),
            "seconds": self.seconds,
            "device": self.device,
            "torch": self.torch,
            "identity": self.identity,
        }

    def _attacks(self) -> list[dict[str, Any]]:
        tallies = self.outcomes.per_attack()
        rows: list[dict[str, Any]] = []
        for label, settings in {CLEAN: {}, **self.settings}.items():
            # An attack for which no example was left has no rows in the table.
            idle = Tally(
                attempted=0,
                broken=0,
                accuracy=rows[-1]["accuracy"] if rows else 0.0,
                alone=None,
                forwards=0,
                backwards=0,
            )
            rows.append({"attack": label, **tallies.get(label, idle), "settings": settings})
        return rows

    def write(self, folder: Path) -> None:
        """Write `examples.parquet` and, last, `result.json` into `folder`, each whole or not at all.

        Raises:
            OSError: the folder cannot be made or written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.summary(), indent=2, allow_nan=False) + "\n"
        files.replace_by(folder / EXAMPLES, self.outcomes.write)
        files.replace_by(folder / RESULT, lambda path: path.write_text(text, encoding="utf-8"))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The evaluation in a folder.

        Raises:
            OSError: a file cannot be read.
            ValueError: one of the two files is not what `write` wrote, or they do not belong together.
        """
        stored = files.read_json(folder / RESULT)
        outcomes = Outcomes.read(folder / EXAMPLES)
        try:
            found = cls(
                outcomes=outcomes,
                settings={row["attack"]: row["settings"] for row in stored["attacks"] if row["attack"] != CLEAN},
                notes=tuple(stored["notes"]),
                audit=stored["audit"] and Audit.from_json(stored["audit"]),
                # A result from before these were counted had none.
                idle_passes=stored.get("idle_passes", 0),
                **{
                    name: stored[name] for name in ("threat", "suite", "seed", "seconds", "device", "torch", "identity")
                },
            )
            numbers = {name: stored[name] for name in ("n", "clean_accuracy", "robust_accuracy")}
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder / RESULT} is no result of an evaluation: {error!r}") from None
        recomputed = {name: getattr(found, name) for name in numbers}
        if numbers != recomputed:
            raise ValueError(f"{folder / RESULT} says {numbers}, but {EXAMPLES} beside it says {recomputed}")
        return found


def describe_suite(suite: Mapping[str, AttackSpec | Attack | SideAttack]) -> dict[str, dict[str, Any]]:
    """`describe` for every attack, by label."""
    return {label: describe(attack) for label, attack in suite.items()}
