"""Symptoms of a result that cannot be trusted, as functions of tensors: what the model returned, and its gradients.

Each of them compares with what chance or rounding would do, because a false alarm costs as much trust as a miss; the
comments say where a threshold comes from.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from toughen.losses import cross_entropy, margin
from toughen.models.classifier import Normalize

# Customary means and standard deviations, by number of channels.
CUSTOMARY: dict[int, dict[str, tuple[tuple[float, ...], tuple[float, ...]]]] = {
    1: {"MNIST's": ((0.1307,), (0.3081,)), "0.5 / 0.5": ((0.5,), (0.5,))},
    3: {
        "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "CIFAR-10's": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
        "0.5 / 0.5": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    },
}


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
        self.first = torch.full_like(self.y, torch.nan, dtype=torch.float64)
        self.broken = torch.zeros_like(self.y, dtype=torch.bool)

    def __call__(self, logits: Tensor, rows: slice) -> Tensor:
        """The loss (n,) of some rows."""
        ahead = margin(logits.detach(), self.y[rows]).double()
        self.first[rows] = torch.where(self.first[rows].isnan(), ahead, self.first[rows])
        self.broken[rows] |= ahead > 0
        return self.loss(logits, self.y[rows])


class Operations(TorchFunctionMode):
    """Looks at what a model computes until the context ends.

    Attributes:
        autograd: calls of `torch.autograd.grad` and `backward`, `Tensor.backward` and what is built on them.
        low_precision: whether any operation gave numbers of 16 bits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.autograd = 0
        self.low_precision = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The call itself."""
        self.autograd += func in (torch.autograd.grad, torch.autograd.backward, Tensor.backward)
        result = func(*args, **(kwargs or {}))
        self.low_precision |= isinstance(result, Tensor) and result.dtype in (torch.float16, torch.bfloat16)
        return result


class Watched(nn.Module):
    """A model whose passes are looked at.

    Where its logits do not depend on the images in autograd's eyes, their gradient is zero instead of an error.

    Args:
        model: the classifier.

    Attributes:
        logits: rows of logits that held NaN or infinity, since the last `forget`.
        gradients: likewise of input gradients.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.forget()

    def forget(self) -> None:
        """Count anew."""
        self.logits: Tensor | int = 0
        self.gradients: Tensor | int = 0

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        logits = self.model(x)
        self.logits = self.logits + lost(logits.detach()).sum()
        if torch.is_grad_enabled() and x.requires_grad:
            x.register_hook(self._see)
            return logits + (0 * x.flatten(1).sum(1, keepdim=True)).to(logits.dtype)
        return logits

    def _see(self, grad: Tensor) -> None:
        self.gradients = self.gradients + lost(grad).sum()


def lost(values: Tensor) -> Tensor:
    """Which rows of (N, ...) hold NaN or infinity, (N,)."""
    return ~values.flatten(1).isfinite().all(1)


def zero(grad: Tensor) -> Tensor:
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


def probabilities(logits: Tensor) -> bool:
    """Whether all rows are probabilities: not negative, with a sum of one up to rounding.

    K free numbers that are nowhere negative and add up to one in each of many rows do not happen by chance.
    """
    rounding = 32 * torch.finfo(logits.dtype).eps
    return bool((logits >= 0).all() and ((logits.double().sum(1) - 1).abs() <= rounding).all())


def log_probabilities(logits: Tensor) -> bool:
    """Whether all rows are logarithms of probabilities."""
    rounding = 32 * torch.finfo(logits.dtype).eps * max(1.0, float(logits.abs().max()))
    return bool((logits <= rounding).all() and (logits.double().logsumexp(1).abs() <= rounding).all())


def repeated(logits: Tensor) -> Tensor:
    """Which rows equal another row to the last bit, (N,)."""
    _, inverse, counts = logits.unique(dim=0, return_inverse=True, return_counts=True)
    return counts[inverse] > 1


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


def relabelling(prediction: Tensor, y: Tensor, classes: int) -> tuple[str, Tensor] | None:
    """A renaming of the classes under which the predictions fit the labels far better than as given.

    A cyclic shift, or else a map of predictions to labels that is learnt on one half of the examples, tried on the
    other, and the other way round. Far better: by more than 20 points, with odds of one in a thousand for all the
    shifts together; on all examples and on those without the commonest label, where a model that always answers the
    same cannot win.

    Args:
        prediction: classes (N,).
        y: labels (N,).
        classes: number of classes K.

    Returns:
        What the renaming is, and which examples are correct under it, (N,); None where there is none.
    """
    counted, given = y != y.mode().values, prediction == y

    def far_better(right: Tensor, chance: float) -> bool:
        return all(better(right[part], given[part], 0.2, chance) for part in (counted, torch.ones_like(counted)))

    if not counted.any():
        return None
    shifts = torch.stack([(prediction + by) % classes == y for by in range(1, classes)])
    best = int(shifts[:, counted].sum(1).argmax())
    if far_better(shifts[best], 1e-3 / classes):
        by = best + 1 if best + 1 <= classes // 2 else best + 1 - classes
        return f"shifted by {by:+d}", shifts[best]
    mapped = torch.empty_like(prediction)
    halves = torch.arange(len(y), device=y.device) % 2 == 0
    for learn, test in ((halves, ~halves), (~halves, halves)):
        table = torch.zeros(classes, classes, dtype=torch.long, device=y.device)
        table.index_put_((prediction[learn], y[learn]), torch.ones_like(y[learn]), accumulate=True)
        renamed = torch.where(table.sum(1) > 0, table.argmax(1), torch.arange(classes, device=y.device))
        mapped[test] = renamed[prediction[test]]
    right = mapped == y
    return ("in another order", right) if far_better(right, 1e-3) else None


def preprocessings(model: nn.Module, channels: int) -> dict[str, tuple[Callable[[Tensor], Tensor], float]]:
    """Other preprocessings that the model may have been meant for, and by how much they must be better to say so.

    The model's own `Normalize` left out or done twice: by 5 points. Customary ones in front or taken back, and images
    in 0..255: by 20 points, because a network that was trained for a few hundred steps only, whose contrast is not yet
    learnt, gains up to that from any of them.

    Returns:
        Maps of input images by what they do, each with a difference of accuracies.
    """
    maps: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {}
    own = next((module for module in model.modules() if isinstance(module, Normalize)), None)
    if own is not None and own.mean.shape[1] == channels:
        mean, std = own.mean, own.std
        maps["without the model's normalisation"] = lambda x: x * std + mean, 0.05
        maps["with the model's normalisation twice"] = lambda x: (x - mean) / std, 0.05
    for name, (means, stds) in CUSTOMARY.get(channels, {}).items():
        m, s = (torch.tensor(values).view(1, -1, 1, 1) for values in (means, stds))
        maps[f"with {name} normalisation in front"] = lambda x, m=m, s=s: (x - m.to(x)) / s.to(x), 0.2
        maps[f"with {name} normalisation taken back"] = lambda x, m=m, s=s: x * s.to(x) + m.to(x), 0.2
    maps["with images in 0..255"] = lambda x: x * 255, 0.2
    return maps
