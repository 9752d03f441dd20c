import numpy as np
import pytest
import torch
from torch import Tensor, nn

from toughen.evaluation import Unsound, evaluate
from toughen.evaluation.time_left import Status
from toughen.noise import Stream
from toughen.threat import L2, Linf, Threat
from toys import CLEAN_COUNT, EPS, labels, linear, network, photographs, rows, spec


def test_fgsm_on_a_linear_model_breaks_exactly_the_breakable():
    model, x, y = linear()
    with torch.no_grad():
        score = x.flatten(1) @ model.w + model.b
        toward_label = torch.where(y == 1, score, -score)
        # Within the ball the score moves by at most eps ||w||_1; a tie predicts class 0.
        breakable = toward_label < EPS * model.w.abs().sum()
    evaluation = evaluate(model, x, y, threat=Linf(EPS), suite={"fgsm": spec("fgsm")})
    robust = set(range(len(x))) - set(evaluation.outcomes.index[~evaluation.outcomes.survived].tolist())
    assert robust == set((~breakable).nonzero().squeeze(1).tolist())
    assert 0 < evaluation.robust_accuracy < evaluation.clean_accuracy < 1
    assert evaluation.clean_accuracy == (toward_label > 0).double().mean().item()
    fgsm = evaluation.outcomes.attack == "fgsm"
    np.testing.assert_allclose(evaluation.outcomes.distance[fgsm], EPS, rtol=1e-12)
    moved = (EPS * model.w.abs().sum() - toward_label).detach().numpy()
    np.testing.assert_allclose(
        evaluation.outcomes.margin[fgsm], moved[evaluation.outcomes.index[fgsm]], rtol=1e-5, atol=1e-6
    )


def test_l2_ball_on_a_linear_model_likewise():
    model, x, y = linear()
    with torch.no_grad():
        score = x.flatten(1) @ model.w + model.b
        breakable = torch.where(y == 1, score, -score) < 0.15 * model.w.norm()
    evaluation = evaluate(model, x, y, threat=L2(0.15), suite={"fgm": spec("fgsm")})
    assert evaluation.outcomes.robust_correct == int((~breakable).sum())


def test_radii_may_differ_between_examples():
    model, x, y = linear()
    eps = torch.where(torch.arange(len(x)) % 2 == 0, 0.0, EPS)
    outcomes = evaluate(model, x, y, threat=Linf(eps), suite="pgd-5", batch_size=7).outcomes
    attacked = outcomes.attack != "clean"
    assert outcomes.survived[attacked & (outcomes.index % 2 == 0)].all()
    assert (outcomes.distance[attacked & (outcomes.index % 2 == 0)] == 0).all()
    assert not outcomes.survived[attacked & (outcomes.index % 2 == 1)].all()


@pytest.mark.parametrize("norm", [Linf, L2])
@pytest.mark.parametrize("eps", [1e-3, 0.03, 0.5, 5.0])
def test_sound_attacks_in_float32_pass_verification(norm, eps):
    model, x = network(), photographs(300).float() / 255
    evaluate(model, x, labels(model, x), threat=norm(eps), suite="pgd-3")


def test_an_attack_that_leaves_the_ball_is_named_with_the_example():
    model, x, y = linear()

    def overshoot(model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat) -> Tensor:
        return (x + 2 * threat.eps).clamp(0, 1)

    first = int((model(x).argmax(1) == y).nonzero()[0])
    with pytest.raises(Unsound, match=rf"attack 'over' left the ball on example {100 + first}: .* 0\.05 more than"):
        evaluate(
            model, x, y, threat=Linf(EPS), suite={"over": overshoot}, index=torch.arange(len(x)) + 100, batch_size=16
        )


@pytest.mark.parametrize(("excess", "passes"), [(5e-8, True), (7e-8, False)])
def test_the_ball_is_measured_to_the_rounding_of_float32(excess, passes):
    model, x, y = linear()
    suite = {"a": lambda model, x, y: x + EPS + excess}
    if passes:
        evaluate(model, x, y, threat=Linf(EPS), suite=suite)
    else:
        with pytest.raises(Unsound, match="left the ball"):
            evaluate(model, x, y, threat=Linf(EPS), suite=suite)


def test_an_attack_that_leaves_the_unit_box_is_refused():
    model, _, _ = linear()
    x = torch.full((3, 1, 4, 4), 0.5, dtype=torch.float64)
    x[2, 0, 0, 0] = 0.01
    y = labels(model, x)
    with pytest.raises(Unsound, match=r"attack 'box' left \[0, 1\] on example 2 by 0\.04: its pixels run from -0\.04"):
        evaluate(model, x, y, threat=Linf(EPS), suite={"box": lambda model, x, y: x - EPS})


@pytest.mark.parametrize("found", [lambda model, x, y: x[:1], lambda model, x, y: None, lambda model, x, y: x * np.nan])
def test_what_is_no_batch_of_images_is_unsound(found):
    model, x, y = linear(20)
    with pytest.raises(Unsound, match="attack 'odd'"):
        evaluate(model, x, y, threat=Linf(EPS), suite={"odd": found})


def test_an_attack_that_lies_breaks_nothing():
    model, x, y = linear()
    evaluation = evaluate(model, x, y, threat=Linf(EPS), suite={"liar": lambda model, x, y: x})
    assert evaluation.robust_accuracy == evaluation.clean_accuracy


def test_an_attack_that_writes_into_its_input_is_measured_against_the_original():
    model, x, y = linear()
    before = x.clone()

    def write(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        y.fill_(0)
        return x.fill_(0.5)

    with pytest.raises(Unsound, match="left the ball"):
        evaluate(model, x, y, threat=Linf(EPS), suite={"write": write})
    assert torch.equal(x, before)


def test_an_attack_that_leaves_the_model_in_training_mode_is_verified_in_inference_mode():
    model, x = network(), photographs().float() / 255

    def careless(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        model.train()
        return x

    evaluation = evaluate(model, x, labels(model, x), threat=Linf(EPS), suite={"a": careless, "b": careless})
    assert evaluation.robust_accuracy == 1


class Recorder:
    """An attack that notes which examples it was given and moves the even ones as far as it may."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, noise: Stream) -> Tensor:
        self.seen += noise.rows.tolist()
        push = torch.where(y == 1, -1.0, 1.0).reshape(-1, 1, 1, 1) * model.w.sign().reshape(1, 1, 4, 4)  # pyright: ignore
        return x + threat.eps * push * (noise.rows % 2 == 0).reshape(-1, 1, 1, 1)


def test_the_cascade_gives_each_attack_only_what_stands():
    model, x, y = linear()
    first, second = Recorder(), Recorder()
    shown: list[Status] = []
    evaluation = evaluate(
        model,
        x,
        y,
        threat=Linf(EPS),
        suite={"first": first, "second": second},
        chunk_size=32,
        progress=shown.append,
    )
    right = (model(x).argmax(1) == y).nonzero().squeeze(1).tolist()
    outcomes = evaluation.outcomes
    broken = outcomes.index[(outcomes.attack == "first") & ~outcomes.survived].tolist()
    assert first.seen == right  # wrong on the clean image: broken, and never attacked
    assert broken
    assert second.seen == [i for i in right if i not in broken]
    tallies = outcomes.per_attack()
    assert [tallies[name]["attempted"] for name in tallies] == [200, len(first.seen), len(second.seen)]
    assert outcomes.robust_correct == len(second.seen)
    assert shown[0][:4] == ("clean", 32, 200, pytest.approx(sum(i < 32 for i in right) / 32))
    assert shown[-1][:4] == ("second", len(second.seen), len(second.seen), evaluation.robust_accuracy)
    assert len(shown) == sum(-(-n // 32) for n in (200, len(first.seen), len(second.seen)))


def test_with_nobody_left_later_attacks_are_listed_as_idle():
    model, x, y = linear(20)
    y = labels(model, x)
    evaluation = evaluate(model, x, 1 - y, threat=Linf(EPS), suite={"a": spec("fgsm"), "b": spec("fgsm")})
    assert (evaluation.clean_accuracy, evaluation.robust_accuracy) == (0, 0)
    assert [row["attempted"] for row in evaluation.summary()["attacks"]] == [20, 0, 0]
    assert [row["accuracy"] for row in evaluation.summary()["attacks"]] == [0, 0, 0]


@pytest.mark.parametrize("threat", [Linf(4 / 255), L2(0.3)])
def test_an_example_does_not_depend_on_batch_size_or_order(threat):
    model, x = network(dtype=torch.float64), photographs()
    y = labels(model, x.double() / 255)
    suite = {"pgd": spec("pgd", steps=3, restarts=2), "r_fgsm": spec("r_fgsm")}
    ids = torch.arange(CLEAN_COUNT) * 3 + 5
    whole = rows(evaluate(model, x, y, threat=threat, suite=suite, index=ids))
    small = rows(evaluate(model, x, y, threat=threat, suite=suite, index=ids, batch_size=7))
    order = torch.randperm(CLEAN_COUNT, generator=torch.Generator().manual_seed(0))
    shuffled = rows(evaluate(model, x[order], y[order], threat=threat, suite=suite, index=ids[order], batch_size=9))
    assert len({verdict[1] for verdict in whole.values()}) == 2, "some stand and some fall, or the test says nothing"
    assert whole.keys() == small.keys() == shuffled.keys()
    for key, (prediction, survived, *numbers) in whole.items():
        for other in (small[key], shuffled[key]):
            assert other[:2] == (prediction, survived)
            assert other[2:] == pytest.approx(numbers, rel=1e-6)


def test_the_seed_and_the_label_decide_the_draws():
    model, x = network(dtype=torch.float64), photographs()
    y = labels(model, x.double() / 255)

    def run(suite: str, seed: int) -> Tensor:
        o = evaluate(model, x, y, threat=Linf(1 / 255), suite=suite, seed=seed).outcomes
        return torch.from_numpy(o.loss[o.attack != "clean"].copy())

    assert torch.equal(run("pgd-1", 0), run("pgd-1", 0))
    assert torch.equal(run("pgd-1", 0), run("pgd-1-r1", 0))
    assert not torch.equal(run("pgd-1", 0), run("pgd-1", 1))
