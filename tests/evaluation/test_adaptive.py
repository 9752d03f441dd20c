"""The suite `adaptive`: whom it attacks, what it learns, and that it reaches the truth where that is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import few
from oracles import linear_problem
from toughen.attacks import AttackSpec
from toughen.evaluation import evaluate
from toughen.evaluation.adaptive import ROUNDS, Adaptive, Round, _by_yield, nearest
from toughen.evaluation.plan import AttackStage, EvaluationState, Stage
from toughen.evaluation.suites import SUITES
from toughen.outcomes import Outcomes
from toughen.threat import Linf
from zoo import nan_gradient, quantised, saturated


def table(attack: str, ids: list[int], margins: list[float]) -> Outcomes:
    n = len(ids)
    broken = np.array(margins) > 0
    return Outcomes(
        attack=np.full(n, attack),
        index=np.array(ids),
        label=np.zeros(n),
        prediction=np.where(broken, 1, 0),
        survived=~broken,
        distance=np.zeros(n),
        loss=np.zeros(n),
        margin=np.array(margins),
        marginal=np.zeros(n, dtype=bool),
        forwards=np.ones(n),
        backwards=np.ones(n),
        seed=np.zeros(n),
        aside=np.zeros(n, dtype=bool),
    )


def settings(stage: Stage) -> dict:
    assert isinstance(stage, AttackStage)
    assert isinstance(stage.attack, AttackSpec)
    return stage.attack.settings


def test_those_that_came_nearest_are_attacked():
    index = torch.tensor([10, 11, 12, 13, 14])
    state = EvaluationState(table("clean", index.tolist(), [-1, -1, -1, 1, -1]), index)
    assert nearest(state, 1).tolist() == [0, 1, 2, 4]
    state.add(table("a", [14, 10, 11, 12], [-0.1, -0.4, -0.3, -0.2]))
    assert nearest(state, 0.5).tolist() == [2, 4]
    state.add(table("b", [14, 12], [-0.9, 0.1]))
    assert state.unbroken.tolist() == [0, 1, 4]
    # The best margin counts, not the last.
    assert nearest(state, 0.01).tolist() == [4]
    assert nearest(state, 0.67).tolist() == [1, 4]


def test_the_rank_that_broke_most_is_taken_again():
    assert _by_yield({1: 0.1, 2: 0.3, 3: 0.3}, 1) == 2
    assert _by_yield({1: 0.1, 2: 0.3, 3: 0.3}, 2) == 3
    assert _by_yield({}, 1) == 1


def test_the_last_rounds_follow_the_yields():
    index = torch.arange(10)
    state = EvaluationState(table("clean", list(range(10)), [-1.0] * 10), index)
    plan = Adaptive((Round(1, 5, 1), Round(1, 5, 2), Round(0.5, 7, -1), Round(0.5, 7, -2)))(state)
    assert settings(next(plan))["rank"] == 1
    state.add(table("1", list(range(10)), [-1.0] * 10))
    assert settings(next(plan))["rank"] == 2
    state.add(table("2", list(range(10)), [1.0, 1.0] + [-0.5] * 8))
    stage = next(plan)
    assert (settings(stage)["rank"], stage.rows.tolist()) == (2, [2, 3, 4, 5])
    assert settings(next(plan))["rank"] == 1
    assert next(plan, None) is None


@pytest.mark.parametrize("seed", few(0, 1, 2))
def test_on_linear_models_the_verdict_is_the_truth(seed):
    problem = linear_problem(seed, n=100)
    found = evaluate(problem.model, problem.x, problem.y, threat=Linf(2 / 255), suite="adaptive")
    assert found.outcomes.robust_correct == int((~problem.breakable()).sum())
    assert list(found.settings) == [f"adaptive-{number:02d}" for number in range(1, len(ROUNDS) + 1)]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rounds of the suite, with a few steps each."""
    rounds = tuple(replace(item, steps=5, restarts=min(item.restarts, 3)) for item in ROUNDS)
    monkeypatch.setitem(SUITES, "adaptive", lambda threat: Adaptive(rounds))


def test_killed_it_goes_on_and_ends_with_the_same_table(tmp_path, hasty):
    problem = linear_problem(0, n=60)
    given = {"threat": Linf(2 / 255), "suite": "adaptive", "chunk_size": 16}
    whole = evaluate(problem.model, problem.x, problem.y, **given)

    class Killed(BaseException):
        """No error of the model's."""

    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls in (80, 160, 240):
            raise Killed

    handle = problem.model.register_forward_hook(count)
    for _ in range(3):
        with pytest.raises(Killed):
            evaluate(problem.model, problem.x, problem.y, folder=tmp_path, **given)
    found = evaluate(problem.model, problem.x, problem.y, folder=tmp_path, **given)
    handle.remove()
    whole.outcomes.write(tmp_path / "whole.parquet")
    assert (tmp_path / "examples.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert found.robust_accuracy == whole.robust_accuracy


def test_it_cannot_be_independent():
    problem = linear_problem(0, n=4)
    with pytest.raises(ValueError, match="follows what broke before"):
        evaluate(problem.model, problem.x, problem.y, threat=Linf(0.1), suite="adaptive", independent=True)


@pytest.mark.parametrize("make", [saturated, quantised, nan_gradient])
def test_on_masked_models_it_says_so_instead(make, hasty):
    set_up = make()
    found = evaluate(set_up.model, set_up.x[:100], set_up.y[:100], threat=set_up.threat, suite="adaptive")
    assert found.unreliable
