"""Residual networks: ResNet-18 to ResNet-152 and the wide ResNet-50, for small images and for large ones.

He et al. 2015, "Deep residual learning for image recognition". The first layers are a choice, `stem`:

- `cifar` (kuangliu/pytorch-cifar; paper 003's "ResNet-18"): a 3x3 convolution of stride 1. For images of about 32 px.
- `imagenet` (the paper): a 7x7 convolution of stride 2 and max pooling, which shrink the image to a quarter.

`resnet18` has the `cifar` stem unless told otherwise, because that is what the papers on robustness mean by it; the
deeper ones have `imagenet`, because that is what their published weights have. On CIFAR write `stem: cifar` for them.

    net = ResNet18(num_classes=10)                         # 11.17 M parameters
    net(torch.rand(2, 3, 32, 32))                          # (2, 10)
    net = resnet50(num_classes=1000)                       # 25.56 M parameters, torchvision's network
    net = resnet50(num_classes=10, stem="cifar")
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from toughen.models.networks.activations import activation as make_activation
from toughen.models.networks.layers import conv, he_init, stack
from toughen.settings import Count, known

STEMS = ("cifar", "imagenet")


class ResNet(nn.Module):
    """A stem, four groups of post-activation blocks, global average pooling, one linear layer.

    Group i has `width * 2**i` channels (four times as many between bottleneck blocks) and, but for the first, halves
    the image. Any image size works.

    Deviation from kuangliu/pytorch-cifar and torchvision: convolutions start from He's normal initialisation (fan out)
    and the linear bias from 0, as in all residual networks here.

    Args:
        num_classes: number of logits K.
        in_channels: channels C of the images.
        units: blocks in each of the four groups.
        block: builds one from (inputs, outputs, stride, activation), `BasicBlock` or `Bottleneck`.
        expansion: outputs of a block in `width`s of its group: 1 for `BasicBlock`, 4 for `Bottleneck`.
        stem: `cifar` or `imagenet`, see above.
        width: channels of the stem; 64 is the published network, less makes a quick one.
        activation: a name of `toughen.models.networks.activations`; the published networks have `relu`.

    Raises:
        ValueError: the stem or the activation is unknown.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        units: tuple[int, int, int, int],
        block: Callable[[int, int, int, str], nn.Module],
        expansion: int,
        stem: str,
        width: Count = 64,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        large = known(stem, STEMS, "stem") == "imagenet"
        first = conv(in_channels, width, size=7, stride=2) if large else conv(in_channels, width)
        pool = [nn.MaxPool2d(3, 2, padding=1)] if large else []
        self.stem = nn.Sequential(first, nn.BatchNorm2d(width), make_activation(activation), *pool)
        groups, inputs = [], width
        for i, count in enumerate(units):
            outputs = width * 2**i * expansion
            groups.append(stack(count, block, inputs, outputs, stride=2 if i else 1, activation=activation))
            inputs = outputs
        self.groups = nn.Sequential(*groups)
        self.linear = nn.Linear(inputs, num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images x (N, C, H, W)."""
        return self.linear(self.groups(self.stem(x)).mean((2, 3)))


class BasicBlock(nn.Module):
    """`act(shortcut(x) + bn(conv(act(bn(conv(x))))))`, 3x3 convolutions.

    The shortcut is the identity, or a 1x1 convolution with BatchNorm where channels or stride change.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, activation: str) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            OrderedDict(
                conv1=conv(inputs, outputs, stride=stride),
                bn1=nn.BatchNorm2d(outputs),
                act1=make_activation(activation),
                conv2=conv(outputs, outputs),
                bn2=nn.BatchNorm2d(outputs),
            )
        )
        self.shortcut = shortcut(inputs, outputs, stride)
        self.act2 = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H/stride, W/stride), rounded up."""
        return self.act2(self.branch(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    """A block of three convolutions, 1x1, 3x3 and 1x1, each with BatchNorm, and the shortcut of `BasicBlock`.

    The inner channels are `outputs / 4`, times `widening`. The stride is in the 3x3 convolution, as in torchvision and
    kuangliu/pytorch-cifar ("ResNet v1.5"), not in the first as in the paper.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, activation: str, *, widening: int = 1) -> None:
        super().__init__()
        inner = outputs // 4 * widening
        self.branch = nn.Sequential(
            OrderedDict(
                conv1=conv(inputs, inner, size=1),
                bn1=nn.BatchNorm2d(inner),
                act1=make_activation(activation),
                conv2=conv(inner, inner, stride=stride),
                bn2=nn.BatchNorm2d(inner),
                act2=make_activation(activation),
                conv3=conv(inner, outputs, size=1),
                bn3=nn.BatchNorm2d(outputs),
            )
        )
        self.shortcut = shortcut(inputs, outputs, stride)
        self.act3 = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H/stride, W/stride), rounded up."""
        return self.act3(self.branch(x) + self.shortcut(x))


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """The identity, or a 1x1 convolution with BatchNorm where channels or stride change."""
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(conv(inputs, outputs, size=1, stride=stride), nn.BatchNorm2d(outputs))


class ResNet18(ResNet):
    """ResNet-18: two basic blocks in each group. For small images unless `stem` says `imagenet`; see `ResNet`."""

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        stem: str = "cifar",
        width: Count = 64,
        activation: str = "relu",
    ) -> None:
        super().__init__(
            num_classes,
            in_channels,
            units=(2, 2, 2, 2),
            block=BasicBlock,
            expansion=1,
            stem=stem,
            width=width,
            activation=activation,
        )


def _for_large_images(
    units: tuple[int, int, int, int], block: Callable[[int, int, int, str], nn.Module], expansion: int, about: str
) -> Callable[..., ResNet]:
    """The builder of a network with the `imagenet` stem unless told otherwise; `about` documents it."""

    def build(
        num_classes: int, in_channels: int = 3, *, stem: str = "imagenet", width: Count = 64, activation: str = "relu"
    ) -> ResNet:
        form = {"units": units, "block": block, "expansion": expansion}
        return ResNet(num_classes, in_channels, **form, stem=stem, width=width, activation=activation)

    build.__doc__ = about
    return build


_LARGE = "For large images unless `stem` says `cifar`; see `ResNet`."
resnet34 = _for_large_images((3, 4, 6, 3), BasicBlock, 1, f"ResNet-34, of basic blocks. {_LARGE}")
resnet50 = _for_large_images((3, 4, 6, 3), Bottleneck, 4, f"ResNet-50, of bottleneck blocks. {_LARGE}")
resnet101 = _for_large_images((3, 4, 23, 3), Bottleneck, 4, f"ResNet-101, of bottleneck blocks. {_LARGE}")
resnet152 = _for_large_images((3, 8, 36, 3), Bottleneck, 4, f"ResNet-152, of bottleneck blocks. {_LARGE}")
_WIDE = "ResNet-50 with twice the inner channels (Zagoruyko and Komodakis 2016, ImageNet). See `ResNet`."
wide_resnet50_2 = _for_large_images((3, 4, 6, 3), partial(Bottleneck, widening=2), 4, _WIDE)
