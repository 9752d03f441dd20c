"""The label adversary: labels moved against the model, of bilateral training (Bilateral: Wang & Zhang 2019).

    labels = adversarial_labels(model(x), y, beta=9)       # (N, K) probabilities; the true class keeps the most

It answers max L(x, y') over ||y' - y||_inf <= eps_y by a heuristic. With v_k = grad_{y_k} L = -log p_k(x), c the true
class and S the n classes besides it that may receive mass, each gets a share s_k of the budget:

    y'_k = eps_y s_k for k in S,   y'_c = 1 - eps_y,   eps_y = 1 / (1 + beta max_k s_k),   sum_k s_k = 1

so that y'_c = beta max_k y'_k exactly. The largest share is at least 1 / n, hence 1 / (1 + beta) <= eps_y and
eps_y <= 1 / (1 + beta / n), under either heuristic.
"""

from typing import Literal

import torch
from torch import Tensor

from toughen.losses import full_precision, labelled

Heuristic = Literal["main", "supplement"]


def main_shares(v: Tensor, gamma: float) -> Tensor:
    """s_k = (v_k - v_MC + gamma) / D with D = sum_k (v_k - v_MC + gamma): the most confusing class gets the least.

    D is the main paper's sum_k v_k - n (v_MC - gamma), summed term by term, of which none is below gamma (see
    docs/methods/bilateral.md, The label adversary). So every share is positive for any logits, a confidently wrong
    prediction's too. What needs v_MC > gamma is only the supplement's inequality 9, that y'_MC is smaller here than
    under `supplement_shares`; where p_MC > exp(-gamma) it is larger.

    Args:
        v: losses (N, n) of the classes that receive mass, v_MC being the smallest of them.
        gamma: above 0; without it equal losses would divide zero by zero.
    """
    above = v - v.amin(1, keepdim=True) + gamma
    return above / above.sum(1, keepdim=True)


def supplement_shares(v: Tensor) -> Tensor:
    """s_k = v_k / sum_k v_k (Bilateral, supplement, equation 2).

    With eps_y of equation 4, y' is one step of gradient ascent in the labels, y'_k = v_k / (sum_k v_k + beta v_max)
    (equations 5 and 6).

    Args:
        v: losses (N, n) of the classes that receive mass.
    """
    total = v.sum(1, keepdim=True)
    # All are zero only where a single class remains and the model is certain of it; it has the whole share.
    return torch.where(total > 0, v / total, 1 / v.shape[1])


def adversarial_labels(
    logits: Tensor,
    y: Tensor,
    *,
    heuristic: Heuristic = "main",
    beta: float = 9.0,
    gamma: float = 0.01,
    largest: int | None = None,
) -> Tensor:
    """Adversarial labels y' of the module's text.

    Deviation from the official code, which takes -log(p_k + 1e-8): v_k is exact, so that it goes on growing above 18.4.

    Args:
        logits: (N, K) of the clean images.
        y: classes (N,) int64; -1, no label, gives a row of zeros, which `cross_entropy` counts as loss 0.
        heuristic: "main", the main paper's (`main_shares`), or "supplement" (`supplement_shares`).
        beta: above 0, how many times the largest wrong class the true class keeps; 9 for CIFAR-10, 11 for CIFAR-100.
        gamma: above 0, of the main heuristic; 0.01 in the official code.
        largest: receiving classes, those of the largest loss, 1 to K - 1; all by default. 9 on CIFAR-100 is the
            supplement's LA9, whose formula it does not print: read as the nine in place of all wrong classes, so that
            n = 9 and v_MC is the smallest of theirs, and the other classes get nothing.

    Returns:
        Probabilities (N, K), without gradient.

    Raises:
        ValueError: the logits have fewer than `largest` wrong classes, or none.
    """
    wrong = logits.shape[1] - 1
    taken = wrong if largest is None else largest
    if not 1 <= taken <= wrong:
        asked = f"the {taken} of the largest loss" if largest is not None else "every wrong class"
        raise ValueError(
            f"the label adversary gives mass to {asked}, but the model has {wrong + 1} classes, one of them the true "
            f"one; {f'give largest from 1 to {wrong}' if wrong else 'train a model with at least 2 classes'}"
        )
    true = y.clamp(min=0).unsqueeze(1)
    losses = -full_precision(logits.detach()).log_softmax(1)
    v, receiving = losses.scatter(1, true, -torch.inf).topk(taken, dim=1)
    shares = main_shares(v, gamma) if heuristic == "main" else supplement_shares(v)
    budget = 1 / (1 + beta * shares.amax(1, keepdim=True))
    moved = torch.zeros_like(losses).scatter(1, receiving, budget * shares).scatter(1, true, 1 - budget)
    return torch.where(labelled(y).unsqueeze(1), moved, 0.0)
