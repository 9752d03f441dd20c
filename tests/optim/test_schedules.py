"""Schedules against their closed forms."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toughen.optim.schedules import SCHEDULES, constant, cosine, exponential, multistep, one_cycle, warmed_up

SHARES = st.floats(0, 1)


def test_constant():
    assert [constant()(done) for done in (0, 0.3, 1)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("done", "drops"), [(0, 0), (0.4999999, 0), (0.5, 1), (0.6, 1), (0.7499999, 1), (0.75, 2), (1, 2)]
)
def test_multistep_drops_exactly_at_its_milestones(done, drops):
    assert multistep()(done) == 0.1**drops
    assert multistep((0.75, 0.5), decay=0.5)(done) == 0.5**drops


def test_free_drops_at_40_000_and_60_000_of_80_000_steps():
    factor = multistep()
    rates = [factor(step / 80_000) for step in range(80_000)]
    assert rates == [1] * 40_000 + [0.1] * 20_000 + [0.1**2] * 20_000


def test_no_milestone_is_constant():
    assert multistep(())(0.9) == 1


@given(SHARES)
def test_cosine(done):
    assert cosine()(done) == pytest.approx(math.cos(math.pi * done / 2) ** 2, abs=1e-12)


def test_cosine_by_hand():
    assert [cosine()(done) for done in (0, 1 / 3, 0.5, 1)] == pytest.approx([1, 0.75, 0.5, 0], abs=1e-12)


def test_exponential():
    factor = exponential(0.01)
    assert [factor(done) for done in (0, 0.25, 0.5, 1)] == pytest.approx([1, 10**-0.5, 0.1, 0.01], rel=1e-12)
    assert exponential()(1) == 0.01


def test_one_cycle():
    factor = one_cycle(0.4)
    assert [factor(done) for done in (0, 0.1, 0.2, 0.4, 0.7, 1)] == pytest.approx([0, 0.25, 0.5, 1, 0.5, 0], abs=1e-12)
    assert one_cycle(0.25)(0.25) == 1
    assert one_cycle()(0.4) == 1


@given(done=SHARES, peak=st.floats(0.01, 0.99))
def test_one_cycle_peaks_once(done, peak):
    value = one_cycle(peak)(done)
    assert 0 <= value <= 1
    assert value < 1 or done == pytest.approx(peak)


@given(done=SHARES, name=st.sampled_from(["constant", "cosine", "multistep", "exponential"]))
def test_the_factors_never_rise(done, name):
    factor = SCHEDULES[name]()
    assert factor(0) == 1
    assert factor(done) <= factor(done / 2) <= 1


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_warm_up_is_linear_and_the_schedule_takes_the_rest(share):
    factor = warmed_up(cosine(), share)
    assert [factor(share * part) for part in (0, 0.25, 0.5)] == pytest.approx([0, 0.25, 0.5], rel=1e-12)
    assert factor(share) == 1
    for rest in (0.1, 0.5, 1):
        assert factor(share + (1 - share) * rest) == pytest.approx(cosine()(rest), abs=1e-12)


def test_warm_up_moves_the_milestones():
    factor = warmed_up(multistep((0.5,)), 0.2)
    assert factor(0.599) == 1
    assert factor(0.601) == 0.1


def test_no_warm_up_is_the_schedule_itself():
    plain = cosine()
    assert warmed_up(plain, 0) is plain


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_every_schedule_has_its_name_and_defaults(name):
    assert SCHEDULES[name].__name__ == name
    assert 0 <= SCHEDULES[name]()(0.3) <= 1
