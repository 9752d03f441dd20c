"""Runs that collapse, and runs that do not: the synthetic reproducer of catastrophic overfitting.

4,000 images of 14x14 from ten smooth prototypes under noise: trained on FGSM at eps 0.3 a network of two convolutions
withstands that one step within a few hundred, and no attack of ten; at eps 0.1, or with PGD, it withstands both.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toughen.data import ImageData, Split
from toughen.noise import generator
from toughen.recipes import Recipe
from toughen.recipes.text import build

FGSM = {"name": "adversarial", "attack": "fgsm"}
PGD = {"name": "adversarial", "attack": {"name": "pgd", "steps": 7}}


class TwoConvolutions(nn.Module):
    """Two 3x3 convolutions, of 16 and 32 channels and strides 1 and 2, and a linear layer: images of 14x14."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.linear = nn.Linear(32 * 7 * 7, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        return self.linear(self.second(self.first(x).relu()).relu().flatten(1))


def smooth_prototypes() -> ImageData:
    """4,000 training and 200 test images in ten classes."""
    coarse = torch.randn(10, 1, 5, 5, generator=generator("prototypes"))
    smooth = F.interpolate(coarse, size=(14, 14), mode="bicubic", align_corners=False)
    low, high = smooth.amin((1, 2, 3), keepdim=True), smooth.amax((1, 2, 3), keepdim=True)
    prototypes = (smooth - low) / (high - low)

    def split(name: str, n: int) -> Split:
        labels = torch.arange(n) % 10
        noise = torch.randn(n, 1, 14, 14, generator=generator("prototypes", name))
        pixels = (prototypes[labels] + 0.1 * noise).clamp(0, 1)
        return Split((255 * pixels).round().to(torch.uint8), labels)

    return ImageData("prototypes", split("train", 4000), None, split("test", 200), tuple("0123456789"))


def recipe(method: dict[str, Any], eps: float, **changes: Any) -> Recipe:
    """A run on these images; `DATA` and `MODELS` must hold "prototypes" and "two_convolutions"."""
    mapping = {
        "data": {"source": "prototypes", "validation": 100},
        "model": "two_convolutions",
        "method": method,
        "threat": f"linf:{eps}",
        "batch_size": 128,
        "steps": 300,
        "optimizer": {"lr": 0.03, "momentum": 0.9},
        "selection": {"suite": "pgd-10", "every": 10**6},
        "log_every": 10**6,
        "save_every": 10**6,
    }
    return build({**mapping, **changes})
