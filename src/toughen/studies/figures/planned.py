"""A study's figure as its folder keeps it: which points it has, before any is measured. No torch.

figure = read_figure(Path("runs/studies/free-figure-4-small"))      # None where the study names none
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from toughen.storage import files

FIGURE = "figure.json"
"""In a study's folder. It may change with the study's file, unlike what is measured."""

Kind = Literal["number", "category", "measured", "step"]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class PlannedPoint(_Record):
    """A point, or, where x is the optimiser step, a curve.

    Attributes:
        row: of the study.
        column: on y; "" where x is the optimiser step.
        x: the number or text on x; None where that is measured or the step.
        logged: where the value is in a line of the log, for a curve.
        mark: what stands beside it.
    """

    row: str
    column: str = ""
    x: Finite | str | None = None
    logged: list[str] = []
    mark: str = ""


class PlannedLine(_Record):
    """Points with a label, those of a `level` drawn as a line across the panel each."""

    label: str
    points: list[PlannedPoint]


class PlannedPanel(_Record):
    """A pair of axes.

    Attributes:
        title: above it.
        kind: what x is: a number, a text, the figure of `x_column`, or the optimiser step.
        x_column: of the study.
        categories: the texts on x from left to right, where it is a text.
        x_label: below the axis.
        y_label: beside it.
        log: whether x is logarithmic.
        lines: in their order.
        level: level lines, of a point each.
    """

    title: str
    kind: Kind
    x_column: str = ""
    categories: list[str] = []
    x_label: str
    y_label: str
    log: bool
    lines: list[PlannedLine]
    level: list[PlannedLine]


class PlannedFigure(_Record):
    """A study's figure, resolved."""

    title: str
    panels: list[PlannedPanel]


def read_figure(folder: Path) -> PlannedFigure | None:
    """The figure of a study's folder; None where it names none.

    Raises:
        ValueError: the file is none of toughen's.
    """
    path = folder / FIGURE
    if not path.is_file():
        return None
    try:
        return PlannedFigure.model_validate(files.read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ascii(".".join(map(str, first["loc"])))[1:-1][:200]
        raise ValueError(f"{path} is no figure of toughen's ({place}: {first['msg']}); run the study again") from None


def write_figure(folder: Path, figure: PlannedFigure | None) -> None:
    """Keep what is to be drawn, in place of what was."""
    path = folder / FIGURE
    if figure is None:
        path.unlink(missing_ok=True)
    elif not path.is_file() or files.read_json(path) != figure.model_dump(mode="json"):
        files.write_json(path, figure.model_dump(mode="json"))
