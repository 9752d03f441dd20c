"""FAB, the fast adaptive boundary attack: follow the decision boundary towards the image.

Each step goes to the nearest linearised boundary inside [0, 1], not only from the current point but, with a small
weight, from the clean image as well, which pulls the path towards the point of the boundary that is nearest to it.

    x_adv = fab(model, x, y, threat=Linf(8 / 255), targets=9, stop_inside=True)        # FAB-T of AutoAttack

Source: Croce & Hein 2020b, "Minimally distorted adversarial examples with a fast adaptive boundary attack".
"""

from dataclasses import dataclass, fields
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from toughen.attacks.compaction import Leaving, waits, write
from toughen.attacks.contract import attack, minimal_norm
from toughen.attacks.deepfool import Boundary, nearest_boundary, ranked_others
from toughen.attacks.refine import Rounds, refined, to_plane
from toughen.losses import full_precision, hard, margin
from toughen.models.batched import predict
from toughen.modes import attacking
from toughen.noise import Stream, fixed
from toughen.settings import Count, Number, OpenShare, Share
from toughen.threat import Threat, broadcastable, of_each, per_example, row_sum

# Pixels whose weight in a plane is a smaller share of the largest stay where they are in L2: rounding makes it up.
NO_WEIGHT = {"linf": 0.0, "l2": 1e-7}


def _step(point: Tensor, clean: Tensor, boundary: Boundary, threat: Threat, alpha_max: float, eta: float) -> Tensor:
    """The next point, a mean of what lies behind the projections of the point and of the clean image."""
    gap = boundary.gap.to(point)
    gap_at_clean = gap + row_sum(boundary.normal * (clean - point))
    weight = boundary.normal.abs()
    least = NO_WEIGHT[threat.norm] * weight.flatten(1).amax(1)
    normal = boundary.normal.masked_fill(weight < broadcastable(least, weight), 0)
    from_point = to_plane(point, normal, gap, threat)
    from_clean = to_plane(clean, normal, gap_at_clean, threat)
    near, far = (threat.size(way).clamp(min=1e-8) for way in (from_point, from_clean))
    alpha = per_example((near / (near + far)).clamp(max=alpha_max), point)
    assert isinstance(alpha, Tensor)
    return torch.lerp(point + eta * from_point, clean + eta * from_clean, alpha).clamp(0, 1)


@dataclass
class _Path:
    """The examples of one run that are still on their way, one row each.

    Attributes:
        row: their positions in the batch.
        clean: images.
        point: where they are.
        y: classes.
        others: classes to look at, (n, J).
        crosses: whether the last step crossed the decision boundary.
    """

    row: Tensor
    clean: Tensor
    point: Tensor
    y: Tensor
    others: Tensor
    crosses: Tensor

    def keep(self, stay: Tensor) -> None:
        """Let the others go."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[stay])


@minimal_norm
@attack
def fab(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    steps: Count = 100,
    restarts: Count = 1,
    targets: Count | None = None,
    alpha_max: Share = 0.1,
    eta: Annotated[Number, Field(ge=1)] = 1.05,
    beta: OpenShare = 0.9,
    refine: Rounds = 5,
    stop_inside: bool = False,
    noise: Stream | None = None,
) -> Tensor:
    """Fast adaptive boundary attack (Croce & Hein 2020b, algorithm 1), in Linf and L2.

        d(p)    = projection of p onto the nearest linearised boundary of x_t inside [0, 1], less p
        alpha   = min(||d(x_t)|| / (||d(x_t)|| + ||d(x)||), alpha_max)
        x_{t+1} = clip_[0,1]((1 - alpha) (x_t + eta d(x_t)) + alpha (x + eta d(x)))
        where x_{t+1} is misclassified: a candidate; go on from x + beta (x_{t+1} - x)

    The nearest boundary is that of any class (`targets=None`: K - 1 backward passes a step), or that of one class at a
    time, the `targets` classes with the highest clean logits in turn (FAB-T: one backward pass).

    Cost of an example not yet broken, for each target (of one, without targets) and restart: a first pass (one forward,
    J backwards; J = K - 1 or 1), then for every step but the last one forward and J backwards, and for the last one
    forward. That is 1 + steps forwards and J steps backwards where no step crosses the boundary, against 2 steps
    forwards in the reference code. A step that crosses needs the gradient at another point, so it costs a forward more;
    and J backwards more, unless the step before crossed too: then the logits are asked for alone first, for which a
    step that does not cross after all pays a forward. The clean logits come with the first target's first pass.

    With `stop_inside` that is all; without, `refine.refined` then takes the nearest example found further in, at a cost
    of 6 forwards, and at most 5 forwards and a backward pass a round.

    Deviations: the final search is not the paper's (three steps on the segment to x, of which the reference code has
    none) but goes along the boundary as well. In L2, pixels of next to no weight in a linearised boundary stay where
    they are, which the reference code has at another threshold: where the plane lies outside [0, 1] they would go all
    the way, for nothing. The random starts of further restarts are uniform in a ball instead of on its sphere, which in
    high dimension is the same; its radius is half of threat.eps or of the distance found so far, if that is less (the
    reference code forgets what earlier runs found). A component of the gradient that is not finite counts as zero.

    Args (all else as for `pgd`):
        threat: its norm is the one minimised; the radius counts with `stop_inside` and for restarts alone.
        steps: steps of each run, at least 1.
        restarts: runs for each target; the first starts from the image, the others at random.
        targets: how many classes to aim at in turn; all there are where that is fewer. Default: untargeted.
        alpha_max: largest weight of the clean image, in [0, 1].
        eta: overshoot, at least 1.
        beta: how far to go back to after a success, a share of the way in (0, 1).
        refine: rounds of `refine.refined` at the end; with 0 the nearest iterate is returned as it is.
        stop_inside: an example leaves, finished, once one is found within the ball.

    Returns:
        The nearest misclassified point found (N, C, H, W); the image itself where it is misclassified already, or
        where none was found.

    Raises:
        ValueError: for settings outside these ranges or a model with a single class.
    """
    labels, clean = hard(y), x.detach()
    noise = fixed(len(x), device=x.device) if noise is None else noise
    best, nearest, everyone = clean.clone(), x.new_full((len(x),), torch.inf), torch.arange(len(x), device=x.device)
    radius, unseen = of_each(threat.eps, x), waits(x.device)
    aims = slice(None) if targets is None else slice(0, 1)

    def done(row: Tensor) -> Tensor:
        return stop_inside & (nearest[row] <= radius[row])

    def linearised(path: _Path, rows: Tensor | slice) -> Boundary:
        others = path.others[rows]
        return nearest_boundary(model, path.point[rows], path.y[rows], lambda _, piece: others[piece], threat)

    def record(path: _Path, crossed: Tensor) -> None:
        """Keep what is nearer, and send those that crossed back."""
        some = None if unseen else crossed.nonzero().squeeze(1)
        parts = path.point, path.clean, path.row, crossed
        points, images, row, crossed = parts if some is None else (part[some] for part in parts)
        way = points - images
        distance = threat.size(way)
        nearer = crossed & ~done(row) & (distance < nearest[row])
        write(best, row, nearer, points)
        write(nearest, row, nearer, distance)
        write(path.point, some, crossed, images + beta * way)

    def run(path: _Path, boundary: Boundary) -> None:
        leaving = Leaving(model)
        for step in range(steps):
            path.point = _step(path.point, path.clean, boundary, threat, alpha_max, eta)
            last = step + 1 == steps
            # What crossed in the last step probably does so again, and then needs no gradient here.
            asked = torch.ones_like(path.crosses) if last or unseen else path.crosses
            crossed, some = torch.zeros_like(asked), slice(None) if unseen else asked.nonzero().squeeze(1)
            if unseen or len(path.row[some]):
                crossed[some] = predict(model, path.point[some]).argmax(1) != path.y[some]
                record(path, crossed)
            if last:
                return
            gone = done(path.row)
            if unseen:
                leaving.idle(~gone & ~path.crosses & ~crossed)
            stay = leaving.stay(gone, passes=2 + path.others.shape[1]) if stop_inside else None
            if stay is not None:
                path.keep(stay)
                asked, crossed = asked[stay], crossed[stay]
            if not len(path.row):
                return
            boundary = linearised(path, slice(None))
            late = ~asked & (boundary.logits.argmax(1) != path.y)
            path.crosses = crossed | late
            if not unseen and late.any():
                record(path, late)
                stay = (~done(path.row)).nonzero().squeeze(1)
                path.keep(stay)
                boundary, late = Boundary(*(part[stay] for part in boundary)), late[stay].nonzero().squeeze(1)
                if len(late):
                    for part, again in zip(boundary, linearised(path, late), strict=True):
                        part[late] = again
            if not len(path.row):
                return

    with attacking(model, "eval"):
        first = nearest_boundary(
            model, x, labels, lambda logits, rows: ranked_others(logits, labels[rows])[:, aims], threat
        )
        others = ranked_others(full_precision(first.logits), labels)
        correct = first.logits.argmax(1) == labels
        for target in range(1 if targets is None else min(targets, others.shape[1])):
            aims = slice(None) if targets is None else slice(target, target + 1)
            for restart in range(restarts):
                row = (correct & ~done(everyone)).nonzero().squeeze(1)
                if not len(row):
                    return best
                images = clean[row]
                path = _Path(
                    row, images, images, labels[row], others[row, aims], torch.zeros_like(row, dtype=torch.bool)
                )
                if restart:
                    ball = threat.of_radius(torch.minimum(radius, nearest)[row] / 2)
                    drawn = ball.sample(images, noise[row].child("fab", target, restart))
                    path.point = (images + drawn).clamp(0, 1)
                reused = target == 0 and restart == 0
                run(path, Boundary(*(part[row] for part in first)) if reused else linearised(path, slice(None)))
        if refine and not stop_inside:
            row = nearest.isfinite().nonzero().squeeze(1)
            lead = margin(first.logits[row], labels[row])
            best[row] = refined(model, clean[row], labels[row], best[row], lead, threat=threat[row], rounds=refine)
    return best
