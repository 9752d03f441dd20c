"""What training on many GPUs exchanges and takes, calculated: the tables of docs/scaling.md.

    python benchmarks/scaling.py               # writes them into docs/scaling.md, between the marks

Counted: parameters, gradients and BatchNorm's statistics in bytes, and floating-point operations, by running each
network once on the meta device. Assumed: the rates in `ASSUMED`. Nothing is measured; no run of ours has used two GPUs.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from toughen import models

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scaling.md"
ASSUMED = {
    "products": 989e12 * 0.4,
    "inside": 450e9 * 0.8,
    "between": 50e9 * 0.8,
    "collective": 30e-6,
    "launch": 4e-6,
}
"""What one GPU has, an H100 or H200 (SXM): bf16 FLOP/s, bytes/s to its seven neighbours, bytes/s to other machines, the
seconds that a collective takes whatever it carries, and those that a kernel takes to be launched. Data sheets: 989
TFLOP/s dense, NVLink 900 GB/s both ways together, one InfiniBand port of 400 Gb/s a GPU; shares and seconds are what
well-tuned runs reach."""

MACHINE = 8
"""GPUs that share NVLink."""

BUCKET = 25 * 2**20
"""Bytes of gradients that DDP exchanges at once."""

GPUS = (1, 8, 64, 512)


class VisionTransformer(nn.Module):
    """ViT-B/16 at 224 (Dosovitskiy et al. 2021), to be counted: the registry has one by timm alone."""

    def __init__(self, num_classes: int, width: int = 768, depth: int = 12, heads: int = 12, patch: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.zeros(1, (224 // patch) ** 2 + 1, width))
        block = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(len(x), -1, -1), patches], 1) + self.places
        return self.head(self.blocks(tokens)[:, 0])


@dataclass(frozen=True)
class Network:
    """What is trained.

    Attributes:
        build: makes it.
        size: of its images, in pixels.
        batch: images of a global batch.
        source: who trains it with such a batch.
    """

    build: Callable[[], nn.Module]
    size: int
    batch: int
    source: str


NETWORKS = {
    "WRN-28-10": Network(lambda: models.build("wrn-28-10", num_classes=10), 32, 1024, "Limits, section 4.3"),
    "ResNet-50": Network(lambda: models.build("resnet50", num_classes=1000), 224, 4096, "ours"),
    "ViT-B/16": Network(lambda: VisionTransformer(1000), 224, 4096, "ours"),
}

METHODS: dict[str, tuple[int, int]] = {"natural, Free": (1, 0), "PGD-10": (11, 10), "TRADES-10": (13, 10)}
"""Forward passes, and backward passes to the image alone; a full backward pass besides, of TRADES over two forwards."""


@dataclass(frozen=True)
class Counts:
    """Of one network.

    Attributes:
        parameters: their number.
        norms: layers of BatchNorm.
        statistics: numbers in their running means and variances.
        forward: FLOPs of a forward pass for an image; a multiply-add is two.
        to_image: of a backward pass to the image alone.
        full: of a backward pass to image and weights.
        launches: kernels of the three passes where nothing is compiled.
    """

    parameters: int
    norms: int
    statistics: int
    forward: float
    to_image: float
    full: float
    launches: tuple[int, int, int]

    def launched(self, method: str) -> int:
        """Kernels of an optimiser step, the optimiser's own left out."""
        forwards, inner = METHODS[method]
        forward, to_image, full = self.launches
        return forwards * forward + inner * to_image + full * (2 if method.startswith("TRADES") else 1)

    @property
    def gradients(self) -> int:
        """Bytes: weights and so their gradients are float32 under autocast too."""
        return 4 * self.parameters

    def step(self, method: str) -> float:
        """FLOPs of an optimiser step for an image."""
        forwards, inner = METHODS[method]
        return forwards * self.forward + inner * self.to_image + self.last(method)

    def last(self, method: str) -> float:
        """FLOPs of the backward pass under which gradients are exchanged."""
        return self.full * (2 if method.startswith("TRADES") else 1)


@cache
def counts(name: str) -> Counts:
    """Of a network in `NETWORKS`, counted on the meta device, which computes nothing."""
    with torch.device("meta"):
        net, x = NETWORKS[name].build().train(), torch.zeros(2, 3, NETWORKS[name].size, NETWORKS[name].size)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    logits: list[Tensor] = []
    forward = worked(lambda: logits.append(net(x.requires_grad_()).sum()))
    # The gradient of the image alone asks nothing of the weights: as in an attack, which freezes them.
    to_image = worked(lambda: torch.autograd.grad(logits[0], x, retain_graph=True))
    full = worked(lambda: logits[0].backward())
    return Counts(
        parameters=sum(p.numel() for p in net.parameters()),
        norms=len(norms),
        statistics=2 * sum(norm.num_features for norm in norms),
        forward=forward[0],
        to_image=to_image[0],
        full=full[0],
        launches=(forward[1], to_image[1], full[1]),
    )


class Launches(TorchDispatchMode):
    """Counts operations that compute something: those that only look at memory in another way launch no kernel."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do as asked, and count."""
        views = [value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns]
        self.total += not any(views)
        return func(*args, **(kwargs or {}))


def worked(work: Callable[[], object]) -> tuple[float, int]:
    """Some work on two images: FLOPs for one of them, and kernels."""
    with FlopCounterMode(display=False) as counter, Launches() as launches:
        work()
    return counter.get_total_flops() / 2, launches.total


def exchange(size: float, gpus: int) -> float:
    """Seconds in which all GPUs have the mean of so many bytes of each: rings within machines, then between them."""
    if gpus == 1:
        return 0.0
    here, machines = min(gpus, MACHINE), -(-gpus // MACHINE)
    inside = 2 * (here - 1) / here * size / ASSUMED["inside"]
    between = 2 * (machines - 1) / machines * size / here / ASSUMED["between"]
    return inside + between + math.ceil(size / BUCKET) * ASSUMED["collective"]


@dataclass(frozen=True)
class Step:
    """A step under DDP: what one GPU does in seconds."""

    computing: float
    exchanging: float
    waiting: float

    @property
    def share(self) -> float:
        """Of the time that goes into computing."""
        return self.computing / (self.computing + self.waiting)


def step(name: str, method: str, images: float, gpus: int) -> Step:
    """So many images on each GPU. The exchange runs under the backward pass, but for its last bucket."""
    found = counts(name)
    computing = images * found.step(method) / ASSUMED["products"]
    exchanging = exchange(found.gradients, gpus)
    under = images * found.last(method) / ASSUMED["products"]
    bucket = exchanging / math.ceil(found.gradients / BUCKET)
    return Step(computing, exchanging, max(exchanging - under, bucket))


def least(name: str, method: str, gpus: int, share: float = 0.9) -> int:
    """The fewest images on each GPU with which so much of the time goes into computing."""
    return next(images for images in range(1, 10**4) if step(name, method, images, gpus).share >= share)


def table(titles: list[str], rows: list[list[str]]) -> str:
    """As Markdown: text to the left, numbers to the right."""
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def networks() -> str:
    """What was counted."""
    rows = []
    for name, network in NETWORKS.items():
        found = counts(name)
        natural = found.step("natural, Free")
        passes = [f"{each / 1e9:.1f}" for each in (found.forward, found.to_image, found.full)]
        ratios = [f"{found.step(method) / natural:.2f}" for method in list(METHODS)[1:]]
        sizes = [f"{found.gradients / 1e6:.0f}", f"{4 * found.statistics / 1e3:.0f}"]
        rows.append([f"{name} at {network.size}", f"{found.parameters:,}", *sizes, *passes, *ratios])
    titles = ["network", "parameters", "gradients, MB", "BatchNorm's statistics, kB"]
    titles += ["GFLOP an image: forward", "backward to the image", "backward, full"]
    return table([*titles, "PGD-10, natural steps", "TRADES-10"], rows)


def floors() -> str:
    """What a step takes however few its images are."""
    rows = []
    for name in NETWORKS:
        found, row = counts(name), [name]
        for method in METHODS:
            launched = found.launched(method)
            row.append(f"{launched:,}: {1e3 * launched * ASSUMED['launch']:.1f} ms")
        # One each way for every layer.
        exchanges = 2 * found.norms
        row.append(f"{exchanges}: {1e3 * exchanges * ASSUMED['collective']:.1f} ms" if exchanges else "-")
        rows.append(row)
    return table(["kernels of a step", *METHODS, "exchanges of synchronised BatchNorm, a pass"], rows)


def steps() -> str:
    """A global batch shared out among more and more GPUs."""
    rows = []
    for name, network in NETWORKS.items():
        for gpus in GPUS:
            images = network.batch / gpus
            sent = 2 * (gpus - 1) / gpus * counts(name).gradients
            row = [f"{name}, batch {network.batch}", str(gpus), f"{images:g}", f"{sent / 1e6:.0f}"]
            row.append(f"{1e3 * exchange(counts(name).gradients, gpus):.2f}")
            for method in METHODS:
                found = step(name, method, images, gpus)
                row.append(f"{1e3 * found.computing:.2f} ({found.share:.0%})")
            rows.append(row)
    columns = [f"{method}: computing, ms (of the time)" for method in METHODS]
    return table(["network", "GPUs", "images a GPU", "sent by each, MB", "exchange, ms", *columns], rows)


def limits() -> str:
    """Where DDP stops paying."""
    rows = []
    for name in NETWORKS:
        for method in METHODS:
            rows.append([f"{name}, {method}", *(str(least(name, method, gpus)) for gpus in GPUS[1:])])
    return table(["images a GPU for 90 %", *(f"{gpus} GPUs" for gpus in GPUS[1:])], rows)


SETS = {"20 million": 20e6, "300 million": 300e6}
ROW = 3 * 32 * 32
"""Bytes of a stored 32x32 image."""

JPEG = 20e3
"""Bytes of a JPEG of 224x224, quality 90: assumed."""

KEPT = 32
"""Bytes of memory for an image of a streamed set, in each process: docs/methods/extra_data.md."""

READ = {"WRN-28-10": 50e-6, "ResNet-50": 1 / 590}
"""Seconds of a core for an image: a row of an `.npz` (results/large_extra_set.md); a JPEG to a random crop of 224
(results/streaming.md)."""


def storage() -> str:
    """What generated images need before a step is taken."""
    rows = []
    for name, n in SETS.items():
        sizes = [f"{n * ROW / 1e9:,.0f}", f"{n * JPEG / 1e12:.1f}"]
        rows.append([name, *sizes, f"{n * KEPT / 1e9:.1f}", f"{MACHINE * n * KEPT / 1e9:.0f}"])
    titles = [
        "images",
        "32x32, uint8, GB",
        "224x224, JPEG, TB",
        "memory of a process, GB",
        "of a machine with 8 GPUs, GB",
    ]
    return table(titles, rows)


def loaders() -> str:
    """How fast images are used up, and what reading them takes."""
    rows = []
    for name in READ:
        for method in METHODS:
            rate = ASSUMED["products"] / counts(name).step(method)
            rows.append([f"{name}, {method}", f"{rate:,.0f}", f"{rate * READ[name]:.1f}"])
    return table(["", "images a second, a GPU", "cores that read, a GPU"], rows)


def hours() -> str:
    """How long it takes to see every image once."""
    rows = []
    for name in ("WRN-28-10", "ResNet-50", "ViT-B/16"):
        for method in METHODS:
            row = [f"{name}, {method}"]
            for n in SETS.values():
                alone = n * counts(name).step(method) / ASSUMED["products"] / 3600
                row += [f"{alone / gpus:#,.2g}" if alone < 10 * gpus else f"{alone / gpus:,.0f}" for gpus in (1, 8, 64)]
            rows.append(row)
    return table(["once through", *(f"{n}: {what}, h" for n in SETS for what in ("1 GPU", "8 GPUs", "64"))], rows)


TABLES = {
    "networks": networks,
    "floors": floors,
    "steps": steps,
    "limits": limits,
    "storage": storage,
    "loaders": loaders,
    "hours": hours,
}


def filled(text: str) -> str:
    """The page with each table anew, after its mark `<!-- NAME: scaling.py -->`."""
    for name, make in TABLES.items():
        marked = rf"(<!-- {name}: scaling\.py -->\n)(?:\|.*\n)*"
        text, found = re.subn(marked, lambda mark, make=make: f"{mark[1]}{make()}\n", text)
        assert found == 1, f"{PAGE.name} has {found} marks for {name}"
    return text


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
