"""The watch for catastrophic overfitting: does it see every collapse, is it silent otherwise, and what does it cost?

    python benchmarks/overfitting.py                 # writes results/overfitting.md; ten minutes on one thread

Runs on synthetic images (`tests/collapse.py`): FGSM at eps 0.3 collapses; FGSM at 0.1 and PGD at 0.15 do not. The
cost is that of a check beside the training batches just before and after it, at the default interval, for a network on
digits and a wider one with BatchNorm on CIFAR-shaped images.
"""

import argparse
import datetime
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from toughen.data import DATA, ImageData, Split
from toughen.models import MODELS
from toughen.noise import generator
from toughen.recipes.text import build
from toughen.training import train
from toughen.training.catastrophic_overfitting import OverfittingMonitor, interval
from toughen.training.loop import train_batch
from toughen.training.setup import set_up

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import collapse  # noqa: E402

EVERY = 20
RUNS: dict[str, tuple[dict[str, Any], float, int, bool]] = {
    # name -> method, eps, steps, whether it collapses
    "FGSM, eps 0.3": (collapse.FGSM, 0.3, 300, True),
    "FGSM, eps 0.1": (collapse.FGSM, 0.1, 150, False),
    "PGD-7, eps 0.15": (collapse.PGD, 0.15, 150, False),
}
METHODS: dict[str, object] = {
    "FGSM": collapse.FGSM,
    "PGD-10": {"name": "adversarial", "attack": {"name": "pgd", "steps": 10}},
    "Free-8": {"name": "free", "replays": 8},
}
MODEL_SHAPES: dict[str, tuple[dict[str, Any], int, int]] = {
    # name -> network, channels and side of its images
    "small_cnn": ({"name": "small_cnn"}, 1, 28),
    "small_cnn, width 16, BatchNorm": ({"name": "small_cnn", "width": 16, "norm": "batch"}, 3, 32),
}
BOUND = 0.03


def run(name: str, seed: int) -> tuple[str, bool]:
    """A row of the first table, and whether it is as it must be."""
    method, eps, steps, collapses = RUNS[name]
    recipe = collapse.recipe(method, eps, steps=steps, seed=seed, overfitting_every=EVERY)
    with tempfile.TemporaryDirectory() as folder:
        summary = train(recipe, Path(folder) / "run")
        lines = map(json.loads, (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines())
        checks = {line["step"]: line["overfitting"] for line in lines if "overfitting" in line}
    gaps = {step: found["one_step_accuracy"] - found["pgd_accuracy"] for step, found in checks.items()}
    alarms = [alarm["step"] for alarm in summary["alarms"]]
    first = next((step for step, gap in gaps.items() if gap > 0.30), None)
    sound = alarms == [first] if collapses else alarms == [] == [step for step, gap in gaps.items() if gap > 0.30]
    last = checks[steps]
    return (
        f"| {name} | {seed} | {', '.join(map(str, alarms)) or 'none'} | {max(gaps.values()):.2f} | "
        f"{last['one_step_accuracy']:.3f} / {last['pgd_accuracy']:.3f} | {'as it must' if sound else 'WRONG'} |"
    ), sound


def cost(model: str, method: str, rounds: int) -> str:
    """A row of the second table: a check beside batches, and their ratio at the default interval of a long run."""
    network, channels, side = MODEL_SHAPES[model]
    draw = generator("benchmark")
    pixels = torch.randint(0, 256, (512, channels, side, side), generator=draw, dtype=torch.uint8)
    split = Split(pixels, torch.arange(512) % 10)
    data = ImageData("random", split, None, split, tuple("0123456789"))
    recipe = build(
        {
            "data": {"source": "random", "pad": 2},
            "model": network,
            "method": METHODS[method],
            "threat": "linf:8/255",
            "steps": 10**6,
            "optimizer": {"lr": 0.01},
        }
    )
    job, batches = set_up(recipe, data, split, torch.arange(512), torch.device("cpu"))
    watch, every = OverfittingMonitor.over(recipe, job.method, split, torch.device("cpu")), interval(recipe)

    def seconds_per_step() -> float:
        started, before = time.process_time(), job.step
        # As long as a check, so that whatever else the machine does meets both.
        while job.step == before or time.process_time() - started < length:
            train_batch(job, batches[job.number])
        return (time.process_time() - started) / (job.step - before)

    def seconds_of_check() -> float:
        started = time.process_time()
        watch.check(job, {})
        return time.process_time() - started

    length = 0.0
    seconds_per_step()
    length = seconds_of_check()
    shares, steps = [], []
    for _ in range(rounds):
        before, check, after = seconds_per_step(), seconds_of_check(), seconds_per_step()
        steps.append((before + after) / 2)
        shares.append(check / (every * steps[-1]))
    share = statistics.median(shares)
    verdict = "within" if share <= BOUND else "ABOVE"
    return (
        f"| {model} | {method} | {every} | {1000 * statistics.median(steps):.0f} | {share:.2%} | "
        f"{min(shares):.2%} to {max(shares):.2%} | {verdict} {BOUND:.0%} |"
    )


def main() -> None:
    """Measure and write `results/overfitting.md`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    DATA["prototypes"], MODELS["two_convolutions"] = collapse.smooth_prototypes, collapse.TwoConvolutions
    costs, rows, wrong = [], [], 0
    for model in MODEL_SHAPES:
        for method in METHODS:
            costs.append(cost(model, method, arguments.rounds))
            print(costs[-1], flush=True)
    for name in RUNS:
        for seed in range(arguments.seeds):
            row, sound = run(name, seed)
            rows.append(row)
            wrong += not sound
            print(row, flush=True)
    processor = platform.processor() or platform.machine()
    text = [
        "# The watch for catastrophic overfitting",
        "",
        f"`python benchmarks/overfitting.py --seeds {arguments.seeds} --rounds {arguments.rounds}`, "
        f"{datetime.date.today()}, {processor}, one thread on two shared cores, torch {torch.__version__}, fp32.",
        "",
        "## Alarms",
        "",
        f"4,000 synthetic images of 14x14, a network of two convolutions, a check every {EVERY} steps on 256 training",
        "images. A run that collapses must raise one alarm, at the first check whose gap (accuracy under the one-step",
        "attack less that under PGD-10) exceeds 0.30; the others none.",
        f"{len(rows) - wrong} of {len(rows)} runs are as they must.",
        "",
        "| training | seed | alarms at step | largest gap | one-step / PGD-10 at the end | verdict |",
        "| --- | ---: | --- | ---: | ---: | --- |",
        *rows,
        "",
        "## Cost",
        "",
        "A check beside the training steps just before and after it, as a share of the steps of the default interval",
        "of a long run in batches of 128; processor time, for other work shared the cores; median of the rounds, then",
        "the least and the most. By count it is 2 %.",
        "",
        "| model | training | interval, steps | step, ms | share of a check | range | bound |",
        "| --- | --- | ---: | ---: | ---: | --- | --- |",
        *costs,
    ]
    (ROOT / "benchmarks" / "results" / "overfitting.md").write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
