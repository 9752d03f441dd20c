import numpy as np
import pytest
import torch

from oracles import Affine
from toughen.attacks import AttackSpec, pgd
from toughen.attacks.contract import minimal_norm
from toughen.attacks.registry import ATTACKS
from toughen.evaluation import Unsound, evaluate
from toughen.evaluation.analyses.transfer import Transfer, transfer
from toughen.models.cost import counted
from toughen.noise import Stream
from toughen.outcomes import interval
from toughen.threat import L2, Linf
from toys import labels, network, photographs, spec

BALL = Linf(3 / 255)
SHORT = spec("pgd", steps=4, step_size=1 / 255, restarts=2)


def problem(n: int = 12):
    """A network, and images of which it classifies one wrongly."""
    model, x = network(dtype=torch.float64).eval(), photographs(n)
    y = labels(model, x.double() / 255)
    y[1] = (y[1] + 1) % 5
    return model, x, y


def test_from_a_model_to_itself_it_is_the_white_box_attack():
    model, x, y = problem()
    found = transfer(model, model, x, y, threat=BALL, attack=SHORT, seed=2)
    assert np.array_equal(found.robust("surrogate", "target"), found.surrogate_survived[0])
    images = x.double() / 255
    noise = Stream(("transfer", 2), rows=torch.arange(12))
    x_adv = pgd(model, images, y, threat=BALL, noise=noise, **SHORT.settings)
    assert found.survived[0, 0].tolist() == (model(x_adv).argmax(1) == y).tolist()
    np.testing.assert_allclose(found.distance[0], (x_adv - images).flatten(1).abs().amax(1), rtol=1e-12)
    (row,), (made,) = found.summary()["transfer"], found.summary()["white_box"]
    assert 0 < row["accuracy"] == made["accuracy"] < row["clean_accuracy"]
    assert row["interval"] == list(interval(int(found.surrogate_survived.sum()), 12))
    assert row["broken"] == made["broken"] == pytest.approx(1 - row["accuracy"] * 12 / 11)


def test_an_attack_without_chance_gives_the_accuracy_of_an_evaluation():
    model, x, y = problem(30)
    attack = spec("bim", steps=5)
    found = transfer(model, model, x, y, threat=BALL, attack=attack)
    assert found.summary()["transfer"][0]["accuracy"] == (
        evaluate(model, x, y, threat=BALL, suite={"bim": attack}).robust_accuracy
    )


def test_between_linear_models_it_is_a_formula():
    draw = torch.Generator().manual_seed(0)
    x = 0.3 + 0.4 * torch.rand(50, 1, 3, 3, generator=draw, dtype=torch.float64)
    y = torch.randint(2, (50,), generator=draw)
    w = torch.randn(3, 9, generator=draw, dtype=torch.float64)
    models = [
        Affine(torch.stack([-row, row]), torch.stack([row.sum(), -row.sum()]) / 2) for row in (w[0], w[0] + w[1], w[2])
    ]
    found = transfer(
        {"near": models[1], "far": models[2], "same": models[0]}, models[0], x, y, threat=Linf(0.1), attack=spec("fgsm")
    )
    x_adv = x.flatten(1) - 0.1 * (2 * y - 1).unsqueeze(1) * w[0].sign()
    for name, row in {"near": w[0] + w[1], "far": w[2], "same": w[0]}.items():
        right = [((points @ row - row.sum() / 2 > 0) == (y == 1)).numpy() for points in (x.flatten(1), x_adv)]
        column = found.targets.index(name)
        assert np.array_equal(found.clean_correct[column], right[0])
        assert np.array_equal(found.survived[0, column], right[1])
        assert np.array_equal(found.robust("surrogate", name), right[0] & right[1])
    summary = {row["target"]: row for row in found.summary()["transfer"]}
    assert summary["far"]["accuracy_on_examples"] == found.survived[0, 1].mean()
    np.testing.assert_allclose(found.distance, 0.1)


def test_examples_are_made_once_for_each_surrogate():
    source, x, y = problem(6)
    others = {"a": network().eval(), "b": network(dtype=torch.float64).eval()}
    with counted(source) as made, counted(others["a"]) as shown:
        found = transfer(others, {"s": source}, x, y, threat=BALL, attack=spec("pgd", steps=7), batch_size=4)
    # Looks at the model, at one image and at two in both layouts; the image, 7 steps and the verdict on the example.
    assert made.example_forwards == 5 + 6 * (1 + 7 + 1)
    assert (made.example_backwards, made.full_backwards) == (4 + 6 * 7, 0)
    # The looks, the image, the example.
    assert (shown.example_forwards, shown.example_backwards) == (5 + 6 * 2, 4)
    assert (found.surrogates, found.targets) == (["s"], ["a", "b"])
    assert found.survived.shape == (1, 2, 6)


def test_several_surrogates_each_as_if_alone():
    model, x, y = problem()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5)).double()
    together = transfer(model, {"one": other, "two": model}, x, y, threat=BALL, attack=SHORT)
    alone = transfer(model, {"two": model}, x, y, threat=BALL, attack=SHORT)
    assert np.array_equal(together.survived[1], alone.survived[0])
    assert np.array_equal(together.surrogate_survived[1], alone.surrogate_survived[0])
    assert len(together.summary()["transfer"]) == 2


@pytest.mark.parametrize("threat", [L2(0.3), Linf(torch.linspace(0, 0.05, 12))])
def test_any_ball_is_respected(threat):
    model, x, y = problem()
    found = transfer(model, model, x, y, threat=threat, attack=SHORT, batch_size=5)
    eps = threat.eps.numpy() if isinstance(threat.eps, torch.Tensor) else threat.eps
    assert (found.distance[0] <= eps + 1e-6).all()
    assert found.threat == str(threat)


def test_the_attack_of_the_paper_is_the_default(monkeypatch: pytest.MonkeyPatch):
    model, x, y = problem(2)
    called = []
    monkeypatch.setattr(AttackSpec, "__call__", lambda self, model, x, y, **given: called.append(self) or x)
    found = transfer(model, model, x, y, threat=Linf(8 / 255))
    assert called[0].settings["steps"] == found.attack["steps"] == 1000
    assert (found.attack["name"], found.attack["restarts"], found.attack["step_size"]) == ("pgd", 2, 2 / 255)
    assert found.attack["random_start"] is True


def test_an_example_outside_the_ball_stops(monkeypatch: pytest.MonkeyPatch):
    def far(model, x, y):
        return 1 - x

    monkeypatch.setitem(ATTACKS, "far", far)
    model, x, y = problem(2)
    with pytest.raises(Unsound, match="'far' left the ball"):
        transfer(model, model, x, y, threat=BALL, attack=spec("far"))


def test_impossible_transfers_are_refused(monkeypatch: pytest.MonkeyPatch):
    model, x, y = problem(2)
    with pytest.raises(ValueError, match="there is no surrogate"):
        transfer(model, {}, x, y, threat=BALL)
    monkeypatch.setitem(ATTACKS, "near", minimal_norm(lambda model, x, y, *, threat: x))
    with pytest.raises(ValueError, match="nearest example"):
        transfer(model, model, x, y, threat=BALL, attack=spec("near"))
    with pytest.raises(ValueError, match="attack_bn"):
        transfer(model, model, x, y, threat=BALL, attack=spec("pgd", attack_bn="train"))


def test_where_nothing_is_classified_correctly_nothing_can_be_broken():
    ones = np.zeros((1, 2), dtype=bool)
    found = Transfer(
        "linf:0.1", {}, 0, ["s"], ["t"], np.arange(2), np.zeros(2), ones, ones, ones, ones, ones[None], ones[None]
    )
    assert found.summary()["transfer"][0]["broken"] is None
