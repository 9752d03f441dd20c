"""DeepFool: step to the nearest boundary of the model's linearisation, until the true boundary is crossed.

    x_adv = deepfool(model, x, y, threat=L2(0.5))

`nearest_boundary`, the linearised boundaries of a batch and the nearest of them, is FAB's first half too.

Source: Moosavi-Dezfooli et al. 2016, algorithm 2 and its extension to other norms.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from toughen.attacks.compaction import Leaving, write
from toughen.attacks.contract import attack, minimal_norm
from toughen.attacks.refine import Rounds, refined
from toughen.losses import full_precision, hard, margin
from toughen.models.batched import in_pieces, input_gradient, predict
from toughen.modes import attacking
from toughen.settings import Count, NonNegative
from toughen.threat import Threat, broadcastable, of_each, per_example, row_sum

# Added to every step by the authors' code and by every library: without it a step may end on the boundary.
STEP_FLOOR = 1e-4


class Boundary(NamedTuple):
    """For each point the nearest of its linearised boundaries, where gap + <normal, z - point> = 0.

    Attributes:
        gap: logit of the class on the other side, less that of the label, (N,).
        normal: gradient of `gap`, (N, C, H, W); zero where no gradient is finite and other than zero.
        distance: |gap| / ||normal||_dual, the distance in the threat's norm with [0, 1] disregarded, (N,); infinite
            where the normal is zero.
        logits: of the points, (N, K).
    """

    gap: Tensor
    normal: Tensor
    distance: Tensor
    logits: Tensor


def ranked_others(logits: Tensor, y: Tensor) -> Tensor:
    """All classes but the label, the most likely first: (N, K), (N,) -> (N, K - 1).

    Raises:
        ValueError: the model has a single class.
    """
    if logits.shape[1] < 2:
        raise ValueError(f"the model has {logits.shape[1]} class; an attack needs at least 2 to choose between")
    # Sorted stably, so that classes of equal logits come in one order on every machine.
    others = logits.scatter(1, y.unsqueeze(1), -torch.inf)
    return others.argsort(dim=1, descending=True, stable=True)[:, :-1]


def nearest_boundary(
    model: nn.Module, x: Tensor, y: Tensor, others: Callable[[Tensor, slice], Tensor], threat: Threat
) -> Boundary:
    """The nearest linearised boundary between the label and some other classes.

    It costs one forward pass, and a backward pass for each other class; of their gradients two are kept at a time.

    Args:
        model: classifier, already in the mode wanted.
        x: points (N, C, H, W).
        y: classes (N,).
        others: (logits (n, K) of some rows, which rows they are) -> the classes to look at, (n, J).
        threat: its norm measures the distance.
    """

    def compute(rows: slice) -> tuple[Tensor, ...]:
        points = x[rows].detach().requires_grad_()
        with torch.enable_grad():
            logits = model(points)
            scores = full_precision(logits)
        gap = logits.new_zeros(len(points), dtype=scores.dtype)
        normal, distance = torch.zeros_like(points, requires_grad=False), torch.full_like(gap, torch.inf)
        columns = others(scores.detach(), rows)
        for candidate, grad, away in _boundaries(scores, points, y[rows], columns, threat):
            closer = away < distance
            gap, distance = torch.where(closer, candidate, gap), torch.where(closer, away, distance)
            normal = torch.where(broadcastable(closer, x), grad, normal)
        return gap, normal, distance, logits.detach()

    return Boundary(*in_pieces(model, len(x), compute))


def _boundaries(
    scores: Tensor, points: Tensor, y: Tensor, columns: Tensor, threat: Threat
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For one class after another of `columns` (n, J): gap, normal and distance as in `Boundary`."""
    with torch.enable_grad():
        gaps = (scores.gather(1, columns) - scores.gather(1, y.unsqueeze(1))).unbind(1)
    for j, rise in enumerate(gaps):
        grad = input_gradient(rise, points, retain_graph=j + 1 < len(gaps)).nan_to_num(0, 0, 0)
        length, gap = row_sum(threat.steepest(grad) * grad), rise.detach()
        yield gap, grad, torch.where(length > 0, gap.abs() / length, torch.inf)


def ranked_by_distance(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, candidates: int) -> Tensor:
    """The classes of the highest logits, that of the nearest linearised boundary first: (N, min(candidates, K - 1)).

    The order of MALT's targets (Melamed et al. 2024). It costs a forward pass and a backward pass for each candidate.

    Args (all else as for `nearest_boundary`):
        candidates: how many classes.
    """

    def compute(rows: slice) -> tuple[Tensor]:
        points = x[rows].detach().requires_grad_()
        with torch.enable_grad():
            scores = full_precision(model(points))
        columns = ranked_others(scores.detach(), y[rows])[:, :candidates]
        away = torch.stack([away for *_, away in _boundaries(scores, points, y[rows], columns, threat)], 1)
        return (columns.gather(1, away.argsort(dim=1, stable=True)),)

    return in_pieces(model, len(x), compute)[0]


def _free(boundary: Boundary, point: Tensor, threat: Threat) -> Boundary:
    """The boundary for those pixels alone that a step can move, which makes it lie farther away."""
    normal = boundary.normal
    normal = normal.masked_fill(((point <= 0) & (normal < 0)) | ((point >= 1) & (normal > 0)), 0)
    length = row_sum(threat.steepest(normal) * normal)
    # Nothing by nothing is no boundary at all.
    distance = torch.where(length > 0, boundary.gap.abs() / length, torch.inf)
    return boundary._replace(normal=normal, distance=distance)


@minimal_norm
@attack
def deepfool(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    steps: Count = 50,
    overshoot: NonNegative = 0.02,
    candidates: Count = 10,
    refine: Rounds = 5,
    stop_inside: bool = False,
) -> Tensor:
    """DeepFool: steps to the nearest linearised boundary (Moosavi-Dezfooli et al. 2016, algorithm 2).

        k = argmin |gap_k(x_t)| / ||grad gap_k(x_t)||_dual        over the candidate classes, gap_k = z_k - z_y
        r = (|gap_k| / ||grad gap_k||_dual + 1e-4) steepest(grad gap_k)
        x_{t+1} = clip_[0,1](x_t + (1 + overshoot) r)             until x_{t+1} is misclassified

    An example not yet broken costs two forward passes and candidates - 1 backward passes a step; the last step, and
    the one that crosses the boundary, do without the gradients of their end point. `refine.refined` costs a found
    example 6 forwards more, and at most 5 forwards and a backward a round.

    Deviations from the paper, the first three as in the authors' code or in adversarial-library's: the overshoot is
    part of every step, not only of the result; 1e-4 is added to each step; steps start from the iterate clipped to
    [0, 1] (Foolbox adds up unclipped steps, which ends a few per cent farther away); the candidates are the classes
    with the highest clean logits. From half of the steps on, pixels that [0, 1] keeps from moving are left out of the
    gradient: some examples would walk against it for ever. And what is found is refined, unless `refine` is 0.

    Args (all else as for `pgd`):
        threat: its norm is the one minimised; the radius counts with `stop_inside` alone.
        steps: most steps for an example, at least 1.
        overshoot: how much further than the linearised boundary, a share of the distance.
        candidates: classes looked at, the label's own among them, at least 2; all where the model has fewer.
        refine: rounds of `refine.refined` at the end; with 0 the first misclassified iterate is returned as it is.
        stop_inside: an example is refined no further once it is within the ball.

    Returns:
        The example found (N, C, H, W); the image itself where it is misclassified already, or where
        none was found.

    Raises:
        ValueError: for settings outside these ranges or a model with a single class.
    """
    if candidates < 2:
        raise ValueError(f"candidates is {candidates}, which is the label alone; give at least 2")
    labels, best = hard(y), x.detach().clone()
    leaving = Leaving(model)
    with attacking(model, "eval"):
        boundary = nearest_boundary(
            model, x, labels, lambda logits, rows: ranked_others(logits, labels[rows])[:, : candidates - 1], threat
        )
        others = ranked_others(full_precision(boundary.logits), labels)[:, : candidates - 1]
        lead = margin(boundary.logits, labels).to(x)
        row, point = torch.arange(len(x), device=x.device), x.detach()
        gone, crossed = boundary.logits.argmax(1) != labels, torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for step in range(steps):
            if 2 * step >= steps:
                boundary = _free(boundary, point, threat)
            # Where no gradient is left there is no next step.
            gone = gone | ~boundary.distance.isfinite()
            if (stay := leaving.stay(gone, passes=1)) is not None:
                others, row, point, gone, *parts = (part[stay] for part in (others, row, point, gone, *boundary))
                boundary = Boundary(*parts)
            if not len(row):
                break
            length = ((1 + overshoot) * (boundary.distance + STEP_FLOOR).to(point)).masked_fill(gone, 0)
            point = (point + per_example(length, point) * threat.steepest(boundary.normal)).clamp(0, 1)
            # Crossing is what a step is for, and gradients beyond the boundary are of no use: logits come first.
            found = ~gone & (predict(model, point).argmax(1) != labels[row])
            write(best, row, found, point)
            crossed[row] = crossed[row] | found
            gone = gone | found
            if step + 1 == steps:
                break
            if (stay := leaving.stay(gone, passes=1 + others.shape[1])) is not None:
                others, row, point, gone = (part[stay] for part in (others, row, point, gone))
            if not len(row):
                break
            boundary = nearest_boundary(model, point, labels[row], lambda _, rows, others=others: others[rows], threat)
        if refine:
            row = crossed.nonzero().squeeze(1)
            enough = of_each(threat.eps, x)[row] if stop_inside else None
            best[row] = refined(
                model, x.detach()[row], labels[row], best[row], lead[row],
                threat=threat[row], rounds=refine, enough=enough,
            )  # fmt: skip
    return best
