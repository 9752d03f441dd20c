"""What the residual networks share: a convolution, a group of units, an initialisation."""

from collections.abc import Callable

from torch import nn


def conv(inputs: int, outputs: int, *, size: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias, padded so that stride 1 keeps the image's size."""
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


def stack(
    units: int,
    unit: Callable[[int, int, int, str], nn.Module],
    inputs: int,
    outputs: int,
    *,
    stride: int,
    activation: str,
) -> nn.Sequential:
    """A group of residual units, the first of which alone changes channels and stride.

    Args:
        units: how many, at least 1.
        unit: builds one from (inputs, outputs, stride, activation).
        inputs: channels that enter the group.
        outputs: channels that leave it.
        stride: of the first unit.
        activation: a name of `toughen.models.networks.activations`.
    """
    rest = [unit(outputs, outputs, 1, activation) for _ in range(units - 1)]
    return nn.Sequential(unit(inputs, outputs, stride, activation), *rest)


def he_init(net: nn.Module) -> None:
    """He's normal initialisation by fan out for convolutions (std sqrt(2 / (k^2 outputs))), 0 for linear biases.

    As Zagoruyko and Komodakis' and TRADES' code do. BatchNorm starts at weight 1 and bias 0, which is torch's own
    default. Draws from torch's global generator: seed it before building.
    """
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.bias)
