"""MultiTargeted: PGD on z_target - z_y, one other class after another (Gowal et al. 2019, algorithm 1).

    x_adv = multi_targeted(model, x, y, threat=Linf(8 / 255), steps=200, restarts=10)

The limits paper ends its evaluation with it (Gowal et al. 2020, section 3.1: 10 restarts of 200 steps, margin loss). It
does not say what a restart does; both readings are here.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from toughen.attacks.ascent import start_in
from toughen.attacks.best_so_far import BestSoFar, climb
from toughen.attacks.contract import StepSize, attack, lengths
from toughen.losses import hard, targeted_margin
from toughen.models.batched import Objective, predict
from toughen.modes import attacking
from toughen.noise import Stream, fixed
from toughen.settings import Count
from toughen.threat import Radius, Threat


@attack
def multi_targeted(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    steps: Count = 200,
    step_size: StepSize = None,
    restarts: Count = 10,
    targets: Literal["cycle", "all"] = "cycle",
    noise: Stream | None = None,
) -> Tensor:
    """Maximise z_t - z_y over the ball by PGD for one other class t after another, from a random start each.

    The other classes are ranked by their logits at `x`, the most likely first. An example leaves as soon as it is
    misclassified: at `x`, at any iterate (whose logits the gradient needs anyway), or at an end point. The first runs
    of "all" are those of "cycle".

    Args (all else as for `pgd`):
        y: classes (N,) or probabilities (N, K), of which the most probable class counts.
        steps: steps of each run, at least 1.
        step_size: in pixel units, a number or (N,), or a function of the step, counted from 0, that gives one of them.
            Default: eps (1 + cos(pi k / steps)) / 2 at step k. A deviation: the papers' text names no rule, the first
            one's code takes Adam with falling rates. On an adversarially trained CNN (64 digits, eps 0.23, 4 restarts
            of 100 steps) it broke 34, steps of eps / 4 or eps / 10 broke 31.
        restarts: "cycle": number of runs. "all": rounds of K - 1 runs.
        targets: "cycle": run r aims at the class of rank r mod (K - 1). "all": every restart aims at each class.
        noise: stream of the random starts. Default: one keyed by the examples' positions.

    Returns:
        x_adv (N, C, H, W), in the ball and in [0, 1]: the first misclassified point; where there is none, that of the
        highest margin over all classes among `x`, iterates and end points.

    Raises:
        ValueError: for settings outside these ranges and a model with fewer than 2 classes.
    """
    length = _cosine(threat.eps, steps) if step_size is None else lengths(step_size, steps, x)
    noise = (fixed(len(x), device=x.device) if noise is None else noise).child("multi_targeted")
    images, label = x.detach(), hard(y)
    with attacking(model, "eval"):
        logits = predict(model, images)
        found = BestSoFar(images, label)
        found.see(torch.arange(len(images), device=images.device), images, logits)
        ranked = logits.scatter(1, label.unsqueeze(1), -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :-1]
        others = ranked.shape[1]
        for number in range(restarts * others if targets == "all" else restarts):
            rows = found.unbroken.nonzero().squeeze(1)
            if not len(rows):
                break
            target = ranked[:, number % others]
            start = start_in(images[rows], threat[rows], noise[rows].child(number))
            climb(
                model, images, found, rows, start, lambda some, target=target: _towards(target[some], label[some]),
                threat=threat, lengths=length if isinstance(length, list) else [length] * steps,
            )  # fmt: skip
        return found.best


def _cosine(eps: Radius, steps: int) -> list[Radius]:
    return [eps * (1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps)]


def _towards(target: Tensor, label: Tensor) -> Objective:
    return lambda logits, piece: targeted_margin(logits, label[piece], target[piece])
