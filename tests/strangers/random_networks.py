"""Random small networks out of the idioms of the field, each a pure function of its number.

    network = random_network(7)
    network.model, network.idioms            # float64, in inference mode, with BatchNorms that have seen something

They differ in how they are written, which is what a library trips over, more than in what they compute.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE, CHANNELS, CLASSES = 10, 2, 4

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "F.relu": F.relu,
    "in-place F.relu": lambda h: F.relu(h, inplace=True),
    "torch.relu_": torch.relu_,
    "gelu": F.gelu,
    "leaky_relu_": lambda h: F.leaky_relu_(h, 0.1),
    "clamp_": lambda h: h.clamp_(min=0),
}
FLATTENING: dict[str, Callable[[Tensor], Tensor]] = {
    "view": lambda h: h.contiguous().view(h.size(0), -1) if h.shape[2:] == (1, 1) else h.view(h.size(0), -1),
    "reshape": lambda h: h.reshape(len(h), -1),
    "flatten": lambda h: torch.flatten(h, 1),
    "mean": lambda h: h.mean((2, 3)),
    "view over the batch": lambda h: h.view(h.size(0) * h.size(1), -1).view(h.size(0), -1),
    "permute": lambda h: h.permute(0, 2, 3, 1).reshape(len(h), -1),
    "einsum": lambda h: torch.einsum("nchw->nc", h) / h[0, 0].numel(),
}
POOLING: dict[str, Callable[[Tensor], Tensor]] = {
    "max-pool": lambda h: F.max_pool2d(h, 2) if min(h.shape[2:]) > 1 else h,
    "adaptive pool": lambda h: F.adaptive_avg_pool2d(h, 2),
    "adaptive pool to one": lambda h: F.adaptive_avg_pool2d(h, 1),
    "average pool": lambda h: F.avg_pool2d(h, 3, 2, 1),
    "none": lambda h: h,
}
PADDING: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda h: h,
    "F.pad": lambda h: F.pad(h, (1, 1, 1, 1)),
    "reflected": lambda h: F.pad(h, (1, 0, 1, 0), mode="reflect" if min(h.shape[2:]) > 1 else "constant"),
    "of a shortcut": lambda h: torch.cat([h, torch.zeros_like(h[:, :1])], 1)[:, : h.shape[1]],
}
HEADS: dict[str, Callable[[Tensor], Any]] = {
    "logits": lambda z: z,
    "a tuple": lambda z: (z, z.detach()),
    "a mapping": lambda z: {"loss": None, "logits": z},
    "an object": lambda z: SimpleNamespace(logits=z),
}
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda width: nn.Identity(),
    "BatchNorm": nn.BatchNorm2d,
    "BatchNorm without weights": lambda width: nn.BatchNorm2d(width, affine=False),
    "GroupNorm": lambda width: nn.GroupNorm(1, width),
}
BLOCKS = ("plain", "residual", "shared", "shortcut of the convolution", "depthwise", "dense", "reads its BatchNorm")
WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "none": lambda net: net,
    "DataParallel": nn.DataParallel,
    "torch.compile": lambda net: torch.compile(net, backend="eager"),
    "Sequential": lambda net: nn.Sequential(net),
}


@dataclass(frozen=True)
class Network:
    """A network and how it is written."""

    model: Any
    idioms: dict[str, str]


class Block(nn.Module):
    def __init__(self, kind: str, width: int, norm: str, act: str, pool: str, pad: str) -> None:
        super().__init__()
        self.kind, self.act, self.pool, self.pad = kind, ACTIVATIONS[act], POOLING[pool], PADDING[pad]
        groups = width if kind == "depthwise" else 1
        self.conv, self.norm = (
            nn.Conv2d(width, width, 3, padding=1, groups=groups, bias=norm == "none"),
            NORMS[norm](width),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(self.pad(x))
        out = self.norm(h)
        if self.kind == "shared":
            out = self.norm(self.conv(out))
        elif self.kind == "shortcut of the convolution":
            out = out + 0.5 * h
        elif (
            self.kind == "reads its BatchNorm"
            and isinstance(self.norm, nn.BatchNorm2d)
            and self.norm.running_var is not None
        ):
            out = out / (1 + self.norm.running_var.mean())
        out = self.act(out)
        if self.kind == "residual":
            out = out + F.adaptive_avg_pool2d(x, out.shape[-1])
        elif self.kind == "dense":
            out = torch.cat([out, F.adaptive_avg_pool2d(x, out.shape[-1])], 1)[:, ::2].contiguous()
        return self.pool(out)


class Written(nn.Module):
    """What most people write: a stem, blocks, a head."""

    def __init__(self, draw: random.Random, idioms: dict[str, str]) -> None:
        super().__init__()
        width = draw.choice([3, 4, 8])
        self.first_in_place, self.dropout = draw.random() < 0.3, draw.random() < 0.3
        idioms |= {
            "first": "in place" * self.first_in_place,
            "dropout": "functional" * self.dropout,
            "width": str(width),
        }
        self.stem = nn.Conv2d(CHANNELS, width, draw.choice([1, 3]), stride=draw.choice([1, 2]))
        self.blocks = nn.ModuleList()
        for number in range(draw.choice([1, 2])):
            choice = [
                draw.choice(BLOCKS),
                *(draw.choice(list(table)) for table in (NORMS, ACTIVATIONS, POOLING, PADDING)),
            ]
            idioms[f"block {number}"] = ", ".join(choice)
            kind, norm, act, pool, pad = choice
            self.blocks.append(Block(kind, width, norm, act, pool, pad))
        idioms["flatten"], idioms["head"] = draw.choice(list(FLATTENING)), draw.choice(list(HEADS))
        self.flatten, self.answer = FLATTENING[idioms["flatten"]], HEADS[idioms["head"]]
        with torch.no_grad():
            self.head = nn.Linear(self.features(torch.zeros(2, CHANNELS, SIDE, SIDE)).shape[1], CLASSES)

    def features(self, x: Tensor) -> Tensor:
        h = self.stem(x.mul_(2).sub_(1) if self.first_in_place else 2 * x - 1)
        for block in self.blocks:
            h = block(h)
        return self.flatten(h)

    def forward(self, x: Tensor) -> Any:
        h = self.features(x)
        if self.dropout:
            h = F.dropout(h, 0.5, self.training)
        return self.answer(self.head(h))


class Templates(nn.Module):
    """No parameter: the distances to an image of each class, which are buffers, or to none at all."""

    def __init__(self, buffers: bool) -> None:
        super().__init__()
        self.buffers_kept = buffers
        images = torch.rand(CLASSES, CHANNELS, SIDE, SIDE)
        if buffers:
            self.register_buffer("images", images)
        else:
            self.images = images.double()

    def forward(self, x: Tensor) -> Tensor:
        return -3 * (x[:, None] - self.images).flatten(2).pow(2).mean(2).sqrt()


def random_network(number: int) -> Network:
    """The network of a number; about one in eight has no parameters."""
    draw, idioms = random.Random(number), dict[str, str]()
    with torch.random.fork_rng():
        torch.manual_seed(number)
        kind = draw.choice([*["written"] * 7, "templates"])
        net = Written(draw, idioms) if kind == "written" else Templates(draw.random() < 0.5)
        net.train()
        with torch.no_grad():
            for _ in range(2):
                net(torch.rand(8, CHANNELS, SIDE, SIDE, dtype=torch.float64 if kind == "templates" else None))
        net = net.double().eval()
    wrapper = draw.choice([*["none"] * 20, *WRAPPERS])
    idioms["wrapper"] = wrapper
    return Network(WRAPPERS[wrapper](net), idioms)
