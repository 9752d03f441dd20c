"""Signs of a result that cannot be trusted, as functions of tensors: what the model returned, and its gradients.

Each of them compares with what chance or rounding would do, because a false alarm costs as much trust as a miss; the
comments say where a threshold comes from.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from toughen.devices import in_float64, widest
from toughen.losses import cross_entropy, margin
from toughen.outcomes import interval


@dataclass
class Trace:
    """An objective that remembers: the cross-entropy of an ascent, with the margins on its way.

    Attributes:
        y: labels (n,).
        first: margins at the start (n,).
        broken: which examples were misclassified at any point so far, (n,).
    """

    y: Tensor
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy

    def __post_init__(self) -> None:
        # A device without float64 gives no margin that float32 does not hold.
        self.first = torch.full_like(self.y, torch.nan, dtype=widest(self.y.device))
        self.broken = torch.zeros_like(self.y, dtype=torch.bool)

    def __call__(self, logits: Tensor, rows: slice) -> Tensor:
        """The loss (n,) of some rows."""
        ahead = margin(logits.detach(), self.y[rows]).to(self.first.dtype)
        self.first[rows] = torch.where(self.first[rows].isnan(), ahead, self.first[rows])
        self.broken[rows] |= ahead > 0
        return self.loss(logits, self.y[rows])


def not_finite(values: Tensor) -> Tensor:
    """Which rows of (N, ...) hold NaN or infinity, (N,)."""
    return ~values.flatten(1).isfinite().all(1)


def all_zero(grad: Tensor) -> Tensor:
    """Which rows of a gradient (N, ...) are all zero, (N,)."""
    return (grad == 0).flatten(1).all(1)


def one_hot(logits: Tensor) -> Tensor:
    """Which rows' softmax is one and else exactly zero, (N,): there the cross-entropy's gradient is exactly zero.

    In float32 this takes a lead of 104 over every other class, which no network reaches that was trained to an end
    by cross-entropy alone.
    """
    return (logits.softmax(1) > 0).sum(1) == 1


def confident(logits: Tensor) -> Tensor:
    """Which rows' largest probability rounds to one, (N,): half of the cross-entropy's gradient is lost there."""
    return logits.softmax(1).amax(1) == 1


def differ(a: Tensor, b: Tensor, tolerance: float) -> Tensor:
    """Which rows of logits differ by more than `tolerance` times the largest of them, (N,)."""
    scale = a[a.isfinite()].abs().max() if a.isfinite().any() else a.new_ones(())
    same = ((a - b).abs() <= tolerance * scale) | (a == b) | (a.isnan() & b.isnan())
    return ~same.all(1)


def are_probabilities(logits: Tensor) -> bool:
    """Whether all rows are probabilities: not negative, with a sum of one up to rounding.

    K free numbers that are nowhere negative and add up to one in each of many rows do not happen by chance.
    """
    rounding = 32 * torch.finfo(logits.dtype).eps
    return bool((logits >= 0).all() and ((in_float64(logits).sum(1) - 1).abs() <= rounding).all())


def are_log_probabilities(logits: Tensor) -> bool:
    """Whether all rows are logarithms of probabilities."""
    rounding = 32 * torch.finfo(logits.dtype).eps * max(1.0, float(logits.abs().max()))
    return bool((logits <= rounding).all() and (in_float64(logits).logsumexp(1).abs() <= rounding).all())


def are_constant(logits: Tensor) -> bool:
    """Whether four or more rows are the same up to rounding."""
    spread = (logits.amax(0) - logits.amin(0)).max()
    return len(logits) > 3 and bool(spread <= 32 * torch.finfo(logits.dtype).eps * logits.abs().max())


def repeated(logits: Tensor) -> Tensor:
    """Which rows equal another row to the last bit, (N,)."""
    _, inverse, counts = logits.unique(dim=0, return_inverse=True, return_counts=True)
    return counts[inverse] > 1


def commonest_class(y: Tensor) -> int:
    """The class that most labels y (N,) name, of several the first; on the host, for MPS knows no mode."""
    return int(y.cpu().mode().values)


def sign_test(more: int, fewer: int) -> float:
    """The chance that a fair coin, tossed more + fewer times, shows heads `more` times or more often."""
    tosses = more + fewer
    return sum(math.comb(tosses, k) for k in range(more, tosses + 1)) / 2**tosses


def better(right: Tensor, given: Tensor, points: float, chance: float) -> bool:
    """Whether one way of classifying beats another on the same examples.

    Args:
        right: which examples it classifies correctly, (N,).
        given: likewise for the other.
        points: by how much, in accuracy.
        chance: at most this likely if the two were equally good.
    """
    more, fewer = int((right & ~given).sum()), int((given & ~right).sum())
    return more - fewer > points * len(right) and sign_test(more, fewer) < chance


def log_likelihood_ratio(logits: Tensor, others: Tensor, y: Tensor) -> float:
    """How much likelier labels y (N,) are by some logits (N, K) than by others, as a natural logarithm.

    Each model is taken to guess one label in five, so that a single image on which it is wrongly sure settles nothing.
    If the labels were drawn as the others say, the chance that this exceeds log(1/a) would be at most a (Markov).
    """

    def likelihood(values: Tensor) -> Tensor:
        guessed = 0.8 * in_float64(values).softmax(1) + 0.2 / values.shape[1]
        return guessed.log().gather(1, y.unsqueeze(1).to(guessed.device)).sum()

    return float(likelihood(logits) - likelihood(others))


def untrained(logits: Tensor, y: Tensor) -> bool:
    """Whether logits (N, K) are hardly surer of labels y (N,), and of anything, than even guesses are.

    Random weights tell classes of other brightness or colour apart, and are then right more often than by chance under
    some order of the classes; but they are not sure of it. Measured: their cross-entropy is less than log K by at most
    24 %, and their confidence exceeds 1 / K by at most a quarter of what their accuracy does. Trained networks keep to
    neither: those in `tests/frozen` gain 86 % and more, and one that is often wrong is sure nevertheless.
    """
    even, right = 1 / logits.shape[1], in_float64(logits.argmax(1) == y).mean().item()
    sure = in_float64(logits).softmax(1).amax(1).mean().item()
    return learnt(logits, y) < 0.25 and sure - even < (right - even) / 3


def learnt(logits: Tensor, y: Tensor) -> float:
    """By which share the cross-entropy of labels y (n,) is below that of even guesses, log K; negative where above."""
    classes = logits.shape[1]
    return 1 - in_float64(cross_entropy(logits, y)).mean().item() / math.log(classes) if classes > 1 else 1.0


class Renaming(NamedTuple):
    """Another naming of the classes.

    Attributes:
        change: what it is, in words.
        right: which examples are correct under it, (N,).
        order: the label that each class of the model stands for, (K,).
    """

    change: str
    right: Tensor
    order: Tensor


def relabelling(prediction: Tensor, y: Tensor, classes: int, names: Sequence[str] | None = None) -> Renaming | None:
    """A renaming of the classes under which the predictions fit the labels far better than as given.

    A cyclic shift; an order that folders and files bring about (numbers sorted as text, names sorted, all reversed); or
    else a permutation that is learnt on one half of the examples, tried on the other, and the other way round. Far
    better: by more than 20 points, 10 for permutations, which no confusion of a sound model is; with odds of one in a
    thousand for all that is tried of a kind; on all examples and on those without the commonest label, where a model
    that always answers the same cannot win.

    And beyond what chance gives: predictions that know nothing of the images are right under an order at most as often
    as the commonest label, on average. That holds for each of M orders that are fixed beforehand, of which the luckiest
    is taken, and for a permutation that is tried on examples it was not learnt on, however many there are to choose
    from. So the lower end of the accuracy's 99 % Wilson interval (of level 1 - 0.01 / M for the luckiest of M) must
    exceed the share of the commonest label.

    Args:
        prediction: classes (N,).
        y: labels (N,).
        classes: number of classes K.
        names: of the classes, in the order of the labels; K of them, or else they are not looked at.
    """
    counted, given = y != commonest_class(y), prediction == y

    def far_better(right: Tensor, points: float, chance: float) -> bool:
        return all(better(right[part], given[part], points, chance) for part in (counted, torch.ones_like(counted)))

    if not counted.any():
        return None
    commonest = 1 - counted.float().mean().item()

    def beyond_chance(right: Tensor, tried: int) -> bool:
        return interval(int(right.sum()), len(right), 1 - 0.01 / tried)[0] > commonest

    orders = _orders(classes, names)
    rights = torch.stack([order.to(y.device)[prediction] == y for order in orders.values()])
    best = int(rights[:, counted].sum(1).argmax())
    if far_better(rights[best], 0.2, 1e-3 / len(orders)) and beyond_chance(rights[best], len(orders)):
        change = list(orders)[best]
        return Renaming(change, rights[best], orders[change])
    mapped = torch.empty_like(prediction)
    halves = torch.arange(len(y), device=y.device) % 2 == 0
    for learn, test in ((halves, ~halves), (~halves, halves)):
        mapped[test] = _assigned(prediction[learn], y[learn], classes).to(y.device)[prediction[test]]
    right = mapped == y
    if not (far_better(right, 0.1, 1e-3) and beyond_chance(right, 1)):
        return None
    return Renaming("in another order", right, _assigned(prediction, y, classes))


def _orders(classes: int, names: Sequence[str] | None) -> dict[str, Tensor]:
    """Orders of the classes that come about by themselves: the label of each class of the model, by name."""
    count = torch.arange(classes)
    by = [step if step <= classes // 2 else step - classes for step in range(1, classes)]
    found = {f"shifted by {step:+d}": (count + step) % classes for step in by}
    texts = {"sorted as text ('0', '1', '10', '2')": [str(label) for label in range(classes)]}
    if names is not None and len(names) == classes:
        texts["sorted by name"] = list(names)
    for change, keys in texts.items():
        order = torch.tensor(sorted(range(classes), key=keys.__getitem__))
        found[f"{change}, which the model has"] = order
        found[f"{change}, which the data has"] = order.argsort()
    found["in reverse"] = count.flip(0)
    return found


def _assigned(prediction: Tensor, y: Tensor, classes: int) -> Tensor:
    """The permutation of the classes under which most predictions are right; unseen classes keep their names."""
    from scipy.optimize import linear_sum_assignment

    table = torch.zeros(classes, classes, dtype=torch.float64)
    seen = torch.ones(len(y), dtype=torch.float64)
    table.index_put_((prediction.cpu(), y.cpu()), seen, accumulate=True)
    table += 0.5 * torch.eye(classes, dtype=torch.float64)
    return torch.from_numpy(linear_sum_assignment(table.numpy(), maximize=True)[1]).long()
