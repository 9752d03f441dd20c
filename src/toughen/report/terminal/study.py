"""A study's table for the terminal and as CSV: measured beside published, what it cost, and whether to believe it.

Example:
    console.print(study_table(collect(StudyFolder(folder))))
"""

import csv
import io
from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.text import Text

from toughen.progress import duration
from toughen.report.alarms import overfitted
from toughen.report.blocks import quoted
from toughen.report.terminal.fitted_table import FittedColumn, FittedTable

Record = Mapping[str, Any]
CSV_COLUMNS = (
    *("row", "column", "measured", "low", "high", "std", "trainings", "unit", "published", "published_id"),
    *("difference", "unreliable", "findings", "state", "alarms"),
    *("steps", "forwards", "backwards", "minutes", "device"),
)
STYLES = {"failed": "bold red", "faulty": "bold red", "running": "cyan", "waiting": "dim"}


def study_table(found: Record) -> Group:
    """Rows by columns: measured with interval or deviation, the published number below, then cost and state."""
    shown = [key for key in found["columns"] if any(key in row["figures"] for row in found["rows"].values())]
    columns = [FittedColumn("row"), *(FittedColumn(key, numeric=True) for key in (*shown, "steps", "passes", "time"))]
    rows = [
        [_label(row), *(_cell(row["figures"].get(key)) for key in shown), *_cost(row["cost"])]
        for row in found["rows"].values()
    ]
    table = FittedTable(f"{found['title']} · scale {found['scale']}", columns, rows, lines=True)
    lines: list[Text] = []
    for name, row in found["rows"].items():
        if row["reason"]:
            lines.append(Text(f"{name} {row['state']}: {row['reason']}", style="bold red"))
        if said := overfitted(row["alarms"]):
            lines.append(Text(f"{name}: {said}", style="bold red"))
        if codes := sorted({code for figure in row["figures"].values() for code in figure.get("findings") or ()}):
            lines.append(Text(f"{name}: the audit found {', '.join(codes)}", style="bold red"))
        lines += [Text(f"{name}: {note}", style="dim") for note in row["notes"]]
    lines += [Text(note, style="dim") for note in found["notes"]]
    return Group(
        table,
        Text("measured, [95 % interval], as published (difference); ! audit found something; passes forward, backward"),
        *lines,
    )


def _label(row: Record) -> Text:
    state = row["state"]
    return Text(row["label"] + ("" if state == "done" else f"\n{state}"), style=STYLES.get(state, ""))


def _cell(figure: Record | None) -> Text:
    if figure is None:
        return Text("")
    lines = [_measured(figure), _spread(figure), _published(figure)]
    return Text("\n".join(filter(None, lines)), style="dim" if figure["measured"] is None else "")


def _measured(figure: Record) -> str:
    if figure["measured"] is None:
        return "-"
    return _number(figure["measured"], figure["unit"]) + (" !" if figure["unreliable"] else "")


def _spread(figure: Record) -> str:
    if figure.get("interval"):
        return f"[{figure['interval'][0]:.1f}, {figure['interval'][1]:.1f}]"
    return f"± {figure['std']:.2f} (n = {figure['n']})" if figure.get("std") is not None else ""


def _published(figure: Record) -> str:
    if (published := figure["published"]) is None:
        return ""
    text = f"paper {_number(published['value'], published['unit'])}"
    if published["std"] is not None:
        text += f" ± {published['std']:.2f}"
    return text + (f" ({figure['difference']:+.1f})" if figure.get("difference") is not None else "")


def _number(value: float, unit: str) -> str:
    if unit == "minutes":
        return duration(60 * value)
    return f"{value:.1f}" if unit == "%" else f"{value:.4g}"


def _cost(cost: Record | None) -> tuple[Text, Text, Text]:
    if cost is None:
        return Text(""), Text(""), Text("")
    passes = f"{cost['forwards']:,}\n{cost['backwards']:,}"
    return Text(f"{cost['steps']:,}"), Text(passes), Text(f"{duration(60 * cost['minutes'])}\n{cost['device']}")


def study_csv(found: Record) -> str:
    """One line a figure. What a spreadsheet would take for a formula is quoted."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for name, row in found["rows"].items():
        cost = row["cost"] or {}
        spent = [cost.get(key) for key in ("steps", "forwards", "backwards", "minutes", "device")]
        alarms = " ".join(f"{alarm['code']}@{alarm['step']}" for alarm in row["alarms"])
        for key, figure in row["figures"].items():
            low, high = figure.get("interval") or (None, None)
            published = figure["published"] or {}
            values = [figure["measured"], low, high, figure.get("std"), figure["n"], figure.get("unit")]
            values += [published.get("value"), published.get("id"), figure.get("difference"), figure.get("unreliable")]
            values += [_findings(figure), row["state"], alarms]
            writer.writerow([quoted(value) for value in (name, key, *values, *spent)])
    return out.getvalue()


def _findings(figure: Record) -> str | None:
    """Codes of what the audit found, or "none"; None where there was no audit."""
    codes = figure.get("findings")
    return None if codes is None else " ".join(codes) or "none"
