"""Texts beside what they name, none on another: at points, and at the ends of lines.

label_points(axes, [(86.9, 44.8, "8/255"), (89.1, 41.0, "6/255")])
label_ends(axes, [(100, 43.2, "Free m = 4", BLUE)])
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import cos, pi, sin
from typing import TYPE_CHECKING, Any

import numpy as np

from toughen.report.page.figures import svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

SIZE, MARK = 7.5, 4.0
"""Of a text, and half the side of a mark, in points."""

NEAR = 9.0
"""Points from a mark beyond which a thin line leads from a text to it."""

FARTHEST = 90


def label_points(axes: "Axes", points: Sequence[tuple[float, float, str]]) -> list[Any]:
    """A text for each point (x, y, text), as near to it as there is room; the texts, in that order.

    None covers another, a mark or a line, and all stay in the axes, where a place within `FARTHEST` points allows it.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    scale = figure.dpi / 72
    room = axes.bbox.padded(2 * scale)
    places = [tuple(axes.transData.transform((x, y))) for x, y, _ in points]
    taken = [*_drawn(axes, scale), *([x - MARK * scale, y - MARK * scale, 2 * MARK * scale] for x, y in places)]
    boxes = np.array([[x, y, x + side, y + side] for x, y, side in taken])
    found = []
    for (x, y), (across, up, text) in zip(places, points, strict=True):
        one = axes.annotate(text, (across, up), xytext=(0, 0), textcoords="offset points", fontsize=SIZE)
        # What stands inside the axes must not move them.
        one.set_in_layout(False)
        box = one.get_window_extent()
        width, height = box.width / scale, box.height / scale
        best = None
        for right, above in _offsets(width, height):
            left, low = x + right * scale, y + above * scale
            there = _boxed(left, low, box.width, box.height)
            outside = there.width * there.height - _shared(there, np.array([room.extents]))
            cost = outside + _shared(there, boxes)
            if best is None or cost < best[0]:
                best = cost, right, above, there
            if cost < 1e-6:
                break
        assert best is not None
        _, right, above, there = best
        one.xyann = (right, above)
        boxes = np.vstack([boxes, there.extents])
        # From the middle of a text to its mark.
        away = max(abs(right + width / 2) - width / 2, abs(above + height / 2) - height / 2)
        if away > NEAR:
            ends = axes.transData.inverted().transform([(x, y), ((there.x0 + there.x1) / 2, (there.y0 + there.y1) / 2)])
            axes.plot(
                ends[:, 0], ends[:, 1], color=svg.INK, linewidth=0.4, alpha=0.45, zorder=1, scalex=False, scaley=False
            )
        found.append(one)
    return found


def _offsets(width: float, height: float) -> Iterator[tuple[float, float]]:
    """Where the lower left corner of a text may be, in points from its mark: around it, then farther out."""
    gap = MARK + 1.5
    yield gap, -height / 2
    yield -width / 2, gap
    yield -gap - width, -height / 2
    yield -width / 2, -gap - height
    for reach in range(int(gap), FARTHEST, 4):
        turns = 8 + reach // 4
        for turn in range(turns):
            angle = 2 * pi * (turn + 0.5) / turns
            right, above = reach * cos(angle), reach * sin(angle)
            yield right - (width if right < 0 else 0), above - (height if above < 0 else 0)


def label_ends(axes: "Axes", ends: Sequence[tuple[float, float, str, str]]) -> list[Any]:
    """A text right of the last point (x, y) of each line, in its colour (x, y, text, colour); from above to below.

    The axes grow narrower by what the texts take. Where lines end near each other their texts are moved apart, and a
    thin line leads to each that was.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    gap = 1.25 * SIZE * figure.dpi / 72 / axes.bbox.height
    ordered = sorted(ends, key=lambda end: -end[1])
    shares = [float(axes.transAxes.inverted().transform(axes.transData.transform(end[:2]))[1]) for end in ordered]
    # None above or below the axes, which would have to give way.
    places = [min(place, 1 - at * gap) for at, place in enumerate(spread(shares, gap))]
    places = [max(place, (len(places) - 1 - at) * gap) for at, place in enumerate(places)]
    found = []
    for (x, y, text, colour), place in zip(ordered, places, strict=True):
        found.append(
            axes.annotate(
                text,
                (x, y),
                xytext=(1.03, place),
                textcoords="axes fraction",
                fontsize=SIZE,
                color=colour,
                va="center",
                annotation_clip=False,
                arrowprops={
                    "arrowstyle": "-",
                    "relpos": (0, 0.5),
                    "color": colour,
                    "linewidth": 0.5,
                    "shrinkA": 1,
                    "shrinkB": 2,
                },
            )
        )
    return found


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Falling values, moved as little as possible (least squares) for each to be `gap` below the one before."""
    # Without the gaps it is a falling regression: neighbours out of order become their mean.
    groups: list[list[float]] = []
    for number, value in enumerate(values):
        groups.append([value + number * gap, 1])
        while len(groups) > 1 and groups[-1][0] > groups[-2][0]:
            mean, size = groups.pop()
            other, others = groups[-1]
            groups[-1] = [(mean * size + other * others) / (size + others), size + others]
    flat = [mean for mean, size in groups for _ in range(int(size))]
    return [value - number * gap for number, value in enumerate(flat)]


def put_ticks(axes: "Axes", places: Sequence[float], names: Sequence[str], *, rotation: float = 0) -> None:
    """Ticks of the x axis at these places, from left to right."""
    order = sorted(range(len(places)), key=lambda at: places[at])
    axes.set_xticks([places[at] for at in order], [names[at] for at in order], rotation=rotation)
    axes.minorticks_off()
    if rotation:
        for text in axes.get_xticklabels():
            text.set_horizontalalignment("right")
            text.set_rotation_mode("anchor")


def thin_ticks(axes: "Axes") -> None:
    """Take away the texts of `put_ticks` that have no room beside the one before; the first and the last stay."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    places, texts = axes.get_xticks(), axes.get_xticklabels()
    if not len(places) or texts[0].get_rotation():
        return
    boxes, space, kept = [text.get_window_extent() for text in texts], 4 * figure.dpi / 72, [0]
    for at in range(1, len(places)):
        last = at == len(places) - 1
        while last and len(kept) > 1 and boxes[at].x0 < boxes[kept[-1]].x1 + space:
            kept.pop()
        if last or boxes[at].x0 >= boxes[kept[-1]].x1 + space:
            kept.append(at)
    axes.set_xticks([places[at] for at in kept], [texts[at].get_text() for at in kept])
    axes.set_xticks(places, minor=True)
    axes.set_xticklabels([], minor=True)


def fit_title(axes: "Axes") -> None:
    """Make the text beside the y axis small enough for it."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    text = axes.yaxis.label
    share = axes.bbox.height / max(1.0, text.get_window_extent().height)
    text.set_fontsize(max(6.5, min(1.0, share) * float(text.get_fontsize())))


def _drawn(axes: "Axes", scale: float) -> Iterator[tuple[float, float, float]]:
    """Small squares along the lines between the points: corner and side, in pixels."""
    for line in axes.lines:
        data = axes.transData.transform(np.column_stack([np.asarray(part, dtype=float) for part in line.get_data()]))
        if line.get_linestyle() in ("None", "none") or line.get_transform() != axes.transData:
            continue
        for start, end in pairwise(data):
            steps = max(1, int(np.hypot(*(end - start)) / (3 * scale)))
            yield from (
                (x - scale, y - scale, 2 * scale)
                for x, y in start + np.linspace(0, 1, steps + 1)[:, None] * (end - start)
            )


def _boxed(x: float, y: float, width: float, height: float) -> "Bbox":
    from matplotlib.transforms import Bbox

    return Bbox.from_bounds(x, y, width, height)


def _shared(one: "Bbox", others: np.ndarray) -> float:
    """Area that a box has in common with others (N, 4), in all."""
    wide = np.minimum(one.x1, others[:, 2]) - np.maximum(one.x0, others[:, 0])
    high = np.minimum(one.y1, others[:, 3]) - np.maximum(one.y0, others[:, 1])
    return float((wide.clip(min=0) * high.clip(min=0)).sum())
