"""CIFAR-10's test set under all 19 corruptions at five severities: the table, and a mean that is the sum of its parts.

    python benchmarks/corrupted_cifar.py --data FOLDER RUN                   # 10,000 images, 95 conditions
    python benchmarks/corrupted_cifar.py --data FOLDER RUN --limit 1000

RUN is the folder of a run on CIFAR-10, such as that of `toughen train cifar10-natural-small`. Killed, the same command
goes on. Every mean is counted again from the rows of the parquet file, in whole numbers.
"""

import argparse
import datetime
import os
import platform
import time
from collections import Counter
from fractions import Fraction
from io import StringIO
from pathlib import Path

import pyarrow.parquet as pq
import torch
from rich.console import Console

from toughen.corruptions import CORRUPTIONS, MAIN
from toughen.data import load
from toughen.evaluation.corruption.evaluate import corruption_accuracy
from toughen.evaluation.corruption.result import CorruptionResult
from toughen.evaluation.time_left import Status
from toughen.report import render
from toughen.report.tables.corruptions import describe_corruptions
from toughen.workflows.run_folder import open_run


def check(folder: Path) -> str:
    """That every accuracy and both means of a result are what the rows beside it add up to."""
    found = CorruptionResult.read(folder)
    with pq.ParquetFile(folder / "examples.parquet") as file:
        columns = file.read().to_pydict()
    cells = list(zip(columns["corruption"], columns["severity"], strict=True))
    hits = [label == says for label, says in zip(columns["label"], columns["prediction"], strict=True)]
    rows, right = Counter(cells), Counter(cell for cell, hit in zip(cells, hits, strict=True) if hit)
    assert len(rows) == 96
    assert set(rows.values()) == {found.n}
    for name in CORRUPTIONS:
        for severity in range(1, 6):
            assert found.accuracy(name, severity) == right[name, severity] / found.n
    sums = []
    for names, mean in ((MAIN, found.mean(MAIN)), (CORRUPTIONS, found.mean(CORRUPTIONS))):
        parts = [Fraction(right[name, severity], found.n) for name in names for severity in range(1, 6)]
        assert mean == float(sum(parts) / len(parts))
        total = sum(right[name, severity] for name in names for severity in range(1, 6))
        sums.append(f"{total:,} of {len(parts) * found.n:,} over {len(names)}")
    return "; ".join(sums)


def main() -> None:
    """Measure and write `results/corrupted_cifar.md`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True, help="folder of CIFAR-10")
    parser.add_argument("--limit", type=int)
    arguments = parser.parse_args()
    test = load(arguments.data).test
    n = arguments.limit or len(test)
    test = test.take(torch.arange(n))
    run = open_run(arguments.run)
    folder = arguments.run / "evaluation" / f"corruptions_benchmark_n{n}"
    shown = 0.0

    def progress(now: Status) -> None:
        nonlocal shown
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            print(f"{now.attack}: {now.done} of {now.attempted}, accuracy {now.accuracy:.1%}", flush=True)

    found = corruption_accuracy(run.model, test, test.labels, folder=folder, progress=progress)
    sums = check(folder)
    console = Console(file=StringIO(), width=120)
    console.print(render(describe_corruptions(found.summary())))
    assert isinstance(console.file, StringIO)
    table = console.file.getvalue().rstrip()
    print(f"{table}\nas the rows add up: {sums}")
    text = [
        "# CIFAR-10 under common corruptions",
        "",
        f"`python benchmarks/corrupted_cifar.py --data FOLDER RUN{f' --limit {n}' if arguments.limit else ''}`, "
        f"{datetime.date.today()}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores shared with "
        f"other work, {torch.get_num_threads()} threads, torch {torch.__version__}.",
        f"RUN: {run.recipe.name}, {run.step} steps, {run.weights}. {n:,} test images, 95 conditions and the images",
        f"themselves: {96 * n:,} images made and classified in {found.seconds:.0f} s "
        f"({96 * n / found.seconds:.0f} a second).",
        "",
        f"Counted again from the rows of examples.parquet: {sums} correct, which are the means below.",
        "",
        "```",
        table,
        "```",
    ]
    path = Path(__file__).parent / "results" / "corrupted_cifar.md"
    path.write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
