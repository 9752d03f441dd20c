"""What an evaluation says of itself while it runs."""

import pytest

from oracles import linear_problem
from toughen.attacks import ATTACKS, AttackSpec
from toughen.evaluation import SideAttack, evaluate
from toughen.evaluation import time_left as module
from toughen.evaluation.time_left import Cost, ProgressWatch, Status, cost_if_unbroken
from toughen.models.cost import Passes, counted
from toughen.threat import L2, Linf

SPECS = {
    "pgd": ({"steps": 7, "restarts": 2}, 2 * 15),
    "apgd": ({"steps": 11, "restarts": 2}, 2 * 23),
    "apgd_targeted": ({"steps": 5, "targets": 3}, 1 + 3 * 11),
    "square": ({"queries": 50}, 50),
    "diversified_pgd": ({"steps": 5, "restarts": 2}, 2 * 25),
}


@pytest.mark.parametrize("name", list(SPECS))
def test_a_toy_says_what_an_example_costs_that_stands(name):
    settings, passes = SPECS[name]
    spec = AttackSpec.model_validate({"name": name, **settings})
    assert cost_if_unbroken(spec, Linf(8 / 255), channels=3, classes=10) == passes
    problem = linear_problem(0, n=40)
    safe = problem.best_linf(1e-4) < 0
    x, y = problem.x[safe], problem.y[safe]
    with counted(problem.model) as found:
        spec(problem.model, x, y, threat=Linf(1e-4))
    assert found.example_forwards + found.example_backwards == passes * len(x)


@pytest.mark.parametrize("name", list(ATTACKS))
def test_every_attack_has_a_cost_or_none(name):
    quick = {"steps": 3, "queries": 20, "samples": 4}
    takes = AttackSpec.model_validate({"name": name}).settings
    spec = AttackSpec.model_validate({"name": name, **{k: v for k, v in quick.items() if k in takes}})
    cost = cost_if_unbroken(spec, Linf(8 / 255), channels=1, classes=4)
    assert cost is None or cost > 0
    assert cost_if_unbroken(SideAttack(spec, L2(1.0)), Linf(8 / 255), channels=1, classes=4) != 0


def test_what_a_user_wrote_and_what_is_refused_has_no_known_cost():
    assert cost_if_unbroken(lambda model, x, y: x, Linf(0.1), channels=1, classes=10) is None
    targeted = AttackSpec.model_validate({"name": "apgd_targeted"})
    assert cost_if_unbroken(targeted, Linf(0.1), channels=1, classes=3) is None


def test_a_cost_is_counted_once_for_each_problem(monkeypatch):
    counts, counted_really = [], module._counted
    monkeypatch.setattr(module, "_COSTS", {})
    monkeypatch.setattr(module, "_counted", lambda *given: counts.append(given) or counted_really(*given))
    spec, longer = (AttackSpec.model_validate({"name": "pgd", "steps": steps}) for steps in (2, 3))
    for _ in range(2):
        assert cost_if_unbroken(spec, Linf(0.1), channels=1, classes=4) == 4
        assert cost_if_unbroken(longer, Linf(0.1), channels=1, classes=4) == 6
        for threat, channels, classes in ((L2(0.1), 1, 4), (Linf(0.2), 1, 4), (Linf(0.1), 3, 4), (Linf(0.1), 1, 5)):
            cost_if_unbroken(spec, threat, channels=channels, classes=classes)
    assert len(counts) == 6


def test_time_left_by_hand(monkeypatch):
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    passes, shown = Passes(), []
    forecast = {"a": Cost(10, 1.0), "b": Cost(100, 0.5)}
    watch = ProgressWatch(shown.append, forecast, 50, passes)
    watch.enter("clean", 50, 50)
    now, passes.example_forwards = 105.0, 50
    watch.unit(50, 10, 10)
    # 50 passes in 5 s; 40 examples are unbroken, each to take 10 and half of them 100.
    assert tuple(shown[-1]) == ("clean", 50, 50, 0.8, pytest.approx(40 * (10 + 50) * 5 / 50), 1, 3)
    watch.enter("a", 40, 40)
    passes.example_forwards, now = 250, 125.0
    watch.tick()
    # 200 of the 400 passes of "a" are behind us.
    assert tuple(shown[-1]) == ("a", 0, 40, 0.8, pytest.approx((200 + 40 * 50) * 25 / 250), 2, 3)
    watch.tick()
    assert len(shown) == 2
    watch.unit(40, 30, 30)
    watch.enter("b", 5, 10)
    watch.unit(5, 0, 0)
    assert shown[-1] == Status("b", 5, 5, 0.2, 0.0, 3, 3)
    silent = ProgressWatch(shown.append, {"a": Cost(10, 1.0), "mine": Cost(None, 1.0)}, 50, passes)
    silent.enter("a", 50, 50)
    silent.unit(20, 0, 0)
    assert shown[-1].seconds_left is None


def test_the_rest_is_forecast_to_go_as_what_is_done(monkeypatch):
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    passes, shown = Passes(), []
    watch = ProgressWatch(shown.append, {"a": Cost(10, 1.0), "b": Cost(100, 1.0)}, 80, passes)
    watch.enter("a", 80, 80)
    # Found done, so without a pass: it tells how many break, not what they cost.
    watch.unit(20, 15, 15)
    passes.example_forwards, now = 60, 30.0
    watch.unit(40, 30, 30)
    # The second twenty took 60 passes, so the other 40 take 120; a quarter of all 80 are then left for "b". 2 a second.
    assert shown[-1].seconds_left == pytest.approx((120 + 20 * 100) / 2)
    passes.example_forwards, now = 90, 45.0
    watch.tick()
    assert shown[-1].seconds_left == pytest.approx((120 - 30 + 20 * 100) / 2)
    passes.example_forwards, now = 180, 90.0
    watch.unit(80, 80, 80)
    assert shown[-1] == Status("a", 80, 80, 0.0, 0.0, 1 + 1, 3)


def test_an_attack_on_all_that_is_right_and_a_corruption_of_all_cost_as_many_as_they_take(monkeypatch):
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    passes, shown = Passes(), []
    forecast = {"a": Cost(2, 1.0), "aside": Cost(10, 1.0, correct=True), "fog-1": Cost(1, 1.0, alone=True)}
    watch = ProgressWatch(shown.append, forecast, 50, passes)
    watch.enter("clean", 50, 50)
    passes.example_forwards, now = 50, 50.0
    watch.unit(50, 10, 10)
    assert shown[-1].seconds_left == pytest.approx(40 * 2 + 40 * 10 + 50)
    watch.enter("a", 40, 40)
    passes.example_forwards, now = 100, 100.0
    watch.unit(40, 40, 40)
    assert shown[-1].seconds_left == pytest.approx(40 * 10 + 50)
    watch.enter("aside", 40, 0)
    watch.enter("fog-1", 50, 0)
    passes.example_forwards, now = 120, 120.0
    watch.unit(20, 5, 0)
    assert tuple(shown[-1]) == ("fog-1", 20, 50, 0.75, pytest.approx(30.0), 4, 4)


@pytest.mark.parametrize("kind", ["cascade", "independent", "aside"])
def test_an_attack_after_one_that_breaks_all_costs_nothing_unless_it_attacks_all_that_is_right(kind):
    problem, shown = linear_problem(0, n=30), []
    spec = AttackSpec.model_validate({"name": "pgd", "steps": 2})
    suite = {"first": spec, "second": SideAttack(spec, L2(0.1)) if kind == "aside" else spec}
    settings = {"threat": Linf(1.0), "suite": suite, "independent": kind == "independent", "progress": shown.append}
    assert evaluate(problem.model, problem.x, problem.y, **settings).robust_accuracy == 0
    left = {status.attack: status.seconds_left for status in shown}
    assert (left["first"] > 0) == (kind != "cascade")


def test_an_evaluation_shows_every_attack():
    problem = linear_problem(0, n=30)
    shown = []
    evaluate(problem.model, problem.x, problem.y, threat=Linf(2 / 255), suite="quick", progress=shown.append)
    assert [status.attack for status in shown] == ["clean", "apgd-ce", "apgd-margin"]
    assert all(status.seconds_left is not None for status in shown)
    assert shown[-1].seconds_left == 0
