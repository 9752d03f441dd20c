"""How far a study is, from what lies in its folder: one table, live in a terminal. No torch.

with showing_status(folder, Console()) as watch:
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

from toughen.errors import Option
from toughen.report.blocks import Paragraph, Table, TableCell
from toughen.report.tables.study import STATE_TONES
from toughen.report.terminal.renderer import render
from toughen.studies.folder import TRAIN, StudyFolder, StudyTask, surrogates

TAIL = 4096
"""Bytes at the end of a log that hold its last line."""


def status_table(folder: StudyFolder) -> Group:
    """One line a row: its trainings, its figures, and what is wrong."""
    caption = f"{folder.asked['title']} · scale {folder.asked['scale']}"
    table = Table("status", caption, ("row", "training", "figures", "state"))
    for name, row in folder.rows.items():
        table.add(row["label"], _trainings(folder, row), _figures(folder, name), _state(folder, name))
    return render([table, Paragraph(summary(folder), "")])


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
    for training in (*row["trainings"], *surrogates(row)):
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


def _state(folder: StudyFolder, name: str) -> TableCell:
    state, what = folder.state(name)
    if state == "running":
        return TableCell("training" if what == TRAIN else "measuring", tone="busy")
    return TableCell({"done": "done", "waiting": ""}.get(state, str(what)), tone=STATE_TONES.get(state, ""))


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
