"""What a training step of ours costs, against a bare torch loop and against the arithmetic.

    make bench-step                                          # both models; half an hour on two cores
    python benchmarks/step_cost.py --models preact_resnet18 --rounds 9

Each of our steps is timed between two bare ones, so that whatever else the machine does meets all three; each figure is
the median of (our step / the mean of the two bare natural steps around it).
"""

import argparse
import datetime
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peer_steps import images
from toughen.data import Batches, ImageData
from toughen.recipes import Recipe
from toughen.recipes.text import build
from toughen.training.loop import train_batch
from toughen.training.setup import build_model, set_up

MODELS = {"preact_resnet18": 32, "wrn-16-4": 128}
PGD = {"name": "pgd", "steps": 10, "step_size": "2/255"}
# The radius of an example that has been seen; warm-up ends at once.
ADAPTIVE = {"name": "instance_adaptive", "attack": PGD, "warmup": 1, "gamma": "1.9/255"}
METHODS: dict[str, tuple[dict[str, Any], float]] = {
    # name -> changes to the recipe, most that is allowed of the cost that the passes say
    "natural": ({"method": "natural"}, 1.03),
    "free": ({"method": {"name": "free", "replays": 2}}, 1.05),
    "pgd-10": ({"method": {"name": "adversarial", "attack": PGD}}, 1.05),
    "trades-10": ({"method": {"name": "trades", "attack": PGD}}, 1.10),
    "trades-10, perturbed weights": (
        {"method": {"name": "trades", "attack": PGD}, "weight_perturbation": {}},
        1.10,
    ),
    "mart-10": ({"method": {"name": "mart", "attack": PGD}}, 1.10),
    "instance_adaptive": ({"method": ADAPTIVE}, 1.10),
    "instance_adaptive, reuse": ({"method": {**ADAPTIVE, "selection": "reuse"}}, 1.10),
    "bilateral": ({"method": "bilateral"}, 1.10),
    "interpolated-7": ({"method": {"name": "interpolated"}}, 1.10),
}


def recipe_of(model: str, batch_size: int, changes: dict[str, Any]) -> Recipe:
    """What is timed."""
    return build(
        {
            "data": {"source": "random", "pad": 4, "flip": True},
            "model": model,
            "threat": "linf:8/255",
            "batch_size": batch_size,
            "steps": 10**6,
            "optimizer": {"lr": 0.01, "weight_decay": 5e-4},
            **changes,
        }
    )


def our_step(recipe: Recipe, data: ImageData) -> Callable[[], float]:
    """One batch of ours, as seconds per optimiser step: data, attack, step, guard, meters."""
    n = len(data.train)
    job, batches = set_up(recipe, data, data.train, torch.arange(n), torch.device("cpu"))
    assert isinstance(batches, Batches)

    def step() -> float:
        started = time.perf_counter()
        train_batch(job, batches[job.number])
        return (time.perf_counter() - started) / job.method.steps_per_batch

    return step


def bare_step(model: str, batch_size: int, data: ImageData) -> Callable[[], float]:
    """The same natural step in plain torch, on a batch that is already there."""
    recipe = build(
        {"data": "random", "model": model, "method": "natural", "threat": "linf:8/255", "steps": 1, "batch_size": 1}
    )
    net = build_model(recipe, data).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)
    x, y = data.train.images[:batch_size].float() / 255, data.train.labels[:batch_size]

    def step() -> float:
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        return time.perf_counter() - started

    return step


def measure(model: str, batch_size: int, rounds: int) -> list[str]:
    """Rows of the result table."""
    data = images(512)
    steps = {"bare": bare_step(model, batch_size, data)}
    counts = {}
    for name, (changes, _) in METHODS.items():
        recipe = recipe_of(model, batch_size, changes)
        steps[name] = our_step(recipe, data)
        counts[name] = recipe.natural_steps / recipe.total_steps
    for step in steps.values():
        # The second of IAAT is the first after its warm-up.
        step()
        step()
    ratios: dict[str, list[float]] = {name: [] for name in METHODS}
    bare: list[float] = []
    for _ in range(rounds):
        for name, count in counts.items():
            # Short steps more often: a step of a second is over before the machine's mood has averaged out.
            for _ in range(4 if count < 1.5 else 1):
                before, ours, after = steps["bare"](), steps[name](), steps["bare"]()
                bare += [before, after]
                ratios[name].append(2 * ours / (before + after))
    rows = []
    for name, (_, allowed) in METHODS.items():
        ratio, count = statistics.median(ratios[name]), counts[name]
        verdict = "within" if ratio <= allowed * count else "ABOVE"
        rows.append(
            f"| {model} | {batch_size} | {name} | {ratio:.3f} | {count:.3f} | {ratio / count:.3f} | "
            f"{verdict} {allowed:.2f} | {1000 * statistics.median(bare):.0f} |"
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure and write `results/step_cost.md`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    header = [
        "| model | batch | step of ours | bare natural steps | by arithmetic | ratio to it | bound | bare step, ms |",
        "| --- | ---: | --- | ---: | ---: | ---: | --- | ---: |",
    ]
    print("\n".join(header))
    rows = [row for model in arguments.models for row in measure(model, MODELS[model], arguments.rounds)]
    text = [
        "# What a step costs",
        "",
        f"`python benchmarks/step_cost.py --models {' '.join(arguments.models)} --rounds {arguments.rounds} "
        f"--threads {arguments.threads}`, {datetime.date.today()}, "
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        "fp32.",
        "Medians over steps of ours, each timed between two bare ones, in one run, shared machine. The bare loop is",
        "plain torch (fused SGD) on a batch that is already there; ours makes its batch (crop, flip), guards against",
        "non-finite values and meters loss and accuracy.",
        "",
        *header,
        *rows,
    ]
    path = Path(__file__).parent / "results" / "step_cost.md"
    path.write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
