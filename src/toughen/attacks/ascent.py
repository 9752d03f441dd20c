"""Projected steepest ascent: the one loop behind FGSM, R+FGSM, BIM and PGD.

    x_adv <- clip_[0,1](x + project(x_adv - x + step_size * steepest(grad loss(model(x_adv), y))))

What differs between these attacks is where they start, how far and how often they step, and what they ascend: arguments
all of them, never copies of the loop. A targeted attack ascends `losses.targeted(loss, target)`.

    x_adv = pgd(model, x, y, threat=Linf(8 / 255), steps=20, step_size=2 / 255, restarts=5)

Sources: FGSM, Goodfellow et al. 2015; BIM, Kurakin et al. 2017; PGD, Madry et al. 2018 (Free, algorithm 1); R+FGSM,
Tramer et al. 2018. Deviation from the papers' text, as in every public code: each step is also clipped to [0, 1].
"""

import torch
from torch import Tensor, nn

from toughen.attacks.contract import Length, LossName, attack
from toughen.batched import Objective, predict, value_and_grad
from toughen.losses import LOSSES, Loss, full_precision, hard
from toughen.modes import AttackBN, attacking
from toughen.naming import Count, Share
from toughen.noise import Stream, fixed
from toughen.threat import Radius, Threat, per_example


def ascend(
    model: nn.Module,
    x: Tensor,
    objective: Objective,
    *,
    threat: Threat,
    steps: int,
    step_size: Radius,
    start: Tensor,
) -> Tensor:
    """The loop itself, on a model that is already in the mode wanted.

    Args:
        model: classifier of images in [0, 1].
        x: clean images (N, C, H, W) in [0, 1].
        objective: what to ascend, see `batched.Objective`.
        threat: the ball around `x`.
        steps: number of steps, each one forward and one backward pass.
        step_size: length of a step in the threat's norm, a number or (N,).
        start: perturbed images to start from, (N, C, H, W); they need not lie in the ball.

    Returns:
        The last iterate (N, C, H, W), in the ball and in [0, 1].
    """
    x_adv, length = start, per_example(step_size, x)
    for _ in range(steps):
        _, grad, _ = value_and_grad(model, x_adv, objective)
        moved = x_adv.detach() - x + length * threat.steepest(grad)
        x_adv = (x + threat.project(moved)).clamp(0, 1)
    return x_adv.detach()


def _objective(model: nn.Module, x: Tensor, y: Tensor, loss: str | Loss, rows: Tensor | None = None) -> Objective:
    """What an attack on some rows of a batch ascends; on all of them by default.

    KL is measured from the model's own clean probabilities of `x`, which are the images of these rows; `y` has all.
    """
    if isinstance(loss, str):
        function = LOSSES[loss]
        of_rows = y if rows is None else y[rows]
        if loss == "kl":
            of_rows = full_precision(predict(model, x)).softmax(1)
        return lambda logits, piece: function(logits, of_rows[piece])

    def own(logits: Tensor, piece: slice) -> Tensor:
        if len(logits) == len(y):
            return loss(logits, y)
        # A loss of the caller's may hold something for each example of the batch, as a targeted one does.
        positions = piece if rows is None else rows[piece]
        whole = logits.new_zeros(len(y), logits.shape[1])
        whole[positions] = logits
        return loss(whole, y)[positions]

    return own


def _refuse_kl(loss: str | Loss) -> None:
    if loss == "kl":
        raise ValueError("loss kl has a zero gradient at the clean image; use random_start: true (pgd)")


@attack
def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    steps: Count = 20,
    step_size: Length = None,
    random_start: bool = True,
    restarts: Count = 1,
    loss: LossName = "cross_entropy",
    attack_bn: AttackBN = "eval",
    noise: Stream | None = None,
) -> Tensor:
    """Projected gradient descent: maximise loss(model(x + delta), y) over the ball (Madry et al. 2018).

    With one step, no random start and a step of eps it is FGSM.

    Args:
        model: classifier of images in [0, 1]; left as it was found.
        x: images (N, C, H, W) in [0, 1].
        y: classes (N,) or probabilities (N, K).
        threat: the ball, with one radius for all or one per example.
        steps: steps of each restart, at least 1.
        step_size: in pixel units, a number or (N,). Default: 2.5 eps / steps, Madry's rule, which can cross the ball.
        random_start: start uniformly in the ball, clipped to [0, 1].
        restarts: independent starts. Of several, an example keeps the first start whose end point is misclassified
            and is attacked no further; else the end point of the highest loss.
        loss: "cross_entropy", "margin", "kl" (from the model's clean probabilities), or (logits, y) -> (N,).
        attack_bn: BatchNorm during the attack, "eval", "train" or "batch".
        noise: stream of the random starts. Default: one keyed by the examples' positions.

    Returns:
        x_adv (N, C, H, W), in the ball and in [0, 1].

    Raises:
        ValueError: for settings outside these ranges, and for "kl" without a random start, where its gradient is zero.
    """
    if not random_start:
        _refuse_kl(loss)
    if restarts > 1 and not random_start:
        raise ValueError(f"{restarts} restarts without a random start would be equal; use random_start: true")
    length = 2.5 * threat.eps / steps if step_size is None else step_size
    noise = fixed(len(x), device=x.device) if noise is None else noise

    def run(rows: Tensor | None, restart: int) -> tuple[Tensor, Objective]:
        every = slice(None) if rows is None else rows
        images, ball = x[every], threat[every]
        start = images
        if random_start:
            start = (images + ball.sample(images, noise[every].child("pgd", restart))).clamp(0, 1)
        objective = _objective(model, images, y, loss, rows)
        step = length[every] if isinstance(length, Tensor) and length.ndim else length
        return ascend(model, images, objective, threat=ball, steps=steps, step_size=step, start=start), objective

    with attacking(model, attack_bn):
        if restarts == 1:
            return run(None, 0)[0]
        best, highest = x.detach().clone(), x.new_full((len(x),), -torch.inf)
        standing = torch.ones(len(x), dtype=torch.bool, device=x.device)
        for restart in range(restarts):
            # Batch statistics depend on who is in the batch, so under them nobody leaves it.
            rows = (standing if attack_bn == "eval" else torch.ones_like(standing)).nonzero().squeeze(1)
            if not len(rows):
                break
            found, objective = run(rows, restart)
            logits = predict(model, found)
            gain = objective(logits, slice(0, len(rows))).to(highest)
            fooled = logits.argmax(1) != hard(y)[rows]
            better = standing[rows] & (fooled | (gain > highest[rows]))
            best[rows[better]], highest[rows[better]] = found[better], gain[better]
            standing[rows[fooled]] = False
        return best


@attack
def fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    loss: LossName = "cross_entropy",
    attack_bn: AttackBN = "eval",
) -> Tensor:
    """Fast gradient sign method: one step of length eps from the clean image (Goodfellow et al. 2015, section 4).

    In the L2 ball it is the fast gradient method, x + eps grad / ||grad||. Arguments as for `pgd`.
    """
    _refuse_kl(loss)
    with attacking(model, attack_bn):
        objective = _objective(model, x, y, loss)
        return ascend(model, x, objective, threat=threat, steps=1, step_size=threat.eps, start=x)


@attack
def r_fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    random_share: Share = 0.5,
    loss: LossName = "cross_entropy",
    attack_bn: AttackBN = "eval",
    noise: Stream | None = None,
) -> Tensor:
    """R+FGSM: a random step of alpha, then a gradient step of eps - alpha (Tramer et al. 2018, section 4.1).

    x' = clip(x + alpha sign(N(0, I))), x_adv = x' + (eps - alpha) sign(grad loss(model(x'), y)).

    Args:
        model: as for `pgd`, like all but the next.
        x: see `pgd`.
        y: see `pgd`.
        threat: see `pgd`; in the L2 ball the signs become normalised vectors.
        random_share: alpha / eps, in [0, 1]; the paper's is one half.
        loss: see `pgd`.
        attack_bn: see `pgd`.
        noise: see `pgd`.
    """
    noise = fixed(len(x), device=x.device) if noise is None else noise
    direction = noise.child("r_fgsm").normal(tuple(x.shape[1:]), dtype=x.dtype).to(x.device)
    start = (x + per_example(random_share * threat.eps, x) * threat.steepest(direction)).clamp(0, 1)
    with attacking(model, attack_bn):
        objective = _objective(model, x, y, loss)
        step = (1 - random_share) * threat.eps
        return ascend(model, x, objective, threat=threat, steps=1, step_size=step, start=start)


@attack
def bim(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    steps: Count = 10,
    step_size: Length = None,
    loss: LossName = "cross_entropy",
    attack_bn: AttackBN = "eval",
) -> Tensor:
    """Basic iterative method: PGD from the clean image (Kurakin et al. 2017). Arguments as for `pgd`.

    The default step is eps / steps, which just reaches the ball's surface.
    """
    _refuse_kl(loss)
    step = threat.eps / steps if step_size is None else step_size
    with attacking(model, attack_bn):
        objective = _objective(model, x, y, loss)
        return ascend(model, x, objective, threat=threat, steps=steps, step_size=step, start=x)
