"""IAAT's selection for half of the work: does `selection: reuse` choose and train as `selection: candidates` does?

    python benchmarks/radius_reuse.py                        # about fifteen minutes on one core

First on one model that stands still: each form chooses radii for the same examples under several seeds. Two runs of
`candidates` differ by chance; `reuse` should differ from them no more, lean neither way, and make training examples of
the same loss. Then in whole trainings from the same seeds, the two forms taking turns batch by batch.
"""

import argparse
import datetime
import math
import os
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path

import torch
from torch import Tensor

from toughen.attacks import AttackSpec
from toughen.data import Batch, load
from toughen.evaluation import evaluate
from toughen.methods import Method
from toughen.methods.instance_adaptive import InstanceAdaptive
from toughen.modes import evaluating
from toughen.noise import Stream
from toughen.recipes import Recipe
from toughen.threat import Linf
from toughen.training.loop import Job, train_batch
from toughen.training.setup import set_up, splits

RESULT = Path(__file__).parent / "results" / "radius_reuse.md"
FORMS: tuple[str, ...] = ("candidates", "reuse")
# The paper's gamma, step and radius for CIFAR-10 (1.9, 2 and 8), 6.4 times as large.
BALL, GAMMA, STEP, STEPS = 0.2, 0.0475, 0.05, 10
WARMUP = 58  # two epochs
# Student's t, two-sided 95 %, by degrees of freedom.
T95 = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 7: 2.365, 9: 2.262}


def method(selection: str, beta: float) -> InstanceAdaptive:
    """IAAT as the paper has it, in one of the forms."""
    attack = AttackSpec(name="pgd", steps=STEPS, step_size=STEP)
    return InstanceAdaptive.model_validate(
        {"attack": attack, "gamma": GAMMA, "beta": beta, "warmup": WARMUP, "selection": selection}
    )


def job_of(trained: Method, seed: int, steps: int):
    """A training on the embedded digits, in its first state, and its batches."""
    recipe = Recipe.model_validate(
        {
            "data": "mnist5k",
            "model": {"name": "small_cnn", "norm": "batch"},
            "method": trained,
            "threat": Linf(BALL),
            "steps": steps,
            "optimizer": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
            "schedule": {"name": "one_cycle", "peak": 0.3},
            "seed": seed,
        }
    )
    data = load("mnist5k")
    split, _, index = splits(recipe, data)
    return set_up(recipe, data, split, index, torch.device("cpu"))


@dataclass(frozen=True)
class Choices:
    """What a form chose for all examples under one seed: -1, 0 or 1 each, and the loss of its training examples."""

    moves: Tensor
    losses: Tensor


def choices(job: Job, batches: list[Batch], memory: Tensor, selection: str, seed: int) -> Choices:
    """Choose radii for some batches with the weights and a memory held still."""
    form = method(selection, 0.1).resolved(Linf(BALL))
    moves, losses = [], []
    for batch in batches:
        state = {"radius": memory.clone(), "step": torch.tensor(WARMUP)}
        drawn = replace(batch, noise=Stream(("agreement", seed, *batch.noise.key), batch.noise.rows, batch.noise.block))
        objective = next(iter(form.losses(job.model, drawn, state)))
        with torch.no_grad(), evaluating(job.model):
            losses.append(objective())
        moves.append(((state["radius"] - memory)[batch.index] / (0.1 * GAMMA)).round().clamp(-1, 1))
    return Choices(torch.cat(moves), torch.cat(losses))


def edges(job: Job, batches: list[Batch], memory: Tensor) -> Tensor:
    """A memory that makes choosing hard: each radius within 1.5 gamma of the largest that its example withstands."""
    settings = {**dict(method("candidates", 0.1)), "selection": "line_search", "grid": 0.05, "largest": 0.4}
    search = InstanceAdaptive.model_validate(settings).resolved(Linf(BALL))
    state = {"radius": memory.clone(), "step": torch.tensor(WARMUP)}
    for batch in batches:
        next(iter(search.losses(job.model, batch, state)))
        away = 1.5 * GAMMA * batch.noise.child("edge").uniform(())
        state["radius"][batch.index] = (state["radius"][batch.index] + away).clamp(min=GAMMA)
    return state["radius"]


def interval(values: Tensor) -> str:
    """Mean of one value for each example, with its 95 % interval."""
    mean, half = values.mean().item(), 1.96 * values.std().item() / math.sqrt(len(values))
    return f"{mean:.4f} [{mean - half:.4f}, {mean + half:.4f}]"


def compared(name: str, found: dict[str, list[Choices]]) -> str:
    """A row: how often runs agree, and where the forms lean."""
    ours, paper = found["reuse"], found["candidates"]
    own = torch.stack([(a.moves == b.moves).float() for a, b in combinations(paper, 2)]).mean(0)
    across = torch.stack([(a.moves == b.moves).float() for a, b in product(paper, ours)]).mean(0)
    moves = [torch.stack([one.moves for one in runs]).mean(0) for runs in (paper, ours)]
    losses = [torch.stack([one.losses for one in runs]).mean(0) for runs in (paper, ours)]
    shares = " / ".join(f"{(paper[0].moves == way).float().mean():.2f}" for way in (-1, 0, 1))
    ratio = losses[1].mean() / losses[0].mean()
    # Delta method for a ratio of means over the same examples.
    spread = 1.96 * (losses[1] - ratio * losses[0]).std() / math.sqrt(len(losses[0])) / losses[0].mean()
    return (
        f"| {name} | {shares} | {own.mean():.4f} | {across.mean():.4f} | {interval(across - own)} | "
        f"{interval(moves[1] - moves[0])} | {ratio:.4f} [{ratio - spread:.4f}, {ratio + spread:.4f}] |"
    )


def standing_still(seeds: int, number: int) -> Iterator[str]:
    """The first table, row by row."""
    job, stream = job_of(method("candidates", 0.1), 0, 200)
    for i in range(WARMUP + 60):
        train_batch(job, stream[i])
    batches = [stream[i] for i in range(number)]
    trained = job.state["radius"]
    seen = torch.where(trained < 0, BALL, trained)
    for name, memory in (("as trained", seen), ("at the edge", edges(job, batches, seen))):
        found = {
            form: [choices(job, batches, memory, form, 100 * k + seed) for seed in range(seeds)]
            for k, form in enumerate(FORMS)
        }
        yield compared(name, found)


def training(seed: int, steps: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Train both forms from one seed, in turns; outcomes by form, and seconds of their batches after the warm-up."""
    jobs = {form: job_of(method(form, 0.5), seed, steps) for form in FORMS}
    seconds = dict.fromkeys(FORMS, 0.0)
    for number in range(steps):
        for form, (job, batches) in jobs.items():
            started = time.perf_counter()
            train_batch(job, batches[number])
            seconds[form] += (time.perf_counter() - started) * (number >= WARMUP)
    test, found = load("mnist5k").test, {}
    for form, (job, _) in jobs.items():
        x = test.images.float() / 255
        result = evaluate(job.model, x, test.labels, threat=Linf(BALL), suite="pgd-20", audit=False)
        radius = job.method.metrics(job.state)["radius_mean"]
        found[form] = [radius, 100 * result.clean_accuracy, 100 * result.robust_accuracy]
    return found, seconds


def summarised(name: str, paper: list[float], ours: list[float]) -> str:
    """A row: means with standard errors, and the difference of the pairs with its 95 % interval."""
    n = len(paper)

    def error(values: list[float]) -> float:
        return statistics.stdev(values) / math.sqrt(n)

    gaps = [b - a for a, b in zip(paper, ours, strict=True)]
    mean, half = statistics.mean(gaps), T95[n - 1] * error(gaps)
    return (
        f"| {name} | {statistics.mean(paper):.4g} ± {error(paper):.2g} | {statistics.mean(ours):.4g} ± "
        f"{error(ours):.2g} | {mean:+.4g} [{mean - half:+.3g}, {mean + half:+.3g}] |"
    )


def head(arguments: argparse.Namespace) -> list[str]:
    """What was run, where and when."""
    costs = [f"{method(form, 0.1).resolved(Linf(BALL)).passes().natural_steps:.2f} ({form})" for form in FORMS]
    return [
        "# IAAT: selection that reuses its work, against algorithm 2 as it stands",
        "",
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} shared CPU cores, one thread, torch "
        f"{torch.__version__}, fp32. `python benchmarks/radius_reuse.py --frozen {arguments.frozen} --batches "
        f"{arguments.batches} --seeds {arguments.seeds} --steps {arguments.steps}`",
        "",
        f"`small_cnn` with BatchNorm on the embedded digits, Linf {BALL}, PGD-{STEPS} with steps of {STEP}, gamma "
        f"{GAMMA} (the paper's figures, scaled to this ball). Cost of a batch in natural steps: {', '.join(costs)}.",
    ]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--frozen", type=int, default=3, help="seeds of each form on the model that stands still")
    parser.add_argument("--batches", type=int, default=20, help="batches of 128 examples there")
    parser.add_argument("--seeds", type=int, default=4, help="whole trainings of each form")
    parser.add_argument("--steps", type=int, default=160, help="optimiser steps of each")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = head(arguments)
    lines += [
        "",
        f"One model after {WARMUP + 60} steps, held still; {128 * arguments.batches} examples, {arguments.frozen} "
        "seeds of each form, beta 0.1; 95 % intervals over examples. A choice is down, stay or up (-1, 0, 1).",
        "",
        "| memory | down / stay / up | agree: candidates among themselves | reuse with candidates | difference | "
        "mean choice, difference | loss of training examples, ratio |",
        "| --- | --- | ---: | ---: | --- | --- | --- |",
    ]
    print("\n".join(lines), flush=True)
    for row in standing_still(arguments.frozen, arguments.batches):
        print(row, flush=True)
        lines.append(row)
    outcomes: dict[str, list[list[float]]] = {form: [] for form in FORMS}
    seconds = dict.fromkeys(FORMS, 0.0)
    for seed in range(arguments.seeds):
        found, taken = training(seed, arguments.steps)
        print(seed, found, flush=True)
        for form in FORMS:
            outcomes[form].append(found[form])
            seconds[form] += taken[form]
    rows = [
        "",
        f"{arguments.seeds} whole trainings of each form, {arguments.steps} steps ({WARMUP} of warm-up), equal seeds, "
        "beta 0.5 so that radii go far in so short a time; mean ± standard error over seeds, difference of the pairs "
        "with its 95 % interval (Student's t).",
        "",
        "| | candidates | reuse | difference |",
        "| --- | ---: | ---: | --- |",
    ]
    for i, name in enumerate(("mean radius", "clean accuracy, %", "accuracy under PGD-20, %")):
        rows.append(summarised(name, *([run[i] for run in outcomes[form]] for form in FORMS)))
    ratio = seconds["reuse"] / seconds["candidates"]
    rows += ["", f"Wall clock of a batch after the warm-up, the two in turns: reuse takes {ratio:.3f} of candidates."]
    print("\n".join(rows))
    # What was concluded by hand stays below the figures.
    _, mark, reading = (RESULT.read_text() if RESULT.exists() else "").partition("\n## Reading\n")
    RESULT.write_text("\n".join([*lines, *rows, ""]) + mark + reading)


if __name__ == "__main__":
    main()
