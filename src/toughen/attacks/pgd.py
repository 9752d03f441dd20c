"""Uphill from the label: FGSM, R+FGSM, RS-FGSM, BIM, MI-FGSM and PGD, each a few arguments to the ascent.

    x_adv = pgd(model, x, y, threat=Linf(8 / 255), steps=20, step_size=2 / 255, restarts=5)

Sources: FGSM, Goodfellow et al. 2015; BIM, Kurakin et al. 2017; MI-FGSM, Dong et al. 2018; PGD, Madry et al. 2018
(Free, algorithm 1); R+FGSM, Tramer et al. 2018; RS-FGSM, Wong et al. 2020.
"""

from typing import Literal

from torch import Tensor, nn

from toughen.attacks.ascent import Start, ascend, default_step, from_image, from_starts, momentum, objective_of
from toughen.attacks.contract import LossName, StepSize, attack, lengths
from toughen.devices import sent
from toughen.modes import AttackBN, attacking
from toughen.noise import Stream, fixed
from toughen.settings import Count, NonNegative, Positive, Share
from toughen.threat import Threat, per_example


@attack
def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    steps: Count = 20,
    step_size: StepSize = None,
    random_start: Start = True,
    restarts: Count = 1,
    keep: Literal["any_success", "highest_loss"] = "any_success",
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
        step_size: in pixel units, a number or (N,), or a function of the step, counted from 0, that gives one of them.
            Default: 2.5 eps / steps, Madry's rule, which can cross the ball, but not below eps / 8.
        random_start: true: start uniformly in the ball, clipped to [0, 1]; false: at the image; "unclipped" or
            "gaussian": see `ascent.Start`.
        restarts: independent starts.
        keep: which end point of several restarts. "any_success": the first that is misclassified, after which the
            example is attacked no further; the highest loss where none is. "highest_loss": the highest loss after
            all restarts, which is how Free's tables read (docs/methods/evaluation.md, Restarts) and may
            lose a success.
        loss: "cross_entropy"; "margin", or "margin-0" and "margin-50", which stop rising there (the papers' CW);
            "dlr"; "kl" (from the model's clean probabilities); or (logits, y) -> (N,).
        attack_bn: BatchNorm during the attack, "eval", "train" or "batch".
        noise: stream of the random starts. Default: one keyed by the examples' positions.

    Returns:
        x_adv (N, C, H, W), in the ball and in [0, 1].

    Raises:
        ValueError: for settings outside these ranges, for "kl" without a random start, where its gradient is zero, and
            for "dlr" with fewer than 3 classes.
    """
    return from_starts(
        model,
        x,
        y,
        threat=threat,
        steps=steps,
        step_size=lengths(default_step(threat.eps, steps) if step_size is None else step_size, steps, x),
        draws="pgd",
        random_start=random_start,
        restarts=restarts,
        loss=loss,
        attack_bn=attack_bn,
        noise=noise,
        by_loss=keep == "highest_loss",
    )


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
    return from_image(model, x, y, threat=threat, steps=1, step_size=threat.eps, loss=loss, attack_bn=attack_bn)


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

    x' = clip(x + alpha sign(N(0, I))), x_adv = x' + (eps - alpha) sign(grad loss(model(x'), y)). In the L2 ball the
    signs become normalised vectors.

    Args (all else as for `pgd`):
        random_share: alpha / eps, in [0, 1]; the paper's is one half.
    """
    noise = fixed(len(x), device=x.device) if noise is None else noise
    direction = sent(noise.child("r_fgsm").normal(tuple(x.shape[1:]), dtype=x.dtype), x.device)
    start = (x + per_example(random_share * threat.eps, x) * threat.steepest(direction)).clamp(0, 1)
    with attacking(model, attack_bn):
        objective = objective_of(model, x, y, loss)
        step = (1 - random_share) * threat.eps
        return ascend(model, x, objective, threat=threat, steps=1, step_size=step, start=start)


@attack
def rs_fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    step_share: Positive = 1.25,
    random_start: Start = True,
    loss: LossName = "cross_entropy",
    attack_bn: AttackBN = "eval",
    noise: Stream | None = None,
) -> Tensor:
    """FGSM from a random start in the ball, projected (Wong et al. 2020, algorithm 3): PGD with one step of 1.25 eps.

    delta ~ U(-eps, eps), x_adv = x + project(delta + 1.25 eps sign(grad loss(model(x + delta), y))), in [0, 1]. In the
    L2 ball the sign becomes the normalised gradient. Training on it can collapse (catastrophic overfitting), the more
    so the longer the step.

    Args (all else as for `pgd`):
        step_share: length of the step / eps, positive; the paper's is 1.25.
        random_start: see `pgd`, whose draws these are. With false it is FGSM for any share from 1 on.
        attack_bn: see `pgd`; the authors' code runs in "train".
    """
    return from_starts(
        model,
        x,
        y,
        threat=threat,
        steps=1,
        step_size=step_share * threat.eps,
        draws="pgd",
        random_start=random_start,
        restarts=1,
        loss=loss,
        attack_bn=attack_bn,
        noise=noise,
    )


@attack
def bim(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    steps: Count = 10,
    step_size: StepSize = None,
    loss: LossName = "cross_entropy",
    attack_bn: AttackBN = "eval",
) -> Tensor:
    """Basic iterative method: PGD from the clean image (Kurakin et al. 2017). Arguments as for `pgd`.

    The default step is eps / steps, which just reaches the ball's surface.
    """
    return from_image(model, x, y, threat=threat, steps=steps, step_size=step_size, loss=loss, attack_bn=attack_bn)


@attack
def mi_fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    steps: Count = 10,
    step_size: StepSize = None,
    decay: NonNegative = 1.0,
    loss: LossName = "cross_entropy",
    attack_bn: AttackBN = "eval",
) -> Tensor:
    """Momentum iterative method: g <- decay g + grad / ||grad||_1, x <- x + step_size sign(g) (Dong et al. 2018, 3.1).

    With a decay of 0 it is BIM. In the L2 ball the step is g / ||g||_2 (their equation 8). There is no random start.
    The IAAT paper ran Foolbox's with 40 steps of eps / 40.001.

    Args (all else as for `pgd`):
        step_size: see `pgd`. Default: eps / steps.
        decay: mu, what is kept of the gradients gathered so far, at least 0; the paper's is 1.
    """
    rule = momentum(threat, decay)
    return from_image(
        model, x, y, threat=threat, steps=steps, step_size=step_size, loss=loss, attack_bn=attack_bn, rule=rule
    )
