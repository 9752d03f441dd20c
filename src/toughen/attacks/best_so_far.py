"""What an attack has found so far: for each example the first point that is misclassified, or else the worst.

found = BestSoFar(x, label)
unbroken = found.see(rows, points, logits)  # which of these rows are not yet broken
found.best
"""

import torch
from torch import Tensor

from toughen.losses import margin


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
