"""Drawings of several runs or of a study's rows: clean against robust accuracy, and robustness against cost.

trade_off("study-1-trade-off", [Point("Free m = 8", clean=0.86, robust=0.46, low=0.44, high=0.48)])
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from toughen.report.blocks import Figure
from toughen.report.formatting import label, percent
from toughen.report.page.figures import svg
from toughen.report.page.figures.labels import label_points

FEW = 12
"""Of more points than this each has its number beside it: the legend alone would be a riddle."""


class Point(NamedTuple):
    """A run or a row: fractions, the interval of the robust accuracy, what it cost and the published pair."""

    name: str
    clean: float
    robust: float
    low: float | None = None
    high: float | None = None
    cost: float | None = None
    unreliable: bool = False


def pareto(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats in one of the two accuracies without losing in the other, by clean accuracy.

    Of points with equal pairs all are there, by name.
    """
    found: list[Point] = []
    by_name = sorted(points, key=lambda point: point.name, reverse=True)
    for point in sorted(by_name, key=lambda point: (-point.clean, -point.robust)):
        tied = found and point[1:3] == found[-1][1:3]
        if not point.unreliable and (not found or tied or point.robust > found[-1].robust):
            found.append(point)
    return found[::-1]


def trade_off(key: str, points: Sequence[Point]) -> Figure:
    """Clean against robust accuracy with 95 % intervals, and the Pareto front of what can be believed."""
    title = "Clean against robust accuracy"
    front = pareto(points)
    with svg.drawing(_size(points, 3.2)) as (figure, axes):
        axes.plot(
            [100 * p.clean for p in front], [100 * p.robust for p in front], color=svg.INK, linewidth=1, linestyle="--"
        )
        axes.set_xlabel("clean accuracy, % (dashed: Pareto front)")
        axes.set_ylabel("robust accuracy, %")
        _mark(axes, [(100 * point.clean, point) for point in points])
        ends = (f"{point.name} with {percent(point.clean)} clean and {percent(point.robust)} robust" for point in front)
        alt = f"On the Pareto front: {'; '.join(ends)}."
        found = svg.line_figure(figure, key, title, alt, Point._fields, _rows(points))
        return replace(found, broad=len(points) > FEW)


def against_cost(key: str, points: Sequence[Point], unit: str) -> Figure:
    """Robust accuracy with 95 % intervals against what training cost, on a logarithmic scale."""
    title = "Robustness against cost"
    known = [(point.cost, point) for point in points if point.cost]
    with svg.drawing(_size(known, 3.0)) as (figure, axes):
        axes.set_xscale("log")
        axes.set_xlabel(f"cost of training, {unit}")
        axes.set_ylabel("robust accuracy, %")
        _mark(axes, known)
        svg.plain_ticks(axes)
        most = max(point.robust for _, point in known)
        best = [
            f"{point.name} with {percent(most)}, cost {point.cost:,.0f} {unit}"
            for point in points
            if point.cost and point.robust == most
        ]
        alt = f"The most robust{' are equal' if len(best) > 1 else ''}: {'; '.join(best)}."
        found = svg.line_figure(figure, key, title, alt, Point._fields, _rows(points))
        return replace(found, broad=len(known) > FEW)


def _size(points: Sequence[object], height: float) -> tuple[float, float]:
    return (5.2, height) if len(points) <= FEW else (7.4, 1.4 * height)


def _mark(axes: Any, points: Sequence[tuple[float, Point]]) -> None:
    """A mark for each point, with its name in the legend; of many points each has its number beside it too."""
    few = len(points) <= FEW
    for number, (x, point) in enumerate(points):
        style = {**svg.series(number), "linestyle": "none"}
        y = 100 * point.robust
        if point.low is not None and point.high is not None:
            reach = [[max(0.0, y - 100 * point.low)], [max(0.0, 100 * point.high - y)]]
            axes.errorbar(x, y, yerr=reach, color=style["color"], linewidth=0.9, capsize=2, marker="none")
        faces = {"markerfacecolor": "none"} if point.unreliable else {}
        name = f"{label(point.name)}{' (unreliable)' if point.unreliable else ''}"
        # An open mark says it where names are short.
        text = name if few else f"{number + 1}  {label(point.name, 24)}"
        axes.plot([x], [y], label=text, **{"markersize": 6, **style, **faces})
    svg.legend(axes)
    if not few:
        axes.get_figure(root=True).draw_without_rendering()
        label_points(axes, [(x, 100 * point.robust, str(number)) for number, (x, point) in enumerate(points, 1)])


def _rows(points: Sequence[Point]) -> Iterator[list[Any]]:
    return (["" if value is None else value for value in point] for point in points)
