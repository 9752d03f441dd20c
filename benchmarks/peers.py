"""What a training step costs in other libraries, beside ours: same network, batch, precision, images and threads.

    make bench-peers                                          # WRN-16-4, batch 128, one thread and two: half an hour
    python benchmarks/peers.py --threads 1 --rounds 5 --models wrn-16-4 preact_resnet18
    python benchmarks/peers.py --batch-size 8 --rounds 1 --dry       # a minute: does it run

PGD-10 at 8/255 with steps of 2/255, from a random start, BatchNorm in evaluation mode during the attack. Each step is
timed between two bare natural ones, all of them one after the other in each round, in an order that turns; a figure is
the median over rounds. Passes are counted where torch dispatches its convolutions, so weight gradients count where
they are computed, whatever a library says. Needs `make setup-bench`.
"""

import argparse
import datetime
import importlib
import os
import platform
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from peer_steps import ENTRANTS, STEPS, Setting, Step, bare, images

WITH_WEIGHTS = 1.3
"""How much faster ours has to be than what computes weight gradients in the attack; than others: no slower."""


class Work(TorchDispatchMode):
    """Counts passes of examples through convolutions.

    Attributes:
        forwards: forward passes.
        backwards: backward passes.
        weights: those among them that computed the gradient of the weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.forwards = self.backwards = self.weights = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, and do as asked."""
        if func is torch.ops.aten.convolution.default:
            self.forwards += len(args[0])
        elif func is torch.ops.aten.convolution_backward.default:
            self.backwards += len(args[0])
            self.weights += len(args[0]) * args[-1][1]
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Count:
    """Passes of a step: forward, backward for the images' gradient alone, backward with the weights' gradient."""

    forwards: float
    images_only: float
    with_weights: float

    @property
    def natural_steps(self) -> float:
        """What they cost, as in `toughen.models.cost`."""
        return (self.forwards + self.images_only + 2 * self.with_weights) / 3


def count(step: Step, setting: Setting) -> Count:
    """What one step does, in passes of its whole batch."""
    passes = setting.batch_size * sum(isinstance(module, nn.Conv2d) for module in setting.net().modules())
    # What is compiled is not dispatched; uncompiled it does the same.
    with torch.compiler.set_stance("force_eager"), Work() as work:
        step()
    return Count(work.forwards / passes, (work.backwards - work.weights) / passes, work.weights / passes)


def seconds(step: Step) -> float:
    """How long it takes: on one thread what that thread computed, or else by the clock on the wall.

    Several threads wait for each other while they compute, so that their time of computing says nothing.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    started = clock()
    step()
    return clock() - started


def turned(items: Iterable[str], by: int) -> list[str]:
    """The items, others first each time."""
    listed = list(items)
    by %= len(listed)
    return listed[by:] + listed[:by]


@dataclass
class Measured:
    """One training by one library.

    Attributes:
        count: passes of a step.
        ratios: a step's time in bare natural steps, round by round.
    """

    count: Count
    ratios: list[float]


def measure(setting: Setting, rounds: int, left_out: dict[str, str]) -> tuple[dict[str, dict[str, Measured]], float]:
    """Every entrant, and the median time of a bare step in milliseconds.

    Whatever does not import is added to `left_out`.
    """
    steps: dict[str, tuple[Step, Measured]] = {}
    found: dict[str, dict[str, Measured]] = {training: {} for training in ENTRANTS}
    unit = bare(setting)
    unit()
    for training, entrants in ENTRANTS.items():
        for name, make in entrants.items():
            try:
                step = make(setting)
            except ImportError as error:
                left_out[name] = f"does not import: {error}"
                continue
            step()
            found[training][name] = Measured(count(step, setting), [])
            steps[f"{training} {name}"] = step, found[training][name]
    units: list[float] = []
    for number in range(rounds):
        for key in turned(steps, number):
            step, measured = steps[key]
            before, its, after = seconds(unit), seconds(step), seconds(unit)
            units += [before, after]
            measured.ratios.append(2 * its / (before + after))
    return found, 1000 * statistics.median(units)


HEADER = [
    "| training | by | forwards | backwards, images | backwards, weights too | count | measured | measured / count "
    "| ours is faster by | over rounds | asked | verdict |",
    "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: | --- |",
]


def rows(training: str, found: dict[str, Measured]) -> list[str]:
    """A row for each library."""
    lines = []
    (_, own), *_ = found.items()
    for name, measured in found.items():
        passes, median = measured.count, statistics.median(measured.ratios)
        line = (
            f"| {training} | {name} | {passes.forwards:.2f} | {passes.images_only:.2f} | {passes.with_weights:.2f} | "
            f"{passes.natural_steps:.2f} | {median:.2f} | {median / passes.natural_steps:.3f} | "
        )
        if measured is own:
            lines.append(line + "- | - | - | - |")
            continue
        faster = sorted(theirs / its for theirs, its in zip(measured.ratios, own.ratios, strict=True))
        asked = 1.0 if passes.images_only >= STEPS - 0.5 else WITH_WEIGHTS
        verdict = "within" if statistics.median(faster) >= asked else "within the spread"
        verdict = verdict if faster[-1] >= asked else "BELOW"
        lines.append(
            line + f"{statistics.median(faster):.3f} | {faster[0]:.2f} to {faster[-1]:.2f} | {asked:.1f} | {verdict} |"
        )
    return lines


def trainer_of_robustness() -> str:
    """Why MadryLab's trainer cannot be timed here; empty if it can be imported."""
    try:
        importlib.import_module("robustness.train")
    except (ImportError, RuntimeError) as error:
        return f"`import robustness.train` fails here: {type(error).__name__}: {error}."
    return ""


EXTRA_WORK = """\
What the counts say. Ours takes 11 forward passes, 10 backward passes for the images' gradient alone and one for the
weights': (11 + 10 + 2) / 3 = 23/3 natural steps, and TRADES 9. torchattacks and MadryLab's attacker ask autograd for
the images' gradient only, which leaves the weights' out as well, so they do the same work, and what differs is
overhead, and that ours folds BatchNorm into convolutions for the attack.
`loss.backward()` in the attack, which the naive loop and ART have, computes the weights' gradients ten times
for nothing: 11 natural steps. ART adds two forward passes, of the clean and of the attacked images, for the attack's
success rate, which it computes for a line of its log whether that is read or not, and copies through numpy. Its TRADES
does the same in the attack and then takes two training passes. Ours alone makes its batch (crop, flip), guards against
non-finite values and meters loss and accuracy; the others get the same batch every time. ART's attack was given whole
batches, not its 32; MadryLab's takes its last iterate and a random start, as all do here (by default it keeps the best
iterate, for one forward pass more), and `Tensor.cuda`, which it calls on every tensor, does nothing here."""


def main() -> None:
    """Measure and write `results/peers.md`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["wrn-16-4", "preact_resnet18"], default=["wrn-16-4"])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--dry", action="store_true", help="print only, and leave the results as they are")
    given = parser.parse_args()
    load, left_out, tables = os.getloadavg()[0], {}, []
    for network in given.models:
        for threads in given.threads:
            torch.set_num_threads(threads)
            setting = Setting(network, images(4 * given.batch_size), given.batch_size)
            found, unit = measure(setting, given.rounds, left_out)
            title = f"## {network}, batch {given.batch_size}, {threads} thread{'s' if threads > 1 else ''}"
            table = [line for training, members in found.items() for line in rows(training, members)]
            tables += [title, "", f"A bare natural step takes {unit:.0f} ms (median).", "", *HEADER, *table, ""]
            print("\n".join(tables[-len(table) - 7 :]), flush=True)
    options = (
        f"--models {' '.join(given.models)} --batch-size {given.batch_size} --rounds {given.rounds} "
        f"--threads {' '.join(map(str, given.threads))}"
    )
    text = [
        "# Training steps of other libraries beside ours",
        "",
        f"`python benchmarks/peers.py {options}`, {datetime.date.today()}, {platform.machine()}, "
        f"{os.cpu_count()} shared cores",
        f"(load {load:.1f} at the beginning, {os.getloadavg()[0]:.1f} at the end), torch {torch.__version__}, fp32.",
        "Times are medians in bare natural steps (plain torch, fused SGD), each taken between two of them, all in one",
        "run; with one thread they are that thread's, which other work on the machine disturbs little, with two by the",
        "wall clock. `count` is what the passes cost by arithmetic. Asked: no slower than those that compute no weight",
        f"gradients in the attack, {WITH_WEIGHTS} times as fast as those that do.",
        "",
        *tables,
        EXTRA_WORK,
        "",
        *(f"Left out: {name}, which {why}." for name, why in left_out.items()),
        *filter(None, [trainer_of_robustness()]),
    ]
    if not given.dry:
        path = Path(__file__).parent / "results" / "peers.md"
        path.write_text("\n".join(text).rstrip("\n") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
