"""The suites `adaptive` and `exhaustive`: whom they attack, when they go on, and that they reach what is known."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from conftest import few
from oracles import linear_problem, relu_problem
from short_rounds import shortened
from toughen.attacks import AttackSpec
from toughen.evaluation import evaluate
from toughen.evaluation.adaptive import ROUNDS, Adaptive, Round, nearest
from toughen.evaluation.exhaustive import exhaustive_rounds
from toughen.evaluation.plan import AttackStage, EvaluationState, Stage
from toughen.evaluation.suites import SUITES, autoattack
from toughen.outcomes import Outcomes
from toughen.threat import Linf
from zoo import nan_gradient, quantised, saturated

EXHAUSTIVE = exhaustive_rounds(autoattack(Linf(0.1)))


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


def started(n: int) -> EvaluationState:
    """n examples that are classified correctly."""
    return EvaluationState(table("clean", list(range(n)), [-1.0] * n), torch.arange(n))


def test_those_that_came_nearest_are_attacked():
    index = torch.tensor([10, 11, 12, 13, 14])
    state = EvaluationState(table("clean", index.tolist(), [-1, -1, -1, 1, -1]), index)
    assert nearest(state, 1).tolist() == [0, 1, 2, 4]
    state.add(table("a", [14, 10, 11, 12], [-0.1, -0.4, -0.3, -0.2]))
    assert nearest(state, 0.5).tolist() == [2, 4]
    state.add(table("b", [14, 12], [-0.9, 0.1]))
    assert state.unbroken.tolist() == [0, 1, 4]
    assert state.broken.tolist() == [2, 3]
    # The best margin counts, not the last.
    assert nearest(state, 0.01).tolist() == [4]
    assert nearest(state, 0.67).tolist() == [1, 4]


SEARCH, ASCENT = AttackSpec(name="square", queries=10), AttackSpec(name="diversified_pgd", steps=5)


def test_an_attack_goes_on_where_its_last_stage_broke_something():
    state = started(10)
    rounds = {
        "a": Round(0.5, ASCENT),
        "s": Round(0.2, SEARCH),
        "a-on": Round(1, ASCENT, after="a"),
        "s-on": Round(0.4, SEARCH, after="s"),
        "s-on-on": Round(1, SEARCH, after="s-on"),
    }
    plan = Adaptive(rounds)(state)
    assert label_and_rows(next(plan)) == ("a", [0, 1, 2, 3, 4])
    state.add(table("a", [0, 1, 2, 3, 4], [-0.5, -0.4, -0.3, -0.2, -0.1]))
    assert label_and_rows(next(plan)) == ("s", [3, 4])
    state.add(table("s", [3, 4], [0.1, -0.1]))
    # The ascent broke nothing and does not go on; the search does, and to more.
    assert label_and_rows(next(plan)) == ("s-on", [0, 1, 2, 4])
    state.add(table("s-on", [0, 1, 2, 4], [-0.5, -0.4, -0.3, -0.1]))
    assert next(plan, None) is None


def label_and_rows(stage: Stage) -> tuple[str, list[int]]:
    return stage.label, stage.rows.tolist()


def test_every_kind_of_attack_goes_on_to_all_there_are():
    """The suite as it is: three kinds, each in stages of its own that hang on one another."""
    for kind, name in (("ascent", "diversified_pgd"), ("boundary", "fab"), ("search", "square")):
        stages = [ROUNDS[f"adaptive-{kind}-{number}"] for number in range(1, 5)]
        assert {item.attack.name for item in stages} == {name}
        assert [item.after for item in stages] == [None, *(f"adaptive-{kind}-{number}" for number in range(1, 4))]
        assert all(one.share <= two.share for one, two in pairwise(stages))
        assert stages[-1].share == 1
    # Whether a stage goes on is known only then: nothing is forecast for it.
    assert [label for label, share in Adaptive().shares.items() if not share] == [
        label for label, item in ROUNDS.items() if item.after
    ]


@pytest.mark.parametrize("seed", few(0, 1, 2))
def test_on_linear_models_the_verdict_is_the_truth(seed):
    problem = linear_problem(seed, n=20)
    found = evaluate(problem.model, problem.x, problem.y, threat=Linf(2 / 255), suite="adaptive", audit=False)
    assert found.outcomes.robust_correct == int((~problem.breakable()).sum())
    assert list(found.settings) == list(ROUNDS)


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rounds of both suites, with a few steps each."""
    monkeypatch.setitem(SUITES, "adaptive", lambda threat: Adaptive(shortened(ROUNDS)))
    monkeypatch.setitem(SUITES, "exhaustive", lambda threat: Adaptive(shortened(EXHAUSTIVE)))


@pytest.mark.parametrize("suite", ["adaptive", "exhaustive"])
def test_killed_it_goes_on_and_ends_with_the_same_table(tmp_path, suite, quickly):
    problem = linear_problem(0, n=8)
    given = {"threat": Linf(2 / 255), "suite": suite, "chunk_size": 5, "audit": False}
    whole = evaluate(problem.model, problem.x, problem.y, **given)

    class Killed(BaseException):
        """No error of the model's."""

    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls in (60, 120, 180):
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


def test_company_changes_no_outcome_of_the_exhaustive_suite(quickly):
    """In float64: the same rows whatever the chunks, the last stage's donors among them."""
    problem = linear_problem(0, n=8, dtype=torch.float64)
    given = {"threat": Linf(2 / 255), "suite": "exhaustive", "audit": False}
    whole = evaluate(problem.model, problem.x, problem.y, **given)
    parts = evaluate(problem.model, problem.x, problem.y, chunk_size=3, batch_size=2, **given)
    for column in ("attack", "index", "survived", "prediction", "margin", "distance"):
        one, two = (getattr(found.outcomes, column) for found in (whole, parts))
        assert np.array_equal(one, two) if one.dtype.kind != "f" else np.allclose(one, two, rtol=0, atol=1e-12)
    assert whole.outcomes.per_attack()["neighbours"]["attempted"] > 0


def test_the_last_stage_is_given_all_that_is_broken():
    state, given = started(6), {}
    for stage in Adaptive(EXHAUSTIVE)(state):
        assert isinstance(stage, AttackStage)
        assert stage.rows.tolist() == state.unbroken.tolist()
        given[stage.label] = None if stage.donors is None else stage.donors.tolist()
        state.add(table(stage.label, stage.rows.tolist(), [0.1 if row in (1, 4) else -1 for row in stage.rows]))
    assert given == dict.fromkeys(EXHAUSTIVE, None) | {"neighbours": [1, 4]}
    assert list(given)[-1] == "neighbours"


def test_exhaustive_runs_autoattack_as_it_is():
    """With equal settings under equal labels, so with equal draws: what that suite breaks, this one does."""
    attacks = autoattack(Linf(0.1))
    assert {label: EXHAUSTIVE[label].attack for label in attacks} == attacks
    assert {EXHAUSTIVE[label].share for label in EXHAUSTIVE} == {1}


@pytest.mark.parametrize(("seed", "width"), few((0, 2), (1, 2), (0, 3), small=1))
def test_exhaustive_finds_all_that_can_be_broken_in_networks_that_are_solved(seed, width):
    """By corners (`oracles.ReLUProblem`)."""
    problem = relu_problem(seed, width=width)
    best = problem.best_margin(0.1)
    x, y = problem.x[best > 1e-4], problem.y[best > 1e-4]
    assert len(y) >= 10
    found = evaluate(problem.model, x, y, threat=Linf(0.1), suite="exhaustive", audit=False)
    assert found.outcomes.robust_correct == 0


@pytest.mark.parametrize("suite", ["adaptive", "exhaustive"])
def test_they_cannot_be_independent(suite):
    problem = linear_problem(0, n=4)
    with pytest.raises(ValueError, match=f"suite {suite} follows what broke before"):
        evaluate(problem.model, problem.x, problem.y, threat=Linf(0.1), suite=suite, independent=True)


@pytest.mark.parametrize("make", [saturated, quantised, nan_gradient])
def test_on_masked_models_it_says_so_too(make, quickly):
    set_up = make()
    found = evaluate(set_up.model, set_up.x[:100], set_up.y[:100], threat=set_up.threat, suite="adaptive")
    assert found.unreliable
