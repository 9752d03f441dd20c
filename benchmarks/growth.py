"""How time and memory of a training grow with images, batch, steps, classes and ranks, and how straight the lines are.

    make bench-growth                                         # all of it, about five minutes
    python benchmarks/growth.py --axes ranks classes --rounds 2

Each point is a fresh process, for ranks several. Its time is what its one thread computed (CPU seconds), so that other
work on the machine counts less; its memory is the most that it held, less what it held before the data set was made.
Lines are fitted by least squares of relative errors, so that each point counts the same.
"""

import argparse
import datetime
import multiprocessing
import os
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from toughen.data import ImageData, Split
from toughen.noise import generator
from toughen.recipes.text import build
from toughen.training.loop import train_batch
from toughen.training.setup import set_up

RESULTS = Path(__file__).parent / "results"
STRAIGHT = 0.1
"""Relative deviation up to which a line is called straight."""


@dataclass(frozen=True)
class Point:
    """What is trained.

    Attributes:
        images: in the data set.
        batch_size: of each rank.
        batches: how many are trained on; None for an epoch.
        attack_steps: of PGD.
        classes: of the data set.
        ranks: processes.
        side: of the images.
    """

    images: int = 2048
    batch_size: int = 64
    batches: int | None = 12
    attack_steps: int = 3
    classes: int = 10
    ranks: int = 1
    side: int = 16


TINY = Point(images=16, batch_size=2, batches=1, attack_steps=1)
"""What is trained before anything is measured."""


@dataclass(frozen=True)
class Axis:
    """One quantity that grows.

    Attributes:
        name: of the quantity.
        points: by its values.
        time: what the seconds are of.
        per_batch: whether the seconds are shared among the batches.
    """

    name: str
    points: dict[int, Point]
    time: str
    per_batch: bool


AXES = (
    Axis(
        "images",
        {n: Point(images=n, batches=None, attack_steps=1, side=8) for n in (4096, 8192, 16384, 24576, 32768)},
        "an epoch",
        False,
    ),
    Axis("batch size", {n: Point(batch_size=n) for n in (32, 64, 128, 256, 512)}, "a batch", True),
    Axis("optimiser steps", {n: Point(batches=n, side=8) for n in (16, 32, 64, 96, 128)}, "all of them", False),
    Axis(
        "attack steps", {n: Point(attack_steps=n, batches=max(12, 60 // n)) for n in (1, 2, 5, 10, 20)}, "a batch", True
    ),
    Axis("classes", {n: Point(classes=n) for n in (10, 250, 500, 1000, 2000)}, "a batch", True),
    Axis("ranks", {n: Point(ranks=n) for n in (1, 2, 3, 4)}, "a batch, all ranks", True),
)


def held(what: str) -> float:
    """MiB of this process: "VmRSS" now, "VmHWM" at most so far."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, "the kernel does not say what a process holds"
    return int(found[1]) / 1024


def random_images(point: Point) -> ImageData:
    """Images of noise: what they show does not change what they cost."""
    shape = (point.images, 3, point.side, point.side)
    pixels = torch.randint(0, 256, shape, generator=generator("growth"), dtype=torch.uint8)
    split = Split(pixels, torch.arange(point.images) % point.classes)
    return ImageData("random", split, None, split, tuple(map(str, range(point.classes))))


def trained(point: Point) -> tuple[float, float]:
    """CPU seconds of the training, and MiB that it took, of this process."""
    before = held("VmRSS")
    data = random_images(point)
    recipe = build(
        {
            "data": {"source": "random", "pad": 2, "flip": True},
            "model": {"name": "small_cnn", "width": 16},
            "threat": "linf:8/255",
            "method": {"name": "adversarial", "attack": {"name": "pgd", "steps": point.attack_steps}},
            "batch_size": point.batch_size * point.ranks,
            "steps": 10**6,
        }
    )
    job, batches = set_up(recipe, data, data.train, torch.arange(point.images), torch.device("cpu"))
    train_batch(job, batches[job.number])
    started = time.process_time()
    for _ in range(point.batches or len(batches)):
        train_batch(job, batches[job.number])
    return time.process_time() - started, held("VmHWM") - before


def rank_of(point: Point, rank: int, meeting: str, answer: Connection) -> None:
    """One process of a point: sends what it took."""
    torch.set_num_threads(1)
    if point.ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=point.ranks)
    # Libraries are read in as they are needed: a small training first, and what is left of it counts as held before.
    trained(replace(TINY, ranks=point.ranks))
    answer.send(trained(point))
    if point.ranks > 1:
        dist.destroy_process_group()


def measured(point: Point) -> tuple[float, float]:
    """CPU seconds and MiB of a point, all its ranks together."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(point.ranks)]
        processes = [
            context.Process(target=rank_of, args=(point, rank, f"{folder}/meeting", pipe[1]))
            for rank, pipe in enumerate(pipes)
        ]
        for process, (_, theirs) in zip(processes, pipes, strict=True):
            process.start()
            theirs.close()
        found = [mine.recv() for mine, _ in pipes]
        for process in processes:
            process.join()
    return sum(seconds for seconds, _ in found), sum(mib for _, mib in found)


@dataclass(frozen=True)
class Line:
    """A straight line through points.

    Attributes:
        slope: per unit of x.
        intercept: at x = 0.
        r2: share of the variance that it explains, each point weighted as in the fit.
        deviation: the largest of |y - line| / y.
    """

    slope: float
    intercept: float
    r2: float
    deviation: float

    def at(self, x: float) -> float:
        """Its height."""
        return self.intercept + self.slope * x


def fit(x: Sequence[float], y: Sequence[float]) -> Line:
    """The line of least relative errors: minimises sum ((a + b x - y) / y)^2."""
    xs, ys = np.array(x, float), np.array(y, float)
    columns = np.stack([1 / ys, xs / ys], axis=1)
    (intercept, slope), *_ = np.linalg.lstsq(columns, np.ones_like(ys), rcond=None)
    off = (intercept + slope * xs - ys) / ys
    mean = np.average(ys, weights=ys**-2)
    r2 = 1 - float((off**2).sum() / (((ys - mean) / ys) ** 2).sum())
    return Line(float(slope), float(intercept), r2, float(np.abs(off).max()))


Found = dict[str, dict[int, tuple[float, float]]]


def measure(axes: Sequence[Axis], rounds: int) -> Found:
    """For each axis and value: milliseconds as the axis counts them, the least of the rounds, and MiB, the median.

    Whatever disturbs a computation makes it longer, never shorter.
    """
    taken: dict[str, dict[int, list[tuple[float, float]]]] = {axis.name: {n: [] for n in axis.points} for axis in axes}
    for number in range(rounds):
        for axis in axes:
            # Up and down in turn, so that a machine that slows down bends nothing.
            for n, point in list(axis.points.items())[:: -1 if number % 2 else 1]:
                seconds, mib = measured(point)
                shared = (point.batches or 1) if axis.per_batch else 1
                taken[axis.name][n].append((1000 * seconds / shared, mib))
                print(f"{axis.name} {n}: {taken[axis.name][n][-1][0]:.1f} ms, {mib:.1f} MiB", flush=True)
    return {
        name: {n: (min(ms for ms, _ in runs), statistics.median(mib for _, mib in runs)) for n, runs in points.items()}
        for name, points in taken.items()
    }


EXPECTED = """\
What is expected. An image of 8 x 8 is 192 bytes; its label, its number and its place in the epoch's order are 8 each:
216 bytes, or 0.000206 MiB. Memory does not grow with optimiser steps or attack steps: there a line of slope zero is
straight, and its R^2 says nothing, since it compares with the mean, which is the line. (In 1,024 steps a process grew
by 0.7 MiB, most of it in the first 32, by what its allocator keeps.) A class costs a row of the last layer, 1,024
weights, as weight, gradient and momentum, 0.0117 MiB, and what a step holds of it in passing. Each rank trains on 64
images, so all together should take as many times the time and memory of one. From two ranks on they exchange
gradients and share the cores' caches, which one rank alone does not, so that the line of time meets zero below it."""


def label(axis: Axis, what: int) -> str:
    """What an axis shows."""
    return f"CPU ms of {axis.time}" if what == 0 else "MiB held"


def picture(axes: Sequence[Axis], found: Found, path: Path) -> None:
    """Points and lines, time above and memory below."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "growth", "font.size": 8})
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, len(axes), figsize=(2.6 * len(axes), 4.6), squeeze=False, layout="constrained")
    for column, axis in enumerate(axes):
        x = list(found[axis.name])
        for what in range(2):
            panel, y = panels[what, column], [values[what] for values in found[axis.name].values()]
            line = fit(x, y)
            panel.plot([0, x[-1]], [line.at(0), line.at(x[-1])], color="0.6")
            panel.plot(x, y, "o", color="#1f5fa8", markersize=4)
            panel.set(xlabel=axis.name, title=label(axis, what), xlim=(0, None), ylim=(0, 1.15 * max(y)))
            panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def table(axes: Sequence[Axis], found: Found) -> list[str]:
    """A row for each line."""
    lines = [
        "| grows | from, to | what | measured | slope | at 0 | R^2 | largest deviation | straight |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for axis in axes:
        x = list(found[axis.name])
        for what in range(2):
            y = [values[what] for values in found[axis.name].values()]
            line = fit(x, y)
            lines.append(
                f"| {axis.name} | {x[0]}, {x[-1]} | {label(axis, what)} | {', '.join(f'{v:.1f}' for v in y)} | "
                f"{line.slope:.3g} | {line.intercept:.1f} | {line.r2:.3f} | {100 * line.deviation:.1f} % | "
                f"{'yes' if line.deviation <= STRAIGHT else 'NO'} |"
            )
    return lines


def main() -> None:
    """Measure and write `results/growth.md` and `results/growth.svg`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=[axis.name for axis in AXES])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dry", action="store_true", help="print only, and leave the results as they are")
    given = parser.parse_args()
    axes = [axis for axis in AXES if given.axes is None or axis.name in given.axes]
    torch.set_num_threads(1)
    started, load = time.perf_counter(), os.getloadavg()[0]
    trained(TINY)
    found = measure(axes, given.rounds)
    lines = table(axes, found)
    print("\n".join(lines))
    text = [
        "# How time and memory grow",
        "",
        f"`python benchmarks/growth.py --rounds {given.rounds}`, {datetime.date.today()}, {platform.machine()}, "
        f"{os.cpu_count()} shared cores",
        f"(load {load:.1f} at the beginning, {os.getloadavg()[0]:.1f} at the end), one thread a process, torch "
        f"{torch.__version__}; {(time.perf_counter() - started) / 60:.1f} minutes.",
        "PGD training of `small_cnn` of width 16 on random images of 16 x 16 (8 x 8 where images and optimiser steps",
        "grow), batches of 64, three attack steps (one where images grow), 10 classes, unless they are what grows.",
        "Each point is a fresh process; time is CPU time, the least of the rounds; memory is the most held above what",
        "was held before, the median. Lines are of least squares of relative errors; straight is what deviates by at",
        f"most {STRAIGHT:.0%}.",
        "",
        "![Points and lines](growth.svg)",
        "",
        *lines,
        "",
        EXPECTED,
    ]
    if not given.dry:
        RESULTS.mkdir(exist_ok=True)
        picture(axes, found, RESULTS / "growth.svg")
        (RESULTS / "growth.md").write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
