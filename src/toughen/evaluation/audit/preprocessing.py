"""How a model may have been meant to be fed: customary preprocessings, and what speaks for one of them.

There are two kinds of evidence. Labels say which preprocessing classifies better, where there are enough of them. The
first BatchNorm of a network remembers the mean and variance of what it met in training; images that are fed as then
meet these again. That needs no label and few images: on four photographs it tells two normalisations apart that give
the same classes.

    with FirstNorm(model) as norm:
        logits = model(how.apply(x))
    norm.mismatch()                     # 0.03 as trained, 0.7 and more otherwise
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from toughen.devices import in_float64
from toughen.evaluation.audit import statistics
from toughen.losses import cross_entropy
from toughen.models.classifier import MeanStd, PerImageStandardize

# Means and standard deviations by number of channels. Of each number the first two are far apart and are tried first;
# the others are near relatives of theirs.
CUSTOMARY: dict[int, dict[str, MeanStd]] = {
    1: {
        "MNIST's": ((0.1307,), (0.3081,)),
        "0.5 / 0.5": ((0.5,), (0.5,)),
        "Fashion-MNIST's": ((0.286,), (0.353,)),
    },
    3: {
        "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "0.5 / 0.5": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        "CIFAR-10's": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
        "CIFAR-10's (std per image)": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.201)),
        "CIFAR-100's": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
        "SVHN's": ((0.4377, 0.4438, 0.4728), (0.198, 0.201, 0.197)),
        "CLIP's": ((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)),
    },
}

MISMATCHED = 0.4
"""A first BatchNorm that misses by more does not meet what it was trained on.

Measured: 0.01 to 0.03 for networks on their own test images, 0.08 for four photographs, 0.6 and more for every wrong
normalisation tried.
"""

ENOUGH = 256
"""Values per channel from which a mean and a variance are taken."""


@dataclass(frozen=True)
class Preprocessing:
    """A map of images in [0, 1] to what a model may have been meant for.

    Attributes:
        change: what it is, in words that follow "accuracy 90 %".
        family: preprocessings of one family are alike, and compared with each other once one of them is better.
        apply: the map.
        points: by how much it must be better, in accuracy, before labels alone speak for it.
        remedy: what to write, in code where that says it.
        bypass: a layer of the model that is left out, where no map of the images undoes what it does.
    """

    change: str
    family: str
    apply: Callable[[Tensor], Tensor]
    points: float
    remedy: str
    bypass: nn.Module | None = None


@dataclass(frozen=True, eq=False)
class Trial:
    """What a model predicts on the examples under a preprocessing.

    Attributes:
        how: the preprocessing; None for images as they were given.
        x: what was fed, (N, C, H, W).
        logits: (N, K).
        mismatch: of the first BatchNorm; None where there is none.
        right: which examples are classified correctly, (N,).
        loss: mean cross-entropy.
    """

    how: Preprocessing | None
    x: Tensor
    logits: Tensor
    mismatch: float | None
    right: Tensor
    loss: float

    @classmethod
    def of(cls, how: Preprocessing | None, x: Tensor, logits: Tensor, mismatch: float | None, y: Tensor) -> Self:
        """The trial with these logits, judged by labels y (N,)."""
        loss = float(cross_entropy(logits, y).mean())
        return cls(how, x, logits, mismatch, (logits.argmax(1) == y) & ~statistics.not_finite(logits), loss)

    @property
    def accuracy(self) -> float:
        """Share of the examples that are right."""
        return self.right.float().mean().item()

    def beats(self, as_is: "Trial", y: Tensor, tried: int) -> bool:
        """Whether this preprocessing explains the model far better than the images as they were given.

        By statistics: the first BatchNorm is at least four times nearer to its training than it was, from where it
        could not be; and the labels are not less likely. By labels: more accurate by `points`, with odds of one in a
        thousand for all that was tried, and a BatchNorm that does not object.

        Args:
            as_is: the trial of the images as they were given.
            y: classes (N,).
            tried: number of preprocessings.
        """
        assert self.how is not None
        if self.mismatch is not None and as_is.mismatch is not None:
            if as_is.mismatch > MISMATCHED and self.mismatch < as_is.mismatch / 4 and self.loss <= as_is.loss:
                return self.mismatch < MISMATCHED
            if self.mismatch > min(as_is.mismatch, MISMATCHED):
                return False
        chance = 1e-3 / tried
        if statistics.better(self.right, as_is.right, self.how.points, chance):
            return True
        ahead = int(self.right.sum()) - int(as_is.right.sum())
        unlike = statistics.log_likelihood_ratio(self.logits, as_is.logits, y) > -math.log(chance)
        return ahead >= 3 and ahead > self.how.points * len(y) and unlike

    def rank(self) -> tuple[float, ...]:
        """Smaller is the better explanation: by the BatchNorm, else by accuracy, then by loss."""
        return (self.mismatch,) if self.mismatch is not None else (-self.accuracy, self.loss)

    @property
    def name(self) -> str:
        """What it is, without what it has in common with its family."""
        if self.how is None:
            return ""
        return self.how.change.removeprefix("with ").removesuffix(f" normalisation {self.how.family}")

    def is_related(self, other: "Trial") -> bool:
        """Whether both are of one family of preprocessings."""
        return self.how is not None and other.how is not None and self.how.family == other.how.family

    def alike(self, other: "Trial") -> bool:
        """Whether these examples do not tell two trials apart."""
        if self.mismatch is not None and other.mismatch is not None:
            return max(self.mismatch, other.mismatch) < 1.5 * min(self.mismatch, other.mismatch) + 0.02
        return not any(statistics.better(a.right, b.right, 0, 0.05) for a, b in ((self, other), (other, self)))


@dataclass
class FirstNorm:
    """Looks at what the BatchNorm that is run first gets to see, until the context ends.

    Args:
        model: any network; without a BatchNorm that has running statistics of its training, nothing is seen.
    """

    model: nn.Module
    handles: list[Any] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.first: _BatchNorm | None = None
        self.count, self.sum, self.squares = 0, torch.zeros(()), torch.zeros(())
        for module in self.model.modules():
            if isinstance(module, _BatchNorm) and _trained(module):
                self.handles.append(module.register_forward_pre_hook(self._see))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self.handles:
            self.handles.pop().remove()

    def _see(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, _BatchNorm)
        self.first = self.first or module
        if module is not self.first:
            return
        # Not by detach(), which an observation would take for the model's own.
        with torch.no_grad():
            values = in_float64(inputs[0]).transpose(0, 1).flatten(1)
            self.count += values.shape[1]
            self.sum = self.sum + values.sum(1).cpu()
            self.squares = self.squares + values.square().sum(1).cpu()

    def few_batches(self) -> int:
        """How many batches it has met in training, where its statistics are still a tenth of what they began with.

        0 where there were more, or where nobody knows.
        """
        first = self.first
        tracked = 0 if first is None or first.num_batches_tracked is None else int(first.num_batches_tracked)
        if first is None or not first.momentum or not tracked:
            return 0
        return tracked if (1 - first.momentum) ** tracked > 0.1 else 0

    def mismatch(self) -> float | None:
        """The median over channels of KL(N(m, v) || N(M, V)), m and v of what was seen, M and V of the training.

        (log(V / v) + (v + (m - M)^2) / V - 1) / 2, with the layer's eps in both variances, because some channels of
        trained networks are dead. None where no BatchNorm ran or too little was seen.
        """
        if self.first is None or self.count < ENOUGH:
            return None
        assert self.first.running_mean is not None
        assert self.first.running_var is not None
        mean = self.sum / self.count
        variance = (self.squares / self.count - mean.square()).clamp_min(0) + self.first.eps
        trained_mean = in_float64(self.first.running_mean).cpu()
        trained_variance = in_float64(self.first.running_var).cpu() + self.first.eps
        spread = (variance + (mean - trained_mean).square()) / trained_variance
        missed = ((trained_variance / variance).log() + spread - 1) / 2
        return missed.nan_to_num(math.inf).median().item()


def _trained(module: _BatchNorm) -> bool:
    """Whether running statistics are there and no longer those of a new layer."""
    if module.running_mean is None or module.running_var is None:
        return False
    return bool((module.running_mean != 0).any() or (module.running_var != 1).any())


@contextmanager
def bypassing(module: nn.Module | None) -> Iterator[None]:
    """A layer passes on what it gets, until the context ends."""
    handle = None if module is None else module.register_forward_hook(lambda layer, inputs, output: inputs[0])
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def declared(model: nn.Module, channels: int) -> tuple[Tensor, Tensor] | None:
    """Mean and standard deviation (C,) of the first layer that normalises channels, of whatever library; or None."""
    for module in model.modules():
        for names in (("mean", "std"), ("mu", "sigma")):
            values = [getattr(module, name, None) for name in names]
            try:
                mean, std = (torch.as_tensor(_on_host(value), dtype=torch.float64).flatten() for value in values)
            except (TypeError, ValueError, RuntimeError):
                continue
            if mean.numel() == std.numel() == channels and bool((std > 0).all()):
                return mean, std
    return None


def coarse(model: nn.Module, channels: int) -> list[Preprocessing]:
    """Preprocessings that are far from each other, at most 12.

    The model's own normalisation left out or done twice: by 5 points. A customary one in its place, in front or taken
    back, and images in other ranges: by 20 points, because a network that was trained for a few hundred steps only,
    whose contrast is not yet learnt, gains up to that from any of them.
    """
    found: list[Preprocessing] = []
    own = declared(model, channels)
    if own is not None:
        mean, std = (values.tolist() for values in own)
        left_out, twice = "without the model's normalisation", "with the model's normalisation twice"
        again = f"nn.Sequential(Normalize({_numbers(mean)}, {_numbers(std)}), model)"
        found.append(_back(left_out, "own", (mean, std), 0.05, "Classifier(net), without mean and std"))
        found.append(_front(twice, "own", (mean, std), 0.05, again))
    whole_image = next((module for module in model.modules() if isinstance(module, PerImageStandardize)), None)
    if whole_image is not None:
        text = "Classifier(net), without per_image"
        change = "without the model's standardisation of every image"
        found.append(Preprocessing(change, "own", lambda x: x, 0.05, text, whole_image))
    names = list(CUSTOMARY.get(channels, {}))[:2]
    found += [_instead(name, channels, own) for name in names if own is not None]
    for family in ("in front", "taken back"):
        found += [_customary(name, channels, family) for name in names]
    whole: MeanStd = ((0.0,) * channels, (1 / 255,) * channels)
    tiny: MeanStd = ((0.0,) * channels, (255.0,) * channels)
    zeros, scales = _numbers((0,) * channels), _numbers((255,) * channels)
    to_255 = f"Classifier(net, mean={zeros}, std=({', '.join(['1 / 255'] * channels)}{',' * (channels == 1)}))"
    from_255 = f"leave out what multiplies by 255, or write Classifier(net, mean={zeros}, std={scales})"
    alone, by_itself = "Classifier(net, per_image=True)", "with every image standardised by itself"
    return [
        *found,
        Preprocessing(by_itself, "in front", PerImageStandardize(), 0.2, alone),
        _front("with images in 0..255", "0..255", whole, 0.2, to_255),
        _front("with images divided by 255 once more", "0..1/255", tiny, 0.2, from_255),
    ]


def finer(model: nn.Module, family: str, channels: int) -> list[Preprocessing]:
    """The other preprocessings of a family, at most 5."""
    own = declared(model, channels)
    if family == "instead of the model's" and own is not None:
        return [_instead(name, channels, own) for name in list(CUSTOMARY.get(channels, {}))[2:]]
    if family in ("in front", "taken back"):
        return [_customary(name, channels, family) for name in list(CUSTOMARY.get(channels, {}))[2:]]
    if family == "0..255" and channels == 3:
        mean, std = CUSTOMARY[3]["ImageNet's"][0], (1 / 255,) * 3
        text = f"Classifier(net, mean={_numbers(mean)}, std=(1 / 255, 1 / 255, 1 / 255))"
        return [_front("with images in 0..255 less ImageNet's mean", family, (mean, std), 0.2, text)]
    if family == "0..1/255":
        return [_scaled(name, channels) for name in list(CUSTOMARY.get(channels, {}))[:2]]
    return []


def undone(x: Tensor) -> tuple[str, Tensor, str] | None:
    """The customary normalisation behind images (N, C, H, W) outside [0, 1]: its name, the images, and what to write.

    The right one leads back to whole grey levels in [0, 1], which no other does.
    """
    for name, (means, stds) in CUSTOMARY.get(x.shape[1], {}).items():
        levels = 255 * (in_float64(x) * in_float64(_shaped(stds, x)) + in_float64(_shaped(means, x)))
        off = (levels - levels.round()).abs()
        if off.mean() < 0.02 and levels.min() > -0.5 and levels.max() < 255.5:
            text = f"leave Normalize({_numbers(means)}, {_numbers(stds)}) out of the data and write "
            text += _classifier(means, stds)
            return name, (levels.round() / 255).to(x.dtype).to(x.device), text
    return None


def _customary(name: str, channels: int, family: str) -> Preprocessing:
    constants = CUSTOMARY[channels][name]
    mean, std = constants
    change = f"with {name} normalisation {family}"
    if family == "in front":
        return _front(change, family, constants, 0.2, _classifier(mean, std))
    text = f"Leave out one Normalize(mean={_numbers(mean)}, std={_numbers(std)}) in front of the network"
    return _back(change, family, constants, 0.2, text)


def _instead(name: str, channels: int, own: tuple[Tensor, Tensor]) -> Preprocessing:
    """A customary normalisation in place of the model's own, which is taken back before the model does it."""
    mean, std = CUSTOMARY[channels][name]
    m, s = (values.tolist() for values in own)
    family = "instead of the model's"

    def apply(x: Tensor) -> Tensor:
        return (x - _shaped(mean, x)) / _shaped(std, x) * _shaped(s, x) + _shaped(m, x)

    return Preprocessing(f"with {name} normalisation {family}", family, apply, 0.2, _classifier(mean, std))


def _scaled(name: str, channels: int) -> Preprocessing:
    """A customary normalisation of images that something else multiplies by 255."""
    mean, std = CUSTOMARY[channels][name]
    constants = mean, tuple(255 * value for value in std)
    text = f"leave out what multiplies by 255, and write {_classifier(mean, std)}"
    change = f"with images divided by 255 once more and {name} normalisation"
    return _front(change, "0..1/255", constants, 0.2, text)


def _front(change: str, family: str, constants: tuple[Sequence[float], ...], points: float, text: str) -> Preprocessing:
    mean, std = constants
    return Preprocessing(change, family, lambda x: (x - _shaped(mean, x)) / _shaped(std, x), points, text)


def _back(change: str, family: str, constants: tuple[Sequence[float], ...], points: float, text: str) -> Preprocessing:
    mean, std = constants
    return Preprocessing(change, family, lambda x: x * _shaped(std, x) + _shaped(mean, x), points, text)


def _on_host(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _shaped(values: Sequence[float], x: Tensor) -> Tensor:
    return torch.tensor(values, dtype=x.dtype, device=x.device).view(1, -1, 1, 1)


def _classifier(mean: Sequence[float], std: Sequence[float]) -> str:
    """A classifier with this normalisation, as one writes it."""
    return f"Classifier(net, mean={_numbers(mean)}, std={_numbers(std)})"


def _numbers(values: Sequence[float]) -> str:
    """A tuple as one writes it, of at most four digits."""
    return f"({', '.join(f'{value:.4g}' for value in values)}{',' if len(values) == 1 else ''})"
