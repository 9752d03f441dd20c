"""The studies of Free (paper 001): their rows, their trainings, and the published cells that they reproduce."""

import functools
import math

import pytest

from toughen.studies.coverage import coverage, reasons
from toughen.studies.grid import StudyPlan, expand
from toughen.studies.published import PublishedNumber, cells
from toughen.studies.text import load, shipped

# Name: rows, trainings, published cells.
STUDIES = {
    "free-table-1": (6, 6, 36),
    "free-table-2": (8, 8, 32),
    "free-table-3": (5, 5, 20),
    "free-table-4": (2, 2, 10),
    "free-table-5": (3, 3, 12),
    "free-table-6": (5, 5, 20),
    "free-table-7": (5, 5, 20),
    "free-table-8": (5, 5, 20),
    "free-table-9": (5, 5, 20),
    "free-table-10": (5, 5, 20),
    "free-section-7": (1, 1, 1),
    "free-figure-1": (8, 8, 1),
    "free-figure-1-cifar100": (8, 8, 1),
    "free-figure-2": (2, 2, 0),
    "free-figure-4": (25, 25, 60),
    "free-figure-5": (4, 4, 3),
}
IMAGENET = {"free-table-3": 2, "free-table-6": 3, "free-table-7": 4, "free-table-8": 5, "free-table-9": 6}
IMAGENET["free-table-10"] = 7
"""The radius, in 255ths."""


@functools.cache
def planned(name: str, scale: str = "paper") -> StudyPlan:
    return expand(load(name), scale)


def paper() -> list[PublishedNumber]:
    return [cell for cell in cells() if cell.record["seed"] == "001"]


def printed(plan: StudyPlan, row: str) -> list[list[str]]:
    """What stands in a row of the paper, column by column."""
    return [[cell.raw for cell in measure.cells] for measure in plan.rows[row].measures.values()]


def test_every_study_of_the_paper_ships():
    assert {name for name in shipped() if name.startswith("free-")} == set(STUDIES)


@pytest.mark.parametrize("scale", ["paper", "small", "toy"])
@pytest.mark.parametrize("name", STUDIES)
def test_every_row_expands(name: str, scale: str):
    rows, trainings, published = STUDIES[name]
    plan = planned(name, scale)
    assert [row.error for row in plan.rows.values()] == [None] * rows
    assert len(plan.trainings) == trainings
    found = [cell for row in plan.rows.values() for measure in row.measures.values() for cell in measure.cells]
    assert len(found) == len({cell.id for cell in found}) == published


def test_every_cell_is_reproduced_or_has_a_reason_and_never_both():
    found, why = coverage(), reasons()
    assert [cell.id for cell in paper() if (cell.id in found) == (cell.id in why)] == []
    # Kannan et al.'s baseline, in section 7, is the only one left out.
    (left_out,) = (cell for cell in paper() if cell.id in why)
    assert (left_out.raw, left_out.record["method"]) == ("3.1%", "ALP baseline (M-PGD AT)")


def test_a_cell_stands_at_its_own_table_and_beside_it_only_at_figures_4_and_5():
    for cell in paper():
        table = cell.record["table"].removeprefix("Table ")
        own = [place.study for place in coverage().get(cell.id, []) if "figure" not in place.study]
        assert own == [f"free-table-{table}"] or not table.isdecimal()
    assert printed(planned("free-figure-5"), "b128") == [["62.13%"], ["25.88%"], ["25.58%"]]


@pytest.mark.parametrize(
    ("name", "row", "figures"),
    [
        ("free-table-1", "natural", ["95.01%", "0.00%", "0.00%", "0.00%", "0.00%", "780"]),
        ("free-table-1", "free-m2", ["91.45%", "33.92%", "33.20%", "34.57%", "33.41%", "816"]),
        ("free-table-1", "free-m4", ["87.83%", "41.15%", "40.35%", "41.96%", "40.73%", "800"]),
        ("free-table-1", "free-m8", ["85.96%", "46.82%", "46.19%", "46.60%", "46.33%", "785"]),
        ("free-table-1", "free-m10", ["83.94%", "46.31%", "45.79%", "45.86%", "45.94%", "785"]),
        ("free-table-1", "pgd-7", ["87.25%", "45.84%", "45.29%", "46.52%", "45.53%", "5418"]),
        ("free-table-2", "natural", ["78.84%", "0.00%", "0.00%", "811"]),
        ("free-table-2", "free-m6", ["64.87%", "23.68%", "23.18%", "791"]),
        ("free-table-2", "pgd-2", ["67.94%", "17.08%", "16.50%", "2053"]),
        ("free-table-2", "pgd-7", ["59.87%", "22.76%", "22.52%", "5157"]),
        ("free-table-3", "natural", ["76.038%", "0.166%", "0.052%", "0.036%"]),
        ("free-table-3", "free-m4", ["64.446%", "43.522%", "43.392%", "43.404%"]),
        ("free-table-4", "free-m4", ["60.206%", "32.768%", "31.878%", "31.816%", "3016"]),
        ("free-table-4", "pgd-2", ["64.134%", "37.172%", "36.352%", "36.316%", "10,435"]),
        ("free-table-5", "resnet50", ["60.206%", "32.768%", "31.878%", "31.816%"]),
        ("free-table-5", "resnet101", ["63.340%", "35.388%", "34.402%", "34.328%"]),
        ("free-table-5", "resnet152", ["64.446%", "36.992%", "36.044%", "35.994%"]),
        ("free-table-6", "free-m2", ["69.634%", "29.652%", "28.094%", "27.952%"]),
        ("free-table-7", "free-m6", ["55.988%", "30.804%", "30.282%", "30.250%"]),
        ("free-table-8", "free-m8", ["50.570%", "25.854%", "25.086%", "25.080%"]),
        ("free-table-9", "free-m4", ["56.808%", "24.912%", "21.728%", "21.506%"]),
        ("free-table-10", "free-m2", ["64.256%", "0.084%", "0.028%", "0.018%"]),
    ],
)
def test_the_row_of_the_paper_stands_beside_the_row_of_the_study(name: str, row: str, figures: list[str]):
    assert printed(planned(name), row) == [[figure] for figure in figures]


def test_figure_4_has_the_tables_clean_and_pgd_100_and_one_natural_model():
    plan = planned("free-figure-4")
    assert printed(plan, "eps2-m4") == [["64.446%"], ["43.404%"]]
    assert printed(plan, "eps7-m8") == [["44.314%"], ["8.828%"]]
    # The natural model stands in six tables; its clean accuracy is the same in all.
    robust = [["0.036%"], ["0.014%"], ["0.010%"], ["0.006%"], ["0.008%"], ["0.006%"]]
    assert printed(plan, "natural") == [["76.038%"] * 6, *robust]
    assert len(plan.rows["natural"].trainings) == 1
    radii = [plan.trainings[plan.rows[f"eps{k}-m8"].trainings[0]].threat.eps for k in range(2, 8)]
    assert radii == pytest.approx([k / 255 for k in range(2, 8)])


def test_the_text_s_models_stand_beside_theirs():
    (reference,) = printed(planned("free-figure-1"), "pgd-7")[0]
    (hundred,) = printed(planned("free-figure-1-cifar100"), "pgd-7")[0]
    (quoted,) = printed(planned("free-section-7"), "xie-resnet101")[1]
    assert (reference, hundred, quoted) == ("87.25%", "59.87%", "35.8%")


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_is_trained_and_attacked_in_the_tables_ball_with_a_step_of_one(name: str):
    plan = planned(name)
    for recipe in plan.trainings.values():
        assert math.isclose(recipe.threat.eps, IMAGENET[name] / 255)
        assert (recipe.model.name, recipe.model.settings["stem"]) == ("resnet50", "imagenet")
    steps = [recipe.method.steps_per_batch for recipe in plan.trainings.values()]
    assert steps == [1, 2, 4, 6, 8]
    for key in ("pgd-10", "pgd-50", "pgd-100"):
        assert plan.study.columns[key].step_size == pytest.approx(1 / 255)


def test_table_1_is_on_the_papers_network_and_each_row_has_its_replays():
    plan = planned("free-table-1")
    trained = [plan.trainings[row.trainings[0]] for row in plan.rows.values()]
    assert {recipe.model.name for recipe in trained} == {"madry-w32-10"}
    assert [recipe.method.steps_per_batch for recipe in trained] == [1, 2, 4, 8, 10, 1]
    assert {recipe.total_steps for recipe in trained} == {80000}


@pytest.mark.parametrize("name", [f"free-table-{k}" for k in range(1, 11)] + ["free-figure-1", "free-figure-4"])
def test_all_rows_of_a_table_take_the_same_number_of_steps_at_small_scale(name: str):
    assert len({recipe.total_steps for recipe in planned(name, "small").trainings.values()}) == 1


def test_at_small_scale_free_rows_of_table_1_cost_the_same_and_pgd_7_eight_times_that():
    plan = planned("free-table-1", "small")
    costs = {}
    for name, row in plan.rows.items():
        recipe = plan.trainings[row.trainings[0]]
        passes = recipe.method.resolved(recipe.threat).passes()
        costs[name] = (passes.forwards * recipe.batches, passes.backwards * recipe.batches)
    assert len({costs[name] for name in costs if name != "pgd-7"}) == 1
    assert costs["pgd-7"] == tuple(8 * n for n in costs["natural"])


def test_figure_5_scales_the_learning_rate_and_sees_as_many_images_at_every_batch_size():
    for scale in ("paper", "small"):
        plan = planned("free-figure-5", scale)
        trained = [plan.trainings[row.trainings[0]] for row in plan.rows.values()]
        assert [recipe.batch_size for recipe in trained] == [16, 32, 64, 128]
        assert {recipe.method.steps_per_batch for recipe in trained} == {8}
        assert {recipe.optimizer.lr_batch_size for recipe in trained} == {128}
        assert len({recipe.batch_size * recipe.total_steps for recipe in trained}) == 1


def test_figure_1_replays_natural_training():
    plan = planned("free-figure-1")
    trained = {name: plan.trainings[row.trainings[0]] for name, row in plan.rows.items()}
    assert trained.pop("pgd-7").method.name == "adversarial"
    assert {recipe.method.name for recipe in trained.values()} == {"natural"}
    assert [recipe.method.steps_per_batch for recipe in trained.values()] == [1, 2, 4, 8, 16, 32, 64]
