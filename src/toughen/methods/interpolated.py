"""Interpolated adversarial training (Lamb et al. 2019): attack, then mix the clean and the attacked images, each alone.

Example:
    Interpolated(attack=AttackSpec(name="pgd", steps=7, step_size=2 / 255))

Other codes mean by "mixup adversarial training" the other order, mix and then attack: that is
`Mixup(method=AdversarialTraining())`. Of its robust accuracy believe no short attack (see `mixup`). More:
docs/methods/interpolated.md.
"""

from collections.abc import Iterator
from typing import ClassVar, Literal

from torch import nn

from toughen.attacks import AttackSpec
from toughen.data import Batch
from toughen.losses import cross_entropy
from toughen.methods.base import Objective, Robust, Seen, State
from toughen.methods.mixup import mixed
from toughen.modes import plain
from toughen.settings import NonNegative


class Interpolated(Robust, frozen=True):
    """minimise the mean of 1/2 [ce(model(mix(x)), mix(y)) + ce(model(mix'(x_adv)), mix'(y))], x_adv = attack(x, y).

    The attack sees unmixed images and labels. mix and mix' draw a lambda ~ Beta(alpha, alpha) and a permutation each,
    as the code of ndb796/Pytorch-Adversarial-Training-CIFAR does, from which the settings are (but for the attack's
    steps of 0.00784, which the shipped recipe gives). Deviations from it: it forwards the clean half before the attack,
    here both halves follow one another after it; and it attacks in training mode, which is `attack_bn: train` here.
    BatchNorm's running statistics move with each half. The cost of a batch is K + 2 forwards, K input and 2 full
    backwards.

    Attributes:
        name: "interpolated".
        attack: the inner maximisation, PGD-7.
        alpha: of the Beta distribution, at least 0; with 0 nothing is mixed, which leaves half clean, half adversarial
            training.
    """

    divisible: ClassVar[bool] = False

    name: Literal["interpolated"] = "interpolated"
    attack: AttackSpec = AttackSpec(name="pgd", steps=7)
    alpha: NonNegative = 1.0

    @property
    def forwards(self) -> tuple[Seen, ...]:
        """None where images are mixed: the batch's labels are not theirs, and an accuracy would say nothing."""
        return () if self.alpha else ("clean", "robust")

    def losses(self, model: nn.Module, batch: Batch, state: State) -> Iterator[Objective]:
        """The mean of the losses on both mixed halves."""
        x_adv = self.attack(plain(model), batch.x, batch.y, threat=self.ball, noise=batch.noise.child("attack"))
        clean, clean_y = mixed(batch, batch.x, self.alpha, "interpolated", "clean")
        robust, robust_y = mixed(batch, x_adv, self.alpha, "interpolated", "robust")
        yield lambda: (cross_entropy(model(clean), clean_y) + cross_entropy(model(robust), robust_y)) / 2
