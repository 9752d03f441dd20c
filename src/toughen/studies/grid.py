"""From a study to what must be done: trainings, each once however many rows need it, and measurements.

    plan = expand(load("free-table-1"), "small", ["cifar10=path/to/cifar10"])
    plan.trainings["cifar10-free-small-1f0c93ab"]    # a recipe
    plan.rows["free-m8"].measures["pgd-20"].folder   # where in its run folder the evaluation lies

A row with a fault keeps it as `error` and stops no other row.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from toughen import recipes
from toughen.data import DATA
from toughen.optim.ema import average_name
from toughen.recipes import Recipe, RecipeError
from toughen.recipes.text import build, change, read, with_value
from toughen.settings import known
from toughen.studies.published import PublishedNumber, find_cells
from toughen.studies.schema import OtherSeed, Row, Scale, Study, StudyColumn
from toughen.studies.text import StudyError

WITH_CLEAN = ("robust", "corruptions", "mce")
"""Figures whose evaluation holds clean accuracy too."""

SHARED = {"robust": "", "mce": "corruptions", "gradient_mean": "gradients", "gradient_max": "gradients"}
"""What their folders are named after, where it is not the figure: one measurement gives several."""


@dataclass(frozen=True)
class PlannedMeasure:
    """One figure of a row.

    Attributes:
        column: what it is.
        limit: test images; null for all.
        cells: the published numbers beside it, usually one; several where tables print the same row.
        folder: name of the evaluation in the run folder; "" for what the run itself knows.
        checkpoint: which weights are measured, "best" or "last".
        surrogate: the training that adversarial examples are made on, where it is one of this row's for that alone.
    """

    column: StudyColumn
    limit: int | None
    cells: tuple[PublishedNumber, ...]
    folder: str
    checkpoint: str
    surrogate: str | None = None


@dataclass
class PlannedRow:
    """A row, resolved.

    Attributes:
        name: key in the study.
        label: for tables.
        trainings: keys of its trainings, one a seed.
        pick: which of them counts.
        checkpoint: see `Study`.
        weights: an average instead of the recipe's headline.
        measures: by column.
        notes: said below the table.
        error: what is wrong with the row; then it has no trainings.
    """

    name: str
    label: str
    trainings: tuple[str, ...] = ()
    pick: str = "each"
    checkpoint: str = "best"
    weights: str | None = None
    measures: dict[str, PlannedMeasure] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    error: str | None = None


@dataclass
class StudyPlan:
    """What a study asks for at a scale.

    Attributes:
        study: the study.
        scale: toy, small or paper.
        changes: the user's, on every recipe.
        checkpoint: the user's, for every figure; None for what the study says.
        rows: by key, in the table's order.
        trainings: run folder -> recipe; equal recipes are there once.
    """

    study: Study
    scale: str
    changes: tuple[str, ...]
    checkpoint: str | None
    rows: dict[str, PlannedRow]
    trainings: dict[str, Recipe]


def expand(
    study: Study, scale: str = "paper", changes: Iterable[str] = (), *, checkpoint: str | None = None
) -> StudyPlan:
    """The plan of a study.

    Args:
        study: what to do.
        scale: one of toy, small and paper.
        changes: `key=value` for every recipe, on top of all else. Where the key is the name of a data set, like
            cifar10=FOLDER, the value is where it lies, for those recipes alone that train on it.
        checkpoint: "best" or "last", for every figure instead of what the study says.

    Raises:
        ValueError: an unknown scale or checkpoint, or a change that is none.
    """
    size = study.size(scale)
    if checkpoint is not None:
        known(checkpoint, ("best", "last"), "checkpoint")
    places, others = _places(changes := tuple(changes))
    plan = StudyPlan(study, scale, changes, checkpoint, {}, {})
    keys: dict[str, str] = {}
    for key in (*size.rows, *size.columns):
        if key not in study.all_rows() and key not in study.columns:
            raise StudyError(f"scales.{scale}: there is no row or column {key!r}")
    for name, row in study.all_rows().items():
        planned = PlannedRow(name, row.label or name, pick=row.pick or study.pick, weights=row.weights)
        planned.checkpoint = checkpoint or row.checkpoint or study.checkpoint
        planned.notes = tuple(filter(None, (row.note,)))
        try:
            measures = _measures(study, row, size, checkpoint)
            mapping = _mapping(study, name, row, size, places, others)
            seeds, copies = size.seeds or row.seeds or study.seeds, _copies(measures)
            if own := next((key for key, seed in copies.items() if seed in seeds), None):
                raise ValueError(
                    f"columns.{own}.transfer_from: seed {copies[own]} is one of the row's own seeds; give another"
                )
            found = {seed: build({**mapping, "seed": seed}) for seed in (*seeds, *copies.values())}
            _check_weights(row, found.values())
        except (RecipeError, ValueError) as error:
            planned.error = str(error)
        else:
            named = {seed: _key(recipe, keys) for seed, recipe in found.items()}
            for seed, recipe in found.items():
                plan.trainings.setdefault(named[seed], recipe)
            planned.trainings = tuple(named[seed] for seed in seeds)
            planned.measures = {
                key: replace(m, surrogate=named[copies[key]] if key in copies else None) for key, m in measures.items()
            }
        plan.rows[name] = planned
    return plan


def _places(changes: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Where data sets lie, by name, and the other changes, of which each is one."""
    change({}, changes := list(changes))
    split = [item.partition("=") for item in changes]
    places = {key.strip(): place.strip() for key, _, place in split if key.strip() in DATA}
    if missing := next((name for name, place in places.items() if not place), None):
        raise StudyError(f"{missing}= says no place; give the folder or file of that data set")
    return places, [item for item, (key, _, _) in zip(changes, split, strict=True) if key.strip() not in places]


def _copies(measures: Mapping[str, PlannedMeasure]) -> dict[str, int]:
    """For each figure that asks for another training of its own row, the seed of that."""
    sources = {key: measure.column.transfer_from for key, measure in measures.items()}
    return {key: source.seed for key, source in sources.items() if isinstance(source, OtherSeed)}


def _mapping(
    study: Study, name: str, row: Row, size: Scale, places: Mapping[str, str], changes: Iterable[str]
) -> Mapping[str, Any]:
    """The row's recipe, with whatever seed."""
    source = row.recipe or study.base
    assert source is not None
    source = size.recipes.get(source, source)
    mapping = read(source, small=size.twins and source not in size.recipes.values())
    for given in (study.set, row.set, size.set, size.rows.get(name, {})):
        for path, value in given.items():
            mapping = with_value(mapping, path.split("."), value)
    if not isinstance(mapping.get("data"), Mapping) or not isinstance(mapping["data"].get("extra") or {}, Mapping):
        build(mapping)
        raise RecipeError("data: write a section with a source, like {source: cifar10}")
    if size.set.get("data.source") and (mapping["data"]).get("extra"):
        # Where the images are others, so are the extra ones.
        mapping = with_value(mapping, ["data", "extra"], {"source": size.set["data.source"], "limit": None})
    data = mapping["data"]
    for path, section in (["data"], data), (["data", "extra"], data.get("extra") or {}):
        if (place := places.get(str(section.get("source")))) is not None:
            mapping = with_value(mapping, [*path, "source"], place)
    return change(mapping, changes)


def _check_weights(row: Row, found: Iterable[Recipe]) -> None:
    for recipe in found:
        if row.weights:
            known(row.weights, ("weights", *map(average_name, recipe.averages)), f"weights of {recipe.name}")


def _key(recipe: Recipe, keys: dict[str, str]) -> str:
    """Name of the run folder: the same for the same training, whatever its name; that of the first is kept."""
    text = recipes.dump(recipe.model_copy(update={"name": ""}))
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return keys.setdefault(digest, f"{recipe.name}-{digest}")


def _measures(study: Study, row: Row, size: Scale, checkpoint: str | None) -> dict[str, PlannedMeasure]:
    found = {key: _measure(study, row, key, size, checkpoint) for key in row.columns or study.columns}
    shared = {m.checkpoint: m.folder for m in reversed(found.values()) if m.column.what in WITH_CLEAN}
    for key, measure in found.items():
        if measure.column.what == "clean":
            if measure.checkpoint not in shared:
                raise ValueError(
                    f"columns.{key}: clean accuracy comes with an attack or corruptions on the same weights; give such "
                    f"a column with checkpoint: {measure.checkpoint} too"
                )
            found[key] = replace(measure, folder=shared[measure.checkpoint])
    return found


def _measure(study: Study, row: Row, key: str, size: Scale, checkpoint: str | None) -> PlannedMeasure:
    published = study.columns[key]
    column = size.column(key, published)
    cells = []
    # What is measured in place of something else is compared with no published number.
    if published.metric is not None and column.what == published.what:
        for wanted in row.cells:
            cells += find_cells({**study.reproduces, **wanted}, metric=published.metric, eps=published.eps)
    checkpoint = checkpoint or column.checkpoint or row.checkpoint or study.checkpoint
    place = folder_name(column, size.limit, row.weights, checkpoint)
    return PlannedMeasure(column, size.limit, tuple(cells), place, checkpoint)


def folder_name(column: StudyColumn, limit: int | None, weights: str | None, checkpoint: str) -> str:
    """Where an evaluation lies in its run folder: what it is, said so that equal ones share it."""
    if column.what == "minutes" or column.what == "clean":
        return ""
    parts = [SHARED.get(column.what, column.what), column.suite, column.attack, column.threat]
    parts += [
        f"step-{column.step_size:.6g}" if column.step_size else "",
        f"from-{_place(column.transfer_from)}" if column.transfer_from else "",
    ]
    parts += [f"n{limit}" if limit else "", weights, "last" if checkpoint == "last" else ""]
    return "_".join(re.sub(r"[^\w.+-]+", "-", part) for part in parts if part)


def _place(source: str | OtherSeed) -> str:
    return f"seed-{source.seed}" if isinstance(source, OtherSeed) else source
