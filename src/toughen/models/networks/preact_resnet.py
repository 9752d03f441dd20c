"""PreActResNet-18 for small images, the network of Rice et al. 2020.

He et al. 2016, "Identity mappings in deep residual networks", in the form of "Overfitting in adversarially robust deep
learning" (locuslab/robust_overfitting): the final BatchNorm and activation stand before the pooling, and a block's 1x1
shortcut takes the activated input.

    net = PreActResNet18(num_classes=10)                   # 11.17 M parameters
    net(torch.rand(2, 3, 32, 32))                          # (2, 10)
"""

import torch.nn.functional as F
from torch import Tensor, nn

from toughen.models.networks.activations import activation as make_activation
from toughen.models.networks.layers import conv, he_init, stack
from toughen.settings import Count


class PreActResNet18(nn.Module):
    """A 3x3 stem, four groups of two pre-activation blocks, BatchNorm, activation, global average pooling, linear.

    Group i has `width * 2**i` channels and, but for the first, halves the image. Any image size works.

    Deviations from locuslab/robust_overfitting: global pooling in place of 4x4 (the same on 32x32 images), and
    `he_init` for the start, as in all residual networks here.

    Args (`num_classes` and `in_channels` as for `registry.build`):
        width: channels of the first group; 64 is the published network, less makes a quick one.
        activation: a name of `toughen.models.networks.activations`; the published network has `relu`.

    Raises:
        ValueError: the activation is unknown.
    """

    def __init__(self, num_classes: int, in_channels: int = 3, *, width: Count = 64, activation: str = "relu") -> None:
        super().__init__()
        self.stem = conv(in_channels, width)
        self.groups = nn.Sequential(
            stack(2, PreActBlock, width, width, stride=1, activation=activation),
            stack(2, PreActBlock, width, 2 * width, stride=2, activation=activation),
            stack(2, PreActBlock, 2 * width, 4 * width, stride=2, activation=activation),
            stack(2, PreActBlock, 4 * width, 8 * width, stride=2, activation=activation),
        )
        self.last = nn.Sequential(nn.BatchNorm2d(8 * width), make_activation(activation))
        self.linear = nn.Linear(8 * width, num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images x (N, C, H, W)."""
        return self.linear(self.last(self.groups(self.stem(x))).mean((2, 3)))


class PreActBlock(nn.Module):
    """`shortcut + conv2(act(bn(conv1(a))))` with `a = act(bn(x))` and 3x3 convolutions.

    The shortcut is x itself, or a 1x1 convolution of `a` where channels or stride change. Wide ResNets use this very
    block. With `pad_end` a convolution of stride 2 pads an even side at its end only (TensorFlow's SAME).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, activation: str, *, pad_end: bool = False) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.BatchNorm2d(inputs), make_activation(activation))
        self.pad_end = pad_end and stride == 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=0 if self.pad_end else 1, bias=False)
        self.second = nn.Sequential(nn.BatchNorm2d(outputs), make_activation(activation))
        self.conv2 = conv(outputs, outputs)
        changes = stride != 1 or inputs != outputs
        self.shortcut = conv(inputs, outputs, size=1, stride=stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H/stride, W/stride), rounded up."""
        active = self.first(x)
        kept = x if self.shortcut is None else self.shortcut(active)
        if self.pad_end:
            active = F.pad(active, (x.shape[3] % 2, 1, x.shape[2] % 2, 1))
        return kept + self.conv2(self.second(self.conv1(active)))
