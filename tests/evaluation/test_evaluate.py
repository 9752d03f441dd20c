import copy
import functools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from toughen.attacks import AttackSpec, pgd
from toughen.evaluation import Evaluation, Unsound, evaluate
from toughen.noise import Stream
from toughen.threat import L2, Linf, Threat

EPS = 0.05
CLEAN_COUNT = 40


class Linear(nn.Module):
    """Two classes with logits (0, <w, x> + b)."""

    def __init__(self, w: Tensor, b: float) -> None:
        super().__init__()
        self.w = nn.Parameter(w)
        self.b = b

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1) @ self.w + self.b
        return torch.stack([torch.zeros_like(score), score], 1)


def spec(name: str, **settings: object) -> AttackSpec:
    return AttackSpec.model_validate({"name": name, **settings})


def linear(n: int = 200, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Linear, Tensor, Tensor]:
    """A linear model, images that a step of EPS keeps within [0, 1], and labels of which a tenth are wrong."""
    draw = torch.Generator().manual_seed(seed)
    x = (0.2 + 0.6 * torch.rand(n, 1, 4, 4, generator=draw, dtype=torch.float64)).to(dtype)
    w = torch.randn(16, generator=draw, dtype=torch.float64).to(dtype)
    model = Linear(w, -float((x.flatten(1) @ w).mean()))
    y = model(x).argmax(1)
    wrong = torch.rand(n, generator=draw) < 0.1
    return model, x, torch.where(wrong, 1 - y, y)


def network(*, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
        bn = net[1]
        assert isinstance(bn, nn.BatchNorm2d)
        bn.running_mean = torch.randn(8) * 0.2
        bn.running_var = torch.rand(8) + 0.5
    return net.to(dtype)


def photographs(n: int = CLEAN_COUNT) -> Tensor:
    return torch.randint(256, (n, 3, 8, 8), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)


def labels(model: nn.Module, x: Tensor) -> Tensor:
    """What the model says in inference mode."""
    with torch.no_grad():
        return copy.deepcopy(model).eval()(x).argmax(1)


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
    shown: list[tuple[str, int, int, float]] = []
    evaluation = evaluate(
        model,
        x,
        y,
        threat=Linf(EPS),
        suite={"first": first, "second": second},
        batch_size=32,
        progress=lambda *state: shown.append(state),
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
    assert shown[0] == ("clean", 32, 200, pytest.approx(sum(i < 32 for i in right) / 32))
    assert shown[-1] == ("second", len(second.seen), len(second.seen), evaluation.robust_accuracy)
    assert len(shown) == sum(-(-n // 32) for n in (200, len(first.seen), len(second.seen)))


def test_with_nobody_left_later_attacks_are_listed_as_idle():
    model, x, y = linear(20)
    y = labels(model, x)
    evaluation = evaluate(model, x, 1 - y, threat=Linf(EPS), suite={"a": spec("fgsm"), "b": spec("fgsm")})
    assert (evaluation.clean_accuracy, evaluation.robust_accuracy) == (0, 0)
    assert [row["attempted"] for row in evaluation.summary()["attacks"]] == [20, 0, 0]
    assert [row["accuracy"] for row in evaluation.summary()["attacks"]] == [0, 0, 0]


def rows(evaluation: Evaluation) -> dict[tuple[str, int], tuple[int, bool, float, float]]:
    o = evaluation.outcomes
    values = zip(o.prediction.tolist(), o.survived.tolist(), o.distance.tolist(), o.loss.tolist(), strict=True)
    return dict(zip(zip(o.attack.tolist(), o.index.tolist(), strict=True), values, strict=True))


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


def test_model_and_random_state_are_left_as_found():
    model, x = network(), photographs()
    y = labels(model, x.float() / 255)
    model.train()
    model[0].eval()
    last = model[4]
    assert isinstance(last, nn.Linear)
    last.bias.requires_grad_(False)
    last.weight.grad = torch.ones_like(last.weight)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    during: list[bool] = []

    def look(*_: object) -> None:
        during.append(any(p.requires_grad for p in model.parameters()) or any(m.training for m in model.modules()))

    evaluation = evaluate(model, x, y, threat=Linf(2 / 255), suite="pgd-2", progress=look)
    assert during == [False, False]
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model] == [False, True, True, True, True]
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["4.bias"]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(last.weight.grad, torch.ones_like(last.weight))
    assert model[0].weight.grad is None
    assert not model._forward_hooks
    assert evaluation.clean_accuracy == 1, "BatchNorm used the batch's statistics"


def test_the_model_is_restored_after_a_failure():
    model, x = network().train(), photographs()
    with pytest.raises(Unsound):
        evaluate(
            model,
            x,
            labels(model, x.float() / 255),
            threat=Linf(EPS),
            suite={"bad": lambda model, x, y: x + 1},
        )
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert not model._forward_hooks


def test_uint8_and_float_images_agree():
    model, x = network(), photographs()
    y = labels(model, x.float() / 255)
    as_bytes = evaluate(model, x, y, threat=Linf(2 / 255), suite="pgd-2")
    as_floats = evaluate(model, x.float() / 255, y, threat=Linf(2 / 255), suite="pgd-2")
    assert rows(as_bytes) == rows(as_floats)


def test_neither_autocast_nor_no_grad_of_the_caller_matters():
    model, x = network(), photographs()
    y = labels(model, x.float() / 255)
    plain = evaluate(model, x, y, threat=Linf(2 / 255), suite="pgd-2")
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        inside = evaluate(model, x, y, threat=Linf(2 / 255), suite="pgd-2")
    assert rows(plain) == rows(inside)
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model.eval()(x.float() / 255), y, reduction="none")
    np.testing.assert_array_equal(plain.outcomes.loss[:CLEAN_COUNT], loss.numpy())


def test_a_model_without_parameters_is_evaluated_where_the_images_are():
    class Threshold(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mean = x.mean((1, 2, 3))
            return torch.stack([0.5 - mean, mean - 0.5], 1)

    x = torch.tensor([0.1, 0.48, 0.52, 0.9]).reshape(4, 1, 1, 1).expand(4, 1, 3, 3)
    evaluation = evaluate(Threshold(), x, torch.tensor([0, 0, 1, 1]), threat=Linf(0.05), suite="pgd-3")
    assert (evaluation.clean_accuracy, evaluation.robust_accuracy) == (1, 0.5)


def test_passes_are_counted_and_add_up():
    model, x = network(), photographs()
    y = labels(model, x.float() / 255)
    suite = {"once": spec("pgd", steps=3), "thrice": spec("pgd", steps=2, restarts=3)}
    evaluation = evaluate(model, x, y, threat=Linf(1 / 255), suite=suite, batch_size=16)
    o = evaluation.outcomes
    clean, once, thrice = (o.attack == name for name in ("clean", "once", "thrice"))
    assert set(o.forwards[clean]) == {1}
    assert set(o.backwards[clean]) == {0}
    assert set(o.forwards[once]) == set(o.backwards[once]) == {3}
    assert thrice.any()
    assert o.backwards[thrice].min() >= 2
    assert o.backwards[thrice].max() <= 6
    summary = evaluation.summary()
    verifications = int((~clean).sum())
    assert summary["forwards"] == int(o.forwards.sum()) + verifications
    assert summary["backwards"] == int(o.backwards.sum()) == sum(row["backwards"] for row in summary["attacks"])


def test_shares_are_whole_and_exact():
    from toughen.evaluation.evaluate import _shares

    assert _shares(17, 5).tolist() == [4, 4, 3, 3, 3]
    assert _shares(0, 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_refused(value):
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            bad = x.mean((1, 2, 3)) > 0.6
            return torch.where(bad[:, None], value, torch.stack([x.mean((1, 2, 3)), x.amax((1, 2, 3))], 1))

    x = torch.full((6, 1, 2, 2), 0.5)
    with pytest.raises(
        ValueError, match=r"EV203 .* 6 of 6 inputs of a batch under attack 'up'.*first ids 0, 1, 2, 3, 4"
    ):
        evaluate(
            Broken(),
            x,
            Broken()(x).argmax(1),
            threat=Linf(0.2),
            suite={"up": lambda model, x, y: x + 0.15},
        )
    x[[2, 5]] = 0.7
    with pytest.raises(ValueError, match=r"EV203 .* 2 of 6 inputs of a batch without an attack\..*first ids 12, 15\."):
        evaluate(Broken(), x, torch.zeros(6).long(), threat=Linf(0.1), suite="pgd-1", index=torch.arange(10, 16))


X, Y = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(3)), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"y": torch.tensor([0, 1, 2, 1])}, "labels run from 0 to 2 but the model has classes 0 to 1"),
        ({"y": torch.tensor([0, -1, 0, 1])}, "labels run from -1 to 1"),
        ({"y": Y[:3]}, r"labels are torch.int64 of shape \(3,\) for 4 images"),
        ({"y": torch.ones(4, 2) / 2}, "needs class numbers"),
        ({"x": X * 255}, "must be in \\[0, 1\\]: divide by 255"),
        ({"x": X - 0.5}, "must be in \\[0, 1\\]"),
        ({"x": X[0]}, r"shape \(1, 4, 4\)"),
        ({"x": (X * 255).byte()[0]}, r"shape \(1, 4, 4\)"),
        ({"x": X * float("nan")}, "images are in"),
        ({"x": X[:0], "y": Y[:0]}, "no images to evaluate"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"index": torch.tensor([1, 1, 2, 3])}, "index holds 3 different ids for 4 images"),
        ({"index": torch.arange(3)}, r"index is torch.int64 of shape \(3,\)"),
        ({"threat": Linf(torch.tensor([0.1, 0.2]))}, "2 radii for 4 images"),
        ({"suite": "pgd20"}, "is not a known suite"),
        ({"suite": {}}, "holds no attack"),
        ({"model": nn.Flatten(0)}, r"the model returned torch.float32 of shape \(32,\) for 2 images"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(16, 1))}, "at least 2 classes"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes, says):
    arguments = {"model": Linear(torch.ones(16), -8.0), "x": X, "y": Y, "threat": Linf(EPS), "suite": "pgd-1"} | changes
    with pytest.raises(ValueError, match=says):
        evaluate(**arguments)


def test_a_model_that_returns_a_tuple_and_inference_mode_are_refused():
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(ValueError, match="the model returned tuple; it must return logits"):
        evaluate(Two(), X, Y, threat=Linf(EPS), suite="pgd-1")
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        evaluate(Linear(torch.ones(16), -8.0), X, Y, threat=Linf(EPS), suite="pgd-1")


def test_any_callable_is_an_attack():
    model, x, y = linear(dtype=torch.float32)

    def greedy(model: nn.Module, x: Tensor, y: Tensor, **given: object) -> Tensor:
        assert set(given) == {"threat", "noise"}
        return x

    class Backward:
        """Differentiates in the old way, under whatever gradient mode it finds."""

        def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat) -> Tensor:
            leaf = x.requires_grad_()
            nn.functional.cross_entropy(model(leaf), y).backward()
            assert leaf.grad is not None
            return x + threat.eps * leaf.grad.sign()

    suite = {"greedy": greedy, "pgd": functools.partial(pgd, steps=4), "direct": pgd, "backward": Backward()}
    evaluation = evaluate(model, x, y, threat=Linf(EPS), suite=suite)
    fgsm = evaluate(model, x, y, threat=Linf(EPS), suite={"a": Backward()})
    assert evaluation.robust_accuracy == fgsm.robust_accuracy < fgsm.clean_accuracy
    described = {label: row for label, row in evaluation.settings.items() if label in ("pgd", "direct")}
    assert described == {
        "pgd": {"function": "pgd", "steps": 4},
        "direct": {"function": "pgd"},
    }
    assert evaluation.settings["greedy"]["function"].endswith("greedy")
    assert evaluation.settings["backward"]["function"].endswith("Backward")


def test_marginal_rows_are_marked():
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mean = x.mean((1, 2, 3))
            return torch.stack([mean * 0, mean - 0.5, mean * 0 - 9], 1)

    x = torch.tensor([0.5 + 4e-6, 0.5 + 1e-4, 0.3]).reshape(3, 1, 1, 1)
    evaluation = evaluate(Flat(), x, torch.tensor([1, 1, 0]), threat=Linf(0.0), suite="pgd-1")
    assert evaluation.outcomes.marginal[evaluation.outcomes.attack == "clean"].tolist() == [True, False, False]
    assert evaluation.summary()["marginal"] == 1
