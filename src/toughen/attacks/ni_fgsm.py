"""NI-FGSM: the momentum of MI-FGSM, whose gradient is taken where that momentum will carry the image.

    x_adv = ni_fgsm(model, x, y, threat=Linf(8 / 255), steps=10, decay=1.0)

Source: Lin et al. 2020, "Nesterov Accelerated Gradient and Scale Invariance for Adversarial Attacks"; their code,
JHL-HUST/SI-NI-FGSM. Made for examples that transfer to other models; on the model itself PGD is stronger.
"""

from torch import Tensor, nn

from toughen.attacks.ascent import Gathered, Rule, from_image, momentum
from toughen.attacks.contract import LossName, StepSize, attack
from toughen.modes import AttackBN
from toughen.settings import Count, NonNegative
from toughen.threat import Threat, per_example


@attack
def ni_fgsm(
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
    """Nesterov iterative fast gradient sign method (Lin et al. 2020).

    From g = 0 and x_adv = x, in each step

        x_nes = x_adv + step_size decay g
        g <- decay g + grad / mean |grad|,    grad = grad loss(model(x_nes), y)
        x_adv <- clip_[0,1](x + project(x_adv - x + step_size sign(g)))

    With a decay of 0 it is BIM, and its first step is MI-FGSM's. As in the paper and its code x_nes is neither
    projected nor clipped: the model sees images outside of the ball and of [0, 1], further out the more steps were
    gathered.

    Deviation from the paper's text: it divides by ||grad||_1, its code by the mean |grad|, and so does this. MI-FGSM
    does not care, for a sign has no length; here the sum would shorten the look-ahead to 1 / (C H W) of a step, which
    is MI-FGSM again.

    In the L2 ball, which the paper leaves out, the step is g / ||g||_2, and the look-ahead is divided by sqrt(C H W),
    so that where the entries of g are +-1 it is as long as a step in either ball.

    Args (all else as for `pgd`):
        steps: theirs are 10.
        step_size: see `pgd`. Default: eps / steps, theirs.
        decay: mu, what is kept of the gradients gathered so far, at least 0; theirs is 1.
    """
    rule = nesterov(threat, decay)
    return from_image(
        model, x, y, threat=threat, steps=steps, step_size=step_size, loss=loss, attack_bn=attack_bn, rule=rule
    )


def nesterov(threat: Threat, decay: float) -> Rule:
    """`momentum`, with each gradient taken as far ahead as it leads; with a decay of 0 it is `steepest`."""

    def ahead(gathered: Gathered) -> Tensor:
        (g,) = gathered
        # `momentum` gathers gradients of unit L1 norm; this is how long one is whose entries are all equal.
        even = g.new_full((1, *g.shape[1:]), 1 / g.flatten(1).shape[1])
        return decay * g / per_example(threat.size(even), g)

    return Rule(momentum(threat, decay).step, ahead)
