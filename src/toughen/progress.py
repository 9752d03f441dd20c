"""Where a run shows its progress: nowhere, as plain lines, or as one live line in a terminal.

with open_display() as display:
    display.progress({"step": 50, "loss": 2.1}, images_per_second=5000.0)
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Notice(UserWarning):
    """What the user should know before it is done, such as how much of the disk it takes; commands print it."""


class Display:
    """What a run tells its display; this one shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """End the display, also when the run fails."""

    def start(self, title: str, step: int, total: int) -> None:
        """What runs, the optimiser step it starts from, and the budget."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def progress(self, record: dict[str, Any], images_per_second: float) -> None:
        """A line of the log."""

    def validated(self, step: int, accuracies: dict[str, dict[str, float]]) -> None:
        """Clean and robust validation accuracy of each candidate."""


def batch_text(record: dict[str, Any]) -> str:
    """Loss and accuracies of a line of the log, short."""
    batch = [
        f"{key.removesuffix('_batch_accuracy')} {value:.1%} (batch)"
        for key, value in record.items()
        if key.endswith("_batch_accuracy")
    ]
    return ", ".join([f"loss {record['loss']:.3f}", *batch])


def selection_text(by: str | None) -> str:
    """By what a run's best weights are chosen; None, which runs of earlier versions have, for the first rule."""
    return str(by).replace("_", " ") if by else "robust accuracy, the earliest of equals"


def validation_text(accuracies: dict[str, dict[str, float]]) -> str:
    """Validation accuracies of each candidate, short."""
    return "; ".join(
        f"{name}: clean {found['clean_accuracy']:.1%}, robust {found['robust_accuracy']:.1%}"
        for name, found in accuracies.items()
    )


class PlainDisplay(Display):
    """Plain lines, one at most every `seconds`, for logs and pipes."""

    def __init__(self, console: Console, seconds: float = 10.0):
        self._console, self._every = console, seconds
        self._last = self._started = time.monotonic()
        self._first = self._total = 0

    def start(self, title: str, step: int, total: int) -> None:
        """One line."""
        self._last = self._started = time.monotonic()
        self._first, self._total = step, total
        self.note(title + (f"; going on at step {step}" if step else ""))

    def note(self, text: str) -> None:
        """One line."""
        self._console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def progress(self, record: dict[str, Any], images_per_second: float) -> None:
        """One line, if the last is long enough ago."""
        now, step = time.monotonic(), record["step"]
        if now - self._last < self._every and step < self._total:
            return
        self._last = now
        left = (now - self._started) / max(1, step - self._first) * (self._total - step)
        told = f"step {step}/{self._total}: {batch_text(record)}, {images_per_second:.0f} images/s"
        self.note(told + (f"; {forecast(left)}" if step < self._total else ""))

    def validated(self, step: int, accuracies: dict[str, dict[str, float]]) -> None:
        """One line."""
        self.note(f"step {step}/{self._total}: validation {validation_text(accuracies)}")


class LiveDisplay(Display):
    """One line that changes in place, and a line that stays for each validation."""

    def __init__(self, console: Console):
        self._lines = PlainDisplay(console)
        self._bar = Progress(
            TextColumn("{task.completed}/{task.total}"),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Take the live line away."""
        self._bar.stop()

    def start(self, title: str, step: int, total: int) -> None:
        """The title stays above the live line."""
        self._lines.start(title, step, total)
        self._task = self._bar.add_task("starting", total=total, completed=step)

    def note(self, text: str) -> None:
        """A line that stays."""
        self._lines.note(text)

    def progress(self, record: dict[str, Any], images_per_second: float) -> None:
        """Change the live line."""
        assert self._task is not None
        text = escape(f"{batch_text(record)}, {images_per_second:.0f} images/s")
        self._bar.update(self._task, completed=record["step"], description=text)

    def validated(self, step: int, accuracies: dict[str, dict[str, float]]) -> None:
        """A line that stays."""
        self._lines.validated(step, accuracies)


def open_display(console: Console | None = None) -> Display:
    """The display that fits where the output goes."""
    console = console or Console()
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(console)


EvaluationStatus = tuple[str, int, int, float, float | None, int, int]
"""Of an evaluation: the attack, examples done and attempted, accuracy so far, seconds left in all if known, and which
of how many attacks it is."""


@contextmanager
def watching(console: Console) -> Iterator[Callable[[EvaluationStatus], None]]:
    """Shows the status of an evaluation: one live line in a terminal, else a line at most every half minute."""
    if not console.is_terminal:
        line = _line_printer(console)
        yield lambda status: line(_status_text(status), False)
        return
    with Progress(TextColumn("{task.description}"), console=console, transient=True) as bar:
        task = bar.add_task("starting")
        yield lambda status: bar.update(task, description=escape(_status_text(status)))


def _status_text(status: EvaluationStatus) -> str:
    attack, done, attempted, accuracy, seconds_left, number, total = status
    left = f"; {forecast(seconds_left)}" if seconds_left else ""
    return f"{attack} ({number} of {total}): {done} of {attempted} examples done, accuracy {accuracy:.1%} so far{left}"


@contextmanager
def counting(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Shows how far a piece of work is: a bar in a terminal, else a line at most every half minute, and at the end."""
    if not console.is_terminal:
        line = _line_printer(console)
        yield lambda what, done, total: line(f"{what} {done} of {total} images", done == total)
        return
    columns = TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def move(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield move


def _line_printer(console: Console, seconds: float = 30.0) -> Callable[[str, bool], None]:
    """Prints a line at most every so many seconds, or at once if it is the last."""
    before = time.monotonic()

    def line(text: str, last: bool) -> None:
        nonlocal before
        if last or time.monotonic() - before >= seconds:
            before = time.monotonic()
            console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

    return line


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def forecast(seconds: float) -> str:
    """What is left, as exact as a forecast is: "about 40 s left", "about 12 min left"."""
    if seconds < 90:
        return f"about {math.ceil(seconds)} s left"
    return f"about {seconds / 60:.0f} min left" if seconds < 5400 else f"about {seconds / 3600:.1f} h left"
