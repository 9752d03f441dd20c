"""Bring an adversarial example nearer to its image: what the attacks that look for the nearest end with.

    x_adv = refined(model, x, y, x_adv, lead, threat=L2(0.5), rounds=5)

A found example lies somewhere behind the decision boundary, and rarely behind its nearest part. Each round first goes
along the sphere around the image, towards the point of the linearised boundary that is nearest to it inside [0, 1],
and then straight back to the boundary. No round can end farther away than it began.

The projection on the linearised boundary is FAB's (Croce & Hein 2020b, section 3.1); the rounds are our own.
"""

from collections.abc import Callable
from itertools import count

import torch
from torch import Tensor, nn

from toughen.attacks.compaction import waits, write
from toughen.losses import margin
from toughen.models.batched import Objective, predict, value_and_grad
from toughen.settings import NonNegativeCount
from toughen.threat import Threat, broadcastable, row_sum

Rounds = NonNegativeCount

# By how much a success must lead beyond the confidence: what leads by less, another batch size may turn round in
# float32, and an evaluation calls a lead below 1e-5 marginal.
CLEAR = 2e-5

# Probes of the way from the image to the boundary: the first time, and after each move along the sphere.
FIRST_PROBES = 5
PROBES = 3
# The share of regula falsi's way that a probe leaves undone: most end behind the boundary, where they count.
SHORT = 0.01
# Of the way to the nearest point of the linearised boundary: the first try, and how tries grow and shrink.
FIRST_SHARE, GROW, SHRINK = 0.5, 1.5, 1 / 3

# Newton steps where none is looked at.
UNSEEN = 24

# How the entries of a projection share the way: |d_i| = min(lambda q_i, room_i), with q by the norm from |w|.
_SHARES: dict[str, Callable[[Tensor], Tensor]] = {"linf": lambda w: w.new_ones(1, 1), "l2": lambda w: w}


def to_plane(point: Tensor, normal: Tensor, gap: Tensor, threat: Threat) -> Tensor:
    """argmin ||d|| subject to <normal, d> = -gap and point + d in [0, 1]; as far as it goes where no d is enough.

    With w the normal and room_i the way from point_i to the side of [0, 1] that lowers |gap|, the answer is |d_i| =
    min(lambda q_i, room_i), q = 1 for Linf and q = |w| for L2, where sum_i |w_i| min(lambda q_i, room_i) = |gap|. The
    sum is concave and piecewise linear in lambda, so Newton's method from 0 climbs to the root without overshooting it
    and ends in finitely many steps, some five to ten in practice, where sorting the breakpoints (the paper's way)
    costs as much as hundreds of them. The answer is exact but for rounding.

    What is missing of |gap|, times the slope there, falls to a quarter or less with every step, for the two shares that
    are left add up to 1 at most. So where to look whether all have arrived would make the host wait, there are 24 steps
    unseen, after which that is less than 1e-14 of what it was; steps from the root stay there.

    Args:
        point: (N, ...) in [0, 1].
        normal: (N, ...), finite; where it is zero d is zero.
        gap: (N,).
        threat: its norm is the one minimised, of the d that are optimal in Linf the one with the smallest entries.

    Returns:
        d, (N, ...).
    """
    w, at = normal.flatten(1), point.flatten(1)
    # Scaled, so that squares of tiny gradients do not vanish.
    scale = w.abs().amax(1, keepdim=True)
    w = w / torch.where(scale > 0, scale, 1.0)
    way = -w.sign() * gap.sign().unsqueeze(1)
    room = torch.where(way > 0, 1 - at, at) * way.abs()
    w = w.abs()
    most = torch.finfo(w.dtype).max
    goal = (gap.abs().unsqueeze(1) / torch.where(scale > 0, scale, 1.0)).to(w).nan_to_num(0, most)
    share = _SHARES[threat.norm](w)
    slopes, ends = w * share, w * room
    length = torch.zeros_like(goal)
    # On the CPU fresh memory for each product would cost more than the products.
    free, work = torch.empty_like(w), torch.empty_like(w)
    looks = not waits(w.device)
    for _ in count() if looks else range(UNSEEN):
        torch.lt(length * share, room, out=free)
        slope = row_sum(torch.mul(slopes, free, out=work)).unsqueeze(1)
        held = row_sum(torch.mul(ends, free.neg_().add_(1), out=work)).unsqueeze(1)
        further = torch.where(slope > 0, (goal - held) / slope, most).clamp(max=most)
        # Rounding may turn it back by a last digit, for ever.
        further = torch.maximum(further, length)
        if looks and torch.equal(further, length):
            break
        length = further
    return (way * torch.minimum(length * share, room)).reshape(point.shape)


def refined(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    found: Tensor,
    lead: Tensor,
    *,
    threat: Threat,
    rounds: int,
    confidence: float = 0.0,
    enough: Tensor | None = None,
) -> Tensor:
    """Adversarial examples, each as near to its image as the rounds bring it, and never farther than it was.

        b      = where the way from x to the example crosses the boundary (regula falsi on the margin, Illinois' form)
        q      = the point nearest to x, inside [0, 1], where the margin linearised at b is the confidence
        b + s (q - b) is scaled about x to b's distance; where that succeeds b is where the way to it crosses, and s
        grows by half, to 1 at most; where not, b stays and s shrinks to a third

    It costs an example 1 + 5 forward passes, and in each round one forward and one backward pass, one forward pass, and
    three more where the move along the sphere has succeeded.

    Args:
        model: classifier, already in the mode wanted.
        x: images (N, C, H, W) in [0, 1].
        y: classes (N,), those of the images.
        found: adversarial examples in [0, 1], one for each image.
        lead: margins at the images themselves, below `confidence`, (N,).
        threat: its norm measures the distance.
        rounds: how many, 0 or more: with 0 the way back is all.
        confidence: the margin that a success must exceed, by 2e-5 to be clear of rounding.
        enough: distances at which an example leaves, (N,).
    """
    best, row, share = found.clone(), torch.arange(len(x), device=x.device), x.new_full((len(x),), FIRST_SHARE)
    if not len(row):
        return best

    goal = confidence + CLEAR

    def reached(point: Tensor, label: Tensor) -> Tensor:
        return margin(predict(model, point), label).to(x) - goal

    def on(label: Tensor) -> Objective:
        return lambda logits, rows: margin(logits, label[rows]) - goal

    def crossing(clean: Tensor, label: Tensor, far: Tensor, low: Tensor, high: Tensor, probes: int) -> Tensor:
        """The nearest success that the probes find on the ways from the images to successes `far`."""
        near, last = far, torch.zeros_like(low)
        start, end = torch.zeros_like(low), torch.ones_like(low)
        for _ in range(probes):
            at = end - (1 - SHORT) * high * (end - start) / (high - low)
            at = torch.where(at.isfinite(), at, (start + end) / 2).clamp(start, end)
            point = torch.lerp(clean, far, broadcastable(at, far)).clamp(0, 1)
            value = reached(point, label)
            success = value > 0
            near = torch.where(broadcastable(success, far), point, near)
            # Where one end stays twice, half its value draws the next probe towards it.
            side = torch.where(success, 1.0, -1.0).to(low)
            low = torch.where(success, torch.where(side == last, low / 2, low), value)
            high = torch.where(success, value, torch.where(side == last, high / 2, high))
            start, end, last = torch.where(success, start, at), torch.where(success, at, end), side
        return near

    clean, label, low = x, y, lead.to(x) - goal
    point = crossing(clean, label, found, low, reached(found, y), FIRST_PROBES)
    for step in range(rounds + 1):
        size = threat.size(point - clean)
        best[row] = point
        if enough is not None:
            stay = (size > enough[row]).nonzero().squeeze(1)
            row, clean, label, low, point, size, share = (
                part[stay] for part in (row, clean, label, low, point, size, share)
            )
        if step == rounds or not len(row):
            break
        value, grad, _ = value_and_grad(model, point, on(label))
        grad = grad.nan_to_num(0, 0, 0)
        gap_at_clean = value.to(x) + row_sum(grad * (clean - point))
        foot = clean + to_plane(clean, grad, gap_at_clean, threat)
        aim = torch.lerp(point, foot, broadcastable(share, foot)) - clean
        onto = size / threat.size(aim).clamp(min=torch.finfo(x.dtype).tiny)
        tried = (clean + aim * broadcastable(onto.nan_to_num(0, 0, 0), aim)).clamp(0, 1)
        high = reached(tried, label)
        success = (high > 0).nonzero().squeeze(1)
        share = torch.where(high > 0, (share * GROW).clamp(max=1), share * SHRINK)
        if not len(success):
            continue
        parts = (part[success] for part in (clean, label, tried, low, high))
        moved = crossing(*parts, PROBES)
        shorter = threat.size(moved - clean[success]) < size[success]
        point = point.clone()
        write(point, success, shorter, moved)
    return best
