"""What an audit found: sentences with stable codes, the figures behind them, and what it could not look at.

audit.unreliable                             # True as soon as there is a finding
for finding in audit.findings:
    print(finding)                           # EV205 The logits of 97 of 128 examples ...
audit = audit.after(evaluation.outcomes)     # what only shows beside the evaluation itself
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

import numpy as np

from toughen.evaluation.audit.messages import CODES, MESSAGES, UPPER_BOUND
from toughen.outcomes import CLEAN, Outcomes, interval

GAP = 0.03
"""A difference of accuracies that two sound attacks of unequal strength do not explain: 3 points."""

# Attacks that settle what PGD-20 may have missed, by the beginning of their labels.
STRONG = ("apgd", "fab", "square", "multi", "mt", "adaptive")


@dataclass(frozen=True)
class Finding:
    """One reason why a result is not to be trusted.

    Attributes:
        code: one of `CODES`.
        message: what was seen, with figures; what it means; what to do.
        figures: what the message was filled with, and what decided.
        remedy: what was tried and what came of it; empty where nothing was.
    """

    code: str
    message: str
    figures: Mapping[str, float | str]
    remedy: str = ""

    def __post_init__(self) -> None:
        assert self.code in CODES, self.code

    def __str__(self) -> str:
        return " ".join(filter(None, (self.code, self.message, self.remedy)))


def finding(code: str, **figures: float | str) -> Finding:
    """A finding with the sentence of its code."""
    return Finding(code, MESSAGES[code].format(upper_bound=UPPER_BOUND, **figures), figures)


@dataclass(frozen=True)
class Audit:
    """The findings about a model, its images and the attacks on them.

    Attributes:
        findings: in the order in which they were made.
        not_checked: sentences that say what was not looked at, and what would do so.
        examples: examples that were looked at.
        forwards: forward passes times examples in them.
        backwards: backward passes likewise.
        ids: the examples' ids.
        standing_pgd: ids of those that are classified correctly and not broken by PGD-20.
        standing: ids of those that are classified correctly and not broken by anything in the audit, remedies included.
    """

    findings: tuple[Finding, ...]
    not_checked: tuple[str, ...]
    examples: int
    forwards: int
    backwards: int
    ids: tuple[int, ...]
    standing_pgd: tuple[int, ...]
    standing: tuple[int, ...]

    @property
    def unreliable(self) -> bool:
        """Whether anything was found."""
        return bool(self.findings)

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes of the findings, in their order."""
        return tuple(finding.code for finding in self.findings)

    @property
    def passes(self) -> int:
        """Forward and backward passes times examples in them."""
        return self.forwards + self.backwards

    def to_json(self) -> dict[str, Any]:
        """Everything, in JSON's types."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            **{key: list(value) if isinstance(value, tuple) else value for key, value in values.items()},
            "findings": [asdict(finding) for finding in self.findings],
            "unreliable": self.unreliable,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The audit that `to_json` described.

        Raises:
            KeyError: something is missing.
        """
        values: dict[str, Any] = {field.name: stored[field.name] for field in fields(cls)}
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        return cls(**{**values, "findings": tuple(Finding(**found) for found in stored["findings"])})

    def after(self, outcomes: Outcomes) -> Self:
        """The audit with what shows only beside the evaluation: which attacks broke what others had not broken.

        Args:
            outcomes: the table of the evaluation, of the same examples under the same ids.
        """
        found, unchecked = list(self.findings), list(self.not_checked)
        clean, counts = outcomes.index[outcomes.attack == CLEAN], ~outcomes.aside
        attacks = [name for name in outcomes.attacks if name != CLEAN and (counts & (outcomes.attack == name)).any()]
        final, n = _unbroken(outcomes, attacks), int(np.isin(clean, self.ids).sum())
        if not n:
            unchecked.append("The evaluation was not compared with the audit, because they share no example.")
        elif any(name.startswith(STRONG) for name in attacks):
            # By the lower end of the interval: 4 of 128 are more than 3 points, but say little of the whole, and on
            # sound models that PGD has trained the two lie 2 or 3 points apart.
            lost = len(self.standing_pgd) - int(np.isin(final, self.ids).sum())
            if exceeds(lost, n, GAP):
                found.append(finding("EV286", pgd_20=len(self.standing_pgd), lost=lost, examples=n))
        else:
            unchecked.append("PGD-20 was not compared with a stronger attack; use suite autoattack.")
        missed = sorted(set(final.tolist()) & (set(self.ids) - set(self.standing)))
        if exceeds(len(missed), n, GAP):
            found.append(finding("EV288", lost=len(missed), examples=n, share=len(missed) / n, which=first_ids(missed)))
        blind = [name for name in attacks if not outcomes.backwards[outcomes.attack == name].sum()]
        led = [name for name in attacks if name not in blind]
        if blind and led:
            lost = len(_unbroken(outcomes, led)) - len(final)
            # Random search finds an occasional example that gradients miss on sound models too.
            if exceeds(lost, len(clean), 0.01):
                found.append(finding("EV287", attacks=", ".join(blind), lost=lost, examples=len(clean)))
        else:
            unchecked.append("Attacks with and without gradients were not compared; use suite autoattack.")
        return replace(self, findings=tuple(found), not_checked=tuple(unchecked))


def first_ids(ids: Sequence[int]) -> str:
    """The first of some ids, as text."""
    return "ids " + ", ".join(map(str, ids[:5])) + (", ..." if len(ids) > 5 else "")


def _unbroken(outcomes: Outcomes, attacks: Sequence[str]) -> np.ndarray:
    """Ids that are classified correctly and not broken by any of these attacks."""
    chosen = np.isin(outcomes.attack, [CLEAN, *attacks]) & ~outcomes.aside
    return np.setdiff1d(outcomes.index[outcomes.attack == CLEAN], outcomes.index[chosen & ~outcomes.survived])


def exceeds(k: int, n: int, share: float) -> bool:
    """Whether k of n shows that the true share is above `share`, with 95 % confidence (one-sided, Wilson)."""
    return k > 0 and interval(k, n, 0.9)[0] > share
