"""How far a study is, from what lies in its folder: one table, live in a terminal. No torch.

with watching(folder, Console()) as watch:
    run_here(folder, jobs=2, watch=watch)
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from toughen.errors import Option
from toughen.studies.folder import MEASURE, TRAIN, StudyFolder, StudyTask

TAIL = 4096
"""Bytes at the end of a log in which its last line stands."""


def status_table(folder: StudyFolder) -> Group:
    """One line a row: its trainings, its figures, and what is wrong."""
    asked = folder.asked
    table = Table(title=Text(f"{asked['title']} · scale {asked['scale']}"))
    for column in ("row", "training", "figures", "state"):
        table.add_column(column)
    for name, row in folder.rows.items():
        table.add_row(
            Text(row["label"]), Text(_trainings(folder, row)), Text(_figures(folder, name)), _state(folder, name)
        )
    return Group(table, Text(summary(folder)))


def summary(folder: StudyFolder) -> str:
    """How far a study is, in one line."""
    tasks = folder.tasks()
    done = sum(folder.done(task) for task in tasks)
    failed = [str(task) for task in tasks if folder.failure(task)]
    faulty = [name for name, row in folder.rows.items() if row["error"]]
    line = f"{done} of {len(tasks)} tasks done"
    line += f"; failed: {', '.join(failed)} ({Option('retry', True).shell} tries again)" if failed else ""
    return line + (f"; rows with a fault: {', '.join(faulty)}" if faulty else "")


def _trainings(folder: StudyFolder, row: Any) -> str:
    parts = []
    for training in row["trainings"]:
        total = folder.asked["trainings"][training]["steps"]
        done = folder.done(StudyTask(TRAIN, training))
        parts.append(f"{total} steps" if done else f"{last_step(folder.run(training))}/{total}")
    return ", ".join(parts)


def last_step(run: Path) -> int:
    """The last optimiser step that a run has logged."""
    try:
        with (run / "timing.jsonl").open("rb") as log:
            log.seek(0, 2)
            log.seek(max(0, log.tell() - TAIL))
            lines = log.read().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError, RecursionError):
            # A line that is being written.
            continue
    return 0


def _figures(folder: StudyFolder, name: str) -> str:
    row, counted = folder.rows[name], folder.counted(name)
    places = {measure["folder"] for measure in row["measures"].values() if measure["folder"]}
    if not counted:
        return f"0/{len(places)}" if row["trainings"] else ""
    found = sum(
        (folder.run(training) / "evaluation" / place / "result.json").is_file()
        for training in counted
        for place in places
    )
    return f"{found}/{len(places) * len(counted)}"


def _state(folder: StudyFolder, name: str) -> Text:
    row = folder.rows[name]
    if row["error"]:
        return Text(row["error"], style="bold red")
    tasks = [*(StudyTask(TRAIN, training) for training in row["trainings"]), StudyTask(MEASURE, name)]
    for task in tasks:
        if failure := folder.failure(task):
            return Text(failure["reason"], style="bold red")
    if all(folder.done(task) for task in tasks):
        return Text("done", style="green")
    busy = next((task for task in tasks if folder.is_claimed(task)), None)
    return Text("" if busy is None else "training" if busy.kind == TRAIN else "measuring", style="cyan")


@contextmanager
def showing_status(folder: StudyFolder, console: Console) -> Iterator[Callable[[], None]]:
    """Shows how far a study is: a live table in a terminal, else a line when a task is done, or each half minute."""
    if console.is_terminal:
        with Live(status_table(folder), console=console, refresh_per_second=2, transient=True) as live:
            yield lambda: live.update(status_table(folder))
        return
    last, shown = time.monotonic(), ""

    def line() -> None:
        nonlocal last, shown
        text = summary(folder)
        if text != shown or time.monotonic() - last >= 30:
            last, shown = time.monotonic(), text
            console.print(text, markup=False, highlight=False, soft_wrap=True)

    yield line
