"""What a page says of a run: its sections, from what lies in its folder, and a line with a command for what does not.

part = run_part(read_run(Path("runs/mine")), "run-1")
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from toughen.errors import Command
from toughen.outcomes import interval
from toughen.progress import duration
from toughen.report.alarms import logged_alarms, overfitted
from toughen.report.blocks import Block, KeyFigures, Line, PageEntry, Section, Table, TableCell, Text, percent
from toughen.report.counts import by_class, confusion, ends, flows
from toughen.report.page import figures
from toughen.report.page.analyses import analyses
from toughen.report.records import Corrupted, Evaluated, RunRecord

SQUARE = 2000
"""With more classes than this there is no table of class by class."""

MANY = 40
"""More classes than this are shown by those that are least robust."""


def run_part(run: RunRecord, anchor: str, *, brief: bool = False) -> PageEntry:
    """Every section of a run; or, `brief`, its result alone and how to see the rest."""
    result = Section("Result", list(_headline(run, anchor)))
    if brief:
        page = Command("report", run.name, out="PAGE.html")
        result.blocks.append(Line("There is more on a page of this run's own.", "missing", str(page)))
    sections = (
        [result]
        if brief
        else [
            result,
            Section("Training", list(_training(run, anchor))),
            Section("Attacks", list(_attacks(run, anchor))),
            Section("Corruptions", list(_corruptions(run, anchor))),
            *analyses(run, anchor),
            Section("Recipe and environment", list(_settings(run, anchor))),
        ]
    )
    about = run.summary or {}
    given = [about.get("method") or run.recipe.get("method"), run.threat, run.recipe.get("data")]
    said = [
        str(value.get("name") or value.get("source") or "") if isinstance(value, dict) else value for value in given
    ]
    subtitle = " · ".join(str(value) for value in said if value)
    return PageEntry(anchor, run.name, f"run · {subtitle}" if subtitle else "run", sections)


def missing(what: str, command: Command) -> Line:
    """One line for a part that cannot be shown, with the command that makes it."""
    return Line(f"No {what} yet.", "missing", str(command))


def _headline(run: RunRecord, anchor: str) -> Iterator[Block]:
    yield from (Line(problem, "bad") for problem in run.problems)
    if run.summary is None and run.recipe_text:
        yield Line("This run is not finished: there is no summary.json.", "note")
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
                f"{_bounds(outcomes.robust_correct, outcomes.n)}, worst case of {best.about['suite']}",
                tone if tone == "bad" else "",
            ),
            ("audit", text, f"{best.about['threat']}, {outcomes.n} test images", tone),
        ]
    if alarms := logged_alarms(run.metrics):
        steps = overfitted(alarms).removeprefix("overfitted ")
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
        yield missing("evaluation", Command("evaluate", run.name, suite="autoattack"))
        return
    table = Table(
        f"{anchor}-evaluations",
        "Evaluations, 95 % Wilson intervals below",
        ("evaluation", "ball", "suite", "images", "clean", "robust", "audit", "marginal", "seed"),
    )
    for found in run.evaluations:
        outcomes = found.outcomes
        text, tone = found.verdict
        table.add(
            TableCell(found.folder),
            TableCell(str(found.about["threat"])),
            TableCell(str(found.about["suite"])),
            TableCell.number(outcomes.n),
            TableCell.share(outcomes.clean_accuracy, interval(outcomes.clean_correct, outcomes.n)),
            TableCell.share(outcomes.robust_accuracy, interval(outcomes.robust_correct, outcomes.n)),
            TableCell(text, tone=tone),
            TableCell.number(outcomes.marginal_examples),
            TableCell.number(found.about["seed"]),
        )
    yield table
    for found in run.evaluations:
        yield from _said(found)


def _said(found: Evaluated) -> Iterator[Line]:
    """What the audit and the notes of an evaluation say, under its name."""
    audit = found.about.get("audit")
    for one in audit["findings"] if audit else ():
        text = " ".join(filter(None, (str(one["code"]), str(one["message"]), str(one.get("remedy", "")))))
        yield Line(f"{found.folder}: {text}", "bad")
    for note in found.about.get("notes", ()):
        yield Line(f"{found.folder}: {note}", "note")


def _bounds(k: int, n: int) -> str:
    low, high = interval(k, n)
    return f"95 % interval [{100 * low:.1f}, {100 * high:.1f}]"


def _training(run: RunRecord, anchor: str) -> Iterator[Block]:
    lines = [record for record in run.metrics if "loss" in record and "lr" in record]
    if lines:
        names = dict.fromkeys(key for record in lines for key in record if key.endswith("_batch_accuracy"))
        batch = {
            name.removesuffix("_batch_accuracy"): [(one["step"], 100 * one[name]) for one in lines if name in one]
            for name in names
        }
        steps, losses, rates = ([one[key] for one in lines] for key in ("step", "loss", "lr"))
        yield figures.loss_and_rate(f"{anchor}-loss", steps, losses, rates, batch)
    else:
        yield missing("training log", Command("train", "RECIPE", out=run.name))
    checks = [record for record in run.metrics if record.get("validation")]
    if checks:
        found = [record["validation"] for record in checks]
        yield figures.validation(f"{anchor}-validation", [record["step"] for record in checks], found)
    if run.summary and run.summary.get("best"):
        table = Table(
            f"{anchor}-best",
            "Best by validation (of the held-out split, which chose the weights; test figures stand above)",
            ("weights", "at step", "clean", "robust"),
        )
        for name, best in run.summary["best"].items():
            clean, robust = (TableCell.share(best[f"{kind}_accuracy"]) for kind in ("clean", "robust"))
            table.add(TableCell(name), TableCell.number(best["step"]), clean, robust)
        yield table
    watched = [(record["step"], record["overfitting"]) for record in run.metrics if "overfitting" in record]
    if watched:
        points = [(step, one["one_step_accuracy"], one["pgd_accuracy"], "alarm" in one) for step, one in watched]
        yield figures.overfitting(f"{anchor}-overfitting", points)
        alarms = [Line(str(one["alarm"]), "bad") for _, one in watched if "alarm" in one]
        yield from alarms or [Line(f"No catastrophic overfitting in {len(watched)} checks.", "good")]
    elif lines:
        yield missing(
            "check for catastrophic overfitting", Command("train", "RECIPE", "overfitting_every=100", out=run.name)
        )


def _attacks(run: RunRecord, anchor: str) -> Iterator[Block]:
    if not run.evaluations:
        yield missing("attacks", Command("evaluate", run.name, suite="autoattack"))
        return
    found = run.evaluations[0]
    outcomes = found.outcomes
    tallies = outcomes.per_attack()
    settings = {str(row["attack"]): row["settings"] for row in found.about["attacks"]}
    table = Table(
        f"{anchor}-attacks",
        f"What each attack of {found.folder} took",
        ("attack", "attempted", "broken", "accuracy left", "alone", "forwards", "backwards"),
    )
    left, steps = outcomes.n, []
    for name in dict.fromkeys([*settings, *tallies]):
        tally = tallies.get(name)
        aside = "threat" in settings.get(name, {})
        if tally is not None and not aside:
            left = round(tally["accuracy"] * outcomes.n)
        if not aside:
            steps.append((name, left))
        said = f"aside, {settings[name]['threat']}" if aside else ""
        if tally is None:
            table.add(TableCell(name, below="nobody was left"), *(TableCell("-") for _ in range(6)))
            continue
        table.add(
            TableCell(name, below=said),
            TableCell.number(tally["attempted"]),
            TableCell.number(tally["broken"]),
            TableCell("-") if aside else TableCell.share(tally["accuracy"]),
            TableCell.share(tally["alone"]),
            TableCell.number(tally["forwards"]),
            TableCell.number(tally["backwards"]),
        )
    table.note = "alone: accuracy where every correctly classified image met this attack; else a dash."
    yield figures.waterfall(f"{anchor}-waterfall", outcomes.n, steps)
    yield table
    yield from _classes(run, found, anchor)


def _classes(run: RunRecord, found: Evaluated, anchor: str) -> Iterator[Block]:
    end = ends(found.outcomes)
    rows = by_class(end)
    table = Table(f"{anchor}-classes", f"Accuracy by class, {found.folder}", ("class", "images", "clean", "robust"))
    for number, row in rows.items():
        clean, robust = (TableCell.share(k / row.n, interval(k, row.n)) for k in (row.clean, row.robust))
        table.add(TableCell(run.class_name(number)), TableCell.number(row.n), clean, robust)
    shown = sorted(rows, key=lambda number: (rows[number].robust / rows[number].n, number))[:MANY]
    chosen = sorted(shown) if len(rows) <= MANY else shown
    yield figures.per_class(
        f"{anchor}-per-class", [run.class_name(number) for number in chosen], [rows[number] for number in chosen]
    )
    yield table
    size = 1 + max(int(end.label.max()), int(end.end.max()), len(run.classes) - 1)
    if size > SQUARE:
        return
    counts = confusion(end, size)
    yield figures.confused(f"{anchor}-confusion", counts, [run.class_name(number) for number in range(size)])
    ways = Table(f"{anchor}-flows", "Commonest ways out of a class", ("true", "predicted", "images"))
    for true, predicted, k in flows(counts, 10):
        ways.add(TableCell(run.class_name(true)), TableCell(run.class_name(predicted)), TableCell.number(k))
    if ways.rows:
        yield ways


def _corruptions(run: RunRecord, anchor: str) -> Iterator[Block]:
    if not run.corruptions:
        yield missing("measurement under corruptions", Command("evaluate", run.name, suite="corruptions"))
        return
    found = run.corruptions[0]
    shares = found.correct.mean(2)
    n, clean = len(found.clean), int(found.clean.sum())
    yield figures.corruptions(f"{anchor}-corruptions", found.names, found.severities, shares, clean / n)
    columns = ("corruption", *(f"severity {level}" for level in found.severities), "mean")
    origin = "published images" if found.about["origin"] == "published" else "generated images"
    table = Table(f"{anchor}-corrupted", f"Accuracy under corruptions, {origin}, {found.folder}", columns)
    for at, name in enumerate(found.names):
        cells = [TableCell.share(int(some.sum()) / n) for some in found.correct[at]]
        table.add(TableCell(name), *cells, TableCell.share(int(found.correct[at].sum()) / found.correct[at].size))
    table.note = _means(found, clean, n)
    yield table
    error = found.about.get("mce") or {}
    if error.get("value") is not None:
        yield Line(f"As recorded: mCE {error['value']:.2f} %, relative to {error['baseline']}.", "note")
    for note in found.about.get("notes", ()):
        yield Line(f"{found.folder}: {note}", "note")


def _means(found: Corrupted, clean: int, n: int) -> str:
    said = [f"clean {percent(clean / n)} {_short(interval(clean, n))}"]
    for count, name in ((15, "the 15 main corruptions"), (19, "all 19")):
        mean = found.mean(count)
        if mean is not None:
            said.append(f"mean over {name} {percent(mean[0])} {_short(mean[1])}")
    return f"{n} images; {'; '.join(said)}."


def _short(bounds: tuple[float, float]) -> str:
    return f"[{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]"


def _settings(run: RunRecord, anchor: str) -> Iterator[Block]:
    if run.recipe_text:
        yield Text("The whole recipe", run.recipe_text)
    else:
        yield missing("recipe", Command("train", "RECIPE", out=run.name))
    table = Table(f"{anchor}-environment", "Environment", ("what", "value"))
    for name, value in _environment(run):
        table.add(TableCell(name), TableCell(str(value)))
    if table.rows:
        yield table


def _environment(run: RunRecord) -> Iterator[tuple[str, Any]]:
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
        said = f"torch {found.about['torch']} on {found.about['device']}, {duration(found.about['seconds'])}"
        yield f"evaluation {found.folder}", said
