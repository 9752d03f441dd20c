"""What a study is, as text: rows of recipes, columns of figures, scales, and the published cells beside them.

title: Free training on CIFAR-10
reproduces: {paper: "001", table: Table 1}
columns:
  clean: {what: clean, metric: clean}
  pgd-20: {suite: pgd-20, metric: PGD-20}
rows:
  natural: {recipe: cifar10-natural, cells: {method: natural}}
axes:
  - {m2: {recipe: cifar10-free, set: {method.replays: 2}, cells: {method: Free, params: {m: 2}}}, m8: {...}}
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from toughen.errors import Command
from toughen.evaluation import suites
from toughen.settings import Count, Positive, Settings, Whole, known
from toughen.studies.figures.layout import StudyFigure
from toughen.studies.published import check_filter
from toughen.threat import Linf
from toughen.threat import parse as parse_threat

What = Literal["clean", "robust", "minutes", "corruptions", "mce", "gradient_mean", "gradient_max", "transfer"]
Pick = Literal["best", "each"]
CheckpointName = Literal["best", "last"]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, Mapping) else value


def _suited(value: Any) -> Any:
    return {"suite": value} if isinstance(value, str) else value


class OtherSeed(Settings, frozen=True):
    """Another training of the row itself.

    Attributes:
        seed: of it, which is none of the row's.
    """

    seed: Annotated[Whole, Field(ge=0, lt=2**63)]


class StudyColumn(Settings, frozen=True):
    """One figure of every row.

    Attributes:
        what: "robust" and "transfer" accuracy under a suite, "clean" accuracy, training "minutes", mean accuracy over
            the 19 "corruptions", "mce", or the input gradient's mean or greatest magnitude.
        suite: of attacks, for what is attacked.
        threat: another ball than the row's recipe is trained in.
        step_size: of the suite's PGD attacks instead of the customary one.
        attack: of a suite of several attacks, the label of the one whose accuracy this is; by default the worst case.
        transfer_from: for "transfer", what the adversarial examples are made on: the key of a row, or {seed: N} for
            another training of the row itself, which has no other part in it.
        checkpoint: see `Study`; the row's by default.
        metric: what the papers call it; null for a column that none has.
        eps: the radius of the published cells, where one metric is printed at several.
        note: said below the table, like how it differs from what was published.
    """

    what: What = "robust"
    suite: str | None = None
    threat: str | None = None
    step_size: Positive | None = None
    attack: str | None = None
    transfer_from: str | OtherSeed | None = None
    checkpoint: CheckpointName | None = None
    metric: str | None = None
    eps: str | None = None
    note: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        attacked = self.what in ("robust", "transfer")
        if attacked and self.suite is None:
            raise ValueError(f"suite is missing; give one, like pgd-20 ({Command('list', 'suites')})")
        if not attacked and (self.suite or self.step_size or self.attack):
            raise ValueError(
                f"suite, attack and step_size belong to attacks, and this column is {self.what}; leave them out"
            )
        if (self.transfer_from is not None) != (self.what == "transfer"):
            raise ValueError(
                "transfer_from goes with what: transfer, and says where its examples are made; give a row's key, or "
                "{seed: N} for another training of the row itself"
            )
        ball = Linf(8 / 255) if self.threat is None else parse_threat(self.threat)
        if self.suite is not None:
            found = suites.find(self.suite, ball)
            if self.attack is not None:
                known(self.attack, found if isinstance(found, Mapping) else (), f"attack of suite {self.suite}")
        return self


class Row(Settings, frozen=True):
    """One row: a training, or several, of which each counts or the best.

    Attributes:
        label: for the table; the row's key by default.
        recipe: a shipped name or a file; the study's `base` by default.
        set: changes to it, `path.to.key` -> value.
        seeds: one training each; the study's by default.
        pick: see `Study`.
        checkpoint: see `Study`.
        weights: an average like `average-0.995` instead of the recipe's headline.
        cells: filters, see `published`, of the published cells in this row.
        columns: only these.
        note: said below the table.
    """

    label: str | None = None
    recipe: str | None = None
    set: Mapping[str, Any] = Field(default_factory=dict)
    seeds: tuple[int, ...] | None = None
    pick: Pick | None = None
    checkpoint: CheckpointName | None = None
    weights: str | None = None
    cells: Annotated[tuple[Mapping[str, Any], ...], BeforeValidator(_listed)] = ()
    columns: tuple[str, ...] | None = None
    note: str | None = None

    def merged(self, other: "Row") -> "Row":
        """This row with what another says on top: changes and filters are joined."""
        filters = [{**a, **b, **_params(a, b)} for a in self.cells or ({},) for b in other.cells or ({},)]
        given = {key: getattr(other, key) for key in other.model_fields_set - {"set", "cells", "label"}}
        labels = [row.label for row in (self, other) if row.label]
        return self.model_copy(
            update={
                **given,
                "set": {**self.set, **other.set},
                "cells": tuple(f for f in filters if f),
                "label": ", ".join(labels) or None,
            }
        )


def _params(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    given = [params for params in (a.get("params"), b.get("params")) if params]
    if not all(isinstance(params, Mapping) for params in given):
        raise ValueError("params of cells is no mapping; write it like {m: 8}")
    joined = {key: value for params in given for key, value in params.items()}
    return {"params": joined} if joined else {}


class Scale(Settings, frozen=True):
    """A size at which a study runs.

    Attributes:
        twins: take each recipe's small twin (`recipes.twins`).
        recipes: other recipes in place of some.
        set: changes to every row's recipe, after the row's own.
        rows: changes to some rows' recipes, after these.
        columns: other columns in place of some, such as fewer steps.
        suite: in place of every other column's suite, and of its attack.
        seeds: instead of every row's.
        limit: test images; null for all.
        note: what is different, said below the table.
    """

    twins: bool = False
    recipes: Mapping[str, str] = Field(default_factory=dict)
    set: Mapping[str, Any] = Field(default_factory=dict)
    rows: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict)
    columns: Mapping[str, Annotated[StudyColumn, BeforeValidator(_suited)]] = Field(default_factory=dict)
    suite: str | None = None
    seeds: tuple[int, ...] | None = None
    limit: Count | None = None
    note: str | None = None

    def over(self, base: "Scale") -> "Scale":
        """What this says on top of another."""
        given = {key: getattr(self, key) for key in self.model_fields_set}
        return base.model_copy(update={**given, "set": {**base.set, **self.set}})

    def column(self, key: str, column: StudyColumn) -> StudyColumn:
        """A column as it is measured at this scale."""
        if key in self.columns:
            instead = self.columns[key]
            return instead.model_copy(update={"checkpoint": instead.checkpoint or column.checkpoint})
        if self.suite is None or column.suite is None:
            return column
        return column.model_copy(update={"suite": self.suite, "attack": None, "step_size": None})


SIZES: Mapping[str, Scale] = {
    "paper": Scale(),
    "small": Scale(twins=True, limit=1000),
    "toy": Scale(
        twins=True,
        limit=8,
        suite="pgd-2",
        set={
            # Few digits for whatever a recipe trains on, so that nothing is fetched.
            "data.source": "mnist5k",
            "data.limit": 64,
            "data.validation": 16,
            "data.per_class": None,
            "data.size": None,
            "data.pad": 0,
            "data.flip": False,
            "normalize": "data",
            "batch_size": 16,
            "steps": 16,
            "model.width": 2,
            "selection.suite": "pgd-2",
            "selection.every": 4,
        },
        note="toy: a few steps on a few digits; the figures mean nothing",
    ),
}
"""What the scales are, before a study says otherwise."""


class Study(Settings, frozen=True):
    """Recipes mapped to a table.

    Attributes:
        title: above the table.
        reproduces: a filter that all rows' cells have in common, like {paper: "001", table: Table 1}.
        base: recipe of rows that name none.
        set: changes to every row's recipe, before the row's own.
        columns: key -> `StudyColumn`; text stands for a suite.
        rows: key -> `Row`.
        axes: in place of rows or beside them: each is key -> `Row`, and every combination is a row.
        seeds: one training each.
        pick: "each" evaluates the trainings of all seeds, for a mean and a sample standard deviation; "best" the one
            that is best in validation, by what its recipe is selected by.
        checkpoint: which weights of a training are evaluated, the "best" in validation or the "last".
        figure: what is drawn of it, see `StudyFigure`; null for the trade-off alone.
        scales: how `toy`, `small` and `paper` differ from `SIZES`.
        note: said below the table.
    """

    title: str
    reproduces: Mapping[str, Any] = Field(default_factory=dict)
    base: str | None = None
    set: Mapping[str, Any] = Field(default_factory=dict)
    columns: Mapping[str, Annotated[StudyColumn, BeforeValidator(_suited)]]
    rows: Mapping[str, Row] = Field(default_factory=dict)
    axes: tuple[Mapping[str, Row], ...] = ()
    seeds: tuple[int, ...] = (0,)
    pick: Pick = "each"
    checkpoint: CheckpointName = "best"
    figure: StudyFigure | None = None
    scales: Mapping[Literal["toy", "small", "paper"], Scale] = Field(default_factory=dict)
    note: str | None = None

    @field_validator("seeds")
    @classmethod
    def _some_seeds(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError("seeds must be one or more numbers, none twice, like [0, 1]")
        return value

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if not self.rows and not self.axes:
            raise ValueError("there is no row; give rows, axes or both")
        check_filter(self.reproduces)
        for key, row in self.all_rows().items():
            for wanted in row.cells:
                check_filter(wanted)
            for name in row.columns or ():
                if name not in self.columns:
                    raise ValueError(
                        f"rows.{key}.columns: there is no column {name!r}; allowed: {', '.join(self.columns)}"
                    )
            if row.recipe is None and self.base is None:
                raise ValueError(f"rows.{key}: recipe is missing; give one, or a base for all rows")
            kinds = {self.columns[name].what for name in row.columns or self.columns}
            if "clean" in kinds and not kinds & {"robust", "corruptions", "mce"}:
                raise ValueError(
                    f"rows.{key}: clean accuracy comes with an attack or corruptions; give such a column too"
                )
        for key, column in self.columns.items():
            if isinstance(column.transfer_from, str) and column.transfer_from not in self.all_rows():
                raise ValueError(f"columns.{key}.transfer_from: there is no row {column.transfer_from!r}")
        if self.figure is not None:
            self.figure.check(self.columns, self.all_rows())
        return self

    def size(self, scale: str) -> Scale:
        """One of the three scales.

        Raises:
            ValueError: there is no such scale.
        """
        base = SIZES[known(scale, SIZES, "scale")]
        own = self.scales.get(scale)  # pyright: ignore[reportArgumentType]
        return own.over(base) if own else base

    def all_rows(self) -> dict[str, Row]:
        """Rows and combinations of axes, in their order."""
        combined: dict[str, Row] = {"": Row()} if self.axes else {}
        for axis in self.axes:
            combined = {
                f"{before}-{key}".strip("-"): row.merged(own)
                for before, row in combined.items()
                for key, own in axis.items()
            }
        return {**self.rows, **combined}
