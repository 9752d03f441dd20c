"""One whole run on the CPU for `heap_checks.py`, which starts it under malloc's own checks.

python benchmarks/heap_runs.py "small_cnn of width 2" channels_last
"""

import sys
from typing import Any

import torch

from toughen import models
from toughen.data import ImageData, Split
from toughen.evaluation import evaluate
from toughen.noise import generator
from toughen.recipes.text import build
from toughen.threat import Linf
from toughen.training.acceleration import Acceleration
from toughen.training.loop import train_batch
from toughen.training.setup import set_up

CPU = torch.device("cpu")
EVALUATED = "evaluated"

NETWORKS: dict[str, dict[str, Any]] = {
    "preact_resnet18 of width 2": {"name": "preact_resnet18", "width": 2},
    "preact_resnet18 of width 7": {"name": "preact_resnet18", "width": 7},
    "preact_resnet18 of width 16": {"name": "preact_resnet18", "width": 16},
    "resnet50 of width 2": {"name": "resnet50", "width": 2},
    "small_cnn of width 2": {"name": "small_cnn", "width": 2},
}
"""Networks that are trained and evaluated as a whole."""

WAYS = {
    "measured": None,
    "channels_last": Acceleration(channels_last=True),
    "bf16, channels_last": Acceleration(bf16=True, channels_last=True),
    "channels_last, compiled": Acceleration(channels_last=True, compiled=True),
}


def data() -> ImageData:
    """Images of noise: what they show does not change which memory is written."""
    pixels = torch.randint(0, 256, (64, 3, 16, 16), generator=generator("heap"), dtype=torch.uint8)
    split = Split(pixels, torch.arange(64) % 3)
    return ImageData("random", split, None, split, ("a", "b", "c"))


def trained(network: str, ways: str) -> None:
    """Three batches of a robust network, and of one whose method differentiates a gradient where nothing compiles."""
    known, images = WAYS[ways], data()
    aligned = {"name": "adversarial", "attack": {"name": "rs_fgsm"}, "alignment": 0.2}
    attack = {"name": "adversarial", "attack": {"name": "pgd", "steps": 2}}
    for method in (attack,) if known and known.compiled else (attack, aligned):
        recipe = build(
            {
                "data": {"source": "random", "pad": 1, "flip": True},
                "model": NETWORKS[network],
                "method": method,
                "threat": "linf:8/255",
                "batch_size": 19,
                "steps": 100,
                "fast": "measure",
            }
        )
        job, batches = set_up(recipe, images, images.train, torch.arange(64), CPU, note=print, ways=known)
        for number in range(3):
            train_batch(job, batches[number])
        assert all(bool(p.isfinite().all()) for p in job.model.parameters())


def evaluated(network: str) -> None:
    """Attacks, their audit and all."""
    torch.manual_seed(0)
    options = dict(NETWORKS[network])
    model, few = models.build(options.pop("name"), num_classes=3, in_channels=3, **options), data().train
    evaluate(model.eval(), few.images[:16], few.labels[:16], threat=Linf(8 / 255), suite="quick", batch_size=7)


def main() -> None:
    """Train or evaluate, as the command line says."""
    network, ways = sys.argv[1:]
    if ways == EVALUATED:
        evaluated(network)
    else:
        trained(network, ways)


if __name__ == "__main__":
    main()
