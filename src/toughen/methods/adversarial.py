"""Adversarial training on the examples of any attack; with K-step PGD it is that of Madry et al. 2018.

Example:
    AdversarialTraining(attack=AttackSpec(name="pgd", steps=7, step_size=2 / 255))
"""

from collections.abc import Iterator
from typing import Literal

from torch import nn

from toughen.attacks import AttackSpec
from toughen.data import Batch
from toughen.losses import cross_entropy
from toughen.methods.base import Objective, Robust, State
from toughen.modes import plain


class AdversarialTraining(Robust, frozen=True):
    """minimise mean cross_entropy(model(attack(x, y)), y) (Free, algorithm 1; Limits, equation 1).

    Attributes:
        name: "adversarial".
        attack: the inner maximisation; its `attack_bn` says what BatchNorm does meanwhile. Deviation from Madry's
            code, which attacks in training mode: "eval" unless given.
    """

    name: Literal["adversarial"] = "adversarial"
    attack: AttackSpec = AttackSpec(name="pgd", steps=10)

    def losses(self, model: nn.Module, batch: Batch, state: State) -> Iterator[Objective]:
        """The loss on the attacked batch."""
        x_adv = self.attack(plain(model), batch.x, batch.y, threat=self.ball, noise=batch.noise.child("attack"))
        yield lambda: cross_entropy(model(x_adv), batch.y)
