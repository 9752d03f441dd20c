"""Every goal of reliability in full: kills, signals, damage, full disks, hostile files, fuzz, seeded bugs; and cost.

    make faults                                  # about an hour on two cores, and three for the suite twenty times
    python benchmarks/faults.py --only "1 exact resume" "overhead"
    python benchmarks/faults.py --only suite     # another twenty times; each counts as soon as it has ended

The trials are those of the tests marked `faults`, more of them; a goal whose test fails is written down as failed. Then
what checkpoints cost a WRN-28-10: the time that training waits for one, and that of hashing and writing beside it.
Last the whole suite again and again: a test that fails once in twenty times is a fault of the test, or of ours.
Writes `results/faults.md`, in which goals that were not asked for stay as they are in `results/faults.json`.
"""

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from toughen.data import ImageData, Split
from toughen.data.dataset_card import DatasetCard
from toughen.noise import generator
from toughen.recipes.text import build
from toughen.training import checkpointer as outputs_module
from toughen.training.catastrophic_overfitting import OverfittingMonitor
from toughen.training.checkpointer import Checkpointer
from toughen.training.loop import train_batch
from toughen.training.setup import set_up

ROOT = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).resolve().parent / "results" / "faults.md"
FIGURES = RESULT.with_suffix(".json")
GOALS = {
    "1 exact resume": ["tests/training/test_kills.py"],
    "2 stop signals": ["tests/training/test_kills.py", "tests/training/test_restarts.py"],
    "3 damage": ["tests/storage/test_damage.py"],
    "4 disk": ["tests/training/test_disk.py"],
    "5 malicious files": ["tests/test_hostile.py"],
    "6 fuzz": ["tests/recipes/test_fuzz_recipes.py", "tests/cli/test_fuzz_commands.py"],
    "7 ranks": ["tests/training/test_restarts.py", "tests/test_noise.py"],
    "8 non-finite values": ["tests/training/test_non_finite.py"],
    "9 data faults": ["tests/data/loading/test_workers.py"],
    "11 long runs": ["tests/training/test_long_run.py"],
    "12 the tests can fail": ["tests/test_seeded_bugs.py"],
    # Everywhere else: the forms, seeds and sizes that `make test` leaves out.
    "14 every form": ["tests"],
}
OTHERS = ["overhead", "suite"]
BATCH = 8
"""Of the step that checkpoints are compared with; at 128 it takes sixteen times as long, and a checkpoint does not."""
SAVE_EVERY = 500
TIMES = 20
"""That the suite is run."""


def trials(path: str) -> tuple[dict[str, list[str]], str]:
    """What was measured for each goal by a test file, and how it ended."""
    measured = defaultdict(list)
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as figures:
        command = [sys.executable, "-m", "pytest", "-m", "faults", "--full-faults", figures.name, path]
        command += [f"--ignore={other}" for paths in GOALS.values() for other in paths if other.startswith(f"{path}/")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        started = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        said = re.findall(r"^.*\b(?:passed|failed|error)\b.*$", done.stdout, re.M)
        # As CI asks for quiet, pytest says nothing more where all is well.
        how = said[-1] if said else "all passed" if done.returncode == 0 else done.stderr[-200:]
        if done.returncode:
            print(done.stdout[-3000:], flush=True)
        for line in Path(figures.name).read_text(encoding="utf-8").splitlines():
            found = json.loads(line)
            measured[found["goal"]].append(found["measured"])
    return measured, f"{how} ({time.monotonic() - started:.0f} s)"


def overhead(folder: Path) -> list[str]:
    """What saving costs a WRN-28-10 with momentum and one average."""
    pixels = torch.randint(0, 256, (64, 3, 32, 32), generator=generator("faults"), dtype=torch.uint8)
    split = Split(pixels, torch.arange(64) % 10)
    data = ImageData("random", split, None, split, tuple("0123456789"))
    asked = {"data": {"source": "random", "pad": 4, "flip": True}, "model": "wrn-28-10", "threat": "linf:8/255"}
    asked |= {"method": "natural", "batch_size": BATCH, "steps": 10**6, "averages": [0.995]}
    recipe = build({**asked, "optimizer": {"lr": 0.01}})
    job, batches = set_up(recipe, data, split, torch.arange(64), torch.device("cpu"))
    about, watch = (
        DatasetCard.of(data, trained=64, validated=0),
        OverfittingMonitor.over(recipe, job.method, split, torch.device("cpu")),
    )
    steps, waits, writes = [], [], []
    original = outputs_module.save_checkpoint

    def timed(*given: object, **more: object) -> Path:
        started = time.thread_time()
        try:
            return original(*given, **more)  # pyright: ignore[reportArgumentType]
        finally:
            writes.append(time.thread_time() - started)

    outputs_module.save_checkpoint = timed
    with Checkpointer(folder, None, about, None, watch, recipe.selected_by, print) as outputs:
        from toughen.storage.files import Log

        outputs.logs = Log.resume(folder / "a.jsonl", 0), Log.resume(folder / "b.jsonl", 0)
        for number in range(4):
            started = time.perf_counter()
            train_batch(job, batches[number])
            steps.append(time.perf_counter() - started)
            started = time.perf_counter()
            outputs.save(job, winners=["weights"], slots=BATCH)
            waits.append(time.perf_counter() - started)
            outputs.settle()
    outputs_module.save_checkpoint = original
    size = sum(file.stat().st_size for file in next((folder / "checkpoints").glob("step-*")).iterdir())
    step, wait, write = map(statistics.median, (steps[1:], waits[1:], writes[1:]))
    share = (wait + write) / (SAVE_EVERY * step)
    return [
        f"WRN-28-10, {size / 1e6:.0f} MB a checkpoint (weights, momentum, an average, best weights): training waits "
        f"{wait:.2f} s for the copies; serialising, hashing, writing and reading back take {write:.2f} s of the "
        f"processor beside it. A natural step at batch {BATCH} takes {step:.2f} s, so {SAVE_EVERY} steps, the default "
        f"interval, {SAVE_EVERY * step:.0f} s: {share:.2%} in all ({wait / (SAVE_EVERY * step):.3%} of it waiting), "
        f"{'within' if share <= 0.02 else 'ABOVE'} 2 %",
    ]


def repeat() -> None:
    """The whole suite, `TIMES` times; what failed in each."""
    for _ in range(TIMES):
        load, started = os.getloadavg()[0], time.monotonic()
        command = [sys.executable, "-m", "pytest", "-n", "2"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.M)
        if done.returncode and not failed:
            failed = [f"exit code {done.returncode}"]
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        run = {"commit": commit.stdout.strip(), "seconds": round(time.monotonic() - started), "failed": failed}
        print(f"suite: {run}", flush=True)
        runs = [*figures().get("suite", {}).get("runs", []), run]
        note("suite", {"12 the tests can fail": [in_a_row(runs)]}, f"{len(runs)} runs", load, runs=runs)


def in_a_row(runs: list[dict[str, Any]]) -> str:
    """How often the suite has passed since it last failed, and what had failed before."""
    bad = [place for place, run in enumerate(runs) if run["failed"]]
    good = runs[bad[-1] + 1 :] if bad else runs
    seconds, commits = [run["seconds"] for run in good], list(dict.fromkeys(run["commit"] for run in good))
    names = ", ".join(f"`{name}`" for place in bad for name in runs[place]["failed"])
    before = f"; of {len(runs) - len(good)} runs before that {len(bad)} failed: {names}" if bad else ""
    took = f", in {min(seconds)} to {max(seconds)} s" if seconds else ""
    return f"The whole suite {len(good)} times in a row without a failure{took} ({', '.join(commits)}){before}"


def main() -> None:
    """Run the trials and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*GOALS, *OTHERS], default=[*GOALS, *OTHERS])
    given = parser.parse_args()
    for path in dict.fromkeys(path for goal in given.only if goal in GOALS for path in GOALS[goal]):
        load = os.getloadavg()[0]
        measured, ended = trials(path)
        print(f"{path}: {ended}", flush=True)
        note(path, measured, ended, load)
    if "overhead" in given.only:
        load = os.getloadavg()[0]
        with tempfile.TemporaryDirectory() as folder:
            note("overhead", {"13 overhead": overhead(Path(folder))}, "", load)
    if "suite" in given.only:
        repeat()


def figures() -> dict[str, dict[str, Any]]:
    """What was measured so far, by test file."""
    return json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}


def note(path: str, measured: dict[str, list[str]], ended: str, load: float, **more: Any) -> None:
    """Put the figures of a test file in the place of its earlier ones."""
    with FileLock(Path(tempfile.gettempdir()) / "toughen-faults.lock"):
        now = {"measured": measured, "ended": ended, "date": str(datetime.date.today()), "load": load}
        write(figures() | {path: now | more})


def write(known: dict[str, dict[str, Any]]) -> None:
    """The figures so far, as data and as text."""
    FIGURES.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    goals = defaultdict(list)
    for found in known.values():
        for goal, sentences in found["measured"].items():
            goals[goal] += sentences
    text = [
        "# A run that nothing can spoil: what was tried and what came of it",
        "",
        f"`make faults`, {platform.machine()}, {os.cpu_count()} shared cores, torch {torch.__version__}. Goals are",
        "numbered as in the issue; dates and loads are below.",
        "",
    ]
    for goal in sorted(goals, key=lambda goal: int(goal.split()[0])):
        text += [f"## {goal}", "", *(f"- {sentence}." for sentence in goals[goal]), ""]
    text += [
        "## How the tests ended",
        "",
        "| tests | in full | date | load at the beginning |",
        "| --- | --- | --- | ---: |",
    ]
    for path, found in sorted(known.items()):
        text += [f"| `{path}` | {found['ended']} | {found['date']} | {found['load']:.1f} |"]
    RESULT.write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
