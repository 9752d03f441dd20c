"""What an attack has found so far: for each example the first point that is misclassified, or else the worst.

found = BestSoFar(x, label)
unbroken = found.see(rows, points, logits)              # which of these rows are not yet broken
climb(model, x, found, rows, start, on, threat=threat, lengths=[threat.eps / 4] * 20)
found.best
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from toughen.attacks.ascent import move
from toughen.losses import margin
from toughen.models.batched import Objective, predict, value_and_grad
from toughen.threat import Radius, Threat


class BestSoFar:
    """For each example the first misclassified point seen, or else that of the highest margin."""

    def __init__(self, x: Tensor, label: Tensor) -> None:
        self.label = label
        self.best = x.clamp(0, 1)
        self.highest = torch.full_like(label, -torch.inf, dtype=torch.float64)
        self.unbroken = torch.ones_like(label, dtype=torch.bool)

    def see(self, rows: Tensor, points: Tensor, logits: Tensor) -> Tensor:
        """Look at points of some examples not yet broken; which of them still are not, a mask over `rows`."""
        label = self.label[rows]
        gain, fooled = margin(logits, label).double(), logits.argmax(1) != label
        better = fooled | (gain > self.highest[rows])
        self.best[rows[better]], self.highest[rows[better]] = points[better], gain[better]
        self.unbroken[rows[fooled]] = False
        return ~fooled


def climb(
    model: nn.Module,
    x: Tensor,
    found: BestSoFar,
    rows: Tensor,
    start: Tensor,
    on: Callable[[Tensor], Objective],
    *,
    threat: Threat,
    lengths: Sequence[Radius],
) -> None:
    """Ascend from `start`; an example leaves as soon as it is misclassified, at any iterate or at the end.

    Args:
        model: classifier, already in the mode wanted.
        x: clean images of the whole batch (N, C, H, W).
        found: what has been found for the batch, which this adds to.
        rows: positions of the examples that are attacked (n,).
        start: where from, (n, C, H, W).
        on: positions of some examples -> what to ascend on them.
        threat: the balls of the whole batch.
        lengths: of every step, a number or (N,).
    """
    at = start
    for length in lengths:
        _, grad, logits = value_and_grad(model, at, on(rows))
        stay = found.see(rows, at, logits)
        if not stay.all():
            rows, at, grad = rows[stay], at[stay], grad[stay]
            if not len(rows):
                return
        here = length[rows] if isinstance(length, Tensor) and length.ndim else length
        at = move(at, x[rows], grad, threat[rows], here)
    if len(rows):
        found.see(rows, at, predict(model, at))
