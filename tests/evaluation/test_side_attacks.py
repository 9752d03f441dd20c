"""Attacks in a ball of their own stand beside the worst case and never enter it."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from toughen.attacks.contract import minimal_norm
from toughen.evaluation import Evaluation, Unsound, evaluate
from toughen.evaluation.plan import UNBOUNDED, SideAttack
from toughen.threat import L2, Linf, Threat
from toys import EPS, linear, spec

SUITE = {
    "fgsm": spec("fgsm"),
    "wide": SideAttack(spec("fgsm"), Linf(4 * EPS)),
    "l2": SideAttack(spec("fgsm"), L2(0.2)),
    "pgd": spec("pgd", steps=3),
}


def run(suite: dict[str, object], **given: object) -> Evaluation:
    model, x, y = linear(200)
    return evaluate(model, x, y, threat=Linf(EPS), suite=suite, chunk_size=64, **given)  # pyright: ignore[reportArgumentType]


def breakable(length: float) -> np.ndarray:
    """Of the 200 images, the correctly classified ones whose score a perturbation moves across 0 by this much."""
    model, x, y = linear(200)
    with torch.no_grad():
        score = x.flatten(1) @ model.w + model.b
        return ((score * (2 * y - 1) > 0) & (score.abs() < length)).numpy()


@pytest.fixture(scope="module")
def with_asides() -> Evaluation:
    return run(SUITE)


@pytest.mark.parametrize("independent", [False, True])
def test_the_worst_case_is_that_without_them(independent, tmp_path):
    beside = run(SUITE, independent=independent, folder=tmp_path)
    without = run({"fgsm": SUITE["fgsm"], "pgd": SUITE["pgd"]}, independent=independent)
    assert beside.robust_accuracy == without.robust_accuracy < without.clean_accuracy
    aside = beside.outcomes.aside
    np.testing.assert_array_equal(beside.outcomes.index[~aside], without.outcomes.index)
    np.testing.assert_array_equal(beside.outcomes.survived[~aside], without.outcomes.survived)
    again = Evaluation.read(tmp_path)
    np.testing.assert_array_equal(again.outcomes.aside, aside)
    assert again.robust_accuracy == without.robust_accuracy


def test_they_attack_whatever_is_classified_correctly_in_their_own_ball(with_asides):
    model, _, _ = linear(200)
    w, o = model.w.detach(), with_asides.outcomes
    correct = o.index[(o.attack == "clean") & o.survived]
    for label, length in (("wide", 4 * EPS * w.abs().sum()), ("l2", 0.2 * w.norm())):
        rows = o.attack == label
        assert o.aside[rows].all()
        np.testing.assert_array_equal(o.index[rows], correct)
        broken = np.zeros(200, dtype=bool)
        broken[o.index[rows & ~o.survived]] = True
        np.testing.assert_array_equal(broken, breakable(float(length)))
    assert not o.aside[(o.attack != "wide") & (o.attack != "l2")].any()
    assert breakable(float(4 * EPS * w.abs().sum())).sum() > breakable(float(EPS * w.abs().sum())).sum() > 0
    np.testing.assert_allclose(o.distance[o.attack == "wide"], 4 * EPS, rtol=1e-9)


def test_they_are_shown_beside_the_cascade(with_asides):
    table = {row["attack"]: row for row in with_asides.summary()["attacks"]}
    assert list(table) == ["clean", *SUITE]
    n_correct = table["clean"]["attempted"] - table["clean"]["broken"]
    for label in ("wide", "l2"):
        assert table[label]["attempted"] == n_correct
        assert table[label]["alone"] == (n_correct - table[label]["broken"]) / 200
        assert table[label]["accuracy"] == table["fgsm"]["accuracy"]
    assert table["pgd"]["accuracy"] == with_asides.robust_accuracy
    assert table["pgd"]["attempted"] == n_correct - table["fgsm"]["broken"]


def test_their_ball_is_recorded_with_their_settings(with_asides):
    assert with_asides.settings["wide"]["threat"] == "linf:0.2"
    assert with_asides.settings["l2"] == {**with_asides.settings["fgsm"], "threat": "l2:0.2"}
    assert "threat" not in with_asides.settings["pgd"]


def test_the_judge_measures_them_in_their_own_ball():
    def push(model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat) -> Tensor:
        return x + 2 * EPS * torch.ones_like(x)

    run({"push": SideAttack(push, Linf(2 * EPS))})
    with pytest.raises(Unsound, match=r"'push' left the ball .* the radius 0.075"):
        run({"push": SideAttack(push, Linf(1.5 * EPS))})
    with pytest.raises(Unsound, match=r"'push' left the ball .* l2 distance is 0.4"):
        run({"push": SideAttack(push, L2(0.3))})


def test_without_a_bound_whatever_is_found_counts_with_its_distance():
    @minimal_norm
    def nearest(model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat) -> Tensor:
        assert threat == L2(UNBOUNDED)
        w = model.get_parameter("w").detach()
        score = (x.flatten(1) @ w + float(model.b)) / w.square().sum()  # pyright: ignore[reportArgumentType]
        return (x - 1.001 * (score.reshape(-1, 1) * w).reshape(x.shape)).clamp(0, 1)

    evaluation = run({"nearest": SideAttack(nearest, L2(UNBOUNDED))})
    o, rows = evaluation.outcomes, evaluation.outcomes.attack == "nearest"
    model, x, _ = linear(200)
    with torch.no_grad():
        reach = ((x.flatten(1) @ model.w + model.b).abs() / model.w.norm() * 1.001).numpy()
    assert not o.survived[rows].any()
    np.testing.assert_allclose(o.distance[rows], reach[o.index[rows]], rtol=1e-6)
    assert evaluation.robust_accuracy == evaluation.clean_accuracy
    assert evaluation.summary()["attacks"][1]["alone"] == 0


def test_with_nobody_correct_they_are_idle():
    model, x, _ = linear(20)
    with torch.no_grad():
        wrong = 1 - model(x).argmax(1)
    evaluation = evaluate(model, x, wrong, threat=Linf(EPS), suite={"a": SideAttack(spec("fgsm"), L2(1.0))})
    assert [row["attempted"] for row in evaluation.summary()["attacks"]] == [20, 0]


def test_their_radii_may_differ_between_examples():
    model, x, y = linear(200)
    radii = torch.where(torch.arange(200) % 2 == 0, 0.0, 4 * EPS)
    evaluation = evaluate(
        model, x, y, threat=Linf(EPS), suite={"a": SideAttack(spec("fgsm"), Linf(radii))}, chunk_size=16, batch_size=5
    )
    o = evaluation.outcomes
    rows = o.attack == "a"
    np.testing.assert_allclose(o.distance[rows], radii.numpy()[o.index[rows]], rtol=1e-6)
    broken = np.zeros(200, dtype=bool)
    broken[o.index[rows & ~o.survived]] = True
    expected = breakable(float(4 * EPS * model.w.detach().abs().sum())) & (np.arange(200) % 2 == 1)
    np.testing.assert_array_equal(broken, expected)
