"""Models of few classes under every named suite, where no attack breaks anything, so that all of them are run."""

from typing import Any

import pytest
import torch
from torch import nn

from conftest import few
from short_rounds import shortened
from toughen.attacks import carlini_wagner
from toughen.evaluation import Evaluation, evaluate, suites
from toughen.evaluation.adaptive import ROUNDS, Adaptive
from toughen.evaluation.exhaustive import exhaustive_rounds
from toughen.evaluation.plan import SideAttack
from toughen.evaluation.suites import SUITES, autoattack
from toughen.recipes import RecipeError, load
from toughen.threat import L2, Linf, Threat

BALLS: dict[str, Threat] = {"linf": Linf(1e-4), "l2": L2(1e-4)}
ELSEWHERE = {("iaat", "l2")}
"""Suites with an attack for balls of the other norm."""
NAMES = {key: key.replace("K", "3").replace("rR", "r2") for key in SUITES}
PLANS = {"adaptive": ROUNDS, "exhaustive": exhaustive_rounds(autoattack(Linf(1e-4)))}
"""Suites that plan as they go; their rounds are shortened in another way."""
CASES = [
    pytest.param(name, norm, id=f"{name}-{norm}")
    for name in NAMES.values()
    for norm in BALLS
    if (name, norm) not in ELSEWHERE and name not in PLANS
]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Suites of three steps and three queries."""
    whole = suites._spec

    def spec(name: str, **settings: Any) -> Any:
        return whole(name, **{k: min(v, 3) if k in ("steps", "queries") else v for k, v in settings.items()})

    monkeypatch.setattr(suites, "_spec", spec)


def evaluated(classes: int, norm: str, suite: str) -> Evaluation:
    """A suite on a linear model of six images, all classified correctly."""
    with torch.random.fork_rng():
        torch.manual_seed(classes)
        model, x = nn.Sequential(nn.Flatten(), nn.Linear(16, classes)).eval(), torch.rand(6, 1, 4, 4)
    with torch.no_grad():
        y = model(x).argmax(1)
    return evaluate(model, x, y, threat=BALLS[norm], suite=suite, audit=False)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("classes", [2, 3, 4, 8])
@pytest.mark.parametrize(("name", "norm"), CASES)
def test_every_named_suite_runs_for_any_number_of_classes(name: str, norm: str, classes: int):
    found = evaluated(classes, norm, name)
    assert found.robust_accuracy == 1
    tallies = found.outcomes.per_attack()
    assert set(tallies) == {"clean", *found.settings}
    assert {tally["attempted"] for tally in tallies.values()} == {6}
    replaced = {
        label for label, needed in (("apgd-t", 4), ("apgd-dlr", 3)) if label in found.settings and classes < needed
    }
    assert {note.partition(": ")[0] for note in found.notes} == replaced
    assert {
        label for label in ("apgd-t", "apgd-dlr") if found.settings.get(label, {}).get("loss") == "margin"
    } == replaced


@pytest.mark.parametrize("classes", few(2, 3, 12, small=2))
@pytest.mark.parametrize("norm", list(BALLS))
@pytest.mark.parametrize("name", list(PLANS))
def test_suites_that_plan_run_for_any_number_of_classes(monkeypatch, name: str, norm: str, classes: int):
    monkeypatch.setitem(SUITES, name, lambda threat: Adaptive(shortened(PLANS[name])))
    found = evaluated(classes, norm, name)
    assert found.robust_accuracy == 1
    # What hangs on a success of the stage before it is left out.
    assert set(found.outcomes.per_attack()) == {"clean", *(k for k, item in PLANS[name].items() if not item.after)}


def test_what_stands_in_is_said():
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.rand(2, 1, 4, 4)
    found = evaluate(model, x, model(x).argmax(1), threat=Linf(1.0), suite="autoattack", audit=False)
    assert found.notes == ("apgd-t: loss margin in place of dlr, which needs 4 classes; the model has 3",)
    assert found.summary()["notes"] == list(found.notes)
    # An attack chosen out of a suite, or a step size, makes a dict of it.
    own: dict[str, Any] = {"mine": suites._spec("pgd", steps=2), "targeted": suites._spec("apgd_targeted", steps=2)}
    own |= {"aside": SideAttack(suites._spec("apgd_targeted", steps=2), Linf(0.5))}
    found = evaluate(model, x, model(x).argmax(1), threat=Linf(1e-4), suite=own, audit=False)
    assert [note.partition(": ")[0] for note in found.notes] == ["targeted", "aside"]
    assert found.settings["targeted"]["loss"] == "margin"


def test_a_ball_that_an_attack_does_not_know_is_refused_before_the_work():
    asked = []

    class Watched(nn.Flatten):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            asked.append(len(input))
            return super().forward(input)

    model, x, y = Watched(), torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
    norm = r"carlini_wagner_linf is for linf balls, the threat is l2:0\.5; use carlini_wagner"
    with pytest.raises(ValueError, match=rf"suite iaat: {norm} in a suite of your own, or give another suite$"):
        evaluate(model, x, y, threat=L2(0.5), suite="iaat")
    own = {"pgd": suites._spec("pgd", steps=1), "cw": suites._spec("carlini_wagner_linf")}
    with pytest.raises(ValueError, match=f"^{norm}$"):
        evaluate(model, x, y, threat=L2(0.5), suite=own)
    with pytest.raises(
        ValueError, match=r"carlini_wagner is for l2 balls, the threat is linf:0\.5; use carlini_wagner_"
    ):
        carlini_wagner(model, x, y, threat="linf:0.5")
    assert not asked


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["method.attack.name=carlini_wagner"], r"method\.attack: carlini_wagner is for l2 balls, .* linf:0\.2; use "),
        (
            ["method={name: mixup, method: {name: adversarial, attack: {name: carlini_wagner_linf}}}", "threat=l2:0.5"],
            r"method\.method\.attack: carlini_wagner_linf is for linf balls, the threat is l2:0\.5; use carlini_wagner",
        ),
        (["threat=l2:0.5", "selection=iaat"], r"selection\.suite: suite iaat: carlini_wagner_linf is for linf balls"),
    ],
)
def test_a_recipe_whose_attacks_do_not_fit_its_ball_is_refused(changes: list[str], says: str):
    with pytest.raises(RecipeError, match=says):
        load("mnist-pgd-small", changes)
