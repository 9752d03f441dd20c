"""Texts in drawings: none covers another, and no two rows look alike."""

from itertools import combinations, pairwise

import pytest

from toughen.report.page.figures import svg
from toughen.report.page.figures.curves import draw_curves
from toughen.report.page.figures.labels import label_ends, label_points, put_ticks, spread, thin_ticks
from toughen.report.page.figures.study import Point, trade_off


def test_no_two_of_49_rows_have_colour_and_mark():
    looks = [(svg.series(number)["color"], svg.series(number)["marker"]) for number in range(49)]
    assert len(set(looks)) == 49


@pytest.mark.parametrize(
    ("values", "moved"),
    [
        ([3.0, 2.0, 1.0], [3.0, 2.0, 1.0]),
        ([1.0, 1.0], [1.25, 0.75]),
        ([1.0, 0.9, 0.8], [1.4, 0.9, 0.4]),
        ([5.0, 1.0, 1.0], [5.0, 1.25, 0.75]),
        ([], []),
    ],
)
def test_values_are_moved_apart_as_little_as_possible(values: list[float], moved: list[float]):
    assert spread(values, 0.5) == pytest.approx(moved)


def apart(boxes: list) -> bool:
    return not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_texts_at_crowded_points_and_at_the_ends_of_lines_do_not_cover_each_other():
    crowd = [(50 + 0.1 * (number % 4), 40 + 0.1 * (number // 4), f"row {number}") for number in range(16)]
    with svg.drawing((5.2, 3.2)) as (figure, axes):
        axes.plot([x for x, *_ in crowd], [y for _, y, _ in crowd], "o")
        figure.draw_without_rendering()
        texts = label_points(axes, crowd)
        assert [text.get_text() for text in texts] == [text for *_, text in crowd]
        boxes = [text.get_window_extent() for text in texts]
        assert apart(boxes)
        assert all(axes.bbox.padded(3).containsx(box.x0) and axes.bbox.padded(3).containsy(box.y1) for box in boxes)
    with svg.drawing((5.2, 3.2)) as (figure, axes):
        for number in range(15):
            axes.plot([0, 1], [0, 50 + number / 10])
        figure.draw_without_rendering()
        texts = label_ends(axes, [(1, 50 + number / 10, f"line {number}", svg.BLUE) for number in range(15)])
        figure.draw_without_rendering()
        assert [text.get_text() for text in texts] == [f"line {number}" for number in reversed(range(15))]
        boxes = [axes.transAxes.transform(text.xyann) for text in texts]
        heights = [above[1] - below[1] for above, below in pairwise(boxes)]
        assert min(heights) >= texts[0].get_fontsize() * figure.dpi / 72


def test_ticks_without_room_are_left_out_but_for_the_first_and_the_last():
    places = [0.95, 0.9625, 0.975, 0.9875, 0.99, 0.9925, 0.995, 0.9975, 0.999]
    with svg.drawing((3.4, 2.6)) as (figure, axes):
        axes.plot(places, places)
        put_ticks(axes, places, [f"{place:g}" for place in places])
        figure.draw_without_rendering()
        thin_ticks(axes)
        shown = [text.get_text() for text in axes.get_xticklabels()]
        assert (shown[0], shown[-1]) == ("0.95", "0.999")
        assert apart([text.get_window_extent() for text in axes.get_xticklabels()])


def test_above_twelve_rows_each_point_has_its_number_and_the_legend_names_it():
    few = trade_off("few", [Point(f"row {n}", 0.8 + n / 1000, 0.5 - n / 1000) for n in range(12)])
    many = trade_off("many", [Point(f"row {n}", 0.8 + n / 1000, 0.5 - n / 1000) for n in range(13)])
    assert (few.broad, many.broad) == (False, True)
    assert ">row 11</text>" in few.svg
    for number in range(1, 14):
        assert f">{number}</text>" in many.svg
        assert f">{number}  row {number - 1}</text>" in many.svg


def panel(lines: int) -> dict:
    point = {"row": "a", "column": "c", "low": None, "high": None, "n": 1, "unreliable": False, "mark": ""}
    made = [
        {
            "label": f"line {number}",
            "points": [{**point, "x": x, "y": 50.0 + number + x, "published": None} for x in (1.0, 2.0)],
        }
        for number in range(lines)
    ]
    axes = {"title": "", "kind": "number", "categories": [], "x_label": "x", "y_label": "y, %", "log": False}
    return {"title": "Mine", "panels": [{**axes, "lines": made, "level": []}]}


@pytest.mark.parametrize("lines", [12, 13])
def test_the_ends_of_more_than_twelve_lines_are_labelled_in_place_of_a_legend(lines: int):
    drawn = draw_curves("figure", panel(lines))
    assert all(drawn.svg.count(f">line {number}</text>") == 1 for number in range(lines))
    rows = [row.split(",") for row in drawn.csv.splitlines()]
    assert rows[0][:6] == ["panel", "line", "row", "column", "x", "y"]
    assert [row[1:6] for row in rows[1:3]] == [["line 0", "a", "c", "1.0", "51.0"], ["line 0", "a", "c", "2.0", "52.0"]]
