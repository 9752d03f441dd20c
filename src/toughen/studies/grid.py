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

from toughen import recipes
from toughen.data import DATA
from toughen.optim.ema import average_name
from toughen.recipes import Recipe, RecipeError
from toughen.recipes.text import build, change, read, with_value
from toughen.settings import known
from toughen.studies.published import PublishedNumber, find_cells
from toughen.studies.schema import Row, Scale, Study, StudyColumn
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
    """

    column: StudyColumn
    limit: int | None
    cells: tuple[PublishedNumber, ...]
    folder: str


@dataclass
class PlannedRow:
    """A row, resolved.

    Attributes:
        name: key in the study.
        label: for tables.
        trainings: keys of its trainings, one a seed.
        pick: which of them counts.
        weights: an average instead of the recipe's headline.
        measures: by column.
        notes: said below the table.
        error: what is wrong with the row; then it has no trainings.
    """

    name: str
    label: str
    trainings: tuple[str, ...] = ()
    pick: str = "best"
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
        rows: by key, in the table's order.
        trainings: run folder -> recipe; equal recipes are there once.
    """

    study: Study
    scale: str
    changes: tuple[str, ...]
    rows: dict[str, PlannedRow]
    trainings: dict[str, Recipe]


def expand(study: Study, scale: str = "paper", changes: Iterable[str] = ()) -> StudyPlan:
    """The plan of a study.

    Args:
        study: what to do.
        scale: one of toy, small and paper.
        changes: `key=value` for every recipe, on top of all else. Where the key is the name of a data set, like
            cifar10=FOLDER, the value is where it lies, for those recipes alone that train on it.

    Raises:
        ValueError: an unknown scale, or a change that is none.
    """
    size = study.size(scale)
    places, others = _places(changes := tuple(changes))
    plan = StudyPlan(study, scale, changes, {}, {})
    keys: dict[str, str] = {}
    for key in (*size.rows, *size.columns):
        if key not in study.all_rows() and key not in study.columns:
            raise StudyError(f"scales.{scale}: there is no row or column {key!r}")
    for name, row in study.all_rows().items():
        planned = PlannedRow(name, row.label or name, pick=row.pick or study.pick, weights=row.weights)
        planned.notes = tuple(filter(None, (row.note,)))
        try:
            found = {_key(recipe, keys): recipe for recipe in _recipes(study, name, row, size, places, others)}
            _check_weights(row, found.values())
        except (RecipeError, ValueError) as error:
            planned.error = str(error)
        else:
            for key, recipe in found.items():
                plan.trainings.setdefault(key, recipe)
            planned.trainings = tuple(found)
            planned.measures = _measures(study, row, size)
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


def _recipes(
    study: Study, name: str, row: Row, size: Scale, places: Mapping[str, str], changes: Iterable[str]
) -> list[Recipe]:
    """The row's recipe with each seed."""
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
    mapping = change(mapping, changes)
    return [build({**mapping, "seed": seed}) for seed in size.seeds or row.seeds or study.seeds]


def _check_weights(row: Row, found: Iterable[Recipe]) -> None:
    for recipe in found:
        if row.weights:
            known(row.weights, ("weights", *map(average_name, recipe.averages)), f"weights of {recipe.name}")


def _key(recipe: Recipe, keys: dict[str, str]) -> str:
    """Name of the run folder: the same for the same training, whatever its name; that of the first is kept."""
    text = recipes.dump(recipe.model_copy(update={"name": ""}))
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return keys.setdefault(digest, f"{recipe.name}-{digest}")


def _measures(study: Study, row: Row, size: Scale) -> dict[str, PlannedMeasure]:
    found = {key: _measure(study, row, key, size) for key in row.columns or study.columns}
    shared = next((m.folder for m in found.values() if m.column.what in WITH_CLEAN), "")
    return {key: replace(m, folder=shared) if m.column.what == "clean" else m for key, m in found.items()}


def _measure(study: Study, row: Row, key: str, size: Scale) -> PlannedMeasure:
    published = study.columns[key]
    column = size.column(key, published)
    cells = []
    # What is measured in place of something else is compared with no published number.
    if published.metric is not None and column.what == published.what:
        for wanted in row.cells:
            cells += find_cells({**study.reproduces, **wanted}, metric=published.metric, eps=published.eps)
    return PlannedMeasure(column, size.limit, tuple(cells), folder_name(column, size.limit, row.weights))


def folder_name(column: StudyColumn, limit: int | None, weights: str | None) -> str:
    """Where an evaluation lies in its run folder: what it is, said so that equal ones share it."""
    if column.what == "minutes" or column.what == "clean":
        return ""
    parts = [SHARED.get(column.what, column.what), column.suite, column.attack, column.threat]
    parts += [
        f"step-{column.step_size:.6g}" if column.step_size else "",
        f"from-{column.source}" if column.source else "",
    ]
    parts += [f"n{limit}" if limit else "", weights]
    return "_".join(re.sub(r"[^\w.+-]+", "-", part) for part in parts if part)
