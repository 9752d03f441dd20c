"""What an evaluation takes of the memory, above the model and the images: 10,000 images through AutoAttack's attacks.

    python benchmarks/memory.py                                       # all 10,000 images, a small network: an hour
    python benchmarks/memory.py --short                               # budgets cut: the same memory, minutes
    python benchmarks/memory.py --short --model preact_resnet18 --images 512

Images and network are random, and the ball is so small that nearly all examples stand to the end, which is where
memory is highest. The figure is the most that the process ever held (VmHWM) less what it held just before: getrusage's
maximum would count what the parent process held when it started this one.
"""

import argparse
import json
import re
from pathlib import Path

import torch
from torch import nn

from toughen.attacks import ATTACKS, AttackSpec
from toughen.evaluation import evaluate
from toughen.models import build
from toughen.noise import generator
from toughen.threat import Linf

SHORT = {
    "pgd": {"steps": 2},
    "apgd": {"steps": 5},
    "apgd_targeted": {"steps": 3, "targets": 2},
    "fab": {"steps": 3, "targets": 2, "stop_inside": True},
    "square": {"queries": 30},
}
"""AutoAttack's attacks with budgets of seconds."""

BOUND = 2048
"""MiB above the model that are allowed."""


def held(what: str) -> float:
    """MiB of this process: "VmRSS" now, "VmHWM" at most so far."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, "the kernel does not say what a process holds"
    return int(found[1]) / 1024


def network(name: str) -> nn.Module:
    """A network of 10 classes with random weights."""
    if name == "linear":
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    return build(name, num_classes=10)


def main() -> None:
    """Measure, print, and fail above the bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small_cnn")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--chunk-size", type=int, default=1024)
    parser.add_argument("--short", action="store_true", help="budgets of seconds")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    given = parser.parse_args()
    torch.manual_seed(0)
    model = network(given.model).eval()
    x = torch.randint(0, 256, (given.images, 3, 32, 32), generator=generator("memory"), dtype=torch.uint8)
    threat = Linf(0.01 / 255)
    short = {
        name: AttackSpec.model_validate({"name": name, **settings})
        for name, settings in SHORT.items()
        if name in ATTACKS
    }
    suite = short if given.short else "autoattack"
    with torch.no_grad():
        y = torch.cat([model(part.float() / 255).argmax(1) for part in x.split(64)])
    before = held("VmRSS")
    found = evaluate(model, x, y, threat=threat, suite=suite, batch_size=given.batch_size, chunk_size=given.chunk_size)
    figures = {
        "model": given.model,
        "images": given.images,
        "batch_size": given.batch_size,
        "chunk_size": given.chunk_size,
        "attacks": list(found.settings),
        "robust_accuracy": found.robust_accuracy,
        "seconds": round(found.seconds, 1),
        "before_mib": round(before, 1),
        "above_model_mib": round(held("VmHWM") - before, 1),
        "bound_mib": BOUND,
    }
    print(json.dumps(figures) if given.json else "\n".join(f"{name}: {value}" for name, value in figures.items()))
    if figures["above_model_mib"] > BOUND:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
