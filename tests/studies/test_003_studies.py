import pytest

from toughen.recipes.text import differences
from toughen.studies.coverage import Place, coverage, reasons
from toughen.studies.grid import Plan, expand
from toughen.studies.published import cells
from toughen.studies.text import load
from toughen.threat import Linf

# rows and distinct trainings: the models that each table or figure lists, twice where it has transfer attacks.
SIZES = {
    "iaat-table-1": (8, 16),
    "iaat-table-2": (6, 12),
    "iaat-table-3": (2, 2),
    "iaat-table-4": (9, 9),
    "iaat-table-5": (4, 8),
    "iaat-table-6": (4, 8),
    "iaat-table-7": (2, 2),
    "iaat-table-8": (4, 8),
    "iaat-table-9": (9, 9),
    "iaat-table-12": (3, 3),
    "iaat-figure-3": (20, 20),
    "iaat-figure-4": (6, 6),
}
# (study, row, column) -> the paper's figure.
PRINTED = {
    ("iaat-table-1", "resnet18-natural", "transfer"): 3.03,
    ("iaat-table-1", "resnet18-at", "clean"): 83.2,
    ("iaat-table-1", "resnet18-iaat", "corruptions"): 78.82,
    ("iaat-table-1", "resnet18-iaat-code", "pgd-100-r5"): 41.16,
    ("iaat-table-1", "wrn-32-10-at", "pgd-10-r5"): 46.86,
    ("iaat-table-1", "wrn-32-10-iaat", "pgd-1000-r2"): 46.54,
    ("iaat-table-1", "wrn-32-10-iaat-code", "transfer"): 58.2,
    ("iaat-table-2", "resnet18-at", "pgd-1000-r2"): 19.91,
    ("iaat-table-2", "wrn-32-10-natural", "clean"): 79.91,
    ("iaat-table-2", "wrn-32-10-iaat", "transfer"): 35.18,
    ("iaat-table-3", "at", "deepfool"): 65.28,
    ("iaat-table-3", "iaat", "mi-fgsm"): 53.99,
    ("iaat-table-3", "iaat", "cw-40"): 56.8,
    ("iaat-table-4", "resnet50-natural", "eps-4"): 0.64,
    ("iaat-table-4", "resnet50-at", "eps-8"): 49.11,
    ("iaat-table-4", "resnet101-iaat", "eps-16"): 23.91,
    ("iaat-table-4", "resnet152-iaat", "eps-12"): 45.01,
    ("iaat-table-4", "resnet152-at", "mce"): 89.31,
    ("iaat-table-5", "resnet18-cold", "clean"): 89.62,
    ("iaat-table-5", "wrn-32-10-cold", "pgd-100-r5"): 41.08,
    ("iaat-table-5", "wrn-32-10-warm", "clean"): 90.67,
    ("iaat-table-6", "resnet18-cold", "pgd-10-r5"): 14.76,
    ("iaat-table-6", "wrn-32-10-cold", "transfer"): 24.0,
    ("iaat-table-6", "wrn-32-10-warm", "pgd-1000-r2"): 24.36,
    ("iaat-table-7", "line-search", "clean"): 88.67,
    ("iaat-table-7", "line-search", "pgd-1000-r2"): 41.37,
    ("iaat-table-7", "iaat", "pgd-10-r5"): 43.08,
    ("iaat-table-8", "resnet18-mixup", "clean"): 89.47,
    ("iaat-table-8", "wrn-32-10-mixup", "pgd-1000-r2"): 36.44,
    ("iaat-table-8", "wrn-32-10-iaat", "transfer"): 58.2,
    ("iaat-table-9", "gamma-0.96-beta-0.05", "clean"): 92.1,
    ("iaat-table-9", "gamma-0.96-beta-0.05", "pgd-10-r5"): None,  # the print cannot be read
    ("iaat-table-9", "gamma-1.91-beta-0.2", "pgd-10-r5"): 48.72,
    ("iaat-table-9", "gamma-2.81-beta-0.1", "clean"): 90.52,
    ("iaat-table-12", "resnet50", "minutes"): 92 * 60,
    ("iaat-table-12", "resnet101", "minutes"): 78 * 60,
    ("iaat-table-12", "resnet152", "minutes"): 94 * 60,
}


@pytest.fixture(scope="module")
def plans() -> dict[str, Plan]:
    return {name: expand(load(name)) for name in SIZES}


@pytest.mark.parametrize("scale", ["small", "toy"])
@pytest.mark.parametrize("name", SIZES)
def test_every_row_can_be_run_smaller_and_none_is_dropped(name: str, scale: str):
    plan = expand(load(name), scale)
    assert {key: row.error for key, row in plan.rows.items() if row.error} == {}
    rows, trainings = SIZES[name]
    # Networks of the paper become one small one, and equal trainings are run once.
    assert len(plan.rows) == rows
    assert 1 <= len(plan.trainings) <= trainings


def test_rows_and_trainings_are_the_papers(plans: dict[str, Plan]):
    assert {name: (len(plan.rows), len(plan.trainings)) for name, plan in plans.items()} == SIZES
    assert not [row.error for plan in plans.values() for row in plan.rows.values() if row.error]


def test_every_figure_of_a_table_stands_beside_one_published_number(plans: dict[str, Plan]):
    for name, plan in plans.items():
        found = {(row.name, key): len(m.cells) for row in plan.rows.values() for key, m in row.measures.items()}
        if name == "iaat-table-7":
            # Training time is no part of this table, but what its line search costs is the point.
            found = {place: count for place, count in found.items() if place[1] != "minutes"}
        assert set(found.values()) == ({0} if "figure" in name else {1})


@pytest.mark.parametrize(("place", "value"), PRINTED.items(), ids=["/".join(place) for place in PRINTED])
def test_figures_stand_where_the_paper_has_them(plans: dict[str, Plan], place: tuple[str, str, str], value: float):
    study, row, column = place
    (cell,) = plans[study].rows[row].measures[column].cells
    assert cell.value == value


def test_all_221_numbers_are_reproduced_table_1s_iaat_twice():
    ids = [cell.id for cell in cells() if cell.record["seed"] == "003"]
    assert len(ids) == 221
    assert not reasons().keys() & set(ids)
    found = {key: coverage()[key] for key in ids}
    # Six figures of two networks stand beside the paper's reading and beside its code's.
    twice = {key for key, places in found.items() if len(places) > 1}
    assert len(twice) == 12
    assert {place.row for key in twice for place in found[key]} == {
        "resnet18-iaat",
        "resnet18-iaat-code",
        "wrn-32-10-iaat",
        "wrn-32-10-iaat-code",
    }
    for cell in cells():
        if cell.record["seed"] == "003":
            table = cell.record["table"].removeprefix("Table ")
            assert {place.study for place in found[cell.id]} == {f"iaat-table-{table}"}
    assert coverage()["003-T9-682"] == [Place("iaat-table-9", "gamma-0.96-beta-0.05", "pgd-10-r5")]


def test_the_two_readings_differ_in_their_mechanism_alone_on_resnet18(plans: dict[str, Plan]):
    plan = plans["iaat-table-1"]
    paper, code = (plan.trainings[plan.rows[key].trainings[0]] for key in ("resnet18-iaat", "resnet18-iaat-code"))
    # The earlier one is "there", the later one "here".
    assert [line for line in differences(paper, code) if not line.startswith("name")] == [
        "method.misclassified: clean_loss there, decay here",
        "method.step_rule: fixed there, scaled here",
    ]
    assert paper.steps == 200 * 383


@pytest.mark.parametrize("scale", ["paper", "small"])
def test_line_search_is_all_that_sets_its_row_apart(scale: str):
    plan = expand(load("iaat-table-7"), scale)
    usual, search = (plan.trainings[plan.rows[key].trainings[0]] for key in ("iaat", "line-search"))
    assert [line for line in differences(usual, search) if not line.startswith("name")] == [
        "method.selection: candidates there, line_search here",
        f"method.grid: None there, {2 / 255} here",
        f"method.largest: None there, {16 / 255} here",
    ]


def test_the_sweep_of_figure_3_trains_in_eight_radii_and_attacks_in_one(plans: dict[str, Plan]):
    plan = plans["iaat-figure-3"]
    for data in ("cifar10", "cifar100"):
        found = [plan.trainings[plan.rows[f"{data}-at-{k}"].trainings[0]] for k in range(1, 9)]
        assert [recipe.threat for recipe in found] == [Linf(k / 255) for k in range(1, 9)]
        assert {recipe.data.source for recipe in found} == {data}
    assert {row.measures["pgd-1000-r2"].column.threat for row in plan.rows.values()} == {"linf:8/255"}


def test_transfer_attacks_come_from_a_second_training(plans: dict[str, Plan]):
    for plan in plans.values():
        for row in plan.rows.values():
            pair = [plan.trainings[key] for key in row.trainings]
            assert len(pair) == (2 if "transfer" in row.measures else 1)
            assert {recipe.seed for recipe in pair} == set(range(len(pair)))
