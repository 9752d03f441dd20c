"""A study: measured and published figures, cost, and whether to believe the measured ones.

Example:
    console.print(render(describe_study(collect(StudyFolder(folder)))))
"""

import re
from collections.abc import Mapping
from typing import Any

from toughen.progress import duration
from toughen.report.alarms import overfitting_text
from toughen.report.blocks import Block, JsonObject, Paragraph, Table, TableCell
from toughen.report.csv import csv_text

STATE_TONES = {"failed": "bad", "faulty": "bad", "done": "good"}
CSV_COLUMNS = (
    *("row", "column", "seed", "checkpoint", "measured", "low", "high", "std", "trainings", "unit", "published"),
    *("published_id", "difference", "unreliable", "findings", "state", "alarms"),
    *("steps", "forwards", "backwards", "minutes", "device"),
)


def measured_columns(found: JsonObject) -> list[str]:
    """Those of a study's columns that any row has."""
    return [key for key in found["columns"] if any(key in row["figures"] for row in found["rows"].values())]


def study_table(key: str, found: JsonObject, targets: Mapping[str, str]) -> Table:
    """Rows by columns for a page, with the audit's verdict, the state and the runs behind each row.

    Args:
        key: see `Table`.
        found: what `toughen.studies.results.collect` returns.
        targets: for a run's path in the study's folder, its place on the page.
    """
    shown = measured_columns(found)
    table = Table(key, str(found["title"]), ("row", *shown, "weights", "natural steps", "audit", "state", "runs"))
    for row in found["rows"].values():
        first = next((targets[path] for path in row["counted"] if path in targets), "")
        table.add(
            TableCell(str(row["label"]), target=first),
            *(_figure(row["figures"].get(column)) for column in shown),
            "\n".join(weights_text(row, of_all=len(row["weights"]) == 1)),
            _cost(row["cost"]),
            _verdict(row),
            _state(row),
            TableCell(", ".join(row["counted"]), target=first),
        )
    table.data = study_csv(found)
    table.note = (
        "Measured; below it the 95 % interval, or the sample standard deviation over trainings, the published value, "
        "and in brackets the difference to it."
    )
    return table


def weights_text(row: JsonObject, *, of_all: bool) -> list[str]:
    """Which weights a row's figures are of, a line each; with the columns unless these are all."""
    lines = []
    for weights in row["weights"]:
        by = f" by {weights['selected_by']}" if weights["selected_by"] else ""
        at = f", step {', '.join(f'{step:,}' for step in weights['steps'])}" if weights["steps"] else ""
        lines.append(f"{weights['checkpoint']}{by}{at}" + ("" if of_all else f" ({', '.join(weights['columns'])})"))
    return lines


def describe_study(found: JsonObject) -> list[Block]:
    """Rows by columns as narrow as a terminal needs them, then the alarms, findings and notes of each row."""
    shown = measured_columns(found)
    columns = ("row", *shown, "steps", "passes", "time")
    table = Table("study", f"{found['title']} · scale {found['scale']}", columns, data=study_csv(found))
    lines: list[Block] = []
    weights: list[str] = []
    for name, row in found["rows"].items():
        state, cost = row["state"], row["cost"]
        kept = "/".join(weights["checkpoint"] for weights in row["weights"])
        label = TableCell(row["label"], tone=STATE_TONES.get(state, "dim"), below=f"{kept}\n{state}".strip())
        label = TableCell(row["label"], below=kept) if state == "done" else label
        spent = [""] * 3
        if cost is not None:
            passes = TableCell.number(cost["forwards"], below=f"{cost['backwards']:,}")
            time = TableCell.number(cost["minutes"], duration(60 * cost["minutes"]), below=cost["device"])
            spent = [cost["steps"], passes, time]
        table.add(label, *(_figure(row["figures"].get(key), mark=" !") for key in shown), *spent, rule=True)
        codes = sorted({code for figure in row["figures"].values() for code in figure.get("findings") or ()})
        measured = [f"{name}: {text}" for text in weights_text(row, of_all=len(row["weights"]) == 1)]
        bad = [f"{name} {state}: {row['reason']}"] if row["reason"] else []
        bad += [f"{name}: {said}"] if (said := overfitting_text(row["alarms"])) else []
        bad += [f"{name}: the audit found {', '.join(codes)}"] if codes else []
        lines += [*(Paragraph(text, "bad") for text in bad), *(Paragraph(f"{name}: {note}") for note in row["notes"])]
        weights += [text for text in measured if row["cost"]]
    lines += map(Paragraph, [*found["notes"], *(["weights measured: " + "; ".join(weights)] if weights else [])])
    legend = (
        "measured, [95 % interval] or ± sample standard deviation over n trainings, as published (difference); "
        "! audit found something; passes forward, backward; best in validation or last weights"
    )
    return [table, Paragraph(legend, ""), *lines]


def _figure(figure: JsonObject | None, mark: str = "") -> TableCell:
    """What was measured, its spread, and the published value with the difference to it.

    Args:
        figure: of one row in one column.
        mark: after what was measured, where the audit found something.
    """
    if figure is None:
        return TableCell("")
    lines = [_spread(figure)]
    if (published := figure["published"]) is not None:
        deviation = f" ± {_printed(published, 'std')}" if published["std"] is not None else ""
        lines.append(f"paper {_printed(published)}{deviation}{_unit(published)}")
        lines.append(f"({figure['difference']:+.1f})" if figure.get("difference") is not None else "")
    below = "\n".join(filter(None, lines))
    if figure["measured"] is None:
        return TableCell("-", below=below, tone="dim")
    unreliable = figure["unreliable"]
    text = _number(figure["measured"], figure["unit"]) + (mark if unreliable else "")
    return TableCell.number(figure["measured"], text, below=below, tone="bad" if unreliable else "")


def _spread(figure: JsonObject) -> str:
    if figure.get("interval"):
        return f"[{figure['interval'][0]:.1f}, {figure['interval'][1]:.1f}]"
    return f"± {figure['std']:.2f} (n = {figure['n']})" if figure.get("std") is not None else ""


def _number(value: float, unit: str) -> str:
    if unit == "minutes":
        return duration(60 * value)
    return f"{value:.1f}" if unit == "%" else f"{value:.4g}"


def _cost(cost: JsonObject | None) -> TableCell:
    if cost is None:
        return TableCell("-")
    passes = f"{cost['forwards']:,} forward\n{cost['backwards']:,} backward"
    below = f"{passes}\n{cost['steps']:,} steps\n{duration(60 * cost['minutes'])}, {cost['device']}"
    return TableCell.number(cost["natural_steps"], f"{cost['natural_steps']:,.0f}", below=below)


def _verdict(row: JsonObject) -> TableCell:
    """What the audits of a row's evaluations found, and in which columns; "nothing found" only where there was one."""
    figures = {key: figure for key, figure in row["figures"].items() if figure["measured"] is not None}
    found: dict[str, list[str]] = {}
    for key, figure in figures.items():
        for code in figure["findings"] or ():
            found.setdefault(code, []).append(key)
    if found:
        below = "\n".join(f"{code} in {', '.join(keys)}" for code, keys in found.items())
        return TableCell("unreliable", below=below, tone="bad")
    if any(figure["findings"] is not None for figure in figures.values()):
        return TableCell("nothing found", tone="good")
    return TableCell("not audited", tone="dim") if figures else TableCell("-")


def _state(row: JsonObject) -> TableCell:
    """State and reason, and below them which trainings overfitted: by name, unless it is the one that counts."""
    raised: dict[str, list[JsonObject]] = {}
    for alarm in row["alarms"]:
        raised.setdefault(alarm["run"], []).append(alarm)
    said = [
        overfitting_text(alarms) if row["counted"] == [run] else f"{run} {overfitting_text(alarms)}"
        for run, alarms in raised.items()
    ]
    counts = any(run in row["counted"] for run in raised)
    below = "\n".join([*filter(None, [str(row["reason"] or "")]), *said])
    return TableCell(
        str(row["state"]), below=below, tone="bad" if counts else STATE_TONES.get(str(row["state"]), "dim")
    )


def study_csv(found: JsonObject) -> str:
    """One line for each figure of a study as CSV, and where a row has several trainings one for each of them too."""
    lines = []
    for name, row in found["rows"].items():
        cost = row["cost"] or {}
        spent = [cost.get(key) for key in ("steps", "forwards", "backwards", "minutes", "device")]
        alarms = " ".join(f"{alarm['code']}@{alarm['step']}" for alarm in row["alarms"])
        for key, figure in row["figures"].items():
            published, each = figure["published"] or {}, figure.get("each") or []
            values = [figure.get("std"), figure["n"], figure.get("unit"), _printed(published), published.get("id")]
            values += [figure.get("difference"), *_found(figure), row["state"], alarms]
            seed = each[0]["seed"] if len(each) == 1 else "mean" if each else None
            measured = [figure["measured"], *_bounds(figure)]
            lines.append((name, key, seed, figure["checkpoint"], *measured, *values, *spent))
            for one in each if len(each) > 1 else ():
                values = [None, 1, one["unit"], None, None, None, *_found(one), row["state"], None]
                lines.append((name, key, one["seed"], figure["checkpoint"], one["value"], *_bounds(one), *values))
    return csv_text(CSV_COLUMNS, ((*line, *[None] * (len(CSV_COLUMNS) - len(line))) for line in lines))


def _bounds(figure: JsonObject) -> Any:
    return figure.get("interval") or (None, None)


def _found(figure: JsonObject) -> list[Any]:
    """Whether it is unreliable, and its findings: nothing where there was no audit, which is not nothing found."""
    codes = figure.get("findings")
    return [figure.get("unreliable"), None if codes is None else " ".join(codes) or "none"]


def _printed(published: JsonObject, which: str = "value") -> str | None:
    """A published number, or its deviation, with the digits that the paper printed."""
    value = published.get(which)
    if value is None:
        return None
    # Of what was misread the raw text holds no such number; the papers print two decimals of percentages there.
    percent = published.get("unit") == "%"
    as_printed = {value} if percent else {value, value / 60}
    misread = f"{value:.2f}" if percent else f"{value:g}"
    return next((text for text in _numbers(published) if float(text) in as_printed), misread)


def _unit(published: JsonObject) -> str:
    """After a printed number; a table of times is in minutes or in hours."""
    if published["unit"] != "minutes":
        return ""
    return " min" if published["value"] == float(_printed(published) or 0) else " h"


def _numbers(published: JsonObject) -> list[str]:
    return re.findall(r"[0-9]+(?:[.][0-9]+)?", str(published.get("raw", "")).replace(",", ""))
