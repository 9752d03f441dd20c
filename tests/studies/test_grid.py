from pathlib import Path

import pytest

from toughen import recipes
from toughen.recipes.text import build, parse_yaml
from toughen.studies.create import create_folder
from toughen.studies.grid import expand
from toughen.studies.schema import Study
from toughen.studies.text import StudyError, load

COLUMNS = {"pgd-1": "pgd-1"}


def study(**fields: object) -> Study:
    return Study.model_validate({"title": "t", "base": "mnist-free", "columns": COLUMNS, **fields})


def test_equal_recipes_are_trained_once_whatever_their_rows_and_names_are():
    plan = expand(
        study(
            rows={
                "a": {},
                "b": {"set": {"method.replays": 8}},
                "c": {"recipe": "mnist-free", "set": {"name": "other", "method.replays": 4}},
                "d": {"recipe": "mnist-pgd", "set": {"method": {"name": "free", "replays": 8}, "steps": 1200}},
            }
        )
    )
    a, b, c, d = (plan.rows[key].trainings for key in "abcd")
    assert a == b
    assert a != c
    assert len(plan.trainings) == len({a, c, d})
    for names in (a, c, d):
        assert plan.trainings[names[0]].name == names[0].rpartition("-")[0]


def test_equal_recipes_of_different_names_are_one_training_under_the_first_name():
    rows = {"a": {"recipe": "mnist-free"}, "b": {"recipe": "mnist-free", "set": {"name": "other"}}}
    plan = expand(study(rows=rows))
    assert plan.rows["a"].trainings == plan.rows["b"].trainings == tuple(plan.trainings)
    assert [recipe.name for recipe in plan.trainings.values()] == ["mnist-free"]


def test_axes_are_combined_and_their_labels_changes_and_filters_joined():
    plan = expand(
        study(
            reproduces={"paper": "001", "table": "Table 1"},
            columns={"clean": {"what": "clean", "metric": "clean"}, "pgd-20": {"suite": "pgd-20", "metric": "PGD-20"}},
            axes=[
                {
                    "m2": {"label": "m = 2", "set": {"method.replays": 2}, "cells": {"params": {"m": 2}}},
                    "m8": {"label": "m = 8", "set": {"method.replays": 8}, "cells": {"params": {"m": "8"}}},
                },
                {"x": {"label": "x", "cells": {"method": "Free"}}, "y": {"set": {"batch_size": 64}}},
            ],
        )
    )
    assert list(plan.rows) == ["m2-x", "m2-y", "m8-x", "m8-y"]
    assert [plan.rows[key].label for key in plan.rows] == ["m = 2, x", "m = 2", "m = 8, x", "m = 8"]
    recipe = plan.trainings[plan.rows["m2-y"].trainings[0]]
    assert (recipe.method.steps_per_batch, recipe.batch_size) == (2, 64)
    # 001, table 1: 91.45 and 33.92 for m = 2, 85.96 and 46.82 for m = 8.
    values = {
        (row, column): [cell.value for cell in plan.rows[row].measures[column].cells]
        for row in plan.rows
        for column in ("clean", "pgd-20")
    }
    assert values["m2-x", "clean"] == [91.45]
    assert values["m2-x", "pgd-20"] == [33.92]
    assert values["m8-x", "clean"] == [85.96]
    assert values["m8-x", "pgd-20"] == [46.82]


def test_changes_come_in_their_order_study_row_scale_its_rows_and_the_users():
    given = study(
        set={"steps": 10, "batch_size": 10, "seed": 9},
        rows={"a": {"set": {"steps": 20}}, "b": {}},
        scales={"paper": {"set": {"batch_size": 30}, "rows": {"b": {"batch_size": 40}}}},
        seeds=[3],
    )
    plan = expand(given, "paper", ["optimizer.lr=0.5"])
    found = {key: plan.trainings[plan.rows[key].trainings[0]] for key in "ab"}
    assert [(r.steps, r.batch_size, r.seed, r.optimizer.lr) for r in found.values()] == [
        (20, 30, 3, 0.5),
        (10, 40, 3, 0.5),
    ]


def test_scales_take_twins_stand_ins_and_other_columns():
    given = Study.model_validate(
        {
            "title": "t",
            "columns": {
                "one": {"suite": "pgd-1000-r2", "note": "long"},
                "two": {"suite": "bilateral", "attack": "ce-20"},
            },
            "rows": {"a": {"recipe": "cifar10-free"}, "b": {"recipe": "cifar10-pgd"}},
            "scales": {"small": {"recipes": {"cifar10-pgd": "mnist-pgd"}, "columns": {"one": "pgd-20"}}},
        }
    )
    small = expand(given, "small")
    names = [small.trainings[row.trainings[0]].name for row in small.rows.values()]
    assert names == ["cifar10-free-small", "mnist-pgd"]
    measures = small.rows["a"].measures
    assert (measures["one"].column.suite, measures["one"].limit, measures["one"].folder) == (
        "pgd-20",
        1000,
        "pgd-20_n1000",
    )
    assert (measures["two"].column.attack, measures["two"].folder) == ("ce-20", "bilateral_ce-20_n1000")
    toy = expand(given, "toy").rows["a"].measures
    assert [(m.column.suite, m.column.attack, m.limit) for m in toy.values()] == [("pgd-2", None, 8)] * 2
    recipe = next(iter(expand(given, "toy").trainings.values()))
    assert (recipe.data.source, recipe.steps, recipe.data.limit) == ("mnist5k", 16, 64)


def test_a_faulty_row_keeps_its_fault_and_the_others_their_work(tmp_path: Path):
    given = study(
        rows={
            "good": {},
            "typo": {"set": {"method.replay": 3}},
            "nowhere": {"recipe": "no-such-recipe"},
            "average": {"weights": "average-0.9"},
        }
    )
    plan = expand(given)
    assert plan.rows["good"].error is None
    assert "replay: unknown; allowed: " in str(plan.rows["typo"].error)
    assert "is no shipped recipe" in str(plan.rows["nowhere"].error)
    assert "'average-0.9' is not a known weights" in str(plan.rows["average"].error)
    folder = create_folder(given, "paper", tmp_path / "study")
    assert [task.name for task in folder.tasks()] == [*plan.trainings, "good"]
    with pytest.raises(StudyError, match=r"rows\.bad: 'no' is no shipped recipe"):
        create_folder(study(rows={"bad": {"recipe": "no"}}), "paper", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_weights_of_one_run_make_several_rows():
    given = study(
        set={"averages": [0.9, 0.99]},
        rows={"plain": {"weights": "weights"}, "slow": {"weights": "average-0.99"}, "fast": {"weights": "average-0.9"}},
    )
    plan = expand(given)
    assert len(plan.trainings) == 1
    assert [row.measures["pgd-1"].folder for row in plan.rows.values()] == [
        "pgd-1_weights",
        "pgd-1_average-0.99",
        "pgd-1_average-0.9",
    ]


def test_a_folder_belongs_to_one_study(tmp_path: Path, tiny_study: Path):
    out = tmp_path / "out"
    create_folder(load(str(tiny_study)), "toy", out)
    create_folder(load(str(tiny_study)), "toy", out)
    with pytest.raises(StudyError, match=r"out holds another study, or this one otherwise \(changes differs\)"):
        create_folder(load(str(tiny_study)), "toy", out, ["seed=1", "steps=9"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(StudyError, match="exists and holds no study"):
        create_folder(load(str(tiny_study)), "toy", tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_the_run_folder_of_a_training_holds_a_recipe_that_starts_it_again(tmp_path: Path, tiny_study: Path):
    folder = create_folder(load(str(tiny_study)), "toy", tmp_path / "out")
    for training in folder.asked["trainings"].values():
        recipe = build(parse_yaml(training["recipe"], "here"))
        assert recipes.dump(recipe) == training["recipe"]
        passes = recipe.method.resolved(recipe.threat).passes()
        assert (training["forwards"], training["steps"]) == (passes.forwards * recipe.batches, recipe.total_steps)


def test_a_place_goes_to_the_recipes_alone_that_train_on_that_data_set(tmp_path: Path):
    here, there = tmp_path / "ten", tmp_path / "hundred"
    here.mkdir()
    there.mkdir()
    rows = {
        "ten": {"recipe": "cifar10-free"},
        "hundred": {"recipe": "cifar100-free-w32-10"},
        "digits": {"recipe": "mnist-free"},
        "extra": {"recipe": "cifar10-free", "set": {"data.extra": {"source": "svhn_extra", "labelled": 0.5}}},
    }
    changes = [f"cifar10={here}", "steps=80", f"cifar100={there}", f"svhn_extra={there}"]
    plan = expand(study(rows=rows), changes=changes)
    assert [row.error for row in plan.rows.values()] == [None] * 4
    (ten, hundred, digits, extra) = (plan.trainings[row.trainings[0]] for row in plan.rows.values())
    assert [recipe.data.source for recipe in (ten, hundred, digits, extra)] == [
        str(here),
        str(there),
        "mnist5k",
        str(here),
    ]
    assert extra.data.extra is not None
    assert extra.data.extra.source == str(there)
    assert {recipe.total_steps for recipe in plan.trainings.values()} == {80}
    assert plan.changes == tuple(changes)
    with pytest.raises(StudyError, match="cifar10= says no place"):
        expand(study(rows=rows), changes=["cifar10="])
