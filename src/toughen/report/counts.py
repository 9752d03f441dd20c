"""Numbers of a page that no result states: by class and by where attacked images go, from the table of outcomes.

found = ends(evaluated.outcomes)
by_class(found)          # {3: ClassRow(n=100, clean=91, robust=44)}
confusion(found, 10)     # rows true, columns what is predicted in the worst case
"""

from typing import NamedTuple

import numpy as np

from toughen.outcomes import CLEAN, Outcomes


class Ends(NamedTuple):
    """What became of each example, (N,) each.

    Attributes:
        label: true class.
        clean: class predicted on the image itself.
        right: whether that is the label.
        robust: whether every attack was withstood too.
        end: class predicted on the image if that is wrong, else on the first example that broke it, else the label.
    """

    label: np.ndarray
    clean: np.ndarray
    right: np.ndarray
    robust: np.ndarray
    end: np.ndarray


class ClassRow(NamedTuple):
    """A class's examples, how many of them are right, and how many robust."""

    n: int
    clean: int
    robust: int


def ends(outcomes: Outcomes) -> Ends:
    """What became of each example of the worst case; attacks aside are left out."""
    rows = outcomes.attack == CLEAN
    ids, label, clean = outcomes.index[rows], outcomes.label[rows], outcomes.prediction[rows]
    right, end = outcomes.survived[rows], clean.copy()
    place = {number: at for at, number in enumerate(ids.tolist())}
    broken = ~right
    for attack in outcomes.attacks:
        hits = (outcomes.attack == attack) & ~outcomes.survived & ~outcomes.aside
        for number, prediction in zip(outcomes.index[hits].tolist(), outcomes.prediction[hits].tolist(), strict=True):
            at = place[number]
            if not broken[at]:
                broken[at], end[at] = True, prediction
    return Ends(label, clean, right, ~broken, end)


def by_class(found: Ends) -> dict[int, ClassRow]:
    """Counts of each class that has examples."""
    return {
        number: ClassRow(
            int((found.label == number).sum()),
            int((found.right & (found.label == number)).sum()),
            int((found.robust & (found.label == number)).sum()),
        )
        for number in np.unique(found.label).tolist()
    }


def confusion(found: Ends, classes: int) -> np.ndarray:
    """The confusion matrix under attack, (classes, classes): rows true classes, columns where their examples end up."""
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (found.label, found.end), 1)
    return counts


def flows(counts: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    """The commonest ways of going wrong: (true, predicted, examples), at most so many."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [(int(at // len(wrong)), int(at % len(wrong))) for at in order]
    return [(true, predicted, int(wrong[true, predicted])) for true, predicted in pairs if wrong[true, predicted]]
