"""Making a study's folder: the plan, resolved, as JSON that reports read without torch.

folder = begin(load("free-table-1"), "small", Path("runs/studies/free-table-1-small"))
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from toughen import recipes
from toughen.errors import Option
from toughen.models.cost import Passes
from toughen.recipes import Recipe, RecipeError
from toughen.storage import files
from toughen.studies.figures.planned import write_figure
from toughen.studies.figures.resolve import resolve_figure
from toughen.studies.folder import STUDY, StudyFolder
from toughen.studies.grid import PlannedMeasure, PlannedRow, StudyPlan, expand
from toughen.studies.schema import Study
from toughen.studies.text import StudyError
from toughen.training.initial_weights import as_weights_show

_PRINTED = ("id", "value", "unit", "std", "raw")


def create_folder(
    study: Study,
    scale: str,
    out: Path,
    changes: Iterable[str] = (),
    *,
    name: str = "",
    checkpoint: str | None = None,
    dry_run: bool = False,
) -> StudyFolder:
    """The study's folder, made or found as it was left.

    Args:
        study: what to do.
        scale: toy, small or paper.
        out: the folder; new, empty, or of the same study at the same scale with the same changes.
        changes: `key=value` for every recipe.
        name: of the study, for titles.
        checkpoint: see `expand`.
        dry_run: write nothing: what the folder would hold.

    Raises:
        StudyError: the folder holds something else, or there is no row without a fault.
    """
    plan = expand(study, scale, changes, checkpoint=checkpoint)
    if not plan.trainings:
        raise StudyError("\n".join(f"rows.{row.name}: {row.error}" for row in plan.rows.values()))
    asked, figure = resolved(plan, name), resolve_figure(plan)
    if (out / STUDY).is_file():
        found = StudyFolder(out).asked
        # An override that asks for what is measured anyway is none.
        if {**found, "checkpoint": checkpoint} != asked:
            if found.get("checkpoint") != checkpoint:
                begun = found.get("checkpoint")
                raise StudyError(
                    f"{out} was begun {'with' if begun else 'without'} ",
                    Option("checkpoint", begun),
                    ", and its figures are not mixed with those of other weights; give the same, or another ",
                    Option("out"),
                )
            different = next(key for key in asked if found.get(key) != asked[key])
            raise StudyError(
                f"{out} holds another study, or this one otherwise ({different} differs); give another ", Option("out")
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StudyError(f"{out} exists and holds no study; give another ", Option("out"))
    elif not dry_run:
        out.mkdir(parents=True, exist_ok=True)
        files.write_json(out / STUDY, asked)
    if not dry_run:
        write_figure(out, figure)
    return StudyFolder(out, asked)


def resolved(plan: StudyPlan, name: str) -> dict[str, Any]:
    """The plan in JSON's types."""
    size = plan.study.size(plan.scale)
    notes = [plan.study.note, size.note]
    notes += [f"{key}: {column.note}" for key, column in plan.study.columns.items() if column.note]
    notes += [
        f"{key}: {stand_in.suite or stand_in.what} stands in for {column.suite or column.what}"
        for key, column in plan.study.columns.items()
        if (stand_in := size.column(key, column)) != column
    ]
    return {
        "name": name,
        "title": plan.study.title,
        "scale": plan.scale,
        "changes": list(plan.changes),
        "checkpoint": plan.checkpoint,
        "notes": [note for note in notes if note],
        "columns": {
            key: size.column(key, column).model_dump(mode="json") for key, column in plan.study.columns.items()
        },
        "rows": {key: _row(row) for key, row in plan.rows.items()},
        "trainings": {key: _training(recipe) for key, recipe in plan.trainings.items()},
    }


def _row(row: PlannedRow) -> dict[str, Any]:
    return {
        "label": row.label,
        "error": row.error,
        "trainings": list(row.trainings),
        "pick": row.pick,
        "checkpoint": row.checkpoint,
        "weights": row.weights,
        "sources": sorted({name for m in row.measures.values() if isinstance(name := m.column.transfer_from, str)}),
        "notes": list(row.notes),
        "measures": {key: _figure(measure) for key, measure in row.measures.items()},
    }


def _figure(measure: PlannedMeasure) -> dict[str, Any]:
    return {
        "column": measure.column.model_dump(mode="json"),
        "limit": measure.limit,
        "folder": measure.folder,
        "checkpoint": measure.checkpoint,
        "surrogate": measure.surrogate,
        "published": [
            {**{key: getattr(cell, key) for key in _PRINTED}, "note": cell.record.get("note")} for cell in measure.cells
        ],
    }


def _training(recipe: Recipe) -> dict[str, Any]:
    method = recipe.method.resolved(recipe.threat)
    # In full nothing tells what a recipe says from what is by default, which gives way to what its weights show.
    with suppress(RecipeError):
        shown = as_weights_show(recipe, Path(), lambda text: None).model
        recipe = recipe.model_copy(update={"model": shown.model_copy(update={"key": recipe.model.key})})
    passes: Passes = method.passes(calls=2 if recipe.weight_perturbation else 1)
    return {
        "recipe": recipes.dump(recipe),
        "seed": recipe.seed,
        "steps": recipe.total_steps,
        "natural_steps": recipe.natural_steps,
        "forwards": passes.forwards * recipe.batches,
        "backwards": passes.backwards * recipe.batches,
    }
