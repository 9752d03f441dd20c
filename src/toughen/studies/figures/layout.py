"""What a study's figure shows, as text: what is on x and on y, which rows make a line, what has a panel of its own.

figure:
  x: method.replays                       # a key of the rows' recipes
  y: pgd-20                               # a column
  lines: {Free: "m*", Natural: natural}   # label: rows, by name or pattern
  panels: [{y: clean}, {y: pgd-20}]       # each says where it differs
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import BeforeValidator

from toughen.recipes import Recipe
from toughen.settings import Settings, known, nearest

OF_ATTACK = ("attack.eps", "attack.steps")
STEP, ROW, WEIGHTS = "step", "row", "weights"
LOGGED = ("validation.robust_accuracy", "validation.clean_accuracy", "loss", "lr", "radius_mean")
"""What may be on y where x is the optimiser step."""

_MISSING = (
    "x is missing; give a column, a key of the rows' recipes like method.replays, "
    f"{', '.join(OF_ATTACK)}, {STEP}, {WEIGHTS} or {ROW}"
)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Patterns = Annotated[tuple[str, ...], BeforeValidator(_listed)]
"""Names, or patterns of names like `free-*`; text alone is one."""


class FigurePanel(Settings, frozen=True):
    """A pair of axes.

    Attributes:
        title: above it; of a panel by default the column, where the panels differ by it; of a figure the study's.
        x: what is on x. A column, whose figure it is; a key of the rows' recipes, like `method.replays`, `threat` being
            its radius; `attack.eps` or `attack.steps`, of the attack that each column of y is; `step`, the optimiser
            step of each line of the log; `weights`, the decay rate of the average that a row measures; `row`, each by
            its label.
        y: a column; several where x is of the attack; where x is `step` one of `LOGGED`.
        rows: only these; by default all that are not in `level`.
        lines: label -> its rows; a row is on the first line that names it. By default a row is a line or a point of its
            own where x is a column, of the attack or a step; else all of them are one line.
        level: rows drawn as a level line each.
        mark: what stands beside the points of a line: `row`, or a key of the rows' recipes.
        x_label: below the axis, instead of what x is.
        y_label: beside the axis, instead of what y is.
        log: let x be logarithmic.
    """

    title: str | None = None
    x: str | None = None
    y: Patterns = ()
    rows: Patterns = ("*",)
    lines: Mapping[str, Patterns] | None = None
    level: Patterns = ()
    mark: str | None = None
    x_label: str | None = None
    y_label: str | None = None
    log: bool = False


class StudyFigure(FigurePanel, frozen=True):
    """A figure: what all of its panels have in common, and the panels.

    Attributes:
        panels: each says where it differs; without any the figure is one panel.
    """

    panels: tuple[FigurePanel, ...] = ()

    def each(self) -> dict[str, FigurePanel]:
        """The panels in full, by their place in the study's file."""
        own = {key: getattr(self, key) for key in FigurePanel.model_fields}
        own["title"] = None
        if not self.panels:
            return {"figure": FigurePanel(**own)}
        return {
            f"figure.panels.{number}": FigurePanel(
                **{**own, **{key: getattr(panel, key) for key in panel.model_fields_set}}
            )
            for number, panel in enumerate(self.panels)
        }

    def check(self, columns: Mapping[str, Any], rows: Collection[str]) -> None:
        """Refuse what is not in the study.

        Args:
            columns: key -> `StudyColumn`.
            rows: keys.

        Raises:
            ValueError: names the place in the figure, and what there is.
        """
        for where, panel in self.each().items():
            _check_axes(where, panel, columns)
            for key, patterns in _row_patterns(panel):
                for pattern in patterns:
                    if not matching([pattern], rows):
                        raise ValueError(f"{where}.{key}: there is no row {pattern!r}{_hint(pattern, rows)}")
            if panel.mark not in (None, ROW):
                _check_key(f"{where}.mark", str(panel.mark), [ROW])


def matching(patterns: Sequence[str], names: Collection[str]) -> list[str]:
    """The names that any of the patterns means, in their own order."""
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _check_axes(where: str, panel: FigurePanel, columns: Mapping[str, Any]) -> None:
    if panel.x is None:
        raise ValueError(f"{where}: {_MISSING}")
    if not panel.y:
        raise ValueError(f"{where}: y is missing; give a column, or with x: {STEP} one of {', '.join(LOGGED)}")
    if panel.x == STEP and STEP not in columns:
        for name in panel.y:
            known(name, LOGGED, f"value of the log, as {where}.y with x: {STEP}")
        drawn = list(panel.y)
    else:
        for pattern in panel.y:
            if not matching([pattern], columns):
                raise ValueError(f"{where}.y: there is no column {pattern!r}{_hint(pattern, columns)}")
        drawn = matching(panel.y, columns)
    if panel.x in OF_ATTACK:
        for name in drawn:
            if columns[name].suite is None:
                raise ValueError(
                    f"{where}.y: column {name} is {columns[name].what}, which has no attack for x: {panel.x}; leave it "
                    "out"
                )
        return
    if len(drawn) > 1:
        raise ValueError(
            f"{where}.y: {', '.join(drawn)} are {len(drawn)} columns, and x: {panel.x} takes one; give each a panel of "
            "its own"
        )
    if panel.x not in columns:
        _check_key(f"{where}.x", panel.x, [*columns, *OF_ATTACK, STEP, ROW, WEIGHTS])


def _check_key(where: str, key: str, others: Sequence[str]) -> None:
    """Refuse what cannot be a key of a recipe, nor one of the others."""
    if key not in others and key.split(".")[0] not in Recipe.model_fields:
        guess = nearest(key, [*others, *Recipe.model_fields])
        raise ValueError(
            f"{where}: {key!r} is no key of a recipe{guess}; give one, like method.replays, or {', '.join(others)}"
        )


def _row_patterns(panel: FigurePanel) -> Iterator[tuple[str, Sequence[str]]]:
    yield "rows", panel.rows
    yield "level", panel.level
    for label, patterns in (panel.lines or {}).items():
        yield f"lines.{label}", patterns


def _hint(name: str, allowed: Collection[str]) -> str:
    return nearest(name, allowed) or f"; allowed: {', '.join(list(allowed)[:40])}"
