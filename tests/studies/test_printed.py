"""What holds for every table of the IAAT and Bilateral papers alike."""

import functools

import pytest

from studies.printed import BILATERAL, IAAT, PRINTED
from toughen.studies.grid import StudyPlan, expand
from toughen.studies.text import load

SIZES = IAAT | BILATERAL


@functools.cache
def plan_of(name: str, scale: str = "paper") -> StudyPlan:
    return expand(load(name), scale)


@pytest.mark.parametrize("scale", ["small", "toy"])
@pytest.mark.parametrize("name", SIZES)
def test_every_row_can_be_run_smaller_and_none_is_dropped(name: str, scale: str):
    plan = plan_of(name, scale)
    assert {key: row.error for key, row in plan.rows.items() if row.error} == {}
    rows, trainings = SIZES[name]
    # Networks of the paper become one small one, and equal trainings are run once.
    assert len(plan.rows) == rows
    assert 1 <= len(plan.trainings) <= trainings


@pytest.mark.parametrize("name", SIZES)
def test_rows_and_trainings_are_the_papers(name: str):
    plan = plan_of(name)
    assert (len(plan.rows), len(plan.trainings)) == SIZES[name]
    assert not [row.error for row in plan.rows.values() if row.error]


@pytest.mark.parametrize(("place", "value"), PRINTED.items(), ids=["/".join(place) for place in PRINTED])
def test_figures_stand_where_the_papers_have_them(place: tuple[str, str, str], value: float):
    study, row, column = place
    (cell,) = plan_of(study).rows[row].measures[column].cells
    assert cell.value == value
