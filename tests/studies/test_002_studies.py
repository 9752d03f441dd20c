"""The studies of Limits (paper 002): their rows, their trainings, and the published cells that they reproduce."""

import collections
import functools

import pytest

from toughen.recipes import Recipe
from toughen.studies.coverage import coverage, reasons
from toughen.studies.grid import StudyPlan, expand
from toughen.studies.published import PublishedNumber, cells
from toughen.studies.text import load, shipped
from toughen.threat import parse

# Name: rows, published cells, trainings at paper, small and toy.
STUDIES = {
    "limits-grid": (93, 248, 165, 75, 165),
    "limits-figure-1": (12, 13, 14, 12, 14),
    "limits-figure-2": (9, 18, 26, 9, 26),
    "limits-figure-3": (24, 48, 64, 24, 64),
    "limits-figure-4": (22, 40, 21, 3, 21),
    "limits-figure-5": (12, 24, 40, 12, 40),
}
FIGURES = {"limits-figure-2": 9, "limits-figure-3": 6, "limits-figure-4": 7, "limits-figure-5": 8}
"""Whose points are a table's."""


@functools.cache
def planned(name: str, scale: str) -> StudyPlan:
    return expand(load(name), scale)


def paper() -> list[PublishedNumber]:
    return [cell for cell in cells() if cell.record["seed"] == "002"]


def trained(row: str, name: str = "limits-grid") -> Recipe:
    """The recipe of a row's first training."""
    plan = planned(name, "paper")
    return plan.trainings[plan.rows[row].trainings[0]]


def printed(row: str, column: str, name: str = "limits-grid") -> dict[str, float | None]:
    """What the paper's tables say, by table."""
    return {cell.record["table"]: cell.value for cell in planned(name, "paper").rows[row].measures[column].cells}


def test_every_study_of_the_paper_ships():
    assert {name for name in shipped() if name.startswith("limits-")} == set(STUDIES)


@pytest.mark.parametrize("name", STUDIES)
def test_the_better_of_two_is_taken_by_pgd_40_on_1024_held_out_images(name: str):
    plan = planned(name, "paper")
    for key, row in plan.rows.items():
        recipes = [plan.trainings[training] for training in row.trainings]
        if len(recipes) > 1:
            assert (len(recipes), row.pick) in ((2, "best"), (10, "each")), key
        # The models of others in figure 1 are chosen as their authors did.
        if name == "limits-figure-1" and not key.startswith("limits"):
            continue
        for recipe in recipes:
            assert (recipe.selection.suite, recipe.selected_by) == ("pgd-40", "robust_accuracy"), key
            # null is 1,024 of that many images.
            assert recipe.data.validation in (None, 1024), key
        assert {measure.checkpoint for measure in row.measures.values()} == {"best"}, key


@pytest.mark.parametrize("scale", ["paper", "small", "toy"])
@pytest.mark.parametrize("name", STUDIES)
def test_every_row_expands(name: str, scale: str):
    rows, published, *trainings = STUDIES[name]
    plan = planned(name, scale)
    assert [row.error for row in plan.rows.values()] == [None] * rows
    assert len(plan.trainings) == trainings[["paper", "small", "toy"].index(scale)]
    found: set[str] = set()
    for row in plan.rows.values():
        for measure in row.measures.values():
            tables = collections.Counter(cell.record["table"] for cell in measure.cells)
            assert all(count == 1 for count in tables.values()), (row.name, tables)
            found |= {cell.id for cell in measure.cells}
    assert len(found) == published


def test_every_cell_is_reproduced_or_has_a_reason_and_never_both():
    found, why = coverage(), reasons()
    assert [cell.id for cell in paper() if (cell.id in found) == (cell.id in why)] == []
    # Four models of others, clean and attacked, and two times: the paper has 267 cells in all.
    left_out = collections.Counter(cell.record["table"] for cell in paper() if cell.id in why)
    assert left_out == {"Table 5": 8, "Sec. 3.1/4.4 text": 2}
    assert sum(cell.id in found for cell in paper()) == 257


def test_tables_stand_in_the_grid_once_and_in_their_figure():
    both = {f"Table {table}": figure for figure, table in FIGURES.items()}
    for cell in paper():
        table = cell.record["table"]
        # Of table 9, figure 2 leaves out the baseline without extra images.
        if table in both and not (table == "Table 9" and cell.record["params"]["batch"] == 128):
            assert sorted(place.study for place in coverage()[cell.id]) == [both[table], "limits-grid"]
        elif table in {"Table 1", "Table 2", "Table 3", "Table 4", "Table 9", "Table 10"}:
            assert [place.study for place in coverage()[cell.id]] == ["limits-grid"]


def test_the_baselines_stand_in_nine_tables_and_have_ten_trainings_of_which_each_counts():
    plan = planned("limits-grid", "paper")
    for row, clean, robust, own in (("baseline", 84.85, 50.8, ()), ("baseline-extra", 90.93, 58.41, ("Table 4",))):
        tables = {*(f"Table {number}" for number in (1, 2, 3, 6, 7, 8, 9, 10)), *own}
        assert printed(row, "clean") == dict.fromkeys(tables, clean)
        assert printed(row, "aa-mt") == dict.fromkeys(tables, robust)
        assert (len(plan.rows[row].trainings), plan.rows[row].pick) == (10, "each")
        # Every other row is the better of two trainings, but for the one of the text.
    others = {name: row for name, row in plan.rows.items() if not name.startswith("baseline")}
    assert {name for name, row in others.items() if len(row.trainings) != 2} == {"mart-70-16-extra"}
    assert {row.pick for row in others.values()} == {"best"}


def test_nine_averages_of_each_setting_come_from_the_baselines_first_two_runs():
    plan = planned("limits-grid", "paper")
    for end in ("", "-extra"):
        shared = [
            row for name, row in plan.rows.items() if name.startswith("wa-") and name.endswith("extra") == bool(end)
        ]
        assert len({row.weights for row in shared}) == len(shared) == 9
        assert {row.trainings for row in shared} == {plan.rows[f"baseline{end}"].trainings[:2]}
    assert plan.rows["baseline"].weights == "weights"
    # 75 configurations are trained: 93 rows less the 18 averages.
    assert len({training for row in plan.rows.values() for training in row.trainings[:1]}) == 75


@pytest.mark.parametrize(
    ("row", "column", "figures"),
    [
        ("trades", "aa-mt", {"Table 1": 51.91, "Table 2": 51.91, "Table 3": 51.91}),
        ("mart-extra", "clean", {"Table 1": 90.45}),
        ("mart", "aa-mt", {"Table 1": 51.93}),
        ("baseline", "pgd-40-margin", {"Table 2": 53.87}),
        ("at-kl", "clean", {"Table 2": 88.21}),
        ("at-margin-extra", "pgd-40-margin", {"Table 2": 61.53}),
        ("trades-xent", "aa-mt", {"Table 2": 52.76}),
        ("radius-1.1", "clean", {"Table 3": 82.13}),
        ("radius-1.2-extra", "aa-mt", {"Table 3": 58.77}),
        ("regenerated-200k", "aa-mt", {"Table 4": 57.29}),
        ("regenerated-500k", "aa-mt", {"Table 4": 59.12}),
        ("regenerated-1m", "clean", {"Table 4": 91.0}),
        ("final", "pgd-40", {"Table 5": 58.04}),
        ("final-34-20", "clean", {"Table 5": 84.56}),
        ("final-l2", "aa-mt", {"Table 5": 73.57}),
        ("final-cifar100", "pgd-40", {"Table 5": 31.47}),
        ("final-extra", "aa-mt", {"Table 5": 65.87}),
        ("final-carmon", "aa-mt", {"Table 5": 65.06}),
        ("final-28-10-extra", "aa-mt", {"Table 5": 62.76}),
        ("final-l2-extra", "clean", {"Table 5": 94.74}),
        ("final-cifar100-extra", "aa-mt", {"Table 5": 37.7}),
        ("wrn-28-20", "aa-mt", {"Table 6": 51.78}),
        ("wrn-34-15-extra", "clean", {"Table 6": 91.84}),
        ("wrn-46-20-extra", "aa-mt", {"Table 6": 61.14}),
        ("wa-0.975", "clean", {"Table 7": 86.34}),
        ("wa-0.995-extra", "aa-mt", {"Table 7": 59.14}),
        ("wa-0.9975", "aa-mt", {"Table 7": 52.31}),
        ("silu-extra", "aa-mt", {"Table 8": 59.54}),
        ("leaky-relu", "clean", {"Table 8": 85.21}),
        ("gelu", "aa-mt", {"Table 8": 50.66}),
        ("ratio-8-2", "clean", {"Table 9": 86.74}),
        ("ratio-3-7", "aa-mt", {"Table 9": 59.36}),
        ("ratio-1-9", "aa-mt", {"Table 9": 58.06}),
        ("cosine", "aa-mt", {"Table 10": 47.49}),
        ("cosine-extra", "aa-mt", {"Table 10": 57.87}),
        ("exponential-extra", "clean", {"Table 10": 91.08}),
        ("mart-70-16-extra", "pgd-20", {"Sec. 4.1 text": 71.08}),
        ("mart-70-16-extra", "aa-mt", {"Sec. 4.1 text": 60.63}),
        ("baseline-extra", "minutes", {"Sec. 3.1/4.4 text": 120.0}),
        ("wrn-46-15", "minutes", {"Sec. 3.1/4.4 text": 300.0}),
    ],
)
def test_a_row_of_the_grid_has_the_papers_figures(row: str, column: str, figures: dict[str, float]):
    assert printed(row, column) == figures


@pytest.mark.parametrize(
    ("name", "row", "column", "figures"),
    [
        ("limits-figure-1", "madry", "autoattack", {"Fig. 1": 44.04}),
        ("limits-figure-1", "trades", "autoattack", {"Fig. 1": 53.08}),
        ("limits-figure-1", "carmon", "autoattack", {"Fn. 5 / Fig. 1": 59.53}),
        ("limits-figure-1", "carmon", "aa-mt", {"Table 5": 59.47}),
        ("limits-figure-1", "rice", "aa-mt", {"Sec. 3.2 text": 53.38}),
        ("limits-figure-1", "rice-cifar100", "aa-mt", {"Table 5": 18.95}),
        ("limits-figure-1", "limits-extra", "aa-mt", {"Table 5": 65.87}),
        ("limits-figure-2", "ratio-5-5", "aa-mt", {"Table 9": 58.41}),
        ("limits-figure-2", "ratio-9-1", "aa-mt", {"Table 9": 51.79}),
        ("limits-figure-3", "cifar10-wrn-28-10", "clean", {"Table 6": 84.85}),
        ("limits-figure-3", "extra-wrn-46-15", "aa-mt", {"Table 6": 60.56}),
        ("limits-figure-4", "cifar10-none", "aa-mt", {"Table 7": 50.8}),
        ("limits-figure-4", "extra-0.999", "aa-mt", {"Table 7": 57.16}),
        ("limits-figure-4", "curve", "aa-mt", {}),
        ("limits-figure-5", "cifar10-elu", "aa-mt", {"Table 8": 49.2}),
        ("limits-figure-5", "extra-relu", "clean", {"Table 8": 90.93}),
    ],
)
def test_a_point_of_a_figure_is_the_papers(name: str, row: str, column: str, figures: dict[str, float]):
    assert printed(row, column, name) == figures


def test_rows_differ_from_the_baseline_in_what_the_paper_says():
    base = trained("baseline")
    assert (base.batch_size, base.steps, base.schedule.name, base.data.extra) == (128, 78000, "multistep", None)
    extra = trained("baseline-extra")
    assert extra.data.extra is not None
    assert (extra.batch_size, extra.steps, extra.data.extra.labelled, extra.data.extra.limit) == (
        1024,
        19500,
        0.5,
        500000,
    )
    assert (trained("cosine").schedule.name, trained("exponential-extra").schedule.name) == ("cosine", "exponential")
    assert trained("wrn-40-15-extra").model.name == "wrn-40-15"
    shares = [trained(f"ratio-{k}-{10 - k}").data.extra for k in (9, 8, 7, 6, 4, 3, 2, 1)]
    assert [share and share.labelled for share in shares] == [0.9, 0.8, 0.7, 0.6, 0.4, 0.3, 0.2, 0.1]
    sets = [trained(f"regenerated-{size}").data.extra for size in ("200k", "500k", "1m")]
    assert [found and (found.source, found.limit) for found in sets] == [
        ("./extra-regenerated", 200000),
        ("./extra-regenerated", 500000),
        ("./extra-regenerated", 1000000),
    ]
    for name, model, threat, schedule, images in (
        ("final", "wrn-70-16", "linf:8/255", "multistep", None),
        ("final-l2", "wrn-70-16", "l2:128/255", "multistep", None),
        ("final-34-20", "wrn-34-20", "linf:8/255", "multistep", None),
        ("final-extra", "wrn-70-16", "linf:8/255", "cosine", "./extra-regenerated"),
        ("final-carmon", "wrn-70-16", "linf:8/255", "cosine", "./extra"),
        ("final-28-10-extra", "wrn-28-10", "linf:8/255", "cosine", "./extra-regenerated"),
        ("final-l2-extra", "wrn-70-16", "l2:128/255", "cosine", "./extra-regenerated"),
        ("final-cifar100-extra", "wrn-70-16", "linf:8/255", "cosine", "./extra-cifar100"),
    ):
        recipe = trained(name)
        assert (recipe.model.name, recipe.method.name, recipe.headline) == (model, "trades", "average-0.995"), name
        assert recipe.threat == parse(threat), name
        assert recipe.schedule.name == schedule, name
        assert (recipe.data.extra and (recipe.data.extra.source, recipe.data.extra.labelled)) == (
            images and (images, 0.3)
        ), name


def test_the_curve_of_figure_4_is_two_rows_of_one_run_that_is_validated_every_epoch():
    plan = planned("limits-figure-4", "paper")
    assert plan.rows["curve"].trainings == plan.rows["curve-0.995"].trainings
    recipe = trained("curve", "limits-figure-4")
    assert (recipe.selection.every, recipe.averages) == (390, (0.995,))
    for scale in ("small", "toy"):
        small = planned("limits-figure-4", scale)
        recipe = small.trainings[small.rows["curve"].trainings[0]]
        assert recipe.steps // (recipe.selection.every or recipe.steps) >= 4


@pytest.mark.parametrize("scale", ["small", "toy"])
def test_stand_ins_are_small_and_differ_where_the_networks_do(scale: str):
    plan = planned("limits-grid", scale)
    recipes = {name: plan.trainings[row.trainings[0]] for name, row in plan.rows.items()}
    assert {recipe.model.name for recipe in recipes.values()} == {"small_cnn"}
    widths = [recipes[name].model.settings["width"] for name in recipes if name.startswith("wrn-")]
    assert (len(widths), len(set(widths))) == (22, 11)
    assert {measure.limit for row in plan.rows.values() for measure in row.measures.values()} <= {8, 1000}
    assert {recipe.threat.norm for name, recipe in recipes.items() if "-l2" in name} == {"l2"}
