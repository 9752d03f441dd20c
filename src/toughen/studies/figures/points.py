"""The points of a study's figure, from what lies in its folder at any time. No torch.

figure = collect_figure(folder, rows)            # None where the study names none
figure["panels"][0]["lines"][1]["points"][0]     # row, column, x, y, low, high, n, unreliable, published, mark
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from toughen.report.blocks import JsonObject
from toughen.storage import files
from toughen.studies.figures.planned import PlannedLine, PlannedPanel, PlannedPoint, read_figure
from toughen.studies.folder import StudyFolder


def collect_figure(folder: StudyFolder, rows: Mapping[str, JsonObject]) -> dict[str, Any] | None:
    """What is drawn, as far as it is measured.

    Args:
        folder: of the study.
        rows: as `results.collect` returns them.

    Returns:
        Title and panels, these with their lines and level lines, each with its label and points; lines without a point
        are left out. Accuracies are in per cent; a point's `low` and `high` are the deviation over trainings or else a
        95 % interval, and `published` is the pair of published figures.

    Raises:
        ValueError: the file is none of toughen's.
    """
    figure = read_figure(folder.path)
    if figure is None:
        return None
    return {"title": figure.title, "panels": [_panel(folder, rows, panel) for panel in figure.panels]}


def _panel(folder: StudyFolder, rows: Mapping[str, JsonObject], panel: PlannedPanel) -> dict[str, Any]:
    def told(line: PlannedLine) -> dict[str, Any]:
        if panel.kind == "step":
            return {"label": line.label, "points": _curve(folder, rows, line.points)}
        found = [one for point in line.points if (one := _point(rows, point, panel.x_column))]
        # The points of a line are joined, from left to right where x is a number.
        return {"label": line.label, "points": sorted(found, key=lambda one: one["x"]) if sortable else found}

    def level(line: PlannedLine) -> dict[str, Any]:
        return {"label": line.label, "points": [one for point in line.points if (one := _point(rows, point))]}

    sortable = panel.kind == "number"
    lines, levels = map(told, panel.lines), map(level, panel.level)
    kept = ("title", "kind", "categories", "x_label", "y_label", "log")
    return {
        **{key: getattr(panel, key) for key in kept},
        "lines": [line for line in lines if line["points"]],
        "level": [line for line in levels if line["points"]],
    }


def _point(rows: Mapping[str, JsonObject], point: PlannedPoint, x_column: str = "") -> dict[str, Any] | None:
    """A point as it is measured, if it is; on x what `x_column` is, or what the plan says."""
    figures = rows.get(point.row, {}).get("figures", {})
    figure, across = figures.get(point.column), figures.get(x_column)
    if figure is None or figure["measured"] is None or (x_column and (across is None or across["measured"] is None)):
        return None
    low, high = _bounds(figure)
    return {
        "row": point.row,
        "column": point.column,
        "x": point.x if across is None else across["measured"],
        "y": figure["measured"],
        "low": low,
        "high": high,
        "n": figure["n"],
        "unreliable": bool(figure["unreliable"]),
        "published": _published(point, figure, across),
        "mark": point.mark,
    }


def _bounds(figure: JsonObject) -> tuple[float | None, float | None]:
    if figure.get("std") is not None:
        return figure["measured"] - figure["std"], figure["measured"] + figure["std"]
    low, high = figure.get("interval") or (None, None)
    return low, high


def _published(point: PlannedPoint, figure: JsonObject, across: JsonObject | None) -> list[Any] | None:
    """The pair of published figures; None where one of them is not published, or in another unit."""

    def value(one: JsonObject) -> float | None:
        found = one["published"]
        return found["value"] if found and found["unit"] == one.get("unit") else None

    pair = [point.x if across is None else value(across), value(figure)]
    return None if pair[1] is None or (across is not None and pair[0] is None) else pair


def _curve(folder: StudyFolder, rows: Mapping[str, JsonObject], points: Iterable[PlannedPoint]) -> list[dict[str, Any]]:
    """The mean, over all trainings of a line, of a value of their logs at the steps that they have in common."""
    found: list[tuple[PlannedPoint, dict[int, float]]] = []
    for point in points:
        # Of a row whose trainings are not all done, those that have begun.
        trainings = [path.rpartition("/")[2] for path in rows.get(point.row, {}).get("counted", ())]
        for training in trainings or folder.rows[point.row]["trainings"] if point.row in folder.rows else ():
            if values := _logged(folder, training, point.logged):
                found.append((point, values))
    if not found:
        return []
    curve = []
    for step in sorted(set.intersection(*(set(values) for _, values in found))):
        values = [some[step] for _, some in found]
        mean, spread = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
        curve.append(
            {
                "row": found[0][0].row,
                "column": found[0][0].logged[-1],
                "x": step,
                "y": mean,
                "low": None if spread is None else mean - spread,
                "high": None if spread is None else mean + spread,
                "n": len(values),
                "unreliable": False,
                "published": None,
                "mark": found[0][0].mark,
            }
        )
    return curve


def _logged(folder: StudyFolder, training: str, keys: Sequence[str]) -> dict[int, float]:
    """Step -> a value of a run's log, accuracies in per cent."""
    scale = 100 if keys[-1].endswith("_accuracy") else 1
    path, found = folder.run(training) / "metrics.jsonl", {}
    for line in files.read_lines(path) if path.is_file() else ():
        value: Any = line
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, int | float) and isinstance(line.get("step"), int):
            found[line["step"]] = scale * value
    return found
