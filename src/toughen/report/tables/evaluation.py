"""Evaluations: what is left after each attack, and whether to believe it.

Example:
    console.print(render(describe_evaluation(read_json(folder / "result.json"))))
"""

from collections.abc import Iterable, Sequence

from toughen.progress import duration
from toughen.report.blocks import Block, JsonObject, Paragraph, Table, TableCell
from toughen.report.formatting import with_interval
from toughen.report.records import StoredEvaluation, reasons

EVALUATION_COLUMNS = ("ball", "suite", "images", "clean", "robust", "audit")


def evaluation_cells(found: StoredEvaluation) -> list[TableCell | str | int]:
    """What an evaluation of a run folder came to, in the columns `EVALUATION_COLUMNS`."""
    outcomes, (text, tone) = found.outcomes, found.verdict
    return [
        str(found.result["threat"]),
        str(found.result["suite"]),
        outcomes.n,
        TableCell.count(outcomes.clean_correct, outcomes.n),
        TableCell.count(outcomes.robust_correct, outcomes.n),
        TableCell(text, tone=tone),
    ]


def attack_table(key: str, caption: str, attacks: Iterable[JsonObject], *, alone: bool = False) -> Table:
    """What each attack met, broke and left, and what it cost.

    Args (`key` and `caption` as for `Table`):
        attacks: as a `result.json` lists them, with "settings" that name a ball of their own for a side attack.
        alone: a column for the accuracy where an attack met every image that was right, and dashes for attacks that met
            none; without it, "accuracy left" of a side attack is what it leaves alone.
    """
    left = ("accuracy left", "alone") if alone else ("accuracy left",)
    table = Table(key, caption, ("attack", "attempted", "broken", *left, "forwards", "backwards"))
    for row in attacks:
        aside = "threat" in row["settings"]
        name = TableCell(row["attack"], below=f"aside, {row['settings']['threat']}" if aside else "")
        if alone and not row["attempted"]:
            table.add(TableCell(row["attack"], below="no image was left"), *[None] * 6)
            continue
        shares = [row["accuracy"], row["alone"]] if alone else [row["accuracy"]]
        if aside:
            shares[0] = None if alone else row["alone"]
        cells = (name, row["attempted"], row["broken"], *map(TableCell.share, shares))
        table.add(*cells, row["forwards"], row["backwards"])
    return table


def describe_evaluation(result: JsonObject) -> list[Block]:
    """An evaluation: clean accuracy, then what is left after each attack, what that cost, and whether to believe it."""
    return [
        attack_table("attacks", f"{result['suite']}, {result['threat']}, {result['n']} test images", result["attacks"]),
        Paragraph(
            f"clean {with_interval(result['clean_accuracy'], result['clean_interval'])}   "
            f"robust {with_interval(result['robust_accuracy'], result['robust_interval'])}\n"
            f"(95 % Wilson intervals, n = {result['n']}, {result['marginal']} marginal, {duration(result['seconds'])})",
            "",
        ),
        *_idle(result),
        *(Paragraph(f"note: {note}", "") for note in result["notes"]),
        *_verdict(result["audit"]),
    ]


def _idle(result: JsonObject) -> list[Paragraph]:
    """What broken examples cost that went on for a while, where that is so."""
    if not (idle := result.get("idle_passes")):
        return []
    return [
        Paragraph(
            f"extra passes: {idle:,} of {result['forwards'] + result['backwards']:,} were of examples that needed no "
            f"more; on {result['device']} they leave an attack every ten steps, so that nothing waits for it",
            "",
        )
    ]


def finding_text(found: JsonObject) -> str:
    """A finding of the audit in a line: its code, what was found and what to do."""
    parts = (found["code"], found["message"], *found.get("advice", ()), found.get("remedy", ""))
    return " ".join(filter(None, map(str, parts)))


def _verdict(audit: JsonObject | None) -> list[Paragraph]:
    """What the audit says, worst first."""
    if audit is None:
        return [Paragraph("audit: left out")]
    doubts = reasons(audit["findings"])
    found = [Paragraph(f"UNRELIABLE {finding_text(one)}", "bad") for one in doubts]
    sound = Paragraph(f"audit: nothing found on {audit['examples']} examples", "good")
    notes = [Paragraph(f"note: {finding_text(one)}", "") for one in audit["findings"] if one not in doubts]
    return [*(found or [sound]), *notes, *(Paragraph(f"audit: {sentence}") for sentence in audit["not_checked"])]


def comparison_table(rows: Sequence[tuple[str, JsonObject, JsonObject]], caption: str) -> Table:
    """Runs side by side: accuracy on the test split, and cost.

    Args:
        rows: for each run its name, its summary and its evaluation.
        caption: above the table.
    """
    columns = ("", "clean", "robust", "forwards", "backwards", "natural steps", "seconds")
    table = Table("comparison", caption, columns)
    for name, summary, result in rows:
        robust = result["robust_accuracy"]
        table.add(
            name,
            TableCell.share(result["clean_accuracy"]),
            TableCell.number(robust, with_interval(robust, result["robust_interval"])),
            summary["forwards"],
            summary["backwards"],
            TableCell.number(summary["natural_steps"], f"{summary['natural_steps']:,.0f}"),
            TableCell.number(summary["seconds"], f"{summary['seconds']:.1f}"),
        )
    return table
