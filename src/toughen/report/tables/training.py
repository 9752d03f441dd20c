"""Training: what it will cost, and what came of it.

Example:
    console.print(render(describe_training(read_json(folder / "summary.json"))))
"""

from typing import TYPE_CHECKING, Any

from toughen.progress import duration, selection_text
from toughen.report.blocks import Block, JsonObject, Paragraph, Table, TableCell
from toughen.report.formatting import percent

if TYPE_CHECKING:
    from toughen.recipes import Recipe


def predicted_cost(recipe: "Recipe") -> str:
    """What a run will cost, in passes and in natural steps, and its schedule, as comment lines below its recipe."""
    method = recipe.method.resolved(recipe.threat)
    passes = method.passes(calls=2 if recipe.weight_perturbation else 1)
    every = recipe.selection.every or max(1, recipe.total_steps // 10)
    n = len(recipe.averages)
    averages = f", of the weights and {n} average{'s' * (n > 1)}" if n else ""
    return (
        f"# predicted cost: {recipe.batches} batches of {recipe.batch_size}, {recipe.total_steps} optimiser steps\n"
        f"#   a batch: {passes.forwards} forward and {passes.backwards} backward passes "
        f"({passes.natural_steps:.2f} natural steps)\n"
        f"#   in all:  {recipe.natural_steps:.0f} natural steps; validation and checks are not counted\n"
        f"# schedule: {_schedule(recipe)}\n"
        f"# validation: {recipe.selection.suite} in {recipe.threat} every {every} steps{averages}, the best by "
        f"{selection_text(recipe.selected_by)}"
    )


def _schedule(recipe: "Recipe") -> str:
    """The learning rate over the budget."""
    optimizer = recipe.optimizer
    settings = ", ".join(f"{key} {_numbers(value)}" for key, value in recipe.schedule.settings.items())
    lr = optimizer.lr * (recipe.batch_size / optimizer.lr_batch_size if optimizer.lr_batch_size else 1)
    warmup = f" after a warm-up of {percent(optimizer.warmup)} of the steps" if optimizer.warmup else ""
    return f"{recipe.schedule.name}{f' ({settings})' if settings else ''} of learning rate {lr:g}{warmup}"


def _numbers(value: Any) -> str:
    return ", ".join(map(_numbers, value)) if isinstance(value, list | tuple) else f"{value:g}"


def best_table(key: str, caption: str, heading: str, best: JsonObject) -> Table:
    """Of the weights and each average, the step that was best by validation, with its accuracies there."""
    table = Table(key, caption, (heading, "at step", "clean", "robust"))
    for name, found in best.items():
        clean, robust = (TableCell.share(found[f"{kind}_accuracy"]) for kind in ("clean", "robust"))
        table.add(name, found["step"], clean, robust)
    return table


def describe_training(summary: JsonObject) -> list[Block]:
    """A finished run: accuracies on the validation split, cost, and the alarms it raised."""
    caption = f"{summary['name']}: {summary['method']}, {summary['threat']}, {summary['steps']} steps"
    cost = (
        f"{summary['forwards']} forward and {summary['backwards']} backward passes "
        f"({summary['natural_steps']:.0f} natural steps, predicted {summary['predicted_natural_steps']:.0f}), "
        f"{duration(summary['seconds'])} with validation, peak memory {summary['peak_memory_bytes'] / 2**30:.2f} GiB"
    )
    alarms = [Paragraph(found["alarm"], "bad") for found in summary.get("alarms") or ()]
    heading = f"best by {selection_text(summary.get('selected_by'))} in validation"
    return [best_table("best", caption, heading, summary["best"]), Paragraph(cost, ""), *alarms]
