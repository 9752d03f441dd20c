"""Projected steepest ascent: the one loop behind FGSM, R+FGSM, BIM, MI-FGSM, NI-FGSM, PGD and the targeted attacks.

    x_adv <- clip_[0,1](x + project(x_adv - x + step_size * steepest(grad loss(model(x_adv), y))))

What differs between these attacks is where they start, how far and how often they step, what they ascend, and what a
gradient makes of a step (`Rule`): arguments all of them, never copies of the loop. Most need one of two functions:
`from_image`, for an attack that starts at the image, and `from_starts`, for one with random starts and restarts.

    objective = objective_of(model, x, y, "margin")
    x_adv = ascend(model, x, objective, threat=Linf(8 / 255), steps=20, step_size=2 / 255, start=x)

Sources: PGD, Madry et al. 2018 (Free, algorithm 1); momentum, Dong et al. 2018. Deviation from the papers' text, as in
every public code: each step is also clipped to [0, 1].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from toughen.attacks.compaction import write
from toughen.attacks.contract import StepSize, lengths
from toughen.devices import sent
from toughen.losses import LOSSES, Loss, full_precision, hard
from toughen.models.batched import Objective, predict, value_and_grad
from toughen.modes import AttackBN, attacking
from toughen.noise import Stream, fixed
from toughen.threat import Radius, Threat, broadcastable, per_example, row_sum

Start = bool | Literal["unclipped", "gaussian"]
"""Where an ascent starts. True: uniformly in the ball, clipped to [0, 1]; False: at the image; "unclipped": uniformly
in the ball, so that the first gradient may be taken outside [0, 1] (IAAT's and Bilateral's code); "gaussian":
x + 0.001 N(0, I), unclipped (TRADES' and MART's code). What a step returns is clipped in any case."""

Gathered = tuple[Any, ...]
"""What a rule keeps from step to step, such as a momentum (N, C, H, W); empty before the first."""


@dataclass(frozen=True)
class Rule:
    """What a gradient makes of a step, and where that gradient is taken.

    Attributes:
        step: (gradient (N, C, H, W), what is kept) -> (what a step of length 1 adds, what is kept for the next).
        ahead: what is kept -> how far from the iterate, in steps of length 1, the next gradient is taken
            (N, C, H, W), for Nesterov's momentum. That point is neither projected nor clipped. None, and the first
            gradient in any case: at the iterate.
    """

    step: Callable[[Tensor, Gathered], tuple[Tensor, Gathered]]
    ahead: Callable[[Gathered], Tensor] | None = None


Run = Callable[[Tensor | None, int], tuple[Tensor, Objective]]
"""(rows, or None for all; number of the start) -> end points of these rows, and what they are compared by"""


def ascend(
    model: nn.Module,
    x: Tensor,
    objective: Objective,
    *,
    threat: Threat,
    steps: int,
    step_size: Radius | Sequence[Radius],
    start: Tensor,
    rule: Rule | None = None,
) -> Tensor:
    """The loop itself, on a model that is already in the mode wanted.

    Args:
        model: classifier of images in [0, 1].
        x: clean images (N, C, H, W) in [0, 1].
        objective: what to ascend, see `batched.Objective`.
        threat: the ball around `x`.
        steps: number of steps, each one forward and one backward pass.
        step_size: length of a step in the threat's norm, a number or (N,), or one of these for every step.
        start: perturbed images to start from, (N, C, H, W); they need not lie in the ball.
        rule: what a gradient makes of a step, and where it is taken. Default: the direction of steepest ascent, at
            the iterate.

    Returns:
        The last iterate (N, C, H, W), in the ball and in [0, 1].
    """
    x_adv, gathered, rule = start, (), rule or steepest(threat)
    sizes = list(step_size) if isinstance(step_size, Sequence) else [per_example(step_size, x)] * steps
    for length in sizes:
        at = x_adv + per_example(length, x) * rule.ahead(gathered) if rule.ahead and gathered else x_adv
        _, grad, _ = value_and_grad(model, at, objective)
        step, gathered = rule.step(grad, gathered)
        x_adv = _moved(x_adv.detach(), x, step, threat, length)
    return x_adv.detach()


def move(x_adv: Tensor, x: Tensor, grad: Tensor, threat: Threat, length: Radius) -> Tensor:
    """One step of the ascent: `length` in the direction of steepest ascent, back into the ball and into [0, 1]."""
    return _moved(x_adv, x, threat.steepest(grad), threat, length)


def _moved(x_adv: Tensor, x: Tensor, step: Tensor, threat: Threat, length: Radius) -> Tensor:
    moved = x_adv - x + per_example(length, x) * step
    return (x + threat.project(moved)).clamp(0, 1)


def steepest(threat: Threat) -> Rule:
    """A step in the direction in which the loss rises most for its length in the threat's norm."""
    return Rule(lambda grad, gathered: (threat.steepest(grad), ()))


def momentum(threat: Threat, decay: float) -> Rule:
    """The direction of steepest ascent of g <- decay g + grad / ||grad||_1 (Dong et al. 2018, equation 6).

    With a decay of 0 it is `steepest`, to the last bit.
    """
    if not decay:
        return steepest(threat)

    def step(grad: Tensor, gathered: Gathered) -> tuple[Tensor, Gathered]:
        g = decay * gathered[0] + _unit_l1(grad) if gathered else _unit_l1(grad)
        return threat.steepest(g), (g,)

    return Rule(step)


def _unit_l1(grad: Tensor) -> Tensor:
    largest = broadcastable(grad.flatten(1).abs().amax(1), grad)
    # Divided twice, as in `L2.steepest`: a sum of 1e-40s loses its digits.
    scaled = grad / torch.where(largest > 0, largest, 1.0)
    total = broadcastable(row_sum(scaled.abs()), grad)
    return scaled / torch.where(total > 0, total, 1.0)


def default_step(eps: Radius, steps: int) -> Radius:
    """2.5 eps / steps, Madry et al.'s rule, which can cross the ball; eps / 8 from 20 steps on.

    Below that, a longer run explores less than a short one: on linear models PGD-40 at eps / 16 breaks fewer examples
    than at any step from eps / 8 to eps, and the papers take eps / 4 for up to 1,000 steps.
    """
    return 2.5 * eps / min(steps, 20)


def start_in(x: Tensor, threat: Threat, noise: Stream, kind: Start = True) -> Tensor:
    """Images to start from around `x`, as `Start` names them."""
    if kind is False:
        return x
    if kind == "gaussian":
        return x + 0.001 * sent(noise.child("gaussian").normal(tuple(x.shape[1:]), dtype=x.dtype), x.device)
    drawn = x + threat.sample(x, noise)
    return drawn if kind == "unclipped" else drawn.clamp(0, 1)


def of_rows(length: Radius | list[Radius], rows: Tensor | slice) -> Radius | list[Radius]:
    """Step lengths of some of the examples."""
    if isinstance(length, list):
        return [of_rows(value, rows) for value in length]  # pyright: ignore[reportReturnType]
    return length[rows] if isinstance(length, Tensor) and length.ndim else length


def objective_of(model: nn.Module, x: Tensor, y: Tensor, loss: str | Loss, rows: Tensor | None = None) -> Objective:
    """What an attack on some rows of a batch ascends; on all of them by default.

    KL is measured from the model's own clean probabilities of `x`, which are the images of these rows; `y` has all.
    """
    if isinstance(loss, str):
        function = LOSSES[loss]
        of_these = y if rows is None else y[rows]
        if loss == "kl":
            of_these = full_precision(predict(model, x)).softmax(1)
        return lambda logits, piece: function(logits, of_these[piece])

    def own(logits: Tensor, piece: slice) -> Tensor:
        if len(logits) == len(y):
            return loss(logits, y)
        # A loss of the caller's may hold something for each example of the batch, as a targeted one does.
        positions = piece if rows is None else rows[piece]
        whole = logits.new_zeros(len(y), logits.shape[1])
        whole[positions] = logits
        return loss(whole, y)[positions]

    return own


def from_image(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    steps: int,
    step_size: StepSize,
    loss: str | Loss,
    attack_bn: AttackBN,
    rule: Rule | None = None,
) -> Tensor:
    """The ascent of a named loss from the image itself: one start, no random draws.

    Args:
        model: classifier, put into the mode of an attack here and back into its own.
        x: clean images (N, C, H, W).
        y: classes (N,) or probabilities (N, K).
        threat: the ball.
        steps: see `ascend`.
        step_size: a number or (N,), or a function of the step; None: eps / steps, which just reaches the ball's
            surface.
        loss: its name in `losses.LOSSES`, or (logits, y) -> (N,).
        attack_bn: see `modes.attacking`.
        rule: see `ascend`.

    Raises:
        ValueError: for a loss without a gradient at the image, and for a step size as `contract.lengths` says.
    """
    refuse_kl(loss)
    sizes = lengths(threat.eps / steps if step_size is None else step_size, steps, x)
    with attacking(model, attack_bn):
        objective = objective_of(model, x, y, loss)
        return ascend(model, x, objective, threat=threat, steps=steps, step_size=sizes, start=x, rule=rule)


def from_starts(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    steps: int,
    step_size: Radius | list[Radius],
    draws: str,
    random_start: Start,
    restarts: int,
    loss: str | Loss,
    attack_bn: AttackBN,
    noise: Stream | None,
    by_loss: bool = False,
    rule: Rule | None = None,
) -> Tensor:
    """The ascent of a named loss from one or several starts, and the best end point of each example.

    Args (all else as for `from_image`):
        step_size: see `ascend`.
        draws: under which name the random starts are drawn.
        random_start: see `Start`.
        restarts: number of starts.
        noise: stream of the random starts, or None for one keyed by the examples' positions.
        by_loss: see `best_of`.

    Raises:
        ValueError: for several starts that would be equal, and for a loss without a gradient at the only one.
    """
    if not random_start:
        refuse_kl(loss)
    if restarts > 1 and not random_start:
        raise ValueError(f"{restarts} restarts without a random start would be equal; use random_start: true")
    noise = fixed(len(x), device=x.device) if noise is None else noise

    def run(rows: Tensor | None, restart: int) -> tuple[Tensor, Objective]:
        every = slice(None) if rows is None else rows
        images, ball = x[every], threat[every]
        start = start_in(images, ball, noise[every].child(draws, restart), random_start)
        objective = objective_of(model, images, y, loss, rows)
        size = of_rows(step_size, every)
        found = ascend(model, images, objective, threat=ball, steps=steps, step_size=size, start=start, rule=rule)
        return found, objective

    with attacking(model, attack_bn):
        # Batch statistics depend on who is in the batch, so under them no example leaves it.
        return best_of(model, x, y, run, restarts=restarts, by_loss=by_loss, leave=attack_bn == "eval")


def refuse_kl(loss: str | Loss) -> None:
    """Refuse a loss that has no gradient at the clean image, for an ascent that starts there.

    Raises:
        ValueError: the loss is "kl".
    """
    if loss == "kl":
        raise ValueError("loss kl has a zero gradient at the clean image; use random_start: true (pgd)")


def best_of(
    model: nn.Module, x: Tensor, y: Tensor, run: Run, *, restarts: int, by_loss: bool = False, leave: bool = True
) -> Tensor:
    """The best end point of several starts for each example; of one start, its end point as it is.

    Args:
        model: classifier, already in the mode wanted.
        x: clean images (N, C, H, W).
        y: classes (N,) or probabilities (N, K).
        run: one start, see `Run`.
        restarts: number of starts.
        by_loss: keep the end point of the highest loss, be it misclassified or not. Otherwise the first that is
            misclassified, and the highest loss only where none is.
        leave: a broken example is not attacked again. (Under batch statistics none may leave; by loss none does.)
    """
    if restarts == 1:
        return run(None, 0)[0]
    best, highest = x.detach().clamp(0, 1), x.new_full((len(x),), -torch.inf)
    unbroken = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for restart in range(restarts):
        rows = (unbroken if leave else torch.ones_like(unbroken)).nonzero().squeeze(1)
        if not len(rows):
            break
        found, objective = run(rows, restart)
        logits = predict(model, found)
        gain = objective(logits, slice(0, len(rows))).to(highest)
        better = gain > highest[rows]
        if not by_loss:
            fooled = logits.argmax(1) != hard(y)[rows]
            better = unbroken[rows] & (fooled | better)
            unbroken[rows] = unbroken[rows] & ~fooled
        write(best, rows, better, found)
        write(highest, rows, better, gain)
    return best
