"""What `toughen label` did, for the terminal, from the manifest in the folder of an extra set.

Example:
    console.print(labelling_table(read_json(folder / "manifest.json")))
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from toughen.report.terminal.tables import Record, percent
from toughen.settings import format_number


def labelling_table(manifest: Record) -> Group:
    """Each class's images and least score in every set, then what was left out and what to look at."""
    asked, pool, alike = manifest["request"], manifest["pool"], manifest["perceptual"]
    table = Table(title=Text(f"extra set from {pool['images']} images"))
    table.add_column("class")
    table.add_column("candidates", justify="right")
    for found in manifest["sets"]:
        table.add_column(f"of {found['count']}", justify="right")
        table.add_column("least score", justify="right")
    for name, row in manifest["classes"].items():
        cells = [str(row["candidates"])]
        for found in manifest["sets"]:
            of_class = found["classes"][name]
            quantiles = of_class["score_quantiles"]
            short = f" ({of_class['missing']} missing)" if "missing" in of_class else ""
            cells += [f"{of_class['chosen']}{short}", "-" if quantiles is None else f"{quantiles[0]:.4f}"]
        table.add_row(Text(name), *cells)
    totals = [cell for found in manifest["sets"] for cell in (str(found["chosen"]), "")]
    table.add_section()
    table.add_row("all", str(pool["candidates"]), *totals)
    lines = [
        f"{pool['removed_within_threshold']} images ({percent(pool['removed_within_threshold'] / pool['images'])}) are "
        f"within {format_number(asked['threshold'])} of a test image and were left out, {pool['exact_copies']} of them "
        "exact copies",
        f"{alike['images']} look like a test image (correlation of {alike['bound']:g} or more), {alike['mirrored']} of "
        f"them mirrored; {alike['chosen']} of these were chosen: see perceptual.parquet",
    ]
    if asked["foreign"]:
        lines.append(f"{pool['foreign']} are foreign to the scorer and were left out")
    kind = "probabilities" if asked["labels"] == "probabilities" else "class indices"
    agrees = manifest["labeller_agrees"]
    second = "" if agrees is None else f", which agrees with the scorer on {percent(agrees)}"
    lines.append(f"labels: {kind} by the {manifest['labelled_by']}{second}")
    return Group(table, *(Text(line) for line in lines), *map(_warning, filter(_short, manifest["sets"])))


def _short(found: Record) -> bool:
    return found["missing"] > 0


def _warning(found: Record) -> Text:
    names = ", ".join(name for name, row in found["classes"].items() if "missing" in row)
    return Text(
        f"The set of {found['count']} holds {found['chosen']} images: too few candidates for {names}", style="bold red"
    )


@contextmanager
def counting(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Shows how far a piece of work is: a bar in a terminal, else a line at most every half minute, and at the end."""
    if console.is_terminal:
        columns = TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console, transient=True) as bar:
            tasks = {}

            def move(what: str, done: int, total: int) -> None:
                if what not in tasks:
                    tasks[what] = bar.add_task(what, total=total)
                bar.update(tasks[what], completed=done)

            yield move
        return
    last = time.monotonic()

    def line(what: str, done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last >= 30:
            last = time.monotonic()
            console.print(f"{what} {done} of {total} images", markup=False, highlight=False, emoji=False)

    yield line
