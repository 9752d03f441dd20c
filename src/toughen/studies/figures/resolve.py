"""Which points a study's figure has: each a row and a column, with what the row's recipe or the attack says of x.

figure = resolve_figure(expand(load("free-figure-4")))     # None where the study names none
figure.panels[0].lines[1].label                            # "Free m = 2"
figure.model_dump(mode="json")                             # what its folder keeps
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from toughen import recipes
from toughen.attacks import AttackSpec
from toughen.evaluation import suites
from toughen.recipes import Recipe
from toughen.recipes.text import parse_yaml
from toughen.report.formatting import radius_text
from toughen.settings import nearest, parse_number
from toughen.studies.figures.layout import OF_ATTACK, ROW, STEP, WEIGHTS, FigurePanel, matching
from toughen.studies.figures.planned import Kind, PlannedFigure, PlannedLine, PlannedPanel, PlannedPoint
from toughen.studies.grid import PlannedRow, StudyPlan
from toughen.studies.schema import StudyColumn
from toughen.studies.text import StudyError
from toughen.threat import Linf, Threat
from toughen.threat import parse as parse_threat


def resolve_figure(plan: StudyPlan) -> PlannedFigure | None:
    """The figure of a study at a scale; None where it names none.

    Raises:
        StudyError: x or a mark is no key of a row's recipe, or not of one kind, or x is logarithmic and not positive.
    """
    figure = plan.study.figure
    if figure is None:
        return None
    panels = figure.each()
    several = len({panel.y for panel in panels.values()}) > 1
    found = [_Panel(plan, where, panel, several).resolve() for where, panel in panels.items()]
    return PlannedFigure(title=figure.title or plan.study.title, panels=found)


class _Panel:
    """One panel of a plan's figure.

    Args:
        plan: of the study.
        where: its place in the study's file.
        panel: what that says.
        several: whether panels differ by their columns, and so may be called after them.
    """

    def __init__(self, plan: StudyPlan, where: str, panel: FigurePanel, several: bool) -> None:
        assert panel.x is not None
        self._plan, self._where, self._panel, self._x, self._several = plan, where, panel, panel.x, several
        self._columns = panel.y if self._steps else matching(panel.y, plan.study.columns)
        self._norms: set[str] = set()

    @property
    def _steps(self) -> bool:
        return self._x == STEP and STEP not in self._plan.study.columns

    def resolve(self) -> PlannedPanel:
        """The panel with all of its points."""
        panel = self._panel
        level = matching(panel.level, self._plan.rows)
        shown = [name for name in matching(panel.rows, self._plan.rows) if name not in level]
        found, left = [], shown
        for text, patterns in self._named_lines(shown).items():
            rows = matching(patterns, left)
            left = [name for name in left if name not in rows]
            found.append(PlannedLine(label=text, points=list(self._points(rows))))
        kind = self._kind(point.x for line in found for point in line.points)
        across = [
            PlannedLine(label=self._plan.rows[name].label, points=points[:1])
            for name in level
            if (points := list(self._points([name], level=True)))
        ]
        levels = _in_levels(found) if self._norms == {Linf.norm} else []
        return PlannedPanel(
            title=panel.title or (", ".join(panel.y) if self._several else ""),
            kind=kind,
            x_column=self._x if kind == "measured" else "",
            categories=self._categories(shown, found) if kind == "category" else [],
            x_label=panel.x_label or self._x_label() + (", /255" if levels else ""),
            y_label=panel.y_label or self._y_label(),
            log=panel.log,
            lines=[line for line in levels or found if line.points],
            level=across,
        )

    def _categories(self, shown: list[str], lines: list[PlannedLine]) -> list[str]:
        """The texts on x in the order of the rows, whatever their lines are."""
        points = sorted((point for line in lines for point in line.points), key=lambda point: shown.index(point.row))
        return list(dict.fromkeys(str(point.x) for point in points))

    def _named_lines(self, shown: list[str]) -> Mapping[str, Sequence[str]]:
        if self._panel.lines is not None:
            return self._panel.lines
        if self._steps or self._x in OF_ATTACK or self._x in self._plan.study.columns:
            # Two rows of one label are two lines; a key means itself, whatever it holds.
            labels = [self._plan.rows[name].label for name in shown]
            return {
                label if labels.count(label) == 1 else f"{label} ({name})": [_literally(name)]
                for name, label in zip(shown, labels, strict=True)
            }
        return {"": [*map(_literally, shown)]}

    def _points(self, rows: Iterable[str], *, level: bool = False) -> Iterable[PlannedPoint]:
        """Those of some rows, one evaluation once; of a level line nothing is on x."""
        folders: set[tuple[str, str]] = set()
        for name in rows:
            row = self._plan.rows[name]
            if not row.trainings:
                continue
            recipe = self._plan.trainings[row.trainings[0]]
            mark = self._mark(name, row, recipe)
            if self._steps and not level:
                yield PlannedPoint(
                    row=name, logged=_logged(self._columns[0], row.weights or recipe.headline), mark=mark
                )
                continue
            for column in self._columns:
                measure = row.measures.get(column)
                if measure is None or (measure.folder and (name, measure.folder) in folders):
                    continue
                folders.add((name, measure.folder))
                x = None if level else self._value(name, row, recipe, measure.column)
                yield PlannedPoint(row=name, column=column, x=x, mark=mark)

    def _value(self, name: str, row: PlannedRow, recipe: Recipe, column: StudyColumn) -> float | str | None:
        """What the row or its column has on x."""
        if self._x in self._plan.study.columns:
            return None
        if self._x in OF_ATTACK:
            ball = parse_threat(column.threat) if column.threat else recipe.threat
            return self._radius(ball) if self._x == OF_ATTACK[0] else self._attack_steps(column, ball)
        if self._x == ROW:
            return row.label
        if self._x == WEIGHTS:
            return self._decay(name, row.weights or recipe.headline)
        return self._radius(recipe.threat) if self._x == "threat" else self._setting("x", name, recipe, self._x)

    def _radius(self, ball: Threat) -> float:
        self._norms.add(ball.norm)
        return float(ball.eps)

    def _attack_steps(self, column: StudyColumn, ball: Threat) -> float:
        suite = suites.find(column.suite or "", ball)
        specs = list(suite.values()) if isinstance(suite, Mapping) else []
        steps = specs[0].settings.get("steps") if len(specs) == 1 and isinstance(specs[0], AttackSpec) else None
        if not isinstance(steps, int):
            raise self._error(f"x is attack.steps, and suite {column.suite} is not one attack of so many steps")
        return float(steps)

    def _decay(self, name: str, weights: str) -> float:
        if weights == WEIGHTS:
            raise self._error(f"x is {WEIGHTS}, and row {name} measures no average; put it in level, or leave it out")
        return float(weights.removeprefix("average-"))

    def _mark(self, name: str, row: PlannedRow, recipe: Recipe) -> str:
        key = self._panel.mark
        if key is None:
            return ""
        if key == ROW:
            return row.label
        if key == "threat":
            return radius_text(float(recipe.threat.eps))
        value = self._setting("mark", name, recipe, key)
        return value if isinstance(value, str) else f"{value:g}"

    def _setting(self, what: str, name: str, recipe: Recipe, key: str) -> float | str:
        """A value of a recipe: a number, or the text that it is."""
        value: Any = parse_yaml(recipes.dump(recipe), name)
        for part in key.split("."):
            if not isinstance(value, Mapping) or part not in value:
                guess = nearest(part, value) if isinstance(value, Mapping) else ""
                raise self._error(f"{what} is {key}, which the recipe of row {name} has not{guess}")
            value = value[part]
        if isinstance(value, Mapping):
            value = value.get("name", value.get("source"))
        if value is None:
            raise self._error(f"{what} is {key}, which the recipe of row {name} leaves open")
        try:
            return parse_number(str(value))
        except ValueError:
            return str(value)

    def _kind(self, values: Iterable[float | str | None]) -> Kind:
        if self._steps:
            return "step"
        if self._x in self._plan.study.columns:
            return "measured"
        some = list(values)
        texts = [value for value in some if isinstance(value, str)]
        if texts and (len(texts) < len(some) or self._panel.log):
            why = "is logarithmic" if self._panel.log else "is a number for other rows"
            raise self._error(f"x: {self._x} {why}, and here it is {texts[0]!r}")
        low = min((value for value in some if isinstance(value, float)), default=1.0)
        if self._panel.log and low <= 0:
            raise self._error(f"x: {self._x} is logarithmic, and here it is {low:g}")
        return "category" if texts else "number"

    def _x_label(self) -> str:
        if self._x in self._plan.study.columns:
            return _what(self._x, self._plan.study.columns[self._x])
        named = {
            **dict(zip(OF_ATTACK, ("radius of the attack", "steps of the attack"), strict=True)),
            "threat": "radius in training",
            STEP: "optimiser step",
            WEIGHTS: "decay rate of the average",
            ROW: "",
        }
        return named.get(self._x, self._x)

    def _y_label(self) -> str:
        if self._steps:
            return LOG_LABELS[self._columns[0]]
        columns = self._plan.study.columns
        return _what(self._columns[0] if len(self._columns) == 1 else "", columns[self._columns[0]])

    def _error(self, text: str) -> StudyError:
        return StudyError(f"{self._where}: {text}; see figure in the study")


LOG_LABELS = {
    "validation.robust_accuracy": "robust validation accuracy, %",
    "validation.clean_accuracy": "clean validation accuracy, %",
    "loss": "training loss",
    "lr": "learning rate",
    "radius_mean": "mean radius",
}

_WHAT: Mapping[str, Callable[[str], str]] = {
    "clean": lambda key: "clean accuracy, %",
    "robust": lambda key: f"robust accuracy{f' ({key})' if key else ''}, %",
    "transfer": lambda key: f"accuracy under transfer{f' ({key})' if key else ''}, %",
    "corruptions": lambda key: "accuracy under corruptions, %",
    "mce": lambda key: "mCE, %",
    "minutes": lambda key: "training, minutes",
    "gradient_mean": lambda key: "mean input gradient",
    "gradient_max": lambda key: "largest input gradient",
}


def _what(key: str, column: StudyColumn) -> str:
    return _WHAT[column.what](key)


def _logged(name: str, weights: str) -> list[str]:
    """Where a value of `LOGGED` is in a line of the log."""
    head, _, rest = name.partition(".")
    return [head, weights, rest] if rest else [head]


def _literally(name: str) -> str:
    """A pattern that means this name alone."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


def _in_levels(lines: list[PlannedLine]) -> list[PlannedLine]:
    """Lines with radii as levels of 255, where people write all of them so; else none."""
    radii = [point.x for line in lines for point in line.points if isinstance(point.x, float)]
    if not any(radii) or not all(radius_text(radius).endswith("/255") for radius in radii if radius):
        return []
    return [
        line.model_copy(
            update={
                "points": [
                    point.model_copy(update={"x": round(255 * point.x, 1)}) if isinstance(point.x, float) else point
                    for point in line.points
                ]
            }
        )
        for line in lines
    ]
