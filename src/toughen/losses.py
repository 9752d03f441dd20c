"""Per-example losses: (logits, y) -> (N,), each to be ascended by an attack or descended by training.

    cross_entropy(logits, y)                    # y: classes (N,) or probabilities (N, K)
    kl(logits, clean_logits.softmax(1))         # what TRADES maximises
    targeted(cross_entropy, target)(logits, y)  # a targeted attack is a loss: ascending it nears the target

All of them compute in float32 at least: under bf16 autocast the logits come in bf16, whose steps near 8 are 1/16.
docs/methods/losses.md says who uses which, docs/methods/README.md what papers are called Free, Limits and Bilateral.
In training an example may have no label, written as class -1 or as a row of zeros; its cross-entropy and margin are 0.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def full_precision(logits: Tensor) -> Tensor:
    """Logits in float32, or in float64 where they came so."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-sum_k y_k log softmax(logits)_k.

    Args:
        logits: (N, K).
        y: class indices (N,) int64 or probabilities (N, K).

    Returns:
        (N,), at least 0.
    """
    logits = full_precision(logits)
    return F.cross_entropy(logits, y if y.ndim == 1 else y.to(logits), ignore_index=-1, reduction="none")


def hard(y: Tensor) -> Tensor:
    """Class indices (N,) from class indices or from probabilities (N, K): the most probable class."""
    return y if y.ndim == 1 else y.argmax(1)


def labelled(y: Tensor) -> Tensor:
    """Which examples have a label, (N,) bool: not class -1, and no row of zeros."""
    return y >= 0 if y.ndim == 1 else y.sum(1) > 0


def probabilities(y: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """Labels as probabilities.

    Args:
        y: classes (N,), -1 for no label, or probabilities (N, K), which are handed back.
        classes: K.
        dtype: of the result, where `y` holds classes.

    Returns:
        (N, K); a row of zeros where there is no label.
    """
    return y if y.ndim == 2 else (y.unsqueeze(1) == torch.arange(classes, device=y.device)).to(dtype)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{k != y} logits_k - logits_y: positive exactly where the classifier is wrong.

    The "CW" loss of PGD attacks (Carlini & Wagner 2017, f_6 with confidence 0; the papers Free, table 1 "CW", and
    Limits, section 4.2.1 "margin") without its clipping at zero, so that broken examples go on rising.

    Args:
        logits: (N, K), K >= 2.
        y: classes (N,), or probabilities (N, K), of which the most probable class counts.
    """
    logits, column = full_precision(logits), hard(y).clamp(min=0).unsqueeze(1)
    others = logits.scatter(1, column, -torch.inf)
    return torch.where(labelled(y), others.amax(1) - logits.gather(1, column).squeeze(1), 0.0)


def probability_margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{k != y} p_k - p_y with p = softmax(logits): PMA's loss (Xie et al. 2024), between -1 and 1.

    Args:
        logits: (N, K), K >= 2.
        y: as in `margin`.
    """
    return margin(full_precision(logits).softmax(1), y)


def clipped_margin(confidence: float) -> Loss:
    """The margin, no longer rising once it reaches `confidence` >= 0: min(margin, confidence).

    The papers' "CW" losses: 50 in Madry et al.'s code and in Bilateral's, 0 in Free's (table 1). At 0 an example that
    is broken has no gradient.
    """
    return lambda logits, y: margin(logits, y).clamp(max=confidence)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio, -(z_y - max_{k != y} z_k) / (z_(1) - z_(3)) with z_(1) >= z_(2) >= ... sorted.

    Croce & Hein 2020, equation 5: the margin, invariant to a shift and a rescaling of the logits.

    Args:
        logits: (N, K).
        y: classes (N,), or probabilities (N, K), of which the most probable class counts.

    Raises:
        ValueError: K is less than 3.
    """
    logits = full_precision(logits)
    top = _largest(logits, 3, "dlr")
    return margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


def targeted_margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """z_target - z_y, with classes `target` (N,) and y as in `dlr`."""
    to, of = full_precision(logits).gather(1, torch.stack([target, hard(y)], 1)).unbind(1)
    return to - of


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """-(z_y - z_target) / (z_(1) - (z_(3) + z_(4)) / 2) (Croce & Hein 2020, equation 6).

    Args:
        logits: (N, K).
        y: as in `dlr`.
        target: classes (N,).

    Raises:
        ValueError: K is less than 4.
    """
    logits = full_precision(logits)
    top = _largest(logits, 4, "targeted dlr")
    return targeted_margin(logits, y, target) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def _largest(logits: Tensor, k: int, loss: str) -> Tensor:
    if logits.shape[1] < k:
        raise ValueError(f"loss {loss} needs at least {k} classes, the model has {logits.shape[1]}; use loss: margin")
    return logits.topk(k, dim=1).values


def kl(logits: Tensor, y: Tensor) -> Tensor:
    """KL(y || softmax(logits)) = sum_k y_k (log y_k - log softmax(logits)_k).

    With y the clean probabilities this is the inner loss of TRADES in the direction of its code, KL(p_clean || p_adv)
    (Limits, equation 5, prints the arguments the other way round).

    Args:
        logits: (N, K).
        y: probabilities (N, K).
    """
    logits = full_precision(logits)
    return F.kl_div(logits.log_softmax(1), y.to(logits), reduction="none").sum(1)


def divergence(clean: Tensor, robust: Tensor) -> Tensor:
    """KL(softmax(clean) || softmax(robust)), (N,), with gradients for both.

    `kl` takes probabilities, and its gradient for one of them that underflows to 0 would be NaN.

    Args:
        clean: logits (N, K).
        robust: logits (N, K).
    """
    log_clean, log_robust = (full_precision(logits).log_softmax(1) for logits in (clean, robust))
    return F.kl_div(log_robust, log_clean, reduction="none", log_target=True).sum(1)


def targeted(loss: Loss, target: Tensor) -> Loss:
    """The loss -loss(logits, target): ascending it drives the prediction to `target` (N,); the label is ignored."""
    return lambda logits, y: -loss(logits, target)


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "margin": margin,
    "margin-0": clipped_margin(0),
    "margin-50": clipped_margin(50),
    "probability_margin": probability_margin,
    "dlr": dlr,
    "kl": kl,
}
