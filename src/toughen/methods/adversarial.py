"""Adversarial training on the examples of any attack; with K-step PGD it is that of Madry et al. 2018.

    AdversarialTraining(attack=AttackSpec(name="pgd", steps=7, step_size=2 / 255))      # K-PGD
    AdversarialTraining(attack=AttackSpec(name="pgd", steps=10, loss="kl"))             # AT-KL of Limits, table 2
    AdversarialTraining(attack=AttackSpec(name="rs_fgsm"))                              # Wong et al. 2020
    AdversarialTraining(attack=AttackSpec(name="fgsm"), noise_scale=2)                  # N-FGSM
    AdversarialTraining(attack=AttackSpec(name="fgsm"), alignment=0.2)                  # GradAlign

The inner losses of Limits (Gowal et al. 2020), section 4.2.1, are the attack's `loss`: AT-XENT "cross_entropy", AT-KL
"kl" (from the clean prediction, computed by a forward pass of its own), AT-MARGIN "margin". The outer loss is the
cross-entropy in each. (docs/methods/adversarial.md has the equations and traps of all of them.)
"""

from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from toughen.attacks import AttackSpec
from toughen.data import Batch
from toughen.losses import cross_entropy, labelled
from toughen.methods.base import Objective, Robust, Seen, State
from toughen.modes import batch_statistics, plain
from toughen.settings import NonNegative


class AdversarialTraining(Robust, frozen=True):
    """minimise mean cross_entropy(model(x_adv), y), where x_adv = attack(x, y) (Free, algorithm 1; Limits, equation 1).

    With `noise_scale` k the attack sets out from, and stays in the ball around, the noisy image (N-FGSM, de Jorge et
    al. 2022, algorithm 1, whose k is 2):

        x' = clip_[0,1](x + eta), eta ~ U(-k eps, k eps);    x_adv = attack(x', y)

    so that in training, and there alone, an example may lie (1 + k) eps from its image.

    With `alignment` lambda each example's loss gains (GradAlign, Andriushchenko & Flammarion 2020)

        lambda (1 - cos(grad_x L(x, y), grad_x L(x + eta, y))),    L the cross-entropy, eta uniform in the ball,

    against catastrophic overfitting. Their lambda on CIFAR-10, at eps k/255, is 0.02 * 10^(k/8): 0.027 at 1, 0.036
    at 2, 0.047 at 3, 0.063 at 4, 0.084 at 5, 0.112 at 6, 0.15 at 7, 0.2 at 8, 0.356 at 10, 0.632 at 12, 2 at 16, with
    attack fgsm. Both gradients depend on the weights, as in their equation. Deviations from their code: it takes the
    gradient at x from the attack's pass and as a constant; it leaves examples out of the mean whose gradient is zero at
    either point, and here they add 0, like those without a label. The two passes run in training mode, as theirs do,
    but leave the running statistics alone. A double backward pass cannot be compiled.

    Cost with K-step PGD: K + 1 forwards and K + 1 backwards, of which one of the weights; with the loss "kl" K + 2
    forwards. `alignment` adds 2 forwards and 4 backwards (two of the input that keep their graph, and what the outer
    backward adds through each): FGSM, RS-FGSM and N-FGSM cost 2/2, with alignment 4/6.

    Attributes:
        name: "adversarial".
        attack: the inner maximisation; its `attack_bn` says what BatchNorm does meanwhile. Deviation from Madry's
            code, which attacks in training mode: "eval" unless given. A `step_size` in pixel units is not scaled by
            `radius_scale`: Limits, section 4.2.2, keeps silent on it.
        noise_scale: k, how far the noise reaches, in radii of the ball; in the L2 ball it is uniform in k times that.
        alignment: lambda; 0 for no regulariser.
    """

    name: Literal["adversarial"] = "adversarial"
    attack: AttackSpec = AttackSpec(name="pgd", steps=10)
    noise_scale: NonNegative = 0.0
    alignment: NonNegative = 0.0

    @property
    def forwards(self) -> tuple[Seen, ...]:
        """The attacked batch, and with `alignment` the clean one; the last pass, of a noisy one, is not shown."""
        return ("robust", "clean") if self.alignment else ("robust",)

    @property
    def second_derivatives(self) -> bool:
        """With `alignment`, whose gradients depend on the weights."""
        return bool(self.alignment)

    def losses(self, model: nn.Module, batch: Batch, state: State) -> Iterator[Objective]:
        """The loss on the attacked batch, and the price of misaligned gradients."""
        ball, x = self.ball, batch.x
        if self.noise_scale:
            eta = ball.scaled(self.noise_scale).sample(x, batch.noise.child("noise"))
            x = (x + eta).clamp(0, 1)
        x_adv = self.attack(plain(model), x, batch.y, threat=ball, noise=batch.noise.child("attack"))
        if not self.alignment:
            yield lambda: cross_entropy(model(x_adv), batch.y)
            return
        nearby = batch.x + ball.sample(batch.x, batch.noise.child("alignment"))
        yield partial(self._aligned, model, batch, x_adv, nearby)

    def _aligned(self, model: nn.Module, batch: Batch, x_adv: Tensor, nearby: Tensor) -> Tensor:
        loss = cross_entropy(model(x_adv), batch.y)
        # The wrapper has made ready for the loop's backward pass, the only one to reach the weights; once is enough.
        net = plain(model)
        with batch_statistics(net):
            here, there = [_slope(net, x, batch.y) for x in (batch.x, nearby)]
        return loss + self.alignment * torch.where(labelled(batch.y), misalignment(here, there), 0.0)


def _slope(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    at = x.detach().requires_grad_()
    return torch.autograd.grad(cross_entropy(model(at), y).sum(), at, create_graph=True)[0]


def misalignment(a: Tensor, b: Tensor) -> Tensor:
    """1 - cos(a, b) per example, (N, ...) twice -> (N,) in [0, 2]; 0, with a zero gradient, where either is zero."""
    (a, size_a), (b, size_b) = _scaled(a), _scaled(b)
    angle = 1 - (a * b).sum(1) / (size_a * size_b)
    return torch.where(a.any(1) & b.any(1), angle, 0.0)


def _scaled(v: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (N, D) in a scale where no square vanishes, and their lengths (N,), 1 for a row of zeros."""
    v = v.flatten(1)
    largest = v.detach().abs().amax(1, keepdim=True)
    v = v / torch.where(largest > 0, largest, 1.0)
    square = v.square().sum(1)
    # The root of 0 has no derivative, not even where it is not used.
    return v, torch.where(square > 0, square, 1.0).sqrt()
