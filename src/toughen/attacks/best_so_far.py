"""What an attack has found so far: for each example the first point that is misclassified, or else the worst.

found = BestSoFar(x, label)
gone = found.see(rows, points, logits)                  # which of these rows are broken, now or before
climb(model, x, found, rows, start, on, threat=threat, lengths=[threat.eps / 4] * 20)
found.best
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from toughen.attacks.ascent import move
from toughen.attacks.compaction import Leaving, write
from toughen.devices import widest
from toughen.losses import margin
from toughen.models.batched import Objective, predict, value_and_grad
from toughen.threat import Radius, Threat


class BestSoFar:
    """For each example the first misclassified point seen, or else that of the highest margin."""

    def __init__(self, x: Tensor, label: Tensor) -> None:
        self.label = label
        self.best = x.clamp(0, 1)
        self.highest = torch.full_like(label, -torch.inf, dtype=widest(label.device))
        self.unbroken = torch.ones_like(label, dtype=torch.bool)

    def see(self, rows: Tensor, points: Tensor, logits: Tensor) -> Tensor:
        """Look at points of some examples, of which the broken ones keep what broke them; which are, over `rows`."""
        label, unbroken = self.label[rows], self.unbroken[rows]
        gain, fooled = margin(logits, label).to(self.highest), logits.argmax(1) != label
        better = unbroken & (fooled | (gain > self.highest[rows]))
        write(self.best, rows, better, points)
        write(self.highest, rows, better, gain)
        self.unbroken[rows] = unbroken & ~fooled
        return ~unbroken | fooled


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
    """Ascend from `start`; an example leaves once it is misclassified, at any iterate or at the end.

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
    at, leaving = start, Leaving(model)
    for step, length in enumerate(lengths, start=1):
        _, grad, logits = value_and_grad(model, at, on(rows))
        stay = leaving.stay(found.see(rows, at, logits), passes=1 if step == len(lengths) else 2)
        if stay is not None:
            rows, at, grad = rows[stay], at[stay], grad[stay]
            if not len(rows):
                return
        here = length[rows] if isinstance(length, Tensor) and length.ndim else length
        at = move(at, x[rows], grad, threat[rows], here)
    found.see(rows, at, predict(model, at))
