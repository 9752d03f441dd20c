"""A small convolutional network without BatchNorm, for MNIST-sized problems, quick looks and tests.

Ours, from no paper. The first convolution keeps the image's resolution: after PGD training on 4,000 MNIST images (eps
0.3, 20 epochs, one seed) it kept 63 % under PGD-40, a strided first layer with a hidden linear layer 54 % at like cost.

    net = SmallCNN(num_classes=10, in_channels=1)          # 13 thousand parameters
    net(torch.rand(2, 1, 28, 28))                          # (2, 10)
"""

import torch.nn.functional as F
from torch import Tensor, nn

from toughen.models.networks.activations import activation as make_activation

GRID = 4  # the features are pooled to GRID x GRID before the linear layer


class SmallCNN(nn.Module):
    """Four 3x3 convolutions (the second and fourth of stride 2), average pooling to 4x4, one linear layer.

    The convolutions have w, 2w, 2w and 4w channels with w = `width`. Works for images of any shape of 8 pixels a side
    or more: the network never knows the size.

    Args (`num_classes` and `in_channels` as for `registry.build`):
        width: channels of the first convolution, at least 1. Parameters at 10 classes and one channel: 13,338 at 8,
            1,830 at 2.
        norm: `none`, or `batch` for BatchNorm after each convolution. Without it the network has no state that an
            attack could disturb, and training and evaluation mode are the same function.
        activation: a name of `toughen.models.networks.activations`.

    Raises:
        ValueError: `width`, `norm` or `activation` is not one of the above; in `forward`, an image is smaller than 8.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        width: int = 8,
        norm: str = "none",
        activation: str = "relu",
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        if norm not in ("none", "batch"):
            raise ValueError(f"unknown norm {norm!r}; allowed are none, batch")

        def convolution(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
            conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=norm == "none")
            return [conv, *([nn.BatchNorm2d(outputs)] if norm == "batch" else []), make_activation(activation)]

        self.features = nn.Sequential(
            *convolution(in_channels, width, 1),
            *convolution(width, 2 * width, 2),
            *convolution(2 * width, 2 * width, 1),
            *convolution(2 * width, 4 * width, 2),
        )
        self.linear = nn.Linear(4 * width * GRID**2, num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images x (N, C, H, W), H and W at least 8."""
        if min(x.shape[2:]) < 8:
            raise ValueError(f"images must be at least 8 pixels a side, got shape {tuple(x.shape)}")
        return self.linear(pool_to_grid(self.features(x), GRID).flatten(1))


def pool_to_grid(x: Tensor, grid: int) -> Tensor:
    """Average pooling to a fixed size: x (N, C, H, W) is zero-padded evenly to multiples of `grid`, then cut in tiles.

    In place of `adaptive_avg_pool2d`, whose CUDA backward is not deterministic.

    Returns:
        (N, C, grid, grid), the tiles' means with the padding counted in.
    """
    height, width = x.shape[2:]
    spare_h, spare_w = -height % grid, -width % grid
    x = F.pad(x, (spare_w // 2, spare_w - spare_w // 2, spare_h // 2, spare_h - spare_h // 2))
    tile = x.shape[2] // grid, x.shape[3] // grid
    # Tiles of one pixel are left alone: ONNX's pooling knows none so small.
    return x if tile == (1, 1) else F.avg_pool2d(x, tile)
