"""The entry of a study on a page, and that of several runs side by side.

entry = build_study_entry(collect(StudyFolder(folder)), "study-1", {"runs/free-8f": "run-2"})
entry = build_comparison_entry([(read_run(folder), "run-1"), ...])
"""

from collections.abc import Mapping, Sequence

from toughen.outcomes import interval
from toughen.progress import duration
from toughen.report.alarms import collect_alarms, overfitting_text
from toughen.report.blocks import Block, JsonObject, PageEntry, Paragraph, Section, Table, TableCell
from toughen.report.page.figures import study as draw
from toughen.report.page.figures.curves import draw_curves
from toughen.report.page.figures.study import Point
from toughen.report.records import RunRecord
from toughen.report.tables.evaluation import EVALUATION_COLUMNS, evaluation_cells
from toughen.report.tables.study import measured_columns, study_table


def build_comparison_entry(runs: Sequence[tuple[RunRecord, str]]) -> PageEntry:
    """Runs side by side: a table whose rows lead to them, and both drawings."""
    columns = ("run", "method", *EVALUATION_COLUMNS, "natural steps", "time")
    table = Table("comparison", "Runs side by side, each by its strongest evaluation", columns)
    points: list[Point] = []
    for run, anchor in runs:
        summary, found = run.summary or {}, run.evaluations[0] if run.evaluations else None
        seconds, steps = summary.get("seconds"), summary.get("natural_steps")
        cost = [TableCell.number(steps, f"{steps:,.0f}" if summary else None)]
        cost.append(TableCell.number(seconds, duration(seconds) if seconds is not None else None))
        alarm = overfitting_text(collect_alarms(run.metrics))
        method = TableCell(str(summary.get("method", "-")), below=alarm, tone="bad" if alarm else "")
        name = TableCell(run.name, target=anchor)
        if found is None:
            table.add(name, method, run.threat, *[None] * 4, "not evaluated", *cost)
            continue
        table.add(name, method, *evaluation_cells(found), *cost)
        outcomes, unreliable = found.outcomes, found.verdict[1] == "bad"
        bounds = interval(outcomes.robust_correct, outcomes.n)
        accuracies = outcomes.clean_accuracy, outcomes.robust_accuracy
        points.append(Point(run.name, *accuracies, *bounds, cost=steps, unreliable=unreliable))
    blocks: list[Block] = [table]
    suites = {(found.result["suite"], found.result["threat"]) for run, _ in runs for found in run.evaluations[:1]}
    if len(suites) > 1:
        blocks.append(
            Paragraph("These figures are of different suites or balls, so they are not drawn together.", "bad")
        )
    else:
        blocks += _drawn("comparison", points)
    return PageEntry("comparison", "Comparison", f"{len(runs)} runs", [Section("Side by side", blocks)])


def build_study_entry(found: JsonObject, anchor: str, targets: Mapping[str, str]) -> PageEntry:
    """A study's table with the published numbers, and both drawings.

    Args:
        found: what `toughen.studies.results.collect` returns.
        anchor: see `PageEntry`.
        targets: for a run's path in the study's folder, its place on the page.
    """
    blocks: list[Block] = [study_table(f"{anchor}-table", found, targets)]
    blocks += [Paragraph(f"{name}: {note}", "note") for name, row in found["rows"].items() for note in row["notes"]]
    blocks += [Paragraph(str(note), "note") for note in found["notes"]]
    figure = found.get("figure")
    if figure and any(panel["lines"] for panel in figure["panels"]):
        blocks.append(draw_curves(f"{anchor}-figure", figure))
    elif figure:
        blocks.append(Paragraph("Nothing of its figure is measured yet.", "note"))
    column, points = _points(found, measured_columns(found))
    if points:
        blocks.append(Paragraph(f"Robust accuracy in the drawings is that of column {column}.", "note"))
    blocks += _drawn(anchor, points)
    done = sum(row["state"] == "done" for row in found["rows"].values())
    subtitle = f"study · scale {found['scale']} · {done} of {len(found['rows'])} rows done"
    return PageEntry(anchor, str(found["title"]), subtitle, [Section("Table", blocks)])


def _points(found: JsonObject, shown: Sequence[str]) -> tuple[str, list[Point]]:
    """The column whose robust accuracy is drawn, and a point for each row that has it and a clean accuracy.

    It is the one with the lowest mean. A column of one row draws nothing, and one that hardly differs between rows, as
    under an attack without bounds, does not tell them apart; such a column is taken only where there is no other.
    """
    columns = {key: points for key in shown if (points := _pairs(found, key))}
    columns = {key: points for key, points in columns.items() if len(points) > 1} or columns
    values = {key: [point.robust for point in points] for key, points in columns.items()}
    telling = [key for key, some in values.items() if max(some) - min(some) > 0.01] or list(columns)
    best = min(telling, key=lambda key: sum(values[key]) / len(values[key]), default="")
    return best, columns.get(best, [])


def _pairs(found: JsonObject, key: str) -> list[Point]:
    points = []
    for row in found["rows"].values():
        measured = {name: figure for name, figure in row["figures"].items() if figure["measured"] is not None}
        clean = next((figure for figure in measured.values() if figure["what"] == "clean"), None)
        robust = measured.get(key)
        # Only what was measured by an attack within the ball.
        if clean is None or robust is None or robust["what"] != "robust":
            continue
        low, high = (bound / 100 for bound in robust["interval"]) if robust["interval"] else (None, None)
        cost = row["cost"]["natural_steps"] if row["cost"] else None
        pair = clean["measured"] / 100, robust["measured"] / 100
        points.append(Point(str(row["label"]), *pair, low, high, cost, bool(robust["unreliable"])))
    return points


def _drawn(anchor: str, points: Sequence[Point]) -> list[Block]:
    blocks: list[Block] = []
    if len(points) > 1:
        blocks.append(draw.trade_off(f"{anchor}-trade-off", points))
    if len([point for point in points if point.cost]) > 1:
        blocks.append(draw.against_cost(f"{anchor}-cost", points, "natural steps"))
    return blocks
