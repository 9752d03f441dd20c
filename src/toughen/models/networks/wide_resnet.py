"""Wide residual networks: WRN-D-W, and the variant that Madry et al. trained.

Zagoruyko and Komodakis 2016, "Wide residual networks", as in TRADES, Rice et al. 2020 and Gowal et al. 2020.

    net = WideResNet(num_classes=10, depth=28, width=10)   # 36.48 M parameters
    net(torch.rand(2, 3, 32, 32))                          # (2, 10)
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from toughen.models.networks.activations import activation as make_activation
from toughen.models.networks.layers import conv, he_init, stack
from toughen.models.networks.preact_resnet import PreActBlock
from toughen.settings import Count, known


def check_size(depth: int, width: int) -> None:
    """Raise ValueError unless `depth` is 6n + 4 for some n >= 1 and `width` is at least 1, neither beyond reason."""
    if depth > 1000 or width > 10_000:
        raise ValueError(f"a wide ResNet may be 1000 deep and 10000 wide at most, got {depth} and {width}")
    if depth < 10 or depth % 6 != 4:
        near = max(10, 6 * round((depth - 4) / 6) + 4)
        raise ValueError(
            f"the depth of a wide ResNet must be 6n + 4 (10, 16, 22, 28, 34, ...), got {depth}; try {near}"
        )
    if width < 1:
        raise ValueError(f"the width of a wide ResNet must be at least 1, got {width}; try 1")


class WideResNet(nn.Module):
    """WRN-depth-width: a stem of 16 channels, three groups of (depth - 4) / 6 pre-activation blocks, a linear layer.

    The groups have 16, 32 and 64 times `width` channels; the second and third halve the image. Any image size works.

    Deviations from yaodongyu/TRADES: its `sub_block1`, a group that is constructed but never used, is left out (the
    46.16 M of WRN-34-10 are counted without it); pooling is global in place of 8x8 (the same on 32x32 images). The
    paper's dropout is left out, as in all of the above.

    Args (`num_classes` and `in_channels` as for `registry.build`):
        depth: 6n + 4, at least 10.
        width: factor on the channels, at least 1.
        activation: a name of `networks.activations`; the paper has `relu`, Gowal et al. recommend `silu`.
        padding: where strided convolutions pad an image of even side: `both` sides, as the paper's code and TRADES,
            or its `end`, as Gowal et al.'s release and the weights that follow it (Rebuffi et al., Wang et al.). The
            same weights are another function under the other one.

    Raises:
        ValueError: `depth` or `width` out of range, or the activation or the padding is unknown.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        depth: int,
        width: int,
        activation: str = "relu",
        padding: str = "both",
    ) -> None:
        check_size(depth, width)
        super().__init__()
        units = (depth - 4) // 6
        self.padding = known(padding, ("both", "end"), "padding")
        block = partial(PreActBlock, pad_end=padding == "end")
        self.stem = conv(in_channels, 16)
        self.groups = nn.Sequential(
            stack(units, block, 16, 16 * width, stride=1, activation=activation),
            stack(units, block, 16 * width, 32 * width, stride=2, activation=activation),
            stack(units, block, 32 * width, 64 * width, stride=2, activation=activation),
        )
        self.last = nn.Sequential(nn.BatchNorm2d(64 * width), make_activation(activation))
        self.linear = nn.Linear(64 * width, num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images x (N, C, H, W)."""
        return self.linear(self.last(self.groups(self.stem(x))).mean((2, 3)))


class MadryResNet(nn.Module):
    """The network "w32-10" of MadryLab/cifar10_challenge (Madry et al. 2018; papers 001, 003 and 004 train it).

    A 3x3 stem of 16 channels, three groups of five pre-activation units of 16, 32 and 64 times `width` channels,
    BatchNorm, activation, global average pooling, a linear layer. It is not WRN-34-10: its shortcuts carry no weights
    (`MadryUnit`), it is leaky, and its BatchNorm has epsilon 0.001 and torch's momentum 0.1 (TensorFlow's decay 0.9).
    Convolutions start from He's normal (fan out), the linear weights from U(-b, b) with b = sqrt(3 / inputs)
    (TensorFlow's `uniform_unit_scaling`), its bias from 0. Strided convolutions pad as TensorFlow's SAME.

    Deviations: per-image standardisation, in that code inside the network, is the caller's explicit choice,
    `Classifier(net, per_image=True)` or `build("madry-w32-10", ..., per_image=True)`: without it nothing is normalised
    (paper 004 indeed feeds it pixels in [-1, 1], `mean=std=(0.5, 0.5, 0.5)`). Odd image sizes work; there they do not.

    Args (`num_classes` and `in_channels` as for `registry.build`):
        width: factor on the channels; 10 is the published network, less makes a quick one (1 is that code's own
            "non-wide version").
        activation: a name of `networks.activations`; the published network has `leaky_relu`, slope 0.1.

    Raises:
        ValueError: the activation is unknown.
    """

    def __init__(
        self, num_classes: int, in_channels: int = 3, *, width: Count = 10, activation: str = "leaky_relu"
    ) -> None:
        super().__init__()
        self.stem = conv(in_channels, 16)
        self.groups = nn.Sequential(
            MadryUnit(16, 16 * width, 1, activation, activate_before_residual=True),
            stack(4, MadryUnit, 16 * width, 16 * width, stride=1, activation=activation),
            stack(5, MadryUnit, 16 * width, 32 * width, stride=2, activation=activation),
            stack(5, MadryUnit, 32 * width, 64 * width, stride=2, activation=activation),
        )
        self.last = nn.Sequential(nn.BatchNorm2d(64 * width, eps=1e-3), make_activation(activation))
        self.linear = nn.Linear(64 * width, num_classes)
        he_init(self)
        bound = (3 / self.linear.in_features) ** 0.5
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images x (N, C, H, W)."""
        return self.linear(self.last(self.groups(self.stem(x))).mean((2, 3)))


class MadryUnit(nn.Module):
    """`pad(pool(x)) + conv2(act(bn(conv1(act(bn(x))))))`: a residual unit whose shortcut has no weights.

    Where channels change the shortcut is average pooling with window and stride `stride`, then zero channels, half of
    them before and half after. With `activate_before_residual` it takes act(bn(x)) in place of x.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, activation: str, *, activate_before_residual: bool = False
    ) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = outputs - inputs
        self.activate_before_residual = activate_before_residual
        self.first = nn.Sequential(nn.BatchNorm2d(inputs, eps=1e-3), make_activation(activation))
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1 if stride == 1 else 0, bias=False)
        self.second = nn.Sequential(nn.BatchNorm2d(outputs, eps=1e-3), make_activation(activation))
        self.conv2 = conv(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H/stride, W/stride), rounded up."""
        active = self.first(x)
        kept = active if self.activate_before_residual else x
        if self.new_channels:
            kept = F.avg_pool2d(kept, self.stride, ceil_mode=True)
            kept = F.pad(kept, (0, 0, 0, 0, self.new_channels // 2, self.new_channels // 2))
        if self.stride == 2:
            # TensorFlow's SAME: an even side is padded at its end only, where torch's padding=1 would shift the
            # convolution by a pixel against the pooled shortcut.
            active = F.pad(active, (x.shape[3] % 2, 1, x.shape[2] % 2, 1))
        return kept + self.conv2(self.second(self.conv1(active)))
