"""TRADES (Zhang et al. 2019): the clean loss, and a price on how far an attack moves the prediction.

    Trades(beta=6)                                                  # TRADES-KL, the original
    Trades(inner="cross_entropy")                                   # TRADES-XENT of Limits (Gowal et al. 2020), table 2
    Trades(attack=AttackSpec(name="pgd", steps=10, step_size=0.007, random_start="gaussian"), threat=Linf(0.031))

The last has the settings of the authors' code. With beta = 0 it is `Natural()`. More: docs/methods/trades.md.
"""

from collections.abc import Iterator
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field, ValidationError, ValidationInfo, field_validator
from torch import Tensor, nn

from toughen.attacks import AttackSpec
from toughen.attacks.contract import GIVEN
from toughen.data import Batch
from toughen.losses import cross_entropy, divergence
from toughen.methods.base import Objective, Robust, Seen, State
from toughen.modes import plain
from toughen.settings import NonNegative, settings_of


class Trades(Robust, frozen=True):
    """minimise mean CE(f(x), y) + beta KL(p(x) || p(x_adv)), with x_adv maximising the inner loss over the ball.

    Zhang et al. 2019, algorithm 1; Limits, equations 5 and 6 and table 2. Limits prints the arguments of KL the other
    way round; the code of both, and so this, measures from the clean prediction. Gradients flow through both
    predictions, the clean one of the KL too, and none through the attack.

    An example without a label has no CE and counts in the KL alone; the mean is over the whole batch. Deviation from
    semisup-adv, which divides the CE by the labelled examples. With the inner losses cross_entropy and margin its
    attack has no gradient, so its x_adv is where the attack starts.

    Other deviations from the authors' code: x goes forward once in training mode instead of twice, so running
    statistics move twice a step, not three times; the clean prediction of the attack is computed once, not at every
    step; in L2 the attack is PGD, not SGD on a normalised gradient. The attack starts uniformly in the ball, as in the
    Limits paper and its release, unless `random_start` is "gaussian". In that release the attacked forward alone moves
    the running statistics; here each training forward does.

    Cost with K-step PGD: K + 3 forwards and K + 2 backwards with the inner loss kl, else K + 2 and K + 2.

    Attributes:
        name: "trades".
        inner: what the attack maximises, in place of its own `loss`: "kl" (from the clean prediction),
            "cross_entropy" or "margin".
        attack: the inner maximisation. Its `attack_bn` is "eval" unless given, as in the authors' code; under "train"
            the attack's passes move the running statistics, that of the clean prediction too.
        beta: weight of the KL, at least 0; the code's is 6. At 0 nothing is attacked.
        forward: "separate": two training forwards, of x and then of x_adv, each on its own batch statistics;
            "fused": one of [x; x_adv], which share batch statistics and move the running ones once. It counts as one
            pass of twice the examples, and shows no batch accuracy.

    Raises:
        ValueError: the attack cannot ascend `inner`, or was given another loss.
    """

    name: Literal["trades"] = "trades"
    inner: Literal["kl", "cross_entropy", "margin"] = "kl"
    attack: Annotated[AttackSpec, Field(validate_default=True)] = AttackSpec(name="pgd", steps=10)
    beta: NonNegative = 6.0
    forward: Literal["separate", "fused"] = "separate"

    @field_validator("attack")
    @classmethod
    def _ascend_inner(cls, attack: AttackSpec, info: ValidationInfo) -> AttackSpec:
        inner = info.data.get("inner")
        if inner is None:  # refused itself
            return attack
        loss = settings_of(AttackSpec.find(attack.name), GIVEN).model_fields.get("loss")
        if loss and attack.settings["loss"] not in (loss.default, inner):
            raise ValueError(
                f"attack.loss is {attack.settings['loss']}, but trades attacks its inner loss, {inner}; leave "
                "attack.loss out, or make both the same"
            )
        try:
            return AttackSpec(name=attack.name, **{**attack.settings, "loss": inner})
        except ValidationError:
            raise ValueError(
                f"attack {attack.name} cannot maximise the inner loss {inner}; take one with that loss, such as pgd"
            ) from None

    @property
    def robust_training(self) -> bool:
        """Unless beta is 0, where it is natural training."""
        return self.beta > 0

    @property
    def forwards(self) -> tuple[Seen, ...]:
        """The clean and the attacked batch; nothing for the fused pass, whose rows are both."""
        if not self.beta:
            return ("clean",)
        return ("clean", "robust") if self.forward == "separate" else ()

    def losses(self, model: nn.Module, batch: Batch, state: State) -> Iterator[Objective]:
        """The clean loss, and beta times the divergence that the attack has found."""
        if not self.beta:
            yield lambda: cross_entropy(model(batch.x), batch.y)
            return
        x_adv = self.attack(plain(model), batch.x, batch.y, threat=self.ball, noise=batch.noise.child("attack"))
        yield partial(self._loss, model, batch, x_adv)

    def _loss(self, model: nn.Module, batch: Batch, x_adv: Tensor) -> Tensor:
        if self.forward == "fused":
            clean, robust = model(torch.cat([batch.x, x_adv])).chunk(2)
        else:
            clean, robust = model(batch.x), model(x_adv)
        return cross_entropy(clean, batch.y) + self.beta * divergence(clean, robust)
