"""The sections of a run's entry, from what is in its folder, and for what is not the command that makes it.

entry = build_run_entry(read_run(Path("runs/mine")), "run-1")
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from toughen.errors import Command
from toughen.outcomes import interval
from toughen.progress import duration, selection_text
from toughen.report.alarms import collect_alarms, overfitting_text
from toughen.report.blocks import (
    Block,
    JsonObject,
    KeyFigures,
    PageEntry,
    Paragraph,
    Section,
    Table,
    TableCell,
    Verbatim,
)
from toughen.report.counts import common_confusions, confusion_matrix, count_by_class, find_worst_case
from toughen.report.formatting import interval_text, percent
from toughen.report.page.analyses import describe_analyses
from toughen.report.page.figures import run as draw
from toughen.report.records import RunRecord, StoredCorruptions, StoredEvaluation, reasons
from toughen.report.tables.corruptions import corruption_table
from toughen.report.tables.evaluation import EVALUATION_COLUMNS, attack_table, evaluation_cells, finding_text
from toughen.report.tables.training import best_table

SQUARE = 2000
"""With more classes than this there is no table of class by class."""

MANY = 40
"""More classes than this are shown by those that are least robust."""


def build_run_entry(run: RunRecord, anchor: str, *, brief: bool = False) -> PageEntry:
    """Every section of a run; or, `brief`, its result alone and how to see the rest."""
    result = Section("Result", list(_describe_result(run, anchor)))
    if brief:
        page = Command("report", run.name, out="PAGE.html")
        result.blocks.append(Paragraph("There is more on a page of this run's own.", "missing", str(page)))
    sections = (
        [result]
        if brief
        else [
            result,
            Section("Training", list(_describe_training(run, anchor))),
            Section("Attacks", list(_describe_attacks(run, anchor))),
            Section("Corruptions", list(_describe_corruptions(run, anchor))),
            *describe_analyses(run, anchor),
            Section("Recipe and environment", list(_describe_settings(run, anchor))),
        ]
    )
    about = run.summary or {}
    given = [about.get("method") or run.recipe.get("method"), run.threat, run.recipe.get("data")]
    said = [
        str(value.get("name") or value.get("source") or "") if isinstance(value, dict) else value for value in given
    ]
    subtitle = " · ".join(str(value) for value in said if value)
    return PageEntry(anchor, run.name, f"run · {subtitle}" if subtitle else "run", sections)


def _describe_result(run: RunRecord, anchor: str) -> Iterator[Block]:
    yield from (Paragraph(problem, "bad") for problem in run.problems)
    if run.summary is None and run.recipe_text:
        yield Paragraph("This run is not finished: there is no summary.json.", "note")
    items: list[tuple[str, str, str, str]] = []
    if run.evaluations:
        best = run.evaluations[0]
        outcomes = best.outcomes
        text, tone = best.verdict
        items += [
            ("clean accuracy", percent(outcomes.clean_accuracy), _bounds(outcomes.clean_correct, outcomes.n), ""),
            (
                "robust accuracy",
                percent(outcomes.robust_accuracy),
                f"{_bounds(outcomes.robust_correct, outcomes.n)}, worst case of {best.result['suite']}",
                tone if tone == "bad" else "",
            ),
            ("audit", text, f"{best.result['threat']}, {outcomes.n} test images", tone),
        ]
    if alarms := collect_alarms(run.metrics):
        steps = overfitting_text(alarms).removeprefix("overfitted ")
        items.append(("training", "overfitted", steps, "bad"))
    if run.summary is not None:
        cost = run.summary
        items.append(
            (
                "cost of training",
                f"{cost['natural_steps']:,.0f} natural steps",
                f"{cost['forwards']:,} forward and {cost['backwards']:,} backward passes, "
                f"{duration(cost['seconds'])} on {cost['device']}",
                "",
            )
        )
    if items:
        yield KeyFigures(tuple(items))
    if not run.evaluations:
        yield Paragraph.missing("evaluation", Command("evaluate", run.name, suite="autoattack"))
        return
    columns = ("evaluation", *EVALUATION_COLUMNS, "marginal", "seed")
    table = Table(f"{anchor}-evaluations", "Evaluations, 95 % Wilson intervals below", columns)
    for found in run.evaluations:
        table.add(found.folder, *evaluation_cells(found), found.outcomes.marginal_examples, found.result["seed"])
    yield table
    for found in run.evaluations:
        yield from _list_messages(found)


def _list_messages(found: StoredEvaluation) -> Iterator[Paragraph]:
    """What the audit and the notes of an evaluation say, under its name."""
    audit = found.result.get("audit")
    for one in audit["findings"] if audit else ():
        yield Paragraph(f"{found.folder}: {finding_text(one)}", "bad" if reasons([one]) else "note")
    for note in found.result.get("notes", ()):
        yield Paragraph(f"{found.folder}: {note}", "note")


def _bounds(k: int, n: int) -> str:
    return f"95 % interval {interval_text(interval(k, n))}"


def _describe_training(run: RunRecord, anchor: str) -> Iterator[Block]:
    lines = [record for record in run.metrics if "loss" in record and "lr" in record]
    if lines:
        names = dict.fromkeys(key for record in lines for key in record if key.endswith("_batch_accuracy"))
        batch = {
            name.removesuffix("_batch_accuracy"): [(one["step"], 100 * one[name]) for one in lines if name in one]
            for name in names
        }
        steps, losses, rates = ([one[key] for one in lines] for key in ("step", "loss", "lr"))
        yield draw.loss_and_rate(f"{anchor}-loss", steps, losses, rates, batch)
    else:
        yield Paragraph.missing("training log", Command("train", "RECIPE", out=run.name))
    checks = [record for record in run.metrics if record.get("validation")]
    if checks:
        found = [record["validation"] for record in checks]
        yield draw.validation(f"{anchor}-validation", [record["step"] for record in checks], found)
    if run.summary and run.summary.get("best"):
        by = selection_text(run.summary.get("selected_by"))
        caption = f"Best by {by} in validation (of the held-out split, which chose the weights; test figures are above)"
        yield best_table(f"{anchor}-best", caption, "weights", run.summary["best"])
    watched = [(record["step"], record["overfitting"]) for record in run.metrics if "overfitting" in record]
    if watched:
        points = [(step, one["one_step_accuracy"], one["pgd_accuracy"], "alarm" in one) for step, one in watched]
        yield draw.overfitting(f"{anchor}-overfitting", points)
        alarms = [Paragraph(str(one["alarm"]), "bad") for _, one in watched if "alarm" in one]
        yield from alarms or [Paragraph(f"No catastrophic overfitting in {len(watched)} checks.", "good")]
    elif lines:
        yield Paragraph.missing(
            "check for catastrophic overfitting", Command("train", "RECIPE", "overfitting_every=100", out=run.name)
        )


def _describe_attacks(run: RunRecord, anchor: str) -> Iterator[Block]:
    if not run.evaluations:
        yield Paragraph.missing("attacks", Command("evaluate", run.name, suite="autoattack"))
        return
    found = run.evaluations[0]
    outcomes, left = found.outcomes, found.outcomes.n
    tallies = outcomes.per_attack()
    settings = {str(row["attack"]): row["settings"] for row in found.result["attacks"]}
    rows: list[JsonObject] = []
    steps: list[tuple[str, int]] = []
    for name in dict.fromkeys([*settings, *tallies]):
        # An attack for which no example was left has no rows in the table of outcomes.
        row = {"attack": name, "settings": settings.get(name, {}), "attempted": 0, **tallies.get(name, {})}
        rows.append(row)
        if "threat" not in row["settings"]:
            left = round(row["accuracy"] * outcomes.n) if row["attempted"] else left
            steps.append((name, left))
    table = attack_table(f"{anchor}-attacks", f"What each attack of {found.folder} took", rows, alone=True)
    table.note = "alone: accuracy where every correctly classified image met this attack; else a dash."
    yield draw.waterfall(f"{anchor}-waterfall", outcomes.n, steps)
    yield table
    yield from _describe_classes(run, found, anchor)


def _describe_classes(run: RunRecord, found: StoredEvaluation, anchor: str) -> Iterator[Block]:
    worst = find_worst_case(found.outcomes)
    rows = count_by_class(worst)
    table = Table(f"{anchor}-classes", f"Accuracy by class, {found.folder}", ("class", "images", "clean", "robust"))
    for number, row in rows.items():
        table.add(run.class_name(number), row.n, *(TableCell.count(k, row.n) for k in (row.clean, row.robust)))
    shown = sorted(rows, key=lambda number: (rows[number].robust / rows[number].n, number))[:MANY]
    chosen = sorted(shown) if len(rows) <= MANY else shown
    yield draw.per_class(
        f"{anchor}-per-class", [run.class_name(number) for number in chosen], [rows[number] for number in chosen]
    )
    yield table
    size = 1 + max(int(worst.label.max()), int(worst.prediction.max()), len(run.classes) - 1)
    if size > SQUARE:
        return
    counts = confusion_matrix(worst, size)
    yield draw.confusion(f"{anchor}-confusion", counts, [run.class_name(number) for number in range(size)])
    ways = Table(f"{anchor}-flows", "Commonest confusions", ("true", "predicted", "images"))
    for true, predicted, k in common_confusions(counts, 10):
        ways.add(run.class_name(true), run.class_name(predicted), k)
    if ways.rows:
        yield ways


def _describe_corruptions(run: RunRecord, anchor: str) -> Iterator[Block]:
    if not run.corruptions:
        yield Paragraph.missing("measurement under corruptions", Command("evaluate", run.name, suite="corruptions"))
        return
    found = run.corruptions[0]
    shares = found.correct.mean(2)
    n, clean = len(found.clean), int(found.clean.sum())
    yield draw.corruptions(f"{anchor}-corruptions", found.names, found.severities, shares, clean / n)
    origin = "published images" if found.result["origin"] == "published" else "generated images"
    caption = f"Accuracy under corruptions, {origin}, {found.folder}"
    rows = (
        (name, [int(some.sum()) / some.size for some in (*correct, correct)])
        for name, correct in zip(found.names, found.correct, strict=True)
    )
    table = corruption_table(f"{anchor}-corrupted", caption, found.severities, rows)
    table.note = _means_text(found, clean, n)
    yield table
    error = found.result.get("mce") or {}
    if error.get("value") is not None:
        yield Paragraph(f"As recorded: mCE {error['value']:.2f} %, relative to {error['baseline']}.", "note")
    for note in found.result.get("notes", ()):
        yield Paragraph(f"{found.folder}: {note}", "note")


def _means_text(found: StoredCorruptions, clean: int, n: int) -> str:
    said = [f"clean {percent(clean / n)} {interval_text(interval(clean, n))}"]
    for count, name in ((15, "the 15 main corruptions"), (19, "all 19")):
        mean = found.mean(count)
        if mean is not None:
            said.append(f"mean over {name} {percent(mean[0])} {interval_text(mean[1])}")
    return f"{n} images; {'; '.join(said)}."


def _describe_settings(run: RunRecord, anchor: str) -> Iterator[Block]:
    if run.recipe_text:
        yield Verbatim("The whole recipe", run.recipe_text)
    else:
        yield Paragraph.missing("recipe", Command("train", "RECIPE", out=run.name))
    table = Table(f"{anchor}-environment", "Environment", ("what", "value"))
    for name, value in _list_environment(run):
        table.add(name, str(value))
    if table.rows:
        yield table


def _list_environment(run: RunRecord) -> Iterator[tuple[str, Any]]:
    about = run.summary or {}
    for key in ("torch", "device", "ranks", "threads"):
        if key in about:
            yield key, about[key]
    if "peak_memory_bytes" in about:
        yield "peak memory", f"{about['peak_memory_bytes'] / 2**30:.2f} GiB"
    paces = [one["images_per_second"] for one in run.timing if "images_per_second" in one]
    if paces:
        yield "images per second", f"{float(np.median(paces)):,.0f} (median of the log)"
    for found in (*run.evaluations, *run.corruptions):
        said = f"torch {found.result['torch']} on {found.result['device']}, {duration(found.result['seconds'])}"
        yield f"evaluation {found.folder}", said
