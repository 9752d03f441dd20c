"""Auto-PGD: momentum ascent that halves its own step and goes back to its best point (Croce & Hein 2020, algorithm 1).

    z     <- P(x_t + step * steepest(grad f(x_t)))
    x_t+1 <- P(x_t + 0.75 (z - x_t) + 0.25 (x_t - x_t-1)),   P the projection on the ball, then on [0, 1]

The step starts at 2 eps. At checkpoints, ever closer together, it is halved where fewer than three quarters of the
steps since the last one raised f, or where the step was not halved there and the highest f is still the same; the
ascent then goes on from the best point found. Two of the four attacks of AutoAttack are made of it:

    x_adv = apgd(model, x, y, threat=Linf(8 / 255), steps=100, loss="cross_entropy")
    x_adv = apgd_targeted(model, x, y, threat=Linf(8 / 255), steps=100, targets=9)

The checkpoints are those of the authors' code, which are the paper's for multiples of 100 steps. In other runs the
halvings come elsewhere, and more is broken: of 100 images of digits in L2 54 instead of 52, with 20 steps a target.

Deviations from the authors' code, where it differs from their paper: the first step counts as rising when it rises
above the start (the code compares it with 0); after a return to the best point the next step is compared with that
point.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Annotated, Literal, Self

import torch
from pydantic import AfterValidator
from torch import Tensor, nn

from toughen.attacks.ascent import objective_of
from toughen.attacks.compaction import Leaving, write
from toughen.attacks.contract import LossName, attack
from toughen.devices import sent
from toughen.losses import Loss, full_precision, hard, margin, targeted_dlr, targeted_margin
from toughen.models.batched import Objective, predict, value_and_grad
from toughen.modes import attacking
from toughen.noise import Stream, fixed
from toughen.settings import Count
from toughen.threat import Threat, broadcastable, per_example

ObjectiveOf = Callable[[Tensor], Objective]
"""positions of some examples in the batch -> what to ascend on them"""

MOMENTUM = 0.75
RISING_SHARE = 0.75


def _not_kl(loss: str | Loss) -> str | Loss:
    if loss == "kl":
        raise ValueError("loss kl belongs to training (pgd has it); use cross_entropy, dlr or margin")
    return loss


RisingLoss = Annotated[LossName, AfterValidator(_not_kl)]


def checkpoints(steps: int) -> dict[int, int]:
    """When the step size is looked at: {steps taken: steps since the last look}.

    First after 22 % of the steps, then after 3 % less than the time before, but no less than 6 %; these shares rounded
    down, to 1 at least.
    """
    width, less, least = (max(share * steps // 100, 1) for share in (22, 3, 6))
    found, at = {}, width
    while at < steps:
        found[at] = width
        width = max(width - less, least)
        at += width
    return found


def log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """log((1 - p_y) / p_y) = log sum_{k != y} exp(logits_k) - logits_y, with y classes (N,).

    Cross-entropy is log(1 + exp(.)) of it: the same order and the same directions, but cross-entropy and its gradient
    round to zero in float32 once p_y is within 6e-8 of 1, and this does not.
    """
    logits, column = full_precision(logits), y.unsqueeze(1)
    return logits.scatter(1, column, -torch.inf).logsumexp(1) - logits.gather(1, column).squeeze(1)


@dataclass
class _Rows:
    """Tensors of which each row belongs to one example."""

    def __getitem__(self, rows: Tensor) -> Self:
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        # index_select copies whole rows where indexing goes entry by entry.
        return replace(
            self, **{k: v.index_select(0, rows) if isinstance(v, Tensor) else v[rows] for k, v in held.items()}
        )


@dataclass
class _Cube(_Rows):
    """The Linf balls, cut to [0, 1]."""

    low: Tensor
    high: Tensor

    @classmethod
    def around(cls, x: Tensor, threat: Threat) -> Self:
        eps = per_example(threat.eps, x)
        return cls((x - eps).clamp_(0, 1), (x + eps).clamp_(0, 1))

    def bring_back_(self, points: Tensor) -> Tensor:
        return points.clamp_(self.low, self.high)


@dataclass
class _Sphere(_Rows):
    """The L2 balls, and [0, 1]."""

    x: Tensor
    threat: Threat

    @classmethod
    def around(cls, x: Tensor, threat: Threat) -> Self:
        return cls(x, threat)

    def bring_back_(self, points: Tensor) -> Tensor:
        points.sub_(self.x)
        size = broadcastable(self.threat.size(points), points)
        eps = per_example(self.threat.eps, points)
        return points.mul_(torch.where(size > eps, eps / size, 1.0)).add_(self.x).clamp_(0, 1)


# Of each norm: the region, and the draw which, scaled to length eps, is the start.
_REGIONS = {"linf": (_Cube, Stream.uniform), "l2": (_Sphere, Stream.normal)}


@dataclass
class _AscentState(_Rows):
    """Examples on their way: where each is, where it was highest, what its step depends on; and which are broken."""

    position: Tensor
    label: Tensor
    region: _Cube | _Sphere
    at: Tensor
    before: Tensor
    value: Tensor
    direction: Tensor
    logits: Tensor
    best: Tensor
    best_value: Tensor
    best_direction: Tensor
    best_logits: Tensor
    step: Tensor
    rises: Tensor
    value_at_check: Tensor
    halved: Tensor
    gone: Tensor

    def advance(self, first: bool) -> None:
        """One step of the ascent, in the memory of the point before."""
        target = self.region.bring_back_(torch.addcmul(self.at, self.direction, self.step))
        if first:
            self.before, self.at = self.at, target
            return
        pull = self.before.mul_(MOMENTUM - 1).add_(self.at, alpha=2 * (1 - MOMENTUM))
        self.before, self.at = self.at, self.region.bring_back_(pull.add_(target, alpha=MOMENTUM))

    def take(self, value: Tensor, direction: Tensor, logits: Tensor) -> None:
        """What a pass has said of the present point."""
        self.rises += value > self.value
        self.value, self.direction, self.logits = value, direction, logits

    def keep_best(self) -> None:
        """Remember the present point where it is the highest so far, with all that the pass has said of it."""
        higher = self.value > self.best_value
        write(self.best, None, higher, self.at)
        write(self.best_direction, None, higher, self.direction)
        write(self.best_logits, None, higher, self.logits)
        self.best_value = torch.where(higher, self.value, self.best_value)

    def halve(self, taken: int) -> None:
        """At a checkpoint, `taken` steps after the last: halve the steps that help no more, and go back to the best."""
        stuck = ~self.halved & (self.best_value <= self.value_at_check)
        self.halved = (self.rises < RISING_SHARE * taken) | stuck
        self.value_at_check = self.best_value
        self.rises = torch.zeros_like(self.rises)
        self.step = torch.where(broadcastable(self.halved, self.at), self.step / 2, self.step)
        write(self.at, None, self.halved, self.best)
        write(self.direction, None, self.halved, self.best_direction)
        self.value = torch.where(self.halved, self.best_value, self.value)


def _begin(
    model: nn.Module, x: Tensor, label: Tensor, rows: Tensor, on: ObjectiveOf, threat: Threat, noise: Stream
) -> _AscentState:
    """The start of a run for the examples `rows` of the batch; x, label, threat and noise are theirs alone."""
    kind, draw = _REGIONS[threat.norm]
    region, eps = kind.around(x, threat), per_example(threat.eps, x)
    start = sent(draw(noise, tuple(x.shape[1:]), dtype=x.dtype), x.device)
    at = region.bring_back_(start.mul_(eps / broadcastable(threat.size(start), x)).add_(x))
    value, direction, logits = _look(model, at, on(rows), threat)
    return _AscentState(
        position=rows, label=label, region=region, at=at, before=at, value=value, direction=direction, logits=logits,
        best=at.clone(), best_value=value, best_direction=direction.clone(), best_logits=logits.clone(),
        step=broadcastable(x.new_full((len(x),), 2.0), x) * eps, rises=torch.zeros_like(rows), value_at_check=value,
        halved=torch.zeros_like(rows, dtype=torch.bool), gone=torch.zeros_like(rows, dtype=torch.bool),
    )  # fmt: skip


def _look(model: nn.Module, at: Tensor, objective: Objective, threat: Threat) -> tuple[Tensor, Tensor, Tensor]:
    value, grad, logits = value_and_grad(model, at, objective)
    return value, threat.steepest(grad), logits


def _strongest(
    model: nn.Module,
    x: Tensor,
    label: Tensor,
    runs: Iterable[tuple[Stream, ObjectiveOf]],
    *,
    threat: Threat,
    steps: int,
    unbroken: Tensor,
    rank: Callable[[_AscentState], Tensor],
) -> Tensor:
    """Several runs: the first misclassified point of each example, else the highest of the runs' best points.

    Args:
        model: classifier, in the mode wanted.
        x: clean images (N, C, H, W).
        label: classes (N,); an example leaves when its prediction is another one.
        runs: for each the stream of its starts, and what it ascends.
        threat: the ball.
        steps: number of steps of each run.
        unbroken: (N,), which examples are attacked at all; the others stay as they are.
        rank: by what the best points of an example are compared, (n,) of a state.
    """
    found, highest, unbroken = x.clamp(0, 1), x.new_full((len(x),), -torch.inf), unbroken.clone()

    def leave(state: _AscentState, leaving: Leaving, passes: int) -> _AscentState:
        wrong = ~state.gone & (state.logits.argmax(1) != state.label)
        write(found, state.position, wrong, state.at)
        state.gone = state.gone | wrong
        unbroken[state.position] = ~state.gone
        stay = leaving.stay(state.gone, passes)
        return state if stay is None else state[stay]

    checks = checkpoints(steps)
    for noise, on in runs:
        rows = unbroken.nonzero().squeeze(1)
        if not len(rows):
            break
        leaving = Leaving(model)
        state = leave(
            _begin(model, x[rows], label[rows], rows, on, threat[rows], noise[rows]), leaving, passes=min(steps, 2)
        )
        for taken in range(1, steps + 1):
            if not len(state.position):
                break
            state.advance(first=taken == 1)
            if taken < steps:
                state.take(*_look(model, state.at, on(state.position), threat))
            else:
                # No example moves on from here: no gradient.
                logits = predict(model, state.at)
                state.take(on(state.position)(logits, slice(0, len(logits))), state.direction, logits)
            state = leave(state, leaving, passes=min(steps - taken, 2))
            state.keep_best()
            if taken in checks:
                state.halve(checks[taken])
        score = rank(state).to(highest)
        better = ~state.gone & (score > highest[state.position])
        write(found, state.position, better, state.best)
        write(highest, state.position, better, score)
    return found


@attack
def apgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    steps: Count = 100,
    restarts: Count = 1,
    loss: RisingLoss = "cross_entropy",
    noise: Stream | None = None,
) -> Tensor:
    """Auto-PGD, untargeted (Croce & Hein 2020, algorithm 1): APGD-CE and APGD-DLR of AutoAttack.

    Each restart begins at a random point of the sphere: uniform noise whose largest entry is eps (Linf), a Gaussian of
    length eps (L2). An example leaves, and costs nothing more, as soon as any iterate is misclassified. One that is
    never broken costs restarts * (steps + 1) forward and restarts * steps backward passes.

    Deviations: see the module; and cross-entropy with classes is ascended as `log_odds`, a rising function of it that
    does not saturate in float32.

    Args (all else as for `pgd`):
        steps: steps of each restart, at least 1.
        restarts: independent starts, at least 1.
        loss: "cross_entropy", "dlr" (3 classes or more), "margin", "margin-0", "margin-50", or (logits, y) -> (N,).

    Returns:
        x_adv (N, C, H, W), in the ball and in [0, 1]: the first misclassified iterate, else that of the highest loss.

    Raises:
        ValueError: for settings outside these ranges, and for "dlr" on fewer than 3 classes.
    """
    x, label = x.detach(), hard(y)
    noise = fixed(len(x), device=x.device) if noise is None else noise

    def on(rows: Tensor) -> Objective:
        if loss != "cross_entropy" or y.ndim == 2:
            return objective_of(model, x, y, loss, rows)
        of_rows = y[rows]
        return lambda logits, piece: log_odds(logits, of_rows[piece])

    runs = ((noise.child("apgd", restart), on) for restart in range(restarts))
    unbroken = torch.ones(len(x), dtype=torch.bool, device=x.device)
    with attacking(model, "eval"):
        return _strongest(
            model, x, label, runs, threat=threat, steps=steps, unbroken=unbroken, rank=lambda state: state.best_value
        )


TargetedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


TARGETED_LOSSES: dict[str, TargetedLoss] = {"dlr": targeted_dlr, "margin": targeted_margin}


@attack
def apgd_targeted(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    steps: Count = 100,
    targets: Count = 9,
    restarts: Count = 1,
    loss: Literal["dlr", "margin"] = "dlr",
    noise: Stream | None = None,
) -> Tensor:
    """Auto-PGD towards each of the most likely other classes in turn: APGD-T of AutoAttack (Croce & Hein 2020).

    One clean pass ranks the classes of all examples. An example leaves as soon as it is misclassified, as whatever
    class; one misclassified already is returned as it is. One that is never broken costs
    1 + targets * restarts * (steps + 1) forward and targets * restarts * steps backward passes.

    Deviation from the authors' code: it repeats the clean pass for every run.

    Args (all else as for `apgd`):
        steps: steps of each run, at least 1.
        targets: target classes, at least 1; more than K - 1 mean K - 1.
        restarts: independent starts for each target, at least 1.
        loss: "dlr", `losses.targeted_dlr` (4 classes or more), or "margin", logits_target - logits_y.

    Returns:
        x_adv (N, C, H, W), in the ball and in [0, 1]: the first misclassified iterate, else, of the runs' points of the
        highest loss, that of the highest margin.

    Raises:
        ValueError: for settings outside these ranges, and for "dlr" on fewer than 4 classes.
    """
    x, label = x.detach(), hard(y)
    noise = fixed(len(x), device=x.device) if noise is None else noise
    function = TARGETED_LOSSES[loss]

    def towards(target: Tensor) -> ObjectiveOf:
        def on(rows: Tensor) -> Objective:
            of_rows, to_rows = label[rows], target[rows]
            return lambda logits, piece: function(logits, of_rows[piece], to_rows[piece])

        return on

    with attacking(model, "eval"):
        clean = predict(model, x)
        # A loss that cannot do with these classes says so here, before any work.
        function(clean, label, label)
        others = clean.scatter(1, label.unsqueeze(1), -torch.inf).argsort(dim=1, descending=True, stable=True)
        runs = (
            (noise.child("apgd_targeted", target, restart), towards(others[:, target]))
            for target in range(min(targets, clean.shape[1] - 1))
            for restart in range(restarts)
        )
        return _strongest(
            model, x, label, runs, threat=threat, steps=steps, unbroken=clean.argmax(1) == label,
            rank=lambda state: margin(state.best_logits, state.label),
        )  # fmt: skip
