import pytest

from studies.printed import IAAT
from toughen.recipes.text import differences
from toughen.studies.coverage import Place, coverage, reasons
from toughen.studies.grid import StudyPlan, expand
from toughen.studies.published import cells
from toughen.studies.text import load
from toughen.threat import Linf


@pytest.fixture(scope="module")
def plans() -> dict[str, StudyPlan]:
    return {name: expand(load(name)) for name in IAAT}


def test_every_figure_of_a_table_stands_beside_one_published_number(plans: dict[str, StudyPlan]):
    for name, plan in plans.items():
        found = {(row.name, key): len(m.cells) for row in plan.rows.values() for key, m in row.measures.items()}
        if name == "iaat-table-7":
            # Training time is no part of this table, but what its line search costs is the point.
            found = {place: count for place, count in found.items() if place[1] != "minutes"}
        assert set(found.values()) == ({0, 1} if "figure" in name else {1})


def test_the_figures_have_the_numbers_of_the_tables_that_print_their_points(plans: dict[str, StudyPlan]):
    def raw(study: str, *columns: str) -> dict[str, list[str]]:
        plan = plans[study] if study in plans else expand(load(study))
        found = {
            name: [cell.raw for column in columns for cell in row.measures[column].cells]
            for name, row in plan.rows.items()
        }
        return {name: some for name, some in found.items() if some}

    # Tables 1, 2, 5 and 6: WRN-32-10.
    assert raw("iaat-figure-3", "pgd-1000-r2", "clean") == {
        "cifar10-iaat": ["46.54", "91.34"],
        "cifar10-iaat-cold": ["41.11", "92.62"],
        "cifar100-iaat": ["24.36", "68.80"],
        "cifar100-iaat-cold": ["13.71", "75.48"],
        "cifar10-at-8": ["44.84", "86.85"],
        "cifar100-at-8": ["25.49", "59.58"],
    }
    # PGD-100 of tables 1 and 2.
    assert raw("iaat-figure-4", "eps-8") == {
        "cifar10-at-8": ["44.82"],
        "cifar10-iaat": ["46.50"],
        "cifar100-at-8": ["25.47"],
        "cifar100-iaat": ["24.22"],
    }
    # Table 4, within 16/255.
    assert raw("iaat-figure-9", "steps-1000") == {"resnet50": ["22.72"], "resnet101": ["23.91"], "resnet152": ["27.85"]}


def test_all_221_numbers_are_reproduced_table_1s_iaat_twice():
    ids = [cell.id for cell in cells() if cell.record["seed"] == "003"]
    assert len(ids) == 221
    assert not reasons().keys() & set(ids)
    found = {key: [place for place in coverage()[key] if "figure" not in place.study] for key in ids}
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


def test_the_two_readings_differ_in_their_mechanism_alone_on_resnet18(plans: dict[str, StudyPlan]):
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


def test_the_sweep_of_figure_3_trains_in_eight_radii_and_attacks_in_one(plans: dict[str, StudyPlan]):
    plan = plans["iaat-figure-3"]
    for data in ("cifar10", "cifar100"):
        found = [plan.trainings[plan.rows[f"{data}-at-{k}"].trainings[0]] for k in range(1, 9)]
        assert [recipe.threat for recipe in found] == [Linf(k / 255) for k in range(1, 9)]
        assert {recipe.data.source for recipe in found} == {data}
    assert {row.measures["pgd-1000-r2"].column.threat for row in plan.rows.values()} == {"linf:8/255"}


def test_transfer_attacks_come_from_a_second_training_that_has_no_other_part(plans: dict[str, StudyPlan]):
    tables = set()
    for name, plan in plans.items():
        for row in plan.rows.values():
            assert len(row.trainings) == 1
            mine = plan.trainings[row.trainings[0]]
            assert mine.seed == 0
            for key, measure in row.measures.items():
                assert (measure.surrogate is not None) == (key == "transfer")
                if measure.surrogate is not None:
                    tables.add(name)
                    assert differences(mine, plan.trainings[measure.surrogate]) == ["seed: 0 there, 1 here"]
    assert tables == {f"iaat-table-{k}" for k in (1, 2, 5, 6, 8)}
