import pytest
import torch

from toughen.attacks import AttackSpec, pgd
from toughen.evaluation import SUITES
from toughen.evaluation.suites import check, find
from toughen.threat import L2, Linf, Threat


@pytest.fixture
def suites(monkeypatch):
    """`SUITES`, restored afterwards."""
    before = dict(SUITES)
    yield SUITES
    SUITES.clear()
    SUITES.update(before)


def members(name: str, threat: Threat) -> dict:
    found = find(name, threat)
    assert isinstance(found, dict)
    return found


def settings(name: str, threat: Threat) -> dict:
    (attack,) = members(name, threat).values()
    assert isinstance(attack, AttackSpec)
    assert attack.name == "pgd"
    return attack.settings


def test_patterns_are_in_plain_sight():
    assert list(SUITES)[:5] == ["pgd-K", "pgd-K-rR", "pgd-K-margin", "cw-K", "cw-K-rR"]


@pytest.mark.parametrize(
    ("name", "label", "steps", "restarts", "loss"),
    [
        ("pgd-20", "pgd-20", 20, 1, "cross_entropy"),
        ("pgd-100-r5", "pgd-100-r5", 100, 5, "cross_entropy"),
        ("pgd-7-r1", "pgd-7", 7, 1, "cross_entropy"),
        ("cw-30", "cw-30", 30, 1, "margin"),
        ("cw-30-r12", "cw-30-r12", 30, 12, "margin"),
    ],
)
def test_patterns_stand_for_any_numbers(name, label, steps, restarts, loss):
    assert list(members(name, Linf(8 / 255))) == [label]
    found = settings(name, Linf(8 / 255))
    assert (found["steps"], found["restarts"], found["loss"]) == (steps, restarts, loss)
    assert found["random_start"] is True
    assert found["attack_bn"] == "eval"


@pytest.mark.parametrize(
    ("name", "threat", "step"),
    [
        ("pgd-20", Linf(8 / 255), 2 / 255),
        ("pgd-4", Linf(8 / 255), 2 / 255),
        ("pgd-3", Linf(6 / 255), 2 / 255),
        ("pgd-3", Linf(8 / 255), 2.5 * 8 / 255 / 3),
        ("pgd-20", Linf(0.2), 2.5 * 0.2 / 20),
        ("pgd-100", Linf(0.2), 2 / 255),
        ("pgd-10", L2(128 / 255), 15 / 255),
        ("pgd-5", L2(128 / 255), 2.5 * 128 / 255 / 5),
        ("cw-10", Linf(torch.tensor(0.2)), 2.5 * 0.2 / 10),
        ("cw-10", Linf(torch.tensor([0.01, 0.02])), 2 / 255),
        ("cw-10", Linf(torch.tensor([0.01, 0.2])), None),
        ("pgd-1", Linf(0.0), 2 / 255),
    ],
)
def test_step_size_is_the_customary_one_where_it_can_cross_the_radius(name, threat, step):
    found = settings(name, threat)["step_size"]
    assert found == (None if step is None else pytest.approx(step))


@pytest.mark.parametrize("name", ["pgd-0", "pgd-K", "pgd-", "pgd-20-r0", "pgd-5-5", "xpgd-20", "pgd-2_0", "cw", ""])
def test_another_name_is_refused_with_what_is_allowed(name):
    with pytest.raises(
        ValueError, match=r"is not a known suite; allowed: pgd-K, pgd-K-rR, pgd-K-margin, cw-K, cw-K-rR, .*with"
    ):
        find(name, Linf(8 / 255))


def test_the_nearest_name_is_offered(suites):
    suites["autoattack"] = {"a": pgd}
    with pytest.raises(ValueError, match=r"did you mean 'autoattack'\?"):
        find("autoatack", Linf(8 / 255))
    with pytest.raises(ValueError, match=r"did you mean 'pgd-K'\?"):
        find("pgd-x", Linf(8 / 255))


def test_suites_and_patterns_from_outside(suites):
    spec = AttackSpec(name="fgsm")
    suites["mine"] = {"a": spec, "b": pgd}
    suites["bim-K"] = lambda threat, K: {f"bim-{K}": AttackSpec.model_validate({"name": "bim", "steps": K})}
    assert find("mine", Linf(0.1)) == {"a": spec, "b": pgd}
    bim = members("bim-9", Linf(0.1))["bim-9"]
    assert isinstance(bim, AttackSpec)
    assert bim.settings["steps"] == 9


@pytest.mark.parametrize(
    ("suite", "says"),
    [
        ({}, "holds no attack"),
        ({"clean": pgd}, "labelled 'clean'"),
        ({"": pgd}, "labelled ''"),
        ({"a": "pgd"}, "attack 'a' is 'pgd'; give an AttackSpec"),
        ({"a": AttackSpec.model_validate({"name": "pgd", "attack_bn": "train"})}, "has attack_bn 'train'"),
    ],
)
def test_a_suite_that_means_nothing_is_refused(suite, says):
    with pytest.raises(ValueError, match=says):
        check(suite)
