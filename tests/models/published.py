"""State dicts as other people's code names them, and what their networks compute: read off the dictionary, by hand.

The oracle of every layout: the forward passes here use the published keys and torch's functions, none of our modules.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


class Draw:
    """Writes random tensors of convolutions, BatchNorms and a linear layer into a state dict."""

    def __init__(self, seed: int = 0) -> None:
        self.state: State = {}
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def conv(self, key: str, inputs: int, outputs: int, size: int = 3) -> None:
        self.state[f"{key}.weight"] = self.normal(outputs, inputs, size, size, scale=(2 / (inputs * size**2)) ** 0.5)

    def norm(self, key: str, channels: int) -> None:
        self.state[f"{key}.weight"] = 1 + self.normal(channels, scale=0.2)
        self.state[f"{key}.bias"] = self.normal(channels, scale=0.2)
        self.state[f"{key}.running_mean"] = self.normal(channels, scale=0.2)
        self.state[f"{key}.running_var"] = 1 + self.normal(channels).abs()
        self.state[f"{key}.num_batches_tracked"] = torch.tensor(7)

    def linear(self, key: str, inputs: int, outputs: int) -> State:
        self.state[f"{key}.weight"] = self.normal(outputs, inputs, scale=inputs**-0.5)
        self.state[f"{key}.bias"] = self.normal(outputs)
        return self.state


def norm(state: State, key: str, x: Tensor) -> Tensor:
    mean, var, weight, bias = (
        state[f"{key}.{name}"].view(1, -1, 1, 1) for name in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def conv(state: State, key: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = state[f"{key}.weight"]
    return F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)


def head(state: State, key: str, x: Tensor) -> Tensor:
    return x.mean((2, 3)) @ state[f"{key}.weight"].T + state[f"{key}.bias"]


def resnet(units: tuple[int, ...], *, width: int = 4, deep: bool = False, wide: int = 1, size: int = 7) -> State:
    """torchvision's ResNet: `deep` ones have bottlenecks, `size` is the first kernel's."""
    draw, inputs, expansion = Draw(), width, 4 if deep else 1
    draw.conv("conv1", 3, width, size)
    draw.norm("bn1", width)
    for i, count in enumerate(units):
        planes, outputs = width * 2**i, width * 2**i * expansion
        for j in range(count):
            key = f"layer{i + 1}.{j}"
            inner = planes * wide
            sizes = [(inputs, inner, 1), (inner, inner, 3), (inner, outputs, 1)]
            for k, (a, b, kernel) in enumerate(sizes if deep else [(inputs, outputs, 3), (outputs, outputs, 3)], 1):
                draw.conv(f"{key}.conv{k}", a, b, kernel)
                draw.norm(f"{key}.bn{k}", b)
            if j == 0 and (i > 0 or inputs != outputs):
                draw.conv(f"{key}.downsample.0", inputs, outputs, 1)
                draw.norm(f"{key}.downsample.1", outputs)
            inputs = outputs
    return draw.linear("fc", inputs, 5)


def resnet_logits(state: State, x: Tensor, *, shortcut: str = "downsample", linear: str = "fc") -> Tensor:
    large = state["conv1.weight"].shape[2] == 7
    x = norm(state, "bn1", conv(state, "conv1", x, 2 if large else 1)).relu()
    x = F.max_pool2d(x, 3, 2, 1) if large else x
    for i in range(1, 5):
        j = 0
        while f"layer{i}.{j}.conv1.weight" in state:
            key, stride = f"layer{i}.{j}", 2 if i > 1 and j == 0 else 1
            deep = f"{key}.conv3.weight" in state
            out = norm(state, f"{key}.bn1", conv(state, f"{key}.conv1", x, 1 if deep else stride)).relu()
            out = norm(state, f"{key}.bn2", conv(state, f"{key}.conv2", out, stride if deep else 1))
            if deep:
                out = norm(state, f"{key}.bn3", conv(state, f"{key}.conv3", out.relu()))
            if f"{key}.{shortcut}.0.weight" in state:
                x = norm(state, f"{key}.{shortcut}.1", conv(state, f"{key}.{shortcut}.0", x, stride))
            x, j = (x + out).relu(), j + 1
    return head(state, linear, x)


def kuangliu(units: tuple[int, ...], **sizes: int | bool) -> State:
    """The same network as kuangliu/pytorch-cifar names it, with its first kernel of 3."""
    state = resnet(units, size=3, **sizes)  # type: ignore[arg-type]
    return {key.replace("downsample", "shortcut").replace("fc.", "linear."): value for key, value in state.items()}


def preact(width: int = 4) -> State:
    """PreActResNet-18 of locuslab/robust_overfitting."""
    draw, inputs = Draw(), width
    draw.conv("conv1", 3, width)
    for i in range(4):
        for j in range(2):
            key, outputs = f"layer{i + 1}.{j}", width * 2**i
            draw.norm(f"{key}.bn1", inputs)
            draw.conv(f"{key}.conv1", inputs, outputs)
            draw.norm(f"{key}.bn2", outputs)
            draw.conv(f"{key}.conv2", outputs, outputs)
            if inputs != outputs:
                draw.conv(f"{key}.shortcut.0", inputs, outputs, 1)
            inputs = outputs
    draw.norm("bn", inputs)
    return draw.linear("linear", inputs, 5)


def preact_logits(state: State, x: Tensor) -> Tensor:
    x = conv(state, "conv1", x)
    for i in range(1, 5):
        for j in range(2):
            key, stride = f"layer{i}.{j}", 2 if i > 1 and j == 0 else 1
            active = norm(state, f"{key}.bn1", x).relu()
            short = f"{key}.shortcut.0"
            kept = conv(state, short, active, stride) if f"{short}.weight" in state else x
            out = norm(state, f"{key}.bn2", conv(state, f"{key}.conv1", active, stride)).relu()
            x = kept + conv(state, f"{key}.conv2", out)
    return head(state, "linear", norm(state, "bn", x).relu())


# Keys of a wide ResNet: stem, unit j of group i (from 0), its two BatchNorms, convolutions and shortcut, last, linear.
TRADES = ("conv1", "block{1}.layer.{2}", "bn1", "bn2", "conv1", "conv2", "convShortcut", "bn1", "fc")
DEEPMIND = (
    "init_conv", "layer.{0}.block.{2}", "batchnorm_0", "batchnorm_1", "conv_0", "conv_1", "shortcut", "batchnorm",
    "logits",
)  # fmt: skip


def wide_resnet(names: tuple[str, ...], depth: int = 10, width: int = 2) -> State:
    """WRN-depth-width under the names of TRADES or of google-deepmind's release."""
    stem, unit, norm1, norm2, conv1, conv2, short, last, linear = names
    draw, inputs = Draw(), 16
    draw.conv(stem, 3, 16)
    for i in range(3):
        for j in range((depth - 4) // 6):
            key, outputs = unit.format(i, i + 1, j), 16 * width * 2**i
            draw.norm(f"{key}.{norm1}", inputs)
            draw.conv(f"{key}.{conv1}", inputs, outputs)
            draw.norm(f"{key}.{norm2}", outputs)
            draw.conv(f"{key}.{conv2}", outputs, outputs)
            if inputs != outputs:
                draw.conv(f"{key}.{short}", inputs, outputs, 1)
            inputs = outputs
    draw.norm(last, inputs)
    return draw.linear(linear, inputs, 5)


def wide_resnet_logits(names: tuple[str, ...], state: State, x: Tensor, depth: int = 10) -> Tensor:
    """ReLU throughout; google-deepmind's pads strided convolutions by one pixel at the end, as its code says."""
    stem, unit, norm1, norm2, conv1, conv2, short, last, linear = names
    x = conv(state, stem, x)
    for i in range(3):
        for j in range((depth - 4) // 6):
            key, stride = unit.format(i, i + 1, j), 2 if i > 0 and j == 0 else 1
            active = norm(state, f"{key}.{norm1}", x).relu()
            kept = conv(state, f"{key}.{short}", active, stride) if f"{key}.{short}.weight" in state else x
            if names is DEEPMIND and stride == 2:
                out = F.conv2d(F.pad(active, (0, 1, 0, 1)), state[f"{key}.{conv1}.weight"], stride=2)
            else:
                out = conv(state, f"{key}.{conv1}", active, stride)
            x = kept + conv(state, f"{key}.{conv2}", norm(state, f"{key}.{norm2}", out).relu())
    return head(state, linear, norm(state, last, x).relu())
