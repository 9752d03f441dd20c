"""What a check says of each thing that it looked at: whether it is fine, by which evidence, what to write if not.

log = CheckLog()
log.fine("pixel range", "0..1")
log.wrong("EV224", "All 128 rows ...", "return logits")
log.rest("the output is random")
log.done(128, passes).items
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from toughen.evaluation.audit.findings import Finding
from toughen.evaluation.audit.messages import UPPER_BOUND
from toughen.models.cost import Passes

Verdict = Literal["fine", "wrong", "not checked"]

# What is looked at, in the order of the table, and the findings that each may make.
CHECKED: dict[str, tuple[str, ...]] = {
    "pixel range": ("EV221",),
    "input": ("EV226",),
    "classes": ("EV227",),
    "train mode": ("EV211",),
    "randomness": ("EV212", "EV214", "EV215"),
    "batch": ("EV213",),
    "output": ("EV203", "EV209", "EV224", "EV225"),
    "normalisation": ("EV222",),
    "channel order": ("EV228",),
    "label order": ("EV223",),
    "accuracy": ("EV229",),
    "gradients": ("EV201", "EV202", "EV204", "EV205", "EV206", "EV207", "EV210"),
}


@dataclass(frozen=True)
class CheckItem:
    """One thing that was looked at.

    Attributes:
        what: a key of `CHECKED`.
        verdict: "fine", "wrong" or "not checked".
        evidence: what was seen, in figures; or why it was not looked at.
        remedy: what to write; empty where nothing is wrong.
        code: of the finding, empty where there is none; what is fine may have one that is no more than a note.
    """

    what: str
    verdict: Verdict
    evidence: str
    remedy: str = ""
    code: str = ""


@dataclass(frozen=True)
class ModelCheck:
    """What is right and what is wrong.

    Attributes:
        items: in the order of `CHECKED`; several of one name where several things are wrong.
        examples: images that were looked at.
        forwards: forward passes times images in them.
        backwards: backward passes likewise.
    """

    items: tuple[CheckItem, ...]
    examples: int
    forwards: int
    backwards: int

    @property
    def wrong(self) -> tuple[CheckItem, ...]:
        """What is wrong."""
        return tuple(item for item in self.items if item.verdict == "wrong")

    @property
    def fine(self) -> bool:
        """Whether nothing is wrong; something may not have been checked."""
        return not self.wrong

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes of what is wrong."""
        return tuple(item.code for item in self.wrong)

    def __getitem__(self, what: str) -> CheckItem:
        """The first item of a name."""
        return next(item for item in self.items if item.what == what)

    def summary(self) -> dict[str, Any]:
        """Everything, in JSON's types; `report.tables.model_check` makes a table of it."""
        return {**asdict(self), "items": [asdict(item) for item in self.items], "fine": self.fine}


def _belongs(code: str) -> str:
    return next(what for what, codes in CHECKED.items() if code in codes)


@dataclass
class CheckLog:
    """The items so far, and how to add to them."""

    items: list[CheckItem] = field(default_factory=list)

    def fine(self, what: str, evidence: str) -> None:
        """This is as it should be."""
        self.items.append(CheckItem(what, "fine", evidence))

    def unknown(self, what: str, why: str) -> None:
        """This was not looked at, or could not be decided."""
        self.items.append(CheckItem(what, "not checked", why))

    def wrong(self, code: str, evidence: str, remedy: str) -> None:
        """This is wrong."""
        self.items.append(CheckItem(_belongs(code), "wrong", evidence, remedy, code))

    def found(self, found: Finding) -> None:
        """A finding, which is wrong unless it is a note; what it means for a robust accuracy is left out."""
        verdict: Verdict = "fine" if found.severity == "note" else "wrong"
        remedy = found.remedy or " ".join(sentence for sentence in found.advice if sentence != UPPER_BOUND)
        self.items.append(CheckItem(_belongs(found.code), verdict, found.message, remedy, found.code))

    def has(self, what: str) -> bool:
        """Whether there is an item of this name."""
        return any(item.what == what for item in self.items)

    def rest(self, why: str) -> None:
        """Whatever was not looked at."""
        for what in CHECKED:
            if not self.has(what):
                self.unknown(what, why)

    def done(self, examples: int, passes: Passes) -> ModelCheck:
        """The check with these items."""
        order = list(CHECKED)
        items = tuple(sorted(self.items, key=lambda item: order.index(item.what)))
        return ModelCheck(items, examples, passes.example_forwards, passes.example_backwards)
