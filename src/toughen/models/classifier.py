"""A classifier: normalisation, then a network.

Attacks, methods and evaluation see images in [0, 1] and nothing else; how a network wants them centred and scaled is
its own affair and therefore its first layer, saved with its weights and differentiated through.

    model = Classifier(net, mean=(0.4914, 0.4822, 0.4465), std=(0.2471, 0.2435, 0.2616))
    logits = model(x)                            # x (N, 3, H, W) in [0, 1] -> (N, K)
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from toughen.models.adapted import find_logits

MeanStd = tuple[tuple[float, ...], tuple[float, ...]]
"""Means and standard deviations of the channels, in the unit of the images ([0, 1])."""


class Normalize(nn.Module):
    """Channel-wise standardisation `(x - mean) / std`.

    `mean` and `std` are buffers of shape (1, C, 1, 1): they move with the model and are saved in its state.

    Args:
        mean: C numbers, in the unit of the images ([0, 1]).
        std: C positive, finite numbers, in the same unit.

    Raises:
        ValueError: the lengths differ or are 0, or a `std` is not positive and finite; in `forward`, the images have
            another number of channels (which broadcasting would hide when one of the two is 1).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        mean, std = [float(value) for value in mean], [float(value) for value in std]
        if not mean or len(mean) != len(std):
            raise ValueError(f"mean and std need one number per channel each, got {len(mean)} and {len(std)}")
        if not all(0 < value < math.inf for value in std):
            raise ValueError(f"every std must be positive and finite, got {std}")
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Standardise images x (N, C, H, W); same shape."""
        if x.shape[1] != self.mean.shape[1]:
            raise ValueError(
                f"the model normalises {self.mean.shape[1]} channels, got images of shape {tuple(x.shape)}"
            )
        return (x - self.mean) / self.std

    def extra_repr(self) -> str:
        """The channels, for `print(model)`."""
        return f"channels={self.mean.shape[1]}"


class PerImageStandardize(nn.Module):
    """Standardisation of every image by itself, `(x - mean(x)) / max(std(x), 1/sqrt(CHW))`.

    Mean and (population) standard deviation run over the image's C, H and W. The formula is TensorFlow's
    `tf.image.per_image_standardization`, the first layer of MadryLab/cifar10_challenge (papers 001 and 003). Gradients
    flow through mean and standard deviation, so an attack sees the true derivative; a constant image maps to 0 with a
    finite gradient.

    Deviation: Madry's code feeds pixels in 0 to 255, so its floor `1/sqrt(CHW)` is 255 times smaller relative to the
    image. For 32x32x3 the two agree on every image whose standard deviation is at least 0.018 in [0, 1].
    """

    def forward(self, x: Tensor) -> Tensor:
        """Standardise images x (N, C, H, W); same shape."""
        centred = x - x.mean((1, 2, 3), keepdim=True)
        variance = centred.square().mean((1, 2, 3), keepdim=True)
        # The floor goes under the root: at variance 0 the root's derivative is infinite, and infinity times 0 is NaN.
        return centred / variance.clamp_min(1 / x.shape[1:].numel()).sqrt()


class Classifier(nn.Module):
    """Images in [0, 1] to logits: `net(normalize(x))`.

    Args:
        net: takes images (N, C, H, W), normalised if asked, and returns logits (N, K).
        mean: C numbers, given together with `std`; see `Normalize`.
        std: C positive numbers.
        per_image: standardise every image by itself instead; see `PerImageStandardize`.
        in_channels: C, for a clear error on other images; None leaves that to the network.

    Attributes:
        normalize: the first layer: `Normalize`, `PerImageStandardize`, or `nn.Identity` when neither is asked.
        net: the network.

    Raises:
        ValueError: one of `mean` and `std` without the other, either together with `per_image`, or as in `Normalize`;
            in `forward`, the images are no batch (N, C, H, W) or have another number of channels.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        per_image: bool = False,
        in_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.normalize = _normalization(mean, std, per_image)
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images x (N, C, H, W) in [0, 1]."""
        if self.in_channels is not None and (x.ndim != 4 or x.shape[1] != self.in_channels):
            raise ValueError(
                f"the model takes images (N, {self.in_channels}, H, W), got shape {tuple(x.shape)}"
                + ("; add the batch dimension with x[None]" if x.ndim == 3 else "")
            )
        # What is not normalised is copied: a network that writes into its input would otherwise move the images.
        given = x.clone() if isinstance(self.normalize, nn.Identity) else self.normalize(x)
        return find_logits(self.net(given))[1]


def normalised(model: nn.Module, mean: Sequence[float] | None, std: Sequence[float] | None) -> nn.Module:
    """The model with a normalisation in front, in the mode in which it is; itself without mean and std.

    Raises:
        ValueError: see `Classifier`.
    """
    if mean is None and std is None:
        return model
    before = Classifier(model, mean=mean, std=std)
    before.training = before.normalize.training = model.training
    return before.to(next((tensor.device for tensor in (*model.parameters(), *model.buffers())), None))


def _normalization(mean: Sequence[float] | None, std: Sequence[float] | None, per_image: bool) -> nn.Module:
    if (mean is None) != (std is None):
        given, missing = ("std", "mean") if mean is None else ("mean", "std")
        raise ValueError(f"mean and std go together, got {given} without {missing}")
    if mean is not None and std is not None:
        if per_image:
            raise ValueError("a model normalises either by mean and std or per image, got both; drop one of them")
        return Normalize(mean, std)
    return PerImageStandardize() if per_image else nn.Identity()
