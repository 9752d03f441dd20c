"""A study's table for the terminal and as CSV: measured beside published, what it cost, and whether to believe it.

Example:
    console.print(study_table(collect(StudyFolder(folder))))
"""

import csv
import io
from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from toughen.display import duration

Record = Mapping[str, Any]
STYLES = {"failed": "bold red", "faulty": "bold red", "running": "cyan", "waiting": "dim"}


def study_table(found: Record) -> Group:
    """Rows by columns: measured with interval or deviation, the published number below, then cost and state."""
    shown = [key for key in found["columns"] if any(key in row["figures"] for row in found["rows"].values())]
    table = Table(title=Text(f"{found['title']} · scale {found['scale']}"), show_lines=True)
    table.add_column("")
    for key in shown:
        table.add_column(Text(key), justify="right")
    table.add_column("cost", justify="right")
    for row in found["rows"].values():
        cells = [_cell(row["figures"].get(key)) for key in shown]
        table.add_row(_label(row), *cells, _cost(row["cost"]))
    lines: list[Text] = []
    for name, row in found["rows"].items():
        if row["reason"]:
            lines.append(Text(f"{name} {row['state']}: {row['reason']}", style="bold red"))
        lines += [Text(f"{name}: {note}", style="dim") for note in row["notes"]]
    lines += [Text(note, style="dim") for note in found["notes"]]
    return Group(
        table, Text("measured [95 % interval], below it as published (difference); ! audit found something"), *lines
    )


def _label(row: Record) -> Text:
    state = row["state"]
    return Text(row["label"] + ("" if state == "done" else f"\n{state}"), style=STYLES.get(state, ""))


def _cell(figure: Record | None) -> Text:
    if figure is None:
        return Text("")
    published = figure["published"]
    beside = "" if published is None else f"\n{_number(published['value'], published['unit'])}"
    if published is not None and published["std"] is not None:
        beside += f" ± {published['std']:.2f}"
    if figure["measured"] is None:
        return Text(f"-{beside}", style="dim")
    text = _number(figure["measured"], figure["unit"])
    if figure["interval"]:
        text += f" [{figure['interval'][0]:.1f}, {figure['interval'][1]:.1f}]"
    elif figure["std"] is not None:
        text += f" ± {figure['std']:.2f} (n = {figure['n']})"
    if (difference := figure.get("difference")) is not None:
        beside += f" ({difference:+.1f})"
    return Text(f"{text}{' !' if figure['unreliable'] else ''}{beside}")


def _number(value: float, unit: str) -> str:
    if unit == "minutes":
        return duration(60 * value)
    return f"{value:.1f}" if unit == "%" else f"{value:.4g}"


def _cost(cost: Record | None) -> str:
    if cost is None:
        return ""
    passes = f"{cost['forwards']:,} fwd, {cost['backwards']:,} bwd"
    return f"{cost['steps']:,} steps\n{passes}\n{duration(60 * cost['minutes'])}, {cost['device']}"


def study_csv(found: Record) -> str:
    """One line a figure. What a spreadsheet would take for a formula is quoted."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = ("row", "column", "measured", "low", "high", "std", "trainings", "unit", "published", "published_id")
    writer.writerow(
        [*names, "difference", "unreliable", "state", "steps", "forwards", "backwards", "minutes", "device"]
    )
    for name, row in found["rows"].items():
        cost = row["cost"] or {}
        spent = [cost.get(key) for key in ("steps", "forwards", "backwards", "minutes", "device")]
        for key, figure in row["figures"].items():
            low, high = figure.get("interval") or (None, None)
            published = figure["published"] or {}
            values = [figure["measured"], low, high, figure.get("std"), figure["n"], figure.get("unit")]
            values += [published.get("value"), published.get("id"), figure.get("difference"), figure.get("unreliable")]
            writer.writerow([_plain(value) for value in (name, key, *values, row["state"], *spent)])
    return out.getvalue()


def _plain(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" else value
