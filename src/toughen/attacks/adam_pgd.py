"""PGD whose steps are Adam's: the inner maximisation of the code that was released with Limits and Rebuffi et al. 2021.

    x_adv = adam_pgd(model, x, y, threat=Linf(8 / 255), steps=10, attack_bn="batch")

The step is no direction of steepest ascent: each pixel moves by its gradient's running mean over the root of its
running square, as Adam (Kingma & Ba 2015, algorithm 1) would move a weight, and the ball cuts off what is too much.
"""

from torch import Tensor, nn

from toughen.attacks.ascent import Gathered, Rule, Start, from_starts
from toughen.attacks.contract import LossName, attack
from toughen.modes import AttackBN
from toughen.noise import Stream
from toughen.settings import Count, OpenShare, Positive
from toughen.threat import Radius, Threat

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-9
DROP = 0.1


@attack
def adam_pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    steps: Count = 10,
    step_size: Positive = 0.1,
    drops: tuple[OpenShare, ...] = (0.5,),
    random_start: Start = True,
    restarts: Count = 1,
    loss: LossName = "cross_entropy",
    attack_bn: AttackBN = "eval",
    noise: Stream | None = None,
) -> Tensor:
    """Projected ascent by Adam's steps (deepmind-research, adversarial_robustness/jax; Limits itself takes signs).

    With g_t the gradient of an example's own loss, neither signed nor normalised,

        m <- .9 m + .1 g_t,  v <- .999 v + .001 g_t^2,
        x_adv <- clip_[0,1](x + project(x_adv - x + step_t (m / (1 - .9^t)) / (sqrt(v / (1 - .999^t)) + 1e-9)))

    The first step is one of signs, 0.1 far: at eps 8/255 it ends on the ball's surface. A pixel whose gradients are all
    far below 1e-9, as those of a saturated model are, hardly moves; PGD by signs does not care.

    Their training takes 10 steps and a single drop. Their evaluation takes 40 and the loss "margin"; it means to drop
    at 20 and at 30 steps to 0.01 and 0.001, drops (0.5, 0.75), but its factors multiply to 0.0001, which drops
    (0.5, 0.75, 0.75) say. The 1e-9 is theirs too, where Adam's paper has 1e-8.

    Args (all else as for `pgd`):
        steps: steps of each restart, at least 1.
        step_size: of the first steps, in pixel units and not in shares of eps.
        drops: shares of the steps, each in (0, 1), after which the step size is a tenth of what it was.
        random_start: see `pgd`; theirs is true.
        attack_bn: BatchNorm during the attack, "eval", "train" or "batch"; theirs is "batch".
    """
    size: list[Radius] = [step_size * DROP ** sum(step / steps >= share for share in drops) for step in range(steps)]
    return from_starts(
        model,
        x,
        y,
        threat=threat,
        steps=steps,
        step_size=size,
        draws="adam_pgd",
        random_start=random_start,
        restarts=restarts,
        loss=loss,
        attack_bn=attack_bn,
        noise=noise,
        rule=Rule(_adam),
    )


def _adam(grad: Tensor, gathered: Gathered) -> tuple[Tensor, Gathered]:
    mean, square, t = gathered or (0.0, 0.0, 0)
    mean, square, t = BETA1 * mean + (1 - BETA1) * grad, BETA2 * square + (1 - BETA2) * grad.square(), t + 1
    step = (mean / (1 - BETA1**t)) / ((square / (1 - BETA2**t)).sqrt() + EPSILON)
    return step, (mean, square, t)
