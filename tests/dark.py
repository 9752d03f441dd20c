"""A model that says whether an image is bright, grey images, and corruptions that darken them."""

from typing import Any

import torch
from torch import Tensor, nn

from toughen.corruptions import CORRUPTIONS
from toughen.evaluation.corruption.evaluate import corruption_accuracy
from toughen.evaluation.corruption.result import CorruptionResult

LEVELS = [90, 100, 110, 120, 128, 130, 140, 150, 160, 170, 200, 250]
FEW: dict[str, Any] = {"corruptions": ("fog", "snow"), "severities": (5, 1)}


class Bright(nn.Module):
    """Class 1 where the mean pixel is above a threshold, class 0 elsewhere; counts its images."""

    def __init__(self, threshold: float = 127.5, classes: int = 2) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(threshold / 255))
        self.classes = classes
        self._seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self._seen.append(len(x))
        score = x.mean((1, 2, 3)) - self.threshold
        return torch.cat([-score[:, None], score[:, None], score.new_full((len(x), self.classes - 2), -9)], 1)


def grey(levels: list[int] = LEVELS, channels: int = 3) -> Tensor:
    return torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].expand(-1, channels, 8, 8).clone()


def darker(images: Tensor, name: str, severity: int, *, constants: str, seed: int, ids: Tensor) -> Tensor:
    """By ten levels a severity and one for each place in the list of corruptions; as many more as the seed."""
    assert constants in ("cifar", "imagenet")
    assert [LEVELS[number] for number in ids.tolist()] == images[:, 0, 0, 0].tolist()
    return (images.int() - shift(name, severity) - seed).clamp(0).to(torch.uint8)


def shift(name: str, severity: int) -> int:
    return 10 * severity + CORRUPTIONS.index(name)


def stand(level: int, name: str, severity: int, threshold: float = 127.5) -> bool:
    """Whether a grey image is still on the side of 127.5 that it was on."""
    return (level > 127.5) == (level - shift(name, severity) > threshold)


LABELS = torch.tensor([int(level > 127.5) for level in LEVELS])


def measured(model: nn.Module | None = None, **given: Any) -> CorruptionResult:
    return corruption_accuracy(model or Bright(), grey(), LABELS, **given)
