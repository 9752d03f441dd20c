"""PGD from directed starts: where an ascent begins decides which class it ends in, so starts lean towards classes.

    x_adv = diversified_pgd(model, x, y, threat=Linf(8 / 255), rank=2, initial_steps=7, steps=30)

Output-diversified starts (Tashiro et al. 2020, section 3) walk along a random direction of the logits before the attack
proper begins. Adaptive Auto Attack (Liu et al. 2022, section 3.2) bends that direction towards one class and away from
the label, and ascends the margin in sign steps whose length falls along a cosine. MALT (Melamed et al. 2024) orders
classes by how far their boundary is to first order, not by confidence. The suite `adaptive` is made of it.
"""

import math
from typing import Literal

from torch import Tensor, nn

from toughen.attacks.ascent import move, start_in
from toughen.attacks.best_so_far import BestSoFar
from toughen.attacks.compaction import Leaving
from toughen.attacks.contract import attack
from toughen.attacks.deepfool import ranked_by_distance, ranked_others
from toughen.devices import sent
from toughen.losses import full_precision, hard, margin, targeted_margin
from toughen.models.batched import Objective, predict, value_and_grad
from toughen.modes import attacking
from toughen.noise import Stream, fixed
from toughen.settings import Count, Share
from toughen.threat import Threat

CANDIDATES = 9
"""How many classes are ordered by distance, as many as AutoAttack's targeted attacks aim at."""
AWAY = (-0.5, 0.1)
TOWARDS = 0.8
"""Weights of the label's logit, uniform between the two, and of the aimed class's (Adaptive Auto Attack's code)."""


@attack
def diversified_pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    steps: Count = 20,
    initial_steps: Count = 7,
    rank: int = 0,
    ranks: Count = 1,
    order: Literal["logits", "distance"] = "logits",
    last_step: Share = 0.1,
    restarts: Count = 1,
    noise: Stream | None = None,
) -> Tensor:
    """Ascend the margin over the ball from starts that lean towards one class.

    A run starts uniformly in the ball, takes `initial_steps` steps of length eps that ascend <w, logits>, and then
    `steps` steps that ascend max_{k != y} z_k - z_y, step k of length eps (r + (1 - r)(1 + cos(pi k / steps)) / 2) with
    r = `last_step`. w is uniform in [-1, 1) for every class; with a `rank`, the label's weight is uniform in
    [-0.5, 0.1) and that of the class of this rank is 0.8 K / 10. With `order: distance` the ascent is that of z_k - z_y
    for that class.

    An example leaves as soon as any point of its way is misclassified. A run takes `initial_steps + steps` forward and
    backward passes and one more forward; an order by distance takes one forward and at most 9 backward passes in all.

    Args (all else as for `pgd`):
        y: classes (N,) or probabilities (N, K), of which the most probable class counts.
        steps: steps of the ascent, at least 1.
        initial_steps: steps of the way to its start, at least 1.
        rank: 1 for the other class of the highest logit at the random start, 2 for the next, ...; beyond the number of
            other classes the count begins again. 0 leans towards none.
        ranks: how many ranks, from `rank` on, the runs go through in turn, each `restarts` times.
        order: by what classes are ranked: "logits" at the random start of a run; or "distance" of their linearised
            boundaries at `x`, among the 9 classes of the highest logits there (all, where there are fewer).
        last_step: length of the last step as a share of eps.
        restarts: runs for each rank.

    Returns:
        x_adv (N, C, H, W), in the ball and in [0, 1]: the first misclassified point; where there is none, that of the
        highest margin.

    Raises:
        ValueError: for settings outside these ranges, and for an order or several ranks where no rank is given.
    """
    if not rank and (ranks > 1 or order != "logits"):
        raise ValueError(f"ranks is {ranks} and order is {order}, but rank is 0, which leans towards none; use rank: 1")
    noise = (fixed(len(x), device=x.device) if noise is None else noise).child("diversified_pgd")
    images, label = x.detach(), hard(y)
    found = BestSoFar(images, label)
    shares = [1.0] * initial_steps
    shares += [last_step + (1 - last_step) * (1 + math.cos(math.pi * k / steps)) / 2 for k in range(steps)]
    with attacking(model, "eval"):
        ranked = ranked_by_distance(model, images, label, threat, CANDIDATES) if order == "distance" else None
        turns = ranks if ranked is None else min(ranks, ranked.shape[1])
        for run in range(turns * restarts):
            rows = found.unbroken.nonzero().squeeze(1)
            if not len(rows):
                break
            place = rank + run % turns if rank else 0
            draws, aim = noise[rows].child(run), None
            if ranked is not None:
                aim = ranked[rows, (place - 1) % ranked.shape[1]]
            at, direction = start_in(images[rows], threat[rows], draws), _StartDirection(place, draws, aim)
            leaving = Leaving(model)
            for step, share in enumerate(shares):
                clean, ball, of_rows = images[rows], threat[rows], label[rows]
                if step < initial_steps:
                    objective = direction.towards(of_rows)
                else:
                    objective = _margin_of(of_rows) if direction.aim is None else _to_aim(of_rows, direction.aim)
                _, grad, logits = value_and_grad(model, at, objective)
                direction.settle(logits, of_rows)
                gone = found.see(rows, at, logits)
                at = move(at, clean, grad, ball, share * ball.eps)
                stay = leaving.stay(gone, passes=1 if step + 1 == len(shares) else 2)
                if stay is not None:
                    rows, at = rows[stay], at[stay]
                    direction.keep(stay)
                    if not len(rows):
                        break
            if len(rows):
                found.see(rows, at, predict(model, at))
    return found.best


def _margin_of(label: Tensor) -> Objective:
    return lambda logits, piece: margin(logits, label[piece])


def _to_aim(label: Tensor, aim: Tensor) -> Objective:
    return lambda logits, piece: targeted_margin(logits, label[piece], aim[piece])


class _StartDirection:
    """The direction <w, logits> in which a run begins, fixed by the logits at its start."""

    def __init__(self, rank: int, draws: Stream, aim: Tensor | None) -> None:
        self.rank, self.draws, self.aim = rank, draws, aim
        self.uniform: Tensor | None = None
        self.weights: Tensor | None = None

    def towards(self, label: Tensor) -> Objective:
        """Ascend <w, logits>; w is made of these very logits at the start of a run."""

        def objective(logits: Tensor, piece: slice) -> Tensor:
            weights = self._made(logits.detach(), label, piece) if self.weights is None else self.weights[piece]
            return (weights * full_precision(logits)).sum(1)

        return objective

    def settle(self, logits: Tensor, label: Tensor) -> None:
        """Fix the weights by the logits of the first pass."""
        if self.weights is None:
            self.weights = self._made(logits, label, slice(None))

    def keep(self, stay: Tensor) -> None:
        """Only some of the examples go on."""
        assert self.weights is not None
        self.weights = self.weights[stay]
        self.aim = None if self.aim is None else self.aim[stay]

    def _made(self, logits: Tensor, label: Tensor, piece: slice) -> Tensor:
        logits = full_precision(logits)
        classes = logits.shape[1]
        if self.uniform is None:
            drawn = self.draws.child("weights").uniform((classes,), dtype=logits.dtype)
            self.uniform = sent(drawn, logits.device)
        weights, of_these = self.uniform[piece].clone(), label[piece].unsqueeze(1)
        if self.rank:
            ranked = ranked_others(logits, label[piece])[:, (self.rank - 1) % (classes - 1)]
            aim = (ranked if self.aim is None else self.aim[piece]).unsqueeze(1)
            low, high = AWAY
            away = low + (high - low) * (weights.gather(1, of_these) + 1) / 2
            weights = weights.scatter(1, of_these, away).scatter(1, aim, TOWARDS * classes / 10)
        return weights
