"""Drawings of several runs or of a study's rows: clean against robust accuracy, and robustness against cost.

trade_off("study-1-trade-off", [Point("Free m = 8", clean=0.86, robust=0.46, low=0.44, high=0.48)])
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from toughen.report.blocks import Figure
from toughen.report.formatting import label, percent
from toughen.report.page.figures import svg


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

    Of points with equal pairs all are there.
    """
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (-point.clean, -point.robust, point.name)):
        tied = found and point[1:3] == found[-1][1:3]
        if not point.unreliable and (not found or tied or point.robust > found[-1].robust):
            found.append(point)
    return found[::-1]


def trade_off(key: str, points: Sequence[Point]) -> Figure:
    """Clean against robust accuracy with 95 % intervals, and the Pareto front of what can be believed."""
    title = "Clean against robust accuracy"
    front = pareto(points)
    with svg.drawing((5.2, 3.2)) as (figure, axes):
        _marks(axes, [(100 * point.clean, point) for point in points])
        axes.plot(
            [100 * p.clean for p in front], [100 * p.robust for p in front], color=svg.INK, linewidth=1, linestyle="--"
        )
        axes.set_xlabel("clean accuracy, % (dashed: Pareto front)")
        axes.set_ylabel("robust accuracy, %")
        ends = (f"{point.name} with {percent(point.clean)} clean and {percent(point.robust)} robust" for point in front)
        alt = f"On the Pareto front: {'; '.join(ends)}."
        return svg.line_figure(figure, key, title, alt, Point._fields, _rows(points))


def against_cost(key: str, points: Sequence[Point], unit: str) -> Figure:
    """Robust accuracy with 95 % intervals against what training cost, on a logarithmic scale."""
    title = "Robustness against cost"
    with svg.drawing((5.2, 3.0)) as (figure, axes):
        known = [(point.cost, point) for point in points if point.cost]
        _marks(axes, known)
        axes.set_xscale("log")
        svg.plain_ticks(axes)
        axes.set_xlabel(f"cost of training, {unit}")
        axes.set_ylabel("robust accuracy, %")
        most = max(point.robust for _, point in known)
        best = [
            f"{point.name} with {percent(most)}, cost {point.cost:,.0f} {unit}"
            for point in points
            if point.cost and point.robust == most
        ]
        alt = f"The most robust{' are equal' if len(best) > 1 else ''}: {'; '.join(best)}."
        return svg.line_figure(figure, key, title, alt, Point._fields, _rows(points))


def _marks(axes, points: Sequence[tuple[float, Point]]) -> None:
    few = len(points) <= 12
    for number, (x, point) in enumerate(points):
        style = {**svg.series(number if few else 0), "linestyle": "none"}
        y = 100 * point.robust
        if point.low is not None and point.high is not None:
            reach = [[max(0.0, y - 100 * point.low)], [max(0.0, 100 * point.high - y)]]
            axes.errorbar(x, y, yerr=reach, color=style["color"], linewidth=0.9, capsize=2)
        faces = {"markerfacecolor": "none"} if point.unreliable else {}
        text = label(point.name) + (" (unreliable)" if point.unreliable else "")
        axes.plot([x], [y], label=text if few else None, **{"markersize": 6, **style, **faces})
    if few:
        svg.legend(axes)


def _rows(points: Sequence[Point]) -> Iterator[list[Any]]:
    return (["" if value is None else value for value in point] for point in points)
