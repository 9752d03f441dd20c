"""The figure that a study names: its lines over x, one panel or several, with the published ones in grey.

draw_curves("study-1-figure", collect(StudyFolder(folder))["figure"]).svg
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from toughen.report.blocks import Figure, JsonObject
from toughen.report.formatting import label
from toughen.report.page.figures import svg
from toughen.report.page.figures.labels import fit_title, label_ends, label_points, put_ticks, thin_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 12
"""Of more lines than this the ends are labelled; a legend would be a list of look-alikes."""

TEXT = 28
"""Letters of a text on x at most."""

DOUBTED, PUBLISHED = "unreliable by its audit", "published"
BARS = "Bars are 95 % intervals, or deviations where several trainings count."

COLUMNS = (
    *("panel", "line", "row", "column", "x", "y", "low", "high", "trainings", "unreliable"),
    *("published x", "published y"),
)


def draw_curves(key: str, figure: JsonObject) -> Figure:
    """The lines of every panel with their deviations or intervals, level lines, and in grey what was published.

    Args:
        key: see `Figure`.
        figure: what `toughen.studies.figures.points.collect_figure` returns, with a point at least.
    """
    panels = [panel for panel in figure["panels"] if panel["lines"] or panel["level"]]
    names = list(dict.fromkeys(line["label"] for panel in panels for line in panel["lines"]))
    levels = list(dict.fromkeys(line["label"] for panel in panels for line in panel["level"]))
    styles = {name: svg.series(number) for number, name in enumerate(names)}
    across = {
        name: (svg.STYLES[1:][number % 3], f"{name} (level)" if name in names else name)
        for number, name in enumerate(levels)
    }
    columns = 3 if len(panels) == 3 else min(2, len(panels))
    wide, high = (5.2, 3.1) if columns == 1 else (0.4 + 3.2 * columns, 2.9 * -(-len(panels) // columns))
    # Texts on x that are written aslant take room below.
    longest = max(max(map(len, panel["categories"])) if _aslant(panel) else 0 for panel in panels)
    high = max(high, 0.6 + 0.14 * len(names)) if len(names) > MOST else high
    size = wide, high + 0.045 * min(longest, TEXT)
    with svg.drawing(size, -(-len(panels) // columns), columns, squeeze=False) as (drawn, grid):
        cells = grid.ravel().tolist()
        for spare in cells[len(panels) :]:
            spare.remove()
        for axes, panel in zip(cells, panels, strict=False):
            _draw_panel(axes, panel, styles, across, few=len(names) <= MOST)
        if any(axes.get_legend_handles_labels()[1] for axes in drawn.axes):
            svg.legend(cells[0], last=(DOUBTED, PUBLISHED))
        placed = list(zip(cells, panels, strict=False))
        for axes, panel in placed:
            _write_ticks(axes, panel)
        drawn.draw_without_rendering()
        for axes, panel in placed:
            if panel["kind"] == "number":
                thin_ticks(axes)
            fit_title(axes)
        drawn.draw_without_rendering()
        for axes, panel in placed:
            _write_labels(axes, panel, styles, few=len(names) <= MOST)
        title, alt = str(figure["title"]), " ".join([*map(_said, panels), BARS])
        found = svg.line_figure(drawn, key, title, alt, COLUMNS, _rows(figure["panels"]))
        return Figure(key, title, alt, found.csv, svg=found.svg, broad=len(panels) > 1)


def _draw_panel(
    axes: "Axes", panel: JsonObject, styles: Mapping[str, Any], across: Mapping[str, tuple[str, str]], *, few: bool
):
    places = _places(panel)
    for line in panel["level"]:
        (point,) = line["points"]
        dashes, text = across[line["label"]]
        axes.axhline(point["y"], color=svg.INK, linewidth=0.9, linestyle=dashes, label=label(text))
        if point["published"]:
            axes.axhline(point["published"][1], color=svg.GREY, linewidth=0.9, linestyle=":")
    for line in panel["lines"]:
        style, points = styles[line["label"]], line["points"]
        joined = {} if panel["kind"] in ("number", "step") or len(points) > 1 else {"linestyle": "none"}
        joined = {"linestyle": "none"} if panel["kind"] == "category" else joined
        printed = [(places(point["published"][0]), point["published"][1]) for point in points if point["published"]]
        if printed:
            grey = {**style, "color": svg.GREY, "linewidth": 1.0, "markerfacecolor": "none", "zorder": 1.8, **joined}
            axes.plot(*zip(*printed, strict=True), **grey)
        x, y = [places(point["x"]) for point in points], [point["y"] for point in points]
        if panel["kind"] == "step":
            _draw_curve(axes, points, style, label(line["label"]) if few and line["label"] else None)
            continue
        for at, point in zip(x, points, strict=True):
            if point["low"] is not None and point["high"] is not None:
                reach = [[max(0.0, point["y"] - point["low"])], [max(0.0, point["high"] - point["y"])]]
                axes.errorbar(at, point["y"], yerr=reach, color=style["color"], linewidth=0.9, capsize=2)
        text = label(line["label"]) if line["label"] else "measured" if printed else None
        axes.plot(x, y, label=text if few else None, **{**style, **joined})
        if doubted := [(at, point["y"]) for at, point in zip(x, points, strict=True) if point["unreliable"]]:
            open_face = {"marker": "o", "markersize": 10, "markerfacecolor": "none", "linestyle": "none"}
            axes.plot(*zip(*doubted, strict=True), label=DOUBTED, color=svg.INK, **open_face)
    if any(point["published"] for line in (*panel["lines"], *panel["level"]) for point in line["points"]):
        axes.plot([], [], color=svg.GREY, linewidth=1.6, label=PUBLISHED)
    if panel["log"]:
        axes.set_xscale("log")
    axes.set_title(label(panel["title"], 60) if panel["title"] else "")
    axes.set_xlabel(label(panel["x_label"], 60) if panel["x_label"] else "")
    axes.set_ylabel(label(panel["y_label"], 60))
    axes.margins(x=0.06, y=0.08)
    low, high = axes.get_ylim()
    if high - low < 1 and "%" in panel["y_label"]:
        axes.set_ylim((low + high) / 2 - 0.5, (low + high) / 2 + 0.5)


def _draw_curve(axes: "Axes", points: Sequence[JsonObject], style: Mapping[str, Any], text: str | None) -> None:
    """A line without marks, in a band of the deviation over trainings."""
    x, y = [point["x"] for point in points], [point["y"] for point in points]
    if all(point["low"] is not None for point in points):
        low, high = ([point[key] for point in points] for key in ("low", "high"))
        axes.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)
    axes.plot(x, y, label=text, **{**style, "marker": None if len(points) > 1 else style["marker"]})


def _places(panel: JsonObject) -> Any:
    """What stands on x as a number: texts are counted."""
    return panel["categories"].index if panel["kind"] == "category" else float


def _aslant(panel: JsonObject) -> bool:
    return sum(map(len, panel["categories"])) > 40


def _write_ticks(axes: "Axes", panel: JsonObject) -> None:
    if panel["kind"] not in ("number", "category"):
        if panel["log"]:
            svg.plain_ticks(axes)
        return
    values = list(dict.fromkeys(point["x"] for line in panel["lines"] for point in line["points"]))
    place = _places(panel)
    if panel["kind"] == "category":
        long = sum(len(str(value)) for value in values) > 40
        put_ticks(axes, [place(value) for value in values], [label(value, 28) for value in values], rotation=35 * long)
    elif values:
        put_ticks(axes, [place(value) for value in values], [f"{value:g}" for value in values])


def _write_labels(axes: "Axes", panel: JsonObject, styles: Mapping[str, Any], *, few: bool) -> None:
    places = _places(panel)
    if not few:
        last = [(line, line["points"][-1]) for line in panel["lines"]]
        ends = [(places(p["x"]), p["y"], label(line["label"]), styles[line["label"]]["color"]) for line, p in last]
        if panel["kind"] in ("number", "step"):
            label_ends(axes, ends)
        else:
            label_points(axes, [end[:3] for end in ends])
    marked = [
        (places(point["x"]), point["y"], label(point["mark"], 20))
        for line in panel["lines"]
        if len(line["points"]) > 1
        for point in line["points"][-1 if panel["kind"] == "step" else 0 :]
        if point["mark"]
    ]
    label_points(axes, marked)


def _said(panel: JsonObject) -> str:
    """A panel in words: where each line begins and ends."""
    said = []
    for line in panel["lines"][:MOST]:
        first, last = line["points"][0], line["points"][-1]
        ends = [first, last] if len(line["points"]) > 1 else [first]
        told = " to ".join(f"{point['y']:.1f} at {_told(point['x'])}" for point in ends)
        said.append(f"{line['label']}: {told}" if line["label"] else told)
    said += [f"level {line['label']}: {line['points'][0]['y']:.1f}" for line in panel["level"]]
    more = len(panel["lines"]) - MOST
    text = "; ".join(said) + (f"; and {more} more" if more > 0 else "")
    return f"{panel['title']}: {text}." if panel["title"] else f"{text}."


def _told(x: float | str) -> str:
    return x if isinstance(x, str) else f"{x:.4g}"


def _rows(panels: Sequence[JsonObject]) -> Iterator[list[Any]]:
    for panel in panels:
        for line in (*panel["lines"], *panel["level"]):
            for point in line["points"]:
                kept = [point[key] for key in ("row", "column", "x", "y", "low", "high", "n", "unreliable")]
                yield [
                    "" if value is None else value
                    for value in (panel["title"], line["label"], *kept, *(point["published"] or ("", "")))
                ]
