"""MART (Wang et al. 2020): adversarial training that stays with the examples which the model gets wrong when clean.

Example:
    Mart(attack=AttackSpec(name="pgd", steps=10, step_size=0.007, random_start="gaussian"), threat=Linf(0.031))

Equation, settings and traps: docs/methods/mart.md.
"""

from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from toughen.attacks import AttackSpec
from toughen.data import Batch
from toughen.losses import divergence, full_precision, labelled
from toughen.methods.base import Objective, Robust, Seen, State
from toughen.modes import plain
from toughen.settings import NonNegative


def expected(values: Tensor, y: Tensor) -> Tensor:
    """sum_k y_k values_k, (N,): the value (N, K) of the class, or its mean under a label of probabilities.

    It is 0 for an example without a label.
    """
    if y.ndim == 2:
        return (values * y.to(values)).sum(1)
    return torch.where(labelled(y), values.gather(1, y.clamp(min=0).unsqueeze(1)).squeeze(1), 0.0)


def boosted_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log p_y - log(1 - max_{k != y} p_k): cross-entropy, and a margin to the likeliest wrong class.

    Its mean over the label where y are probabilities; 0 without a label.

    Args:
        logits: (N, K), K >= 2.
        y: classes (N,) or probabilities (N, K).
    """
    log_p = full_precision(logits).log_softmax(1)
    first, second = log_p.topk(2, dim=1).indices.split(1, dim=1)
    # log(1 - p_k) as the sum of the others: no digits are lost, and no gradient, where p_k is 1 to the last bit.
    without_first, without_second = (
        log_p.scatter(1, k, -torch.inf).logsumexp(1, keepdim=True) for k in (first, second)
    )
    # Seen from the likeliest class the likeliest wrong one is the second; from any other it is the first.
    log_right = without_first.expand_as(log_p).scatter(1, first, without_second)
    return expected(-log_p - log_right, y)


class Mart(Robust, frozen=True):
    """minimise mean BCE(f(x_adv), y) + beta KL(p(x) || p(x_adv)) (1 - p_y(x)), x_adv being the attack's.

    Wang et al. 2020, section 3, with BCE the boosted cross-entropy above. Gradients flow through both predictions and
    the weight 1 - p_y(x), as in the authors' code, and none through the attack.

    Labels of probabilities: the mean of this loss over the label, so that it is linear in the label, as cross-entropy
    is. An example without a label has no BCE and counts in the KL alone, with the weight 1, as p_y(x) is 0; the attack
    on it has no gradient, so its x_adv is where the attack starts.

    Deviations from the authors' code: where the paper has log(1 - p), log p_adv and 1 - p_y, it takes
    log(1.0001 - p + 1e-12), log(p_adv + 1e-12) and 1.0000001 - p_y. The form used here is exact and cannot overflow,
    so it needs no such constants, and they are no option: they shrink the gradient of the margin term by the share
    1e-4 / (1.0001 - p), below 1 % up to p = 0.99 in a wrong class, and a half at p = 0.9999. The attack starts
    uniformly in the ball unless `random_start` is "gaussian", as it is in that code.

    Cost with K-step PGD: K + 2 forwards and K + 2 backwards.

    Attributes:
        name: "mart".
        attack: the inner maximisation, of cross-entropy in the paper. Its `attack_bn` is "eval" unless given, as in
            the authors' code.
        beta: weight of the KL, at least 0; the code's are 6 for WRN-34-10 and 5 for ResNet-18. At 0 the clean batch is
            not forwarded.
    """

    name: Literal["mart"] = "mart"
    attack: AttackSpec = AttackSpec(name="pgd", steps=10)
    beta: NonNegative = 6.0

    @property
    def forwards(self) -> tuple[Seen, ...]:
        """The clean and the attacked batch."""
        return ("clean", "robust") if self.beta else ("robust",)

    def losses(self, model: nn.Module, batch: Batch, state: State) -> Iterator[Objective]:
        """The boosted loss on the attacked batch, and beta times the weighted divergence."""
        x_adv = self.attack(plain(model), batch.x, batch.y, threat=self.ball, noise=batch.noise.child("attack"))
        yield partial(self._loss, model, batch, x_adv)

    def _loss(self, model: nn.Module, batch: Batch, x_adv: Tensor) -> Tensor:
        if not self.beta:
            return boosted_cross_entropy(model(x_adv), batch.y)
        clean, robust = model(batch.x), model(x_adv)
        weight = 1 - expected(full_precision(clean).softmax(1), batch.y)
        return boosted_cross_entropy(robust, batch.y) + self.beta * divergence(clean, robust) * weight
