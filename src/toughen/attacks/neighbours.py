"""PGD from where neighbours broke: what breaks one image often nearly breaks those that are like it.

    donors = Donors(x_broken, x_adv, y_broken)              # examples that are broken already, and how
    x_adv = neighbour_pgd(model, x, y, threat=Linf(8 / 255), donors=donors, neighbours=10, steps=50)

Ours, from no paper; the suite `exhaustive` ends with it, with all that it has broken so far as donors. A random start
in the ball and the gradient from it say nothing of far parts of the ball that other images have shown to be weak.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toughen.attacks.ascent import start_in
from toughen.attacks.best_so_far import BestSoFar, climb
from toughen.attacks.contract import attack
from toughen.devices import sent
from toughen.losses import hard, margin
from toughen.models.batched import Objective, predict
from toughen.modes import attacking
from toughen.noise import Stream, fixed
from toughen.settings import Count
from toughen.threat import Threat

LAST_STEP = 0.001
"""The length of the last step as a share of eps."""


@dataclass(frozen=True, eq=False)
class Donors:
    """Examples that are broken already.

    Args:
        x: clean images (M, C, H, W).
        x_adv: how they were broken, (M, C, H, W).
        y: their classes (M,).
    """

    x: Tensor
    x_adv: Tensor
    y: Tensor

    def on(self, device: torch.device | str) -> "Donors":
        """The same on a device."""
        return Donors(*(sent(part, device) for part in (self.x, self.x_adv, self.y)))


@attack
def neighbour_pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    neighbours: Count = 10,
    steps: Count = 50,
    donors: Donors | None = None,
    noise: Stream | None = None,
) -> Tensor:
    """Ascend the margin from starts that broken examples suggest, one donor after another.

        odd runs:  x + P(x_adv' - x)     towards the adversarial images x_adv' nearest to x, of another class than y
        even runs: x + P(x_adv' - x')    with the perturbations of the images x' nearest to x, of the class y

    P is the projection on the ball, then on [0, 1]; near in L2. Step k of the ascent of max_{k != y} z_k - z_y has the
    length eps (r + (1 - r)(1 + cos(pi k / steps)) / 2) with r = 0.001. Where fewer donors of the kind are left than
    there are runs, or none are given, a run starts at random in the ball.

    An example leaves as soon as any iterate is misclassified. A run takes `steps` forward and backward passes and one
    more forward; the donors take one forward each.

    Args (all else as for `pgd`):
        y: classes (N,) or probabilities (N, K), of which the most probable class counts.
        neighbours: runs.
        steps: steps of each run, at least 1.
        donors: broken examples; never part of a recipe: the suite `exhaustive` gives those that it has broken.

    Returns:
        x_adv (N, C, H, W), in the ball and in [0, 1]: the first misclassified point; where there is none, that of the
        highest margin.
    """
    noise = (fixed(len(x), device=x.device) if noise is None else noise).child("neighbour_pgd")
    images, label = x.detach(), hard(y)
    found = BestSoFar(images, label)
    shares = [LAST_STEP + (1 - LAST_STEP) * (1 + math.cos(math.pi * k / steps)) / 2 for k in range(steps)]

    def on(rows: Tensor) -> Objective:
        of_rows = label[rows]
        return lambda logits, piece: margin(logits, of_rows[piece])

    with attacking(model, "eval"):
        ways = [] if donors is None or not len(donors.y) else _ways(model, images, label, donors)
        for run in range(neighbours):
            rows = found.unbroken.nonzero().squeeze(1)
            if not len(rows):
                break
            start = start_in(images[rows], threat[rows], noise[rows].child(run))
            if ways and donors is not None:
                there, chosen = ways[run % 2]
                if run // 2 < chosen.shape[1]:
                    donor = chosen[rows, run // 2]
                    aim = donors.x_adv[donor] - (donors.x[donor] if run % 2 else images[rows])
                    suggested = (images[rows] + threat[rows].project(aim)).clamp(0, 1)
                    known = there[rows, run // 2].reshape(-1, 1, 1, 1)
                    start = torch.where(known, suggested, start)
            climb(
                model, images, found, rows, start, on, threat=threat, lengths=[share * threat.eps for share in shares]
            )
    return found.best


def _ways(model: nn.Module, x: Tensor, y: Tensor, donors: Donors) -> list[tuple[Tensor, Tensor]]:
    """For each kind of run, the donors of each example (N, M), the nearest first, and whether they are of use."""
    taken_for = predict(model, donors.x_adv).argmax(1)
    kinds = (
        (donors.x_adv, taken_for.unsqueeze(0) != y.unsqueeze(1)),
        (donors.x, (donors.y.unsqueeze(0) == y.unsqueeze(1)) & (donors.x_adv != donors.x).flatten(1).any(1)),
    )
    ways = []
    for images, fits in kinds:
        # One row at a time: a product of matrices rounds by how many rows it has.
        distance = torch.stack([(images - row).flatten(1).square().sum(1) for row in x])
        distance, order = distance.masked_fill(~fits, torch.inf).sort(dim=1, stable=True)
        ways.append((distance.isfinite(), order))
    return ways
