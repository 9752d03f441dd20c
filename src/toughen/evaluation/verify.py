"""Verification: what an attack returns is measured by the evaluator, which takes nobody's word for it.

Many published attacks leave the ball or [0, 1] by a bug, and such an "adversarial" example proves nothing. One that
does so here stops the evaluation: dropping it would hide the bug, counting it would be wrong.

    distance = measure(x_adv, x, threat, attack="mine", ids=ids)    # (N,), or Unsound
    logits = predict(model, x_adv, attack="mine", ids=ids)          # (N, K), finite
"""

import torch
from torch import Tensor, nn

from toughen.losses import full_precision
from toughen.outcomes import CLEAN
from toughen.threat import Threat

ROUNDING = {"linf": (0.0, 6e-8), "l2": (1e-6, 1e-7)}
"""How far an example may overstep a radius, by norm: a share of the radius, and an amount in pixel units.

x + delta rounds each pixel by up to 3e-8 in float32, which a perturbation of L2 length 0.01 shows as 4e-8 (measured).
"""


class Unsound(RuntimeError):
    """An attack returned something that its threat model does not allow; the attack is wrong, not the model."""


def measure(x_adv: Tensor, x: Tensor, threat: Threat, *, attack: str, ids: Tensor) -> Tensor:
    """||x_adv - x|| of each example, in float64, once it is known to be allowed.

    Args:
        x_adv: what the attack returned, (N, C, H, W).
        x: the clean images, (N, C, H, W) in [0, 1].
        threat: the ball; an example may overstep it by `ROUNDING`.
        attack: the attack's label.
        ids: example ids (N,).

    Returns:
        (N,) float64.

    Raises:
        Unsound: the shape differs, or an example lies outside the ball or outside [0, 1]; the sentence names the
            attack, the first such example and the amount.
    """
    if not isinstance(x_adv, Tensor) or x_adv.shape != x.shape:
        given = tuple(x_adv.shape) if isinstance(x_adv, Tensor) else type(x_adv).__name__
        raise Unsound(f"attack {attack!r} returned {given} for images of shape {tuple(x.shape)}")
    distance = threat.size(x_adv.double() - x.double())
    eps = torch.as_tensor(threat.eps, dtype=torch.float64, device=x.device).expand(len(x))
    share, amount = ROUNDING.get(threat.norm, ROUNDING["l2"])
    # "not <=" rather than ">", so that NaN is outside.
    outside = ~(distance <= eps * (1 + share) + amount)
    if outside.any():
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
    return distance


def check_logits(logits: Tensor, n: int) -> None:
    """Refuse what are no logits of `n` images.

    Raises:
        ValueError: anything but floats (n, K) with K at least 2.
    """
    if not isinstance(logits, Tensor):
        raise ValueError(f"the model returned {type(logits).__name__}; it must return logits, a tensor (N, K)")
    if not logits.is_floating_point() or logits.ndim != 2 or len(logits) != n or logits.shape[1] < 2:
        raise ValueError(
            f"the model returned {logits.dtype} of shape {tuple(logits.shape)} for {n} images; it must return logits, "
            "floats (N, K) with one column for each of at least 2 classes"
        )


def predict(model: nn.Module, x: Tensor, *, attack: str, ids: Tensor) -> Tensor:
    """Logits (N, K) in float32 or float64, by one forward pass.

    Args:
        model: classifier of images in [0, 1], already in inference mode.
        x: images (N, C, H, W).
        attack: label of the attack that made them.
        ids: example ids (N,).

    Raises:
        ValueError: EV203, when a logit is NaN or infinite; or no logits at all (see `check_logits`).
    """
    with torch.no_grad():
        logits = model(x)
    check_logits(logits, len(x))
    lost = ~logits.isfinite().all(1)
    if lost.any():
        first = ", ".join(str(int(row)) for row in ids[lost.nonzero().squeeze(1)[:5].to(ids.device)])
        where = "without an attack" if attack == CLEAN else f"under attack {attack!r}"
        raise ValueError(
            f"EV203 Model returned NaN or infinite logits for {int(lost.sum())} of {len(x)} inputs of a batch {where}. "
            f"Counting them either way would be wrong; first ids {first}."
        )
    return full_precision(logits)
