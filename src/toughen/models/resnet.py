"""ResNet-18 for small images.

He et al. 2015, "Deep residual learning for image recognition", basic blocks in four groups of two, with the stem that
the CIFAR literature gives it (kuangliu/pytorch-cifar; paper 003's "ResNet-18"): a 3x3 convolution of stride 1 and no
max pooling in place of 7x7, stride 2 and pooling.

    net = ResNet18(num_classes=10)                         # 11.17 M parameters
    net(torch.rand(2, 3, 32, 32))                          # (2, 10)
"""

from collections import OrderedDict

from torch import Tensor, nn

from toughen.models.activations import activation as make_activation
from toughen.models.layers import conv, he_init, stack


class ResNet18(nn.Module):
    """A 3x3 stem, four groups of two post-activation blocks, global average pooling, one linear layer.

    Group i has `width * 2**i` channels and, but for the first, halves the image. Any image size works.

    Deviation from kuangliu/pytorch-cifar: convolutions start from He's normal initialisation (fan out) and the linear
    bias from 0, as in all residual networks here, in place of torch's defaults.

    Args:
        num_classes: number of logits K.
        in_channels: channels C of the images.
        width: channels of the first group; 64 is the published network, less makes a quick one.
        activation: a name of `toughen.models.activations`; the published network has `relu`.

    Raises:
        ValueError: the activation is unknown.
    """

    def __init__(self, num_classes: int, in_channels: int = 3, *, width: int = 64, activation: str = "relu") -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(in_channels, width), nn.BatchNorm2d(width), make_activation(activation))
        self.groups = nn.Sequential(
            stack(2, BasicBlock, width, width, stride=1, activation=activation),
            stack(2, BasicBlock, width, 2 * width, stride=2, activation=activation),
            stack(2, BasicBlock, 2 * width, 4 * width, stride=2, activation=activation),
            stack(2, BasicBlock, 4 * width, 8 * width, stride=2, activation=activation),
        )
        self.linear = nn.Linear(8 * width, num_classes)
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
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv(inputs, outputs, size=1, stride=stride), nn.BatchNorm2d(outputs))
        self.act2 = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H/stride, W/stride), rounded up."""
        return self.act2(self.branch(x) + self.shortcut(x))
