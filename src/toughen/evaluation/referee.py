"""Verification: what an attack returns is measured by the evaluator, which takes nobody's word for it.

Many published attacks leave the ball or [0, 1] by a bug, and such an "adversarial" example proves nothing. One that
does so here stops the evaluation: dropping it would hide the bug, counting it would be wrong.

    distance, inside = measure(x_adv, x, threat, attack="mine", ids=ids)    # (N,) each, or Unsound
    logits = subject.predict(x_adv, ids=ids, under="mine")                  # (N, K), finite
    marginal = confirm(subject, x_adv, y, logits, attack="mine", ids=ids)   # of what is reported as broken
"""

from dataclasses import replace

import torch
from torch import Tensor

from toughen.devices import in_float64
from toughen.models.batched import Batched
from toughen.models.prepared import PreparedModel
from toughen.threat import Threat

ROUNDING = {"linf": (0.0, 6e-8), "l2": (1e-6, 1e-7)}
"""How far an example may overstep a radius, by norm: a share of the radius, and an amount in pixel units.

x + delta rounds each pixel by up to 3e-8 in float32, which a perturbation of L2 length 0.01 shows as 4e-8 (measured).
"""


class Unsound(RuntimeError):
    """An attack returned something that its threat model does not allow; the attack is wrong, not the model."""


MARGINAL = 1e-5
"""Two highest logits nearer than this may change places by rounding alone."""


def measure(
    x_adv: Tensor, x: Tensor, threat: Threat, *, attack: str, ids: Tensor, anywhere: bool = False
) -> tuple[Tensor, Tensor]:
    """||x_adv - x|| of each example, in float64, once it is known to be allowed.

    Args:
        x_adv: what the attack returned, (N, C, H, W).
        x: the clean images, (N, C, H, W) in [0, 1].
        threat: the ball; an example may overstep it by `ROUNDING`.
        attack: the attack's label.
        ids: example ids (N,).
        anywhere: the attack looks for the nearest example, which may lie outside the ball.

    Returns:
        The distances (N,) in float64, on the host where the device has none, and whether each lies in the ball (N,).

    Raises:
        Unsound: an example lies outside the ball or outside [0, 1]; the sentence names the attack, the first such
            example and the amount.
    """
    distance = threat.size(in_float64(x_adv) - in_float64(x))
    eps = in_float64(threat.eps).to(distance.device).expand(len(x))
    share, amount = ROUNDING.get(threat.norm, ROUNDING["l2"])
    # "not <=" rather than ">", so that NaN is outside.
    outside = ~(distance <= eps * (1 + share) + amount)
    inside = ~outside
    if outside.any() and not anywhere:
        first = int(outside.nonzero()[0])
        raise Unsound(
            f"attack {attack!r} left the ball on example {int(ids[first])}: its {threat.norm} distance is "
            f"{distance[first].item():.6g}, {(distance[first] - eps[first]).item():.3g} more than the radius "
            f"{eps[first].item():.6g} ({int(outside.sum())} of {len(x)} examples of this batch)"
        )
    low, high = x_adv.flatten(1).amin(1), x_adv.flatten(1).amax(1)
    outside = ~((low >= 0) & (high <= 1))
    if outside.any():
        first = int(outside.nonzero()[0])
        amount = torch.maximum(-low[first], high[first] - 1).item()
        raise Unsound(
            f"attack {attack!r} left [0, 1] on example {int(ids[first])} by {amount:.3g}: its pixels run from "
            f"{low[first].item():.6g} to {high[first].item():.6g} ({int(outside.sum())} of {len(x)} examples of "
            "this batch)"
        )
    return distance, inside.to(x.device)


def confirm(
    subject: PreparedModel, x_adv: Tensor, y: Tensor, logits: Tensor, *, attack: str, ids: Tensor, strict: bool = True
) -> Tensor:
    """Classify reported examples again, in other company: half as many at a time, in the reverse order.

    Args:
        subject: the model, ready to run.
        x_adv: examples (N, C, H, W) that `logits` misclassify.
        y: their classes (N,).
        logits: the evaluator's first verdict, (N, K).
        attack: the attack's label.
        ids: example ids (N,).
        strict: whether an example that is classified correctly this time is an error; not for a randomised model.

    Returns:
        (N,), whether an example is marginal: its two highest logits differ by less than `MARGINAL` in either pass, or,
        where not `strict`, the two passes differ.

    Raises:
        Unsound: EV261, when an example that is not marginal is classified correctly this time.
    """
    model, size = subject.model.model, subject.model.size
    other = replace(subject, model=Batched(model, max(1, size // 2) if size > 1 else 2))
    again = other.predict(x_adv.flip(0), ids=ids.flip(0), under=attack).flip(0)
    marginal = torch.minimum(gap(logits), gap(again)) < MARGINAL
    lost = (again.argmax(1) == y) & ~marginal
    if lost.any() and strict:
        named = ", ".join(str(int(row)) for row in ids[lost.nonzero().squeeze(1)[:5].to(ids.device)])
        raise Unsound(
            f"EV261 {int(lost.sum())} of {len(x_adv)} adversarial examples of attack {attack!r} no longer fool the "
            f"model in a batch of another size (ids {named}): its answers depend on chance or on the other images"
        )
    return marginal | lost


def gap(logits: Tensor) -> Tensor:
    """The highest logit minus the second highest: (N, K) -> (N,)."""
    top = logits.topk(2, dim=1).values
    return top[:, 0] - top[:, 1]
