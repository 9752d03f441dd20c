"""What an audit found: sentences with stable codes, the figures behind them, and what it could not look at.

audit.unreliable                             # True as soon as a finding is a reason not to believe the figures
for finding in audit.findings:
    print(finding)                           # EV205 The logits of 97 of 128 examples ...
audit = audit.after(evaluation.outcomes)     # what only shows beside the evaluation itself
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self

import numpy as np

from toughen.evaluation.audit import messages
from toughen.evaluation.audit.messages import ADVICE, CODES, MESSAGES, NOTES
from toughen.outcomes import CLEAN, Outcomes, interval

GAP = 0.03
"""A difference of accuracies that two sound attacks of unequal strength do not explain: 3 points."""

# Attacks that settle what PGD-20 may have missed, by the beginning of their labels.
STRONG = ("apgd", "fab", "square", "multi", "mt", "adaptive")


NONE = "none"
"""The figure `gradient` of a finding that says that no gradient of the output reaches the images."""


@dataclass(frozen=True)
class Finding:
    """One reason why a result is not to be trusted, or what a reader of it should know.

    Attributes:
        code: one of `CODES`.
        message: what was seen, with figures.
        figures: what the message was filled with, and what decided.
        remedy: what to do in this very case, or what was tried and what came of it; empty where nothing was.
        advice: what it means and what to do, in sentences; an audit says each of them once.
        severity: "unreliable", or "note" where the figures may be right nevertheless.
    """

    code: str
    message: str
    figures: Mapping[str, float | str]
    remedy: str = ""
    advice: tuple[str, ...] = ()
    severity: Literal["note", "unreliable"] = "unreliable"

    def __post_init__(self) -> None:
        assert self.code in CODES, self.code

    def __str__(self) -> str:
        return " ".join(filter(None, (self.code, self.message, *self.advice, self.remedy)))


def finding(code: str, **figures: float | str) -> Finding:
    """A finding with the sentence of its code; the figure `seen` is what else was seen, and may be left out."""
    message = MESSAGES[code].format(**{"seen": "", **figures})
    return Finding(code, message, figures, severity="note" if code in NOTES else "unreliable")


def advised(findings: Iterable[Finding], *, queried: bool = False, strong: bool = False) -> tuple[Finding, ...]:
    """The findings with what to do: each sentence once, and only what can be done with the model as it is.

    Args:
        findings: of one audit.
        queried: whether an attack without gradients was run.
        strong: whether a strong attack with gradients was run.
    """
    found = tuple(findings)
    gradient, told, result = has_gradient(found), set[str](), list[Finding]()
    for one in found:
        said = [say for general in ADVICE[one.code] for say in _possible(general, gradient, queried, strong)]
        new = tuple(sentence for sentence in dict.fromkeys(said) if sentence not in told)
        told.update(new)
        result.append(replace(one, advice=new))
    return tuple(result)


def _possible(advice: str, gradient: bool, queried: bool, strong: bool) -> tuple[str, ...]:
    """What stands for an advice where it cannot be followed, or was."""
    if advice == messages.BLACK_BOX and queried:
        return (messages.MORE_QUERIES,) if gradient else (messages.MORE_QUERIES, messages.TRANSFER)
    if strong and advice == messages.RESTARTS:
        return ()
    if strong and queried and advice == messages.STRONGER:
        return messages.MORE_QUERIES, messages.OWN_ATTACK
    return (advice,)


def has_gradient(findings: Iterable[Finding]) -> bool:
    """Whether nothing was found by which attacks with gradients cannot be run."""
    return all(one.figures.get("gradient") != NONE for one in findings)


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
        """Whether anything was found by which the figures are not to be believed; notes do not count."""
        return bool(self.reasons)

    @property
    def reasons(self) -> tuple[Finding, ...]:
        """The findings by which the figures are not to be believed."""
        return tuple(finding for finding in self.findings if finding.severity == "unreliable")

    @property
    def notes(self) -> tuple[Finding, ...]:
        """Those that a reader should know of, whether the figures are right or not."""
        return tuple(finding for finding in self.findings if finding.severity == "note")

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
            "findings": [{**asdict(finding), "advice": list(finding.advice)} for finding in self.findings],
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
        # Results of earlier versions have neither advice nor severity: all findings were reasons.
        found = [Finding(**{**one, "advice": tuple(one.get("advice", ()))}) for one in stored["findings"]]
        return cls(**{**values, "findings": tuple(found)})

    def after(self, outcomes: Outcomes) -> Self:
        """The audit with what shows only beside the evaluation: which attacks broke what others had not broken.

        Args:
            outcomes: the table of the evaluation, of the same examples under the same ids.
        """
        found, unchecked, gradient = list(self.findings), list(self.not_checked), has_gradient(self.findings)
        clean, counts = outcomes.index[outcomes.attack == CLEAN], ~outcomes.aside
        attacks = [name for name in outcomes.attacks if name != CLEAN and (counts & (outcomes.attack == name)).any()]
        blind = [name for name in attacks if not outcomes.backwards[outcomes.attack == name].sum()]
        led = [name for name in attacks if name not in blind]
        strong = any(name.startswith(STRONG) for name in led)
        final, n = _unbroken(outcomes, attacks), int(np.isin(clean, self.ids).sum())
        if not n:
            unchecked.append("The evaluation was not compared with the audit, because they share no example.")
        elif gradient and any(name.startswith(STRONG) for name in attacks):
            # By the lower end of the interval: 4 of 128 are more than 3 points, but say little of the whole, and on
            # sound models that PGD has trained the two lie 2 or 3 points apart.
            lost = len(self.standing_pgd) - int(np.isin(final, self.ids).sum())
            if exceeds(lost, n, GAP):
                found.append(finding("EV286", pgd_20=len(self.standing_pgd), lost=lost, examples=n))
        elif gradient:
            unchecked.append("PGD-20 was not compared with a stronger attack; use suite autoattack.")
        missed = sorted(set(final.tolist()) & (set(self.ids) - set(self.standing)))
        if exceeds(len(missed), n, GAP):
            figures = {"lost": len(missed), "examples": n, "share": len(missed) / n, "which": first_ids(missed)}
            found.append(replace(finding("EV288", **figures), remedy=self._what_broke(missed, strong)))
        if blind and led:
            lost = len(_unbroken(outcomes, led)) - len(final)
            # Random search finds an occasional example that gradients miss on sound models too.
            if exceeds(lost, len(clean), 0.01):
                found.append(finding("EV287", attacks=", ".join(blind), lost=lost, examples=len(clean)))
        elif gradient:
            unchecked.append("Attacks with and without gradients were not compared; use suite autoattack.")
        else:
            unchecked.append(
                "Attacks with and without gradients were not compared, because no gradient reaches the images; "
                "adversarial examples of another model (toughen.evaluation.transfer) are another trial."
            )
        return replace(self, findings=advised(found, queried=bool(blind), strong=strong), not_checked=tuple(unchecked))

    def _what_broke(self, missed: Sequence[int], strong: bool) -> str:
        """What to do about examples that only the audit broke."""
        tried = next((one.code for one in self.findings if "after" in one.figures), None)
        by_pgd = len(set(missed) - set(self.standing_pgd))
        if by_pgd <= len(missed) / 2:
            return "" if tried is None else f"What broke them is said with {tried}: attack so."
        if strong:
            return (
                "PGD-20 of the audit broke them, which is weaker than the suite: attacks do not repeat on this model."
            )
        return "PGD-20 of the audit broke them: run suite autoattack, which is stronger than that."


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
