"""Tables for the terminal, from summaries and results as they lie in run folders.

Example:
    console.print(evaluation_table(read_json(folder / "result.json")))
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from toughen.progress import duration

if TYPE_CHECKING:
    from toughen.recipes import Recipe

Record = Mapping[str, Any]


def percent(value: float) -> str:
    """A fraction in per cent with one decimal."""
    return f"{100 * value:.1f} %"


def with_interval(value: float, interval: Sequence[float]) -> str:
    """A fraction in per cent with its 95 % interval."""
    return f"{percent(value)}  [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def predicted_cost(recipe: "Recipe") -> str:
    """What a run will cost, in passes and in natural steps, and its schedule, as comment lines below its recipe."""
    method = recipe.method.resolved(recipe.threat)
    passes = method.passes(calls=2 if recipe.weight_perturbation else 1)
    every = recipe.selection.every or max(1, recipe.total_steps // 10)
    return (
        f"# predicted cost: {recipe.batches} batches of {recipe.batch_size}, {recipe.total_steps} optimiser steps\n"
        f"#   a batch: {passes.forwards} forward and {passes.backwards} backward passes "
        f"({passes.natural_steps:.2f} natural steps)\n"
        f"#   in all:  {recipe.natural_steps:.0f} natural steps; validation and checks are not counted\n"
        f"# schedule: {_schedule(recipe)}\n"
        f"# validation: {recipe.selection.suite} in {recipe.threat} every {every} steps{_candidates(recipe)}"
    )


def _schedule(recipe: "Recipe") -> str:
    """The learning rate over the budget."""
    optimizer = recipe.optimizer
    settings = ", ".join(f"{key} {_plain(value)}" for key, value in recipe.schedule.settings.items())
    lr = optimizer.lr * (recipe.batch_size / optimizer.lr_batch_size if optimizer.lr_batch_size else 1)
    warmup = f" after a warm-up of {percent(optimizer.warmup)} of the steps" if optimizer.warmup else ""
    return f"{recipe.schedule.name}{f' ({settings})' if settings else ''} of learning rate {lr:g}{warmup}"


def _plain(value: Any) -> str:
    return ", ".join(map(_plain, value)) if isinstance(value, (list, tuple)) else f"{value:g}"


def _candidates(recipe: "Recipe") -> str:
    """What is validated besides the weights."""
    n = len(recipe.averages)
    return f", of the weights and {n} average{'s' * (n > 1)}" if n else ""


def training_table(summary: Record) -> Group:
    """A finished run: accuracies on the validation split, cost, and the alarms it raised."""
    table = Table(title=Text(f"{summary['name']}: {summary['method']}, {summary['threat']}, {summary['steps']} steps"))
    for column in ("best by validation", "at step", "clean", "robust"):
        table.add_column(column, justify="left" if column.startswith("best") else "right")
    for name, best in summary["best"].items():
        table.add_row(Text(name), str(best["step"]), percent(best["clean_accuracy"]), percent(best["robust_accuracy"]))
    return Group(
        table,
        f"{summary['forwards']} forward and {summary['backwards']} backward passes "
        f"({summary['natural_steps']:.0f} natural steps, predicted {summary['predicted_natural_steps']:.0f}), "
        f"{duration(summary['seconds'])} with validation, peak memory {summary['peak_memory_bytes'] / 2**30:.2f} GiB",
        *(Text(found["alarm"], style="bold red") for found in summary.get("alarms") or ()),
    )


def evaluation_table(result: Record) -> Group:
    """An evaluation: clean accuracy, then what is left after each attack, what that cost, and whether to believe it."""
    table = Table(title=Text(f"{result['suite']}, {result['threat']}, {result['n']} test images"))
    for column in ("attack", "attempted", "broken", "accuracy left", "forwards", "backwards"):
        table.add_column(column, justify="left" if column == "attack" else "right")
    for row in result["attacks"]:
        aside = "threat" in row["settings"]
        name = f"{row['attack']} (aside, {row['settings']['threat']})" if aside else row["attack"]
        left = row["alone"] if aside else row["accuracy"]
        figures = ("-" if left is None else percent(left), str(row["forwards"]), str(row["backwards"]))
        table.add_row(Text(name), str(row["attempted"]), str(row["broken"]), *figures)
    return Group(
        table,
        f"clean {with_interval(result['clean_accuracy'], result['clean_interval'])}   "
        f"robust {with_interval(result['robust_accuracy'], result['robust_interval'])}\n"
        f"(95 % Wilson intervals, n = {result['n']}, {result['marginal']} marginal, {duration(result['seconds'])})",
        *(Text(f"note: {note}") for note in result["notes"]),
        *_verdict(result["audit"]),
    )


def _verdict(audit: Record | None) -> list[Text]:
    """What the audit says, worst first."""
    if audit is None:
        return [Text("audit: left out", style="dim")]
    lines = [
        Text(" ".join(filter(None, ("UNRELIABLE", found["code"], found["message"], found["remedy"]))), style="bold red")
        for found in audit["findings"]
    ]
    if not lines:
        lines = [Text(f"audit: nothing found on {audit['examples']} examples", style="green")]
    return lines + [Text(f"audit: {sentence}", style="dim") for sentence in audit["not_checked"]]


def comparison_table(rows: Sequence[tuple[str, Record, Record]], title: str) -> Table:
    """Runs side by side: accuracy on the test split beside cost.

    Args:
        rows: for each run its name, its summary and its evaluation.
        title: above the table.
    """
    table = Table(title=Text(title))
    for column in ("", "clean", "robust", "forwards", "backwards", "natural steps", "seconds"):
        table.add_column(column, justify="right" if column else "left")
    for name, summary, result in rows:
        table.add_row(
            Text(name),
            percent(result["clean_accuracy"]),
            with_interval(result["robust_accuracy"], result["robust_interval"]),
            str(summary["forwards"]),
            str(summary["backwards"]),
            f"{summary['natural_steps']:.0f}",
            f"{summary['seconds']:.1f}",
        )
    return table
