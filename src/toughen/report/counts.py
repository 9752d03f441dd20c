"""Numbers of a page that no result states, from the table of outcomes: accuracy by class, and the confusion matrix.

worst = find_worst_case(evaluation.outcomes)
count_by_class(worst)            # {3: ClassRow(n=100, clean=91, robust=44)}
confusion_matrix(worst, 10)      # rows true, columns what is predicted in the worst case
"""

from typing import NamedTuple

import numpy as np

from toughen.outcomes import CLEAN, Outcomes


class WorstCase(NamedTuple):
    """What became of each example under all attacks together, (N,) each; side attacks are left out.

    Attributes:
        label: true class.
        correct: whether the image itself is classified as the label.
        robust: whether that held under every attack too.
        prediction: class predicted on the image if that is wrong, else on the first example that broke it, else the
            label.
    """

    label: np.ndarray
    correct: np.ndarray
    robust: np.ndarray
    prediction: np.ndarray


class ClassRow(NamedTuple):
    """A class's examples, how many of them are right, and how many robust."""

    n: int
    clean: int
    robust: int


def find_worst_case(outcomes: Outcomes) -> WorstCase:
    """The worst case over the attacks of an evaluation."""
    rows = outcomes.attack == CLEAN
    correct, prediction = outcomes.survived[rows], outcomes.prediction[rows].copy()
    place = {number: at for at, number in enumerate(outcomes.index[rows].tolist())}
    broken = ~correct
    for attack in outcomes.attacks:
        hits = (outcomes.attack == attack) & ~outcomes.survived & ~outcomes.aside
        for number, predicted in zip(outcomes.index[hits].tolist(), outcomes.prediction[hits].tolist(), strict=True):
            at = place[number]
            if not broken[at]:
                broken[at], prediction[at] = True, predicted
    return WorstCase(outcomes.label[rows], correct, ~broken, prediction)


def count_by_class(worst: WorstCase) -> dict[int, ClassRow]:
    """Counts of each class that has examples."""
    own = {number: worst.label == number for number in np.unique(worst.label).tolist()}
    return {
        number: ClassRow(int(rows.sum()), int((worst.correct & rows).sum()), int((worst.robust & rows).sum()))
        for number, rows in own.items()
    }


def confusion_matrix(worst: WorstCase, classes: int) -> np.ndarray:
    """The confusion matrix under attack, (classes, classes): rows true classes, columns what is predicted."""
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (worst.label, worst.prediction), 1)
    return counts


def common_confusions(counts: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    """The commonest wrong cells of a confusion matrix: (true, predicted, examples), at most so many."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [(int(at // len(wrong)), int(at % len(wrong))) for at in order]
    return [(true, predicted, int(wrong[true, predicted])) for true, predicted in pairs if wrong[true, predicted]]
