"""The figure of a study: what is refused, which points it has, and what is drawn of them."""

from pathlib import Path
from typing import Any

import pytest

from filled_study import fill_study
from toughen.report.page.figures.curves import draw_curves
from toughen.report.page.page import build_entries
from toughen.studies.figures.planned import FIGURE, PlannedFigure
from toughen.studies.figures.resolve import resolve_figure
from toughen.studies.folder import StudyFolder
from toughen.studies.grid import expand
from toughen.studies.results import collect
from toughen.studies.schema import Study
from toughen.studies.text import StudyError, load, shipped

BASE: dict[str, Any] = {
    "title": "Mine",
    "base": "mnist-free",
    "columns": {
        "clean": {"what": "clean"},
        "at-8": {"suite": "pgd-20", "threat": "linf:8/255"},
        "at-2": {"suite": "pgd-10", "threat": "linf:2/255"},
    },
    "rows": {
        "m2": {"label": "Two", "set": {"method.replays": 2}},
        "m8": {"label": "Eight", "set": {"method.replays": 8}},
        "m4": {"label": "Four", "set": {"method.replays": 4, "threat": "linf:0.3"}},
        "natural": {"label": "None", "recipe": "mnist-natural"},
    },
}
SHARES = {"clean": 0.9, "at-8": 0.5, "at-2": 0.7}


def study(figure: Any, **more: Any) -> Study:
    return Study.model_validate({**BASE, **more, "figure": figure})


def planned(figure: Any, **more: Any) -> PlannedFigure:
    found = resolve_figure(expand(study(figure, **more)))
    assert found is not None
    return found


def share(row: str, column: str, number: int) -> float:
    return SHARES[column] + {"m2": 0.01, "m8": 0.03, "m4": 0.02}.get(row, 0) + 0.004 * number


def filled(tmp_path: Path, figure: Any, **more: Any) -> Any:
    given = {key: more.pop(key) for key in ("logs", "unreliable") if key in more}
    return collect(fill_study(study(figure, **more), tmp_path / "out", share, **given))["figure"]


REFUSED = [
    ({"y": "clean"}, "figure: x is missing; give a column, a key of the rows' recipes like method.replays"),
    ({"x": "row"}, "figure: y is missing; give a column"),
    ({"x": "row", "y": "cleen"}, "figure.y: there is no column 'cleen'; did you mean 'clean'?"),
    ({"x": "row", "y": ["clean", "at-8"]}, "figure.y: clean, at-8 are 2 columns, and x: row takes one"),
    ({"x": "attack.eps", "y": "*"}, "figure.y: column clean is clean, which has no attack for x: attack.eps"),
    ({"x": "metod.replays", "y": "clean"}, "figure.x: 'metod.replays' is no key of a recipe; did you mean"),
    ({"x": "row", "y": "clean", "rows": "m3"}, "figure.rows: there is no row 'm3'; did you mean 'm"),
    ({"x": "row", "y": "clean", "level": "q"}, "figure.level: there is no row 'q'; allowed: m2, m8, m4, natural"),
    ({"x": "row", "y": "clean", "lines": {"A": ["m*", "x*"]}}, "figure.lines.A: there is no row 'x*'"),
    ({"x": "row", "y": "clean", "mark": "colour"}, "figure.mark: 'colour' is no key of a recipe"),
    ({"x": "step", "y": "clean"}, "'clean' is not a known value of the log, as figure.y with x: step; allowed:"),
    ({"x": "row", "panels": [{"y": "clean"}, {"y": "at-9"}]}, "figure.panels.1.y: there is no column 'at-9'"),
]


@pytest.mark.parametrize(("figure", "sentence"), REFUSED)
def test_what_is_not_in_the_study_is_said_where_it_stands(figure: Any, sentence: str):
    with pytest.raises(ValueError, match="figure") as caught:
        study(figure)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("figure", "sentence"),
    [
        (
            {"x": "method.replay", "y": "clean", "rows": "m2"},
            "figure: x is method.replay, which the recipe of row m2 has not; did you mean 'replays'?",
        ),
        ({"x": "method.replays", "y": "clean"}, "x is method.replays, which the recipe of row natural has not"),
        ({"x": "data.size", "y": "clean"}, "x is data.size, which the recipe of row m2 leaves open"),
        ({"x": "method", "y": "clean", "log": True}, "x: method is logarithmic, and here it is 'free'"),
        ({"x": "weights", "y": "clean"}, "x is weights, and row m2 measures no average"),
        ({"x": "seed", "y": "clean", "log": True}, "x: seed is logarithmic, and here it is 0"),
    ],
)
def test_what_the_recipes_do_not_say_is_refused_before_a_folder_is_made(tmp_path: Path, figure: Any, sentence: str):
    natural = {"natural": {"label": "None", "recipe": "mnist-pgd"}}
    with pytest.raises(StudyError, match="figure") as caught:
        fill_study(study(figure, rows={**BASE["rows"], **natural}), tmp_path / "out", share)
    assert sentence in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_key_of_the_recipes_is_on_x_and_its_points_are_joined_from_left_to_right(tmp_path: Path):
    figure = {"x": "method.replays", "y": "at-8", "lines": {"Free": "m*"}, "level": "natural"}
    (panel,) = filled(tmp_path, figure)["panels"]
    (line,), (level,) = panel["lines"], panel["level"]
    assert (panel["kind"], panel["x_label"], panel["y_label"]) == (
        "number",
        "method.replays",
        "robust accuracy (at-8), %",
    )
    assert line["label"] == "Free"
    points = [(one["row"], one["column"], one["x"], pytest.approx(one["y"])) for one in line["points"]]
    assert points == [("m2", "at-8", 2, 51.0), ("m4", "at-8", 4, 52.0), ("m8", "at-8", 8, 53.0)]
    assert (level["label"], level["points"][0]["y"]) == ("None", pytest.approx(50.0))


def test_of_an_attack_its_radius_or_steps_are_on_x_and_each_row_is_a_line(tmp_path: Path):
    panels = filled(tmp_path, {"y": "at-*", "panels": [{"x": "attack.eps"}, {"x": "attack.steps"}]})["panels"]
    for panel, places, told in zip(panels, ((2, 8), (10, 20)), ("radius of the attack, /255", "steps"), strict=True):
        assert [line["label"] for line in panel["lines"]] == ["Two", "Eight", "Four", "None"]
        assert told in panel["x_label"]
        for line in panel["lines"]:
            assert [(one["x"], one["column"]) for one in line["points"]] == list(
                zip(places, ("at-2", "at-8"), strict=True)
            )


def test_radii_that_people_write_as_decimals_stay_so():
    columns = {"a": {"suite": "pgd-10", "threat": "linf:0.1"}, "b": {"suite": "pgd-10", "threat": "linf:0.2"}}
    (panel,) = planned({"x": "attack.eps", "y": "*"}, columns=columns).panels
    assert panel.x_label == "radius of the attack"
    assert [point.x for point in panel.lines[0].points] == [0.1, 0.2]


def test_one_evaluation_is_one_point_where_a_scale_puts_it_in_the_place_of_several():
    same = {"clean": {"what": "clean"}, "a": {"suite": "pgd-10"}, "b": {"suite": "pgd-20"}}
    (panel,) = planned(
        {"x": "attack.steps", "y": ["a", "b"]}, columns=same, scales={"paper": {"suite": "pgd-2"}}
    ).panels
    assert [[(point.column, point.x) for point in line.points] for line in panel.lines] == [[("a", 2.0)]] * 4


def test_two_columns_against_each_other_keep_the_order_of_the_rows_and_carry_marks(tmp_path: Path):
    figure = {"x": "at-8", "y": "clean", "lines": {"Free": "m*", "Other": "*"}, "mark": "threat"}
    (panel,) = filled(tmp_path, figure)["panels"]
    free, other = panel["lines"]
    assert [(one["row"], round(one["x"], 6), round(one["y"], 6), one["mark"]) for one in free["points"]] == [
        ("m2", 51.0, 91.0, "0.2"),
        ("m8", 53.0, 93.0, "0.2"),
        ("m4", 52.0, 92.0, "0.3"),
    ]
    # A row is on the first line that names it.
    assert [one["row"] for one in other["points"]] == ["natural"]


def test_texts_are_on_x_in_the_order_of_the_rows():
    (panel,) = planned({"x": "row", "y": "clean", "lines": {"Last": "natural", "First": "*"}}).panels
    assert (panel.kind, panel.categories) == ("category", ["Two", "Eight", "Four", "None"])
    (panel,) = planned({"x": "method", "y": "clean"}).panels
    assert panel.categories == ["free", "natural"]


def test_averages_are_on_x_by_their_decay_rate():
    rows = {
        "none": {"label": "no average", "weights": "weights"},
        "late": {"weights": "average-0.995"},
        "early": {"weights": "average-0.95"},
    }
    more = {"rows": rows, "set": {"averages": [0.995, 0.95]}}
    (panel,) = planned({"x": "weights", "y": "at-8", "level": "none"}, **more).panels
    assert [(point.row, point.x) for line in panel.lines for point in line.points] == [("late", 0.995), ("early", 0.95)]
    assert [line.label for line in panel.level] == ["no average"]


def test_several_trainings_are_their_mean_and_deviation_one_is_its_interval(tmp_path: Path):
    rows = {"one": {"set": {"method.replays": 2}}, "two": {"set": {"method.replays": 4}, "seeds": [0, 1, 2]}}
    (panel,) = filled(tmp_path, {"x": "method.replays", "y": "at-8"}, rows=rows, pick="each")["panels"]
    one, two = panel["lines"][0]["points"]
    # Wilson's interval of 500 of 1,000.
    assert (one["n"], one["low"], one["high"]) == (1, pytest.approx(46.907, abs=1e-3), pytest.approx(53.093, abs=1e-3))
    assert (two["n"], two["y"]) == (3, pytest.approx(50.4))
    assert (two["low"], two["high"]) == (pytest.approx(50.0), pytest.approx(50.8))


def validated(step: int, robust: float) -> dict[str, Any]:
    return {"step": step, "validation": {"weights": {"clean_accuracy": 0.9, "robust_accuracy": robust}}}


def test_curves_over_the_steps_are_of_the_runs_logs(tmp_path: Path):
    logs = {
        "m2": [{"step": 5, "loss": 2.0, "lr": 0.1}, validated(10, 0.25), {"step": 15, "loss": 1.0}, validated(20, 0.5)],
        "m8": [validated(10, 0.125)],
    }
    figure = {"x": "step", "panels": [{"y": "validation.robust_accuracy"}, {"y": "loss"}]}
    robust, loss = filled(tmp_path, figure, logs=logs)["panels"]
    assert [(line["label"], [(p["x"], p["y"]) for p in line["points"]]) for line in robust["lines"]] == [
        ("Two", [(10, 25.0), (20, 50.0)]),
        ("Eight", [(10, 12.5)]),
    ]
    assert [[(p["x"], p["y"]) for p in line["points"]] for line in loss["lines"]] == [[(5, 2.0), (15, 1.0)]]
    assert (robust["title"], robust["y_label"]) == ("validation.robust_accuracy", "robust validation accuracy, %")


def test_published_numbers_stand_beside_ours(tmp_path: Path):
    def printed(row: str, column: str, number: int) -> float:
        return 0.5

    folder = fill_study(load("free-figure-4"), tmp_path / "out", printed)
    (panel,) = collect(folder)["figure"]["panels"]
    found = {line["label"]: [p["published"] for p in line["points"]] for line in panel["lines"]}
    # Shafahi et al. 2019, tables 3 and 6 to 10: PGD-100.
    assert found["Free m = 4"] == [[2, 43.404], [3, 37.096], [4, 31.816], [5, 26.262], [6, 21.506], [7, 16.297]]
    assert list(found) == ["Natural", "Free m = 2", "Free m = 4", "Free m = 6", "Free m = 8"]


@pytest.mark.parametrize("name", [name for name in shipped() if "figure" in name and name != "free-figure-2"])
def test_every_study_of_a_figure_draws_one_and_each_line_of_it_has_a_label_of_its_own(name: str):
    figure = resolve_figure(expand(load(name), "small"))
    assert figure is not None
    for panel in figure.panels:
        assert panel.lines
        assert all(line.points for line in (*panel.lines, *panel.level))
        labels = [line.label for line in panel.lines]
        assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("name", ["free-figure-1", "limits-figure-4", "iaat-figure-3"])
def test_every_line_is_named_in_the_drawing_and_every_point_in_its_data(name: str, tmp_path: Path):
    both = {name: {"robust_accuracy": 0.2} for name in ("weights", "average-0.995")}
    logs = {"curve": [{"step": 10, "validation": both}]}
    value = lambda row, column, number: 0.5 + 0.001 * (len(row) + len(column))  # noqa: E731
    folder = fill_study(load(name), tmp_path / "out", value, scale="small", logs=logs)
    figure = collect(folder)["figure"]
    drawn = draw_curves("figure", figure)
    lines = [line for panel in figure["panels"] for line in (*panel["lines"], *panel["level"])]
    assert all(f">{line['label']}</text>" in drawn.svg for line in lines if line["label"])
    assert len(drawn.csv.splitlines()) == 1 + sum(len(line["points"]) for line in lines)


def test_what_is_not_measured_is_left_out_and_a_figure_without_points_is_said(tmp_path: Path):
    def some(row: str, column: str, number: int) -> float | None:
        return None if row == "m4" else share(row, column, number)

    figure = {"x": "method.replays", "y": "at-8", "rows": "m*"}
    folder = fill_study(study(figure), tmp_path / "some", some, unreliable=[("m8", "at-8")])
    (panel,) = collect(folder)["figure"]["panels"]
    assert [(p["row"], p["unreliable"]) for p in panel["lines"][0]["points"]] == [("m2", False), ("m8", True)]
    none = fill_study(study(figure), tmp_path / "none", lambda *_: None)
    texts = [
        getattr(block, "text", "") for block in build_entries([], [(none.path, collect(none))])[0].sections[0].blocks
    ]
    assert "Nothing of its figure is measured yet." in texts


def test_another_figure_is_no_other_study(tmp_path: Path):
    first = fill_study(study({"x": "row", "y": "clean"}), tmp_path / "out", share)
    before = (first.path / "study.json").read_bytes()
    again = fill_study(study({"x": "row", "y": "at-8"}), tmp_path / "out", share)
    assert (again.path / "study.json").read_bytes() == before
    assert collect(again)["figure"]["panels"][0]["y_label"] == "robust accuracy (at-8), %"
    fill_study(study(None), tmp_path / "out", share)
    assert collect(again)["figure"] is None
    (again.path / FIGURE).write_text('{"title": 3}')
    with pytest.raises(ValueError, match=r"figure.json is no figure of toughen's \(title: .*run the study again"):
        collect(StudyFolder(again.path))
