"""What a page says of a study, and of several runs side by side.

part = study_part(collect(StudyFolder(folder)), "study-1", {"runs/free-8f": "run-2"})
part = comparison([(read_run(folder), "run-1"), ...])
"""

from collections.abc import Mapping, Sequence

from toughen.outcomes import interval
from toughen.progress import duration
from toughen.report.alarms import logged_alarms, overfitted
from toughen.report.blocks import Block, Line, PageEntry, Section, Table, TableCell
from toughen.report.page import figures_studies as draw
from toughen.report.page.figures_studies import Point
from toughen.report.records import Record, RunRecord
from toughen.report.terminal.study import study_csv


def comparison(runs: Sequence[tuple[RunRecord, str]]) -> PageEntry:
    """Runs side by side: a table whose rows lead to them, and both drawings."""
    columns = ("run", "method", "ball", "suite", "images", "clean", "robust", "audit", "natural steps", "time")
    table = Table("comparison", "Runs side by side, each by its strongest evaluation", columns)
    points: list[Point] = []
    for run, anchor in runs:
        about, found = run.summary or {}, run.evaluations[0] if run.evaluations else None
        seconds = about.get("seconds")
        cost = [TableCell.number(about.get("natural_steps"), f"{about['natural_steps']:,.0f}" if about else None)]
        cost.append(TableCell.number(seconds, duration(seconds) if seconds is not None else None))
        alarm = overfitted(logged_alarms(run.metrics))
        method = TableCell(str(about.get("method", "-")), below=alarm, tone="bad" if alarm else "")
        name = TableCell(run.name, target=anchor)
        if found is None:
            table.add(
                name,
                method,
                TableCell(run.threat),
                *(TableCell("-") for _ in range(4)),
                TableCell("not evaluated"),
                *cost,
            )
            continue
        outcomes, (text, tone) = found.outcomes, found.verdict
        clean = TableCell.share(outcomes.clean_accuracy, interval(outcomes.clean_correct, outcomes.n))
        bounds = interval(outcomes.robust_correct, outcomes.n)
        robust = TableCell.share(outcomes.robust_accuracy, bounds)
        ball, suite = TableCell(str(found.about["threat"])), TableCell(str(found.about["suite"]))
        table.add(
            name, method, ball, suite, TableCell.number(outcomes.n), clean, robust, TableCell(text, tone=tone), *cost
        )
        points.append(
            Point(
                run.name,
                outcomes.clean_accuracy,
                outcomes.robust_accuracy,
                *bounds,
                cost=about.get("natural_steps"),
                unreliable=tone == "bad",
            )
        )
    blocks: list[Block] = [table]
    suites = {(found.about["suite"], found.about["threat"]) for run, _ in runs for found in run.evaluations[:1]}
    if len(suites) > 1:
        blocks.append(Line("These figures are of different suites or balls, so they are not drawn together.", "bad"))
    else:
        blocks += _drawn("comparison", points)
    return PageEntry("comparison", "Comparison", f"{len(runs)} runs", [Section("Side by side", blocks)])


def study_part(found: Record, anchor: str, targets: Mapping[str, str]) -> PageEntry:
    """A study's table beside the published numbers, and both drawings.

    Args:
        found: what `toughen.studies.results.collect` returns.
        anchor: see `PageEntry`.
        targets: for a run's path in the study's folder, its place on the page.
    """
    shown = [key for key in found["columns"] if any(key in row["figures"] for row in found["rows"].values())]
    table = Table(f"{anchor}-table", str(found["title"]), ("row", *shown, "natural steps", "audit", "state", "runs"))
    for row in found["rows"].values():
        first = next((targets[path] for path in row["counted"] if path in targets), "")
        cells = [_cell(row["figures"].get(key)) for key in shown]
        table.add(
            TableCell(str(row["label"]), target=first),
            *cells,
            _cost(row["cost"]),
            _verdict(row),
            _state(row),
            TableCell(", ".join(row["counted"]), target=first),
        )
    table.data = study_csv(found)
    table.note = (
        "Measured; below it the 95 % interval, or the deviation over trainings, the published value, and in brackets "
        "the difference to it."
    )
    blocks: list[Block] = [table]
    blocks += [Line(f"{name}: {note}") for name, row in found["rows"].items() for note in row["notes"]]
    blocks += [Line(str(note)) for note in found["notes"]]
    column, points = _points(found, shown)
    if points:
        blocks.append(Line(f"Robust accuracy in the drawings is that of column {column}."))
    blocks += _drawn(anchor, points)
    done = sum(row["state"] == "done" for row in found["rows"].values())
    subtitle = f"study · scale {found['scale']} · {done} of {len(found['rows'])} rows done"
    return PageEntry(anchor, str(found["title"]), subtitle, [Section("Table", blocks)])


def _cell(figure: Record | None) -> TableCell:
    if figure is None:
        return TableCell("")
    published = figure["published"]
    beside = ""
    if published is not None:
        beside = f"paper {_number(published['value'], published['unit'])}"
        beside += f" ± {published['std']:.2f}" if published["std"] is not None else ""
        beside += f"\n({figure['difference']:+.1f})" if figure.get("difference") is not None else ""
    if figure["measured"] is None:
        return TableCell("-", below=beside, tone="dim")
    text, spread = _number(figure["measured"], figure["unit"]), ""
    if figure["interval"]:
        spread = f"[{figure['interval'][0]:.1f}, {figure['interval'][1]:.1f}]"
    elif figure["std"] is not None:
        spread = f"± {figure['std']:.2f} (n = {figure['n']})"
    below = "\n".join(filter(None, (spread, beside)))
    return TableCell.number(figure["measured"], text, below=below, tone="bad" if figure["unreliable"] else "")


def _number(value: float, unit: str) -> str:
    if unit == "minutes":
        return duration(60 * value)
    return f"{value:.1f}" if unit == "%" else f"{value:.4g}"


def _cost(cost: Record | None) -> TableCell:
    if cost is None:
        return TableCell("-")
    passes = f"{cost['forwards']:,} forward\n{cost['backwards']:,} backward"
    below = f"{passes}\n{cost['steps']:,} steps\n{duration(60 * cost['minutes'])}, {cost['device']}"
    return TableCell.number(cost["natural_steps"], f"{cost['natural_steps']:,.0f}", below=below)


def _verdict(row: Record) -> TableCell:
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


def _state(row: Record) -> TableCell:
    """State and reason, and below them which trainings overfitted: by name, unless it is the one that counts."""
    raised: dict[str, list[Record]] = {}
    for alarm in row["alarms"]:
        raised.setdefault(alarm["run"], []).append(alarm)
    said = [
        overfitted(alarms) if row["counted"] == [run] else f"{run} {overfitted(alarms)}"
        for run, alarms in raised.items()
    ]
    tone = {"failed": "bad", "faulty": "bad", "done": "good"}.get(str(row["state"]), "dim")
    counts = any(run in row["counted"] for run in raised)
    below = "\n".join([*filter(None, [str(row["reason"] or "")]), *said])
    return TableCell(str(row["state"]), below=below, tone="bad" if counts else tone)


def _points(found: Record, shown: Sequence[str]) -> tuple[str, list[Point]]:
    """The column that stands for robustness, and each row that has it and clean accuracy: the one that took the most.

    A column of one row draws nothing, and one that hardly differs between rows tells them apart no more than the attack
    without bounds behind it; such a column stands only where there is no other.
    """
    columns = {key: points for key in shown if (points := _pairs(found, key))}
    columns = {key: points for key, points in columns.items() if len(points) > 1} or columns
    values = {key: [point.robust for point in points] for key, points in columns.items()}
    telling = [key for key, some in values.items() if max(some) - min(some) > 0.01] or list(columns)
    best = min(telling, key=lambda key: sum(values[key]) / len(values[key]), default="")
    return best, columns.get(best, [])


def _pairs(found: Record, key: str) -> list[Point]:
    points = []
    for row in found["rows"].values():
        measured = {name: figure for name, figure in row["figures"].items() if figure["measured"] is not None}
        clean = next((figure for figure in measured.values() if figure["what"] == "clean"), None)
        robust = measured.get(key)
        # Only what an attack in the ball stands behind.
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
