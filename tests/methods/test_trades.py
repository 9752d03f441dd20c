import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from steps import CLASSES, SHAPE, N, batch, network, sgd_steps, spec
from toughen.attacks import AttackSpec
from toughen.data import Batch
from toughen.losses import divergence
from toughen.methods import Natural
from toughen.methods.trades import Trades
from toughen.models.cost import counted
from toughen.noise import Stream
from toughen.threat import L2, Linf, Threat
from toughen.training.monitors import Meters

BALLS = [Linf(0.07), L2(0.4)]
INNERS = ["kl", "cross_entropy", "margin"]


def two_steps(start: object = "gaussian", **settings: object) -> AttackSpec:
    return AttackSpec(name="pgd", steps=2, step_size=0.03, random_start=start, **settings)


def tracked(model: nn.Module) -> int:
    """How often the running statistics have moved."""
    return int(dict(model.named_buffers())["1.num_batches_tracked"])


def norms(delta: Tensor) -> Tensor:
    return delta.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)


def start_of(one: Batch, threat: Threat, kind: object) -> Tensor:
    noise = one.noise.child("attack").child("pgd", 0)
    if kind == "gaussian":
        return one.x + 0.001 * noise.child("gaussian").normal(SHAPE, dtype=torch.float64)
    return (one.x + threat.sample(one.x, noise)).clamp(0, 1)


def by_hand(model: nn.Module, one: Batch, threat: Threat, inner: str, kind: object = "gaussian") -> Tensor:
    """Two steps of length 0.03 up the inner loss, written out; the model in inference mode."""
    model.eval()
    p = model(one.x).softmax(1).detach()
    x_adv = start_of(one, threat, kind)
    for _ in range(2):
        x_adv = x_adv.detach().requires_grad_()
        z = model(x_adv)
        if inner == "kl":
            value = (p * (p.log() - z.softmax(1).log())).sum()
        elif inner == "cross_entropy":
            value = -z.softmax(1).gather(1, one.y[:, None]).log().sum()
        else:
            wrong = [max(z[i, k] for k in range(CLASSES) if k != one.y[i]) for i in range(len(z))]
            value = torch.stack([wrong[i] - z[i, one.y[i]] for i in range(len(z))]).sum()
        (g,) = torch.autograd.grad(value, x_adv)
        if isinstance(threat, Linf):
            delta = (x_adv + 0.03 * g.sign() - one.x).clamp(-0.07, 0.07)
        else:
            delta = x_adv + 0.03 * g / norms(g) - one.x
            delta = delta * (0.4 / norms(delta)).clamp(max=1)
        x_adv = (one.x + delta).clamp(0, 1)
    model.train()
    return x_adv.detach()


def step(model: nn.Module, losses: Tensor) -> None:
    """theta <- theta - 0.1 grad of the mean."""
    gradients = torch.autograd.grad(losses.mean(), list(model.parameters()))
    with torch.no_grad():
        for parameter, g in zip(model.parameters(), gradients, strict=True):
            parameter -= 0.1 * g


def same(model: nn.Module, other: nn.Module, atol: float = 1e-10) -> None:
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=atol), name


def equation(clean: Tensor, robust: Tensor, y: Tensor, beta: float) -> Tensor:
    p, q = clean.softmax(1), robust.softmax(1)
    entropy = torch.stack([-p[i, k].log() if k >= 0 else p.new_zeros(()) for i, k in enumerate(y.tolist())])
    return entropy + beta * (p * (p / q).log()).sum(1)


@pytest.mark.parametrize("forward", ["separate", "fused"])
@pytest.mark.parametrize("inner", INNERS)
@pytest.mark.parametrize("threat", BALLS, ids=str)
def test_two_steps_of_training_are_those_worked_out_by_hand(threat: Threat, inner: str, forward: str):
    method = Trades(attack=two_steps(), inner=inner, forward=forward, beta=6, threat=threat)  # pyright: ignore
    model = network()
    hand = copy.deepcopy(model)
    batches = [batch(0), batch(1, n=4)]
    seen = sgd_steps(method, model, batches, {}, lr=0.1)
    for one, losses in zip(batches, seen, strict=True):
        x_adv = by_hand(hand, one, threat, inner)
        if forward == "separate":
            clean, robust = hand(one.x), hand(x_adv)
        else:
            both = hand(torch.cat([one.x, x_adv]))
            clean, robust = both[: len(one.x)], both[len(one.x) :]
        expected = equation(clean, robust, one.y, 6)
        assert torch.allclose(losses, expected.detach(), rtol=0, atol=1e-10)
        step(hand, expected)
    same(model, hand)


def test_the_attack_starts_uniformly_in_the_ball_by_default():
    method = Trades(attack=two_steps(True), threat=Linf(0.07))
    model, one = network(), batch()
    hand = copy.deepcopy(model)
    losses = next(iter(method.losses(model, one, {})))()
    x_adv = by_hand(hand, one, Linf(0.07), "kl", True)
    assert torch.allclose(losses, equation(hand(one.x), hand(x_adv), one.y, 6), rtol=0, atol=1e-10)
    assert Trades().attack.settings["random_start"] is True


def test_separate_and_fused_forwards_differ_by_the_batch_statistics_alone():
    results = []
    for normalised in (True, False):
        model = network() if normalised else nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)).double()
        values = [
            next(iter(Trades(attack=two_steps(), forward=way, threat=Linf(0.07)).losses(model, batch(), {})))()
            for way in ("separate", "fused")
        ]
        results.append((values[0] - values[1]).abs().max().item())
    assert results[0] > 1e-4
    assert results[1] < 1e-12


@pytest.mark.parametrize("inner", INNERS)
def test_rows_without_a_label_count_in_the_divergence_alone(inner: str):
    one = batch()
    y = one.y.clone()
    y[[1, 4]] = -1
    soft = nn.functional.one_hot(one.y, CLASSES).double()
    soft[[1, 4]] = 0
    method = Trades(attack=two_steps(), inner=inner, threat=Linf(0.07))  # pyright: ignore
    model = network()
    x_adv = by_hand(model, one, Linf(0.07), inner)
    if inner != "kl":  # the attack has no gradient there
        start = start_of(one, Linf(0.07), "gaussian").clamp(0, 1)
        x_adv[[1, 4]] = start[[1, 4]]
    expected = equation(model(one.x), model(x_adv), y, 6)
    for labels in (y, soft):
        for objective in method.losses(network(), replace(one, y=labels), {}):
            assert torch.allclose(objective(), expected, rtol=0, atol=1e-10)
    assert (expected[[1, 4]] > 0).all()


def test_probabilities_take_their_cross_entropy():
    one = batch()
    y = (one.noise.child("y").uniform((CLASSES,), dtype=torch.float64) + 1).softmax(1)
    model = network()
    x_adv = by_hand(model, one, Linf(0.07), "kl")
    p, q = model(one.x).softmax(1), model(x_adv).softmax(1)
    expected = -(y * p.log()).sum(1) + 2 * (p * (p / q).log()).sum(1)
    method = Trades(attack=two_steps(), beta=2, threat=Linf(0.07))
    objective = next(iter(method.losses(network(), replace(one, y=y), {})))
    assert torch.allclose(objective(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("forward", ["separate", "fused"])
def test_beta_zero_is_natural_training_bit_for_bit(forward: str):
    natural, trades = network(), network()
    batches = [batch(i) for i in range(3)] + [batch(3, n=4)]
    method = Trades(beta=0, forward=forward, threat=Linf(0.1))  # pyright: ignore
    a, b = sgd_steps(Natural(), natural, batches, {}), sgd_steps(method, trades, batches, {})
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    for x, y in zip(natural.state_dict().values(), trades.state_dict().values(), strict=True):
        assert torch.equal(x, y)
    assert method.passes() == Natural().passes()
    assert method.forwards == ("clean",)


@pytest.mark.parametrize("steps", [1, 7, 10])
def test_passes(steps: int):
    def passes(**settings: object):
        attack = AttackSpec(name="pgd", steps=steps)
        found = Trades(attack=attack, threat=Linf(0.1), **settings).passes()  # pyright: ignore
        examples = found.example_forwards / 2, found.example_backwards / 2
        return found.forwards, found.input_backwards, found.full_backwards, *examples

    assert passes() == (steps + 3, steps, 2, steps + 3, steps + 2)
    for inner in ("cross_entropy", "margin"):
        assert passes(inner=inner) == (steps + 2, steps, 2, steps + 2, steps + 2)
    # One pass of twice the examples: the same work in one call less.
    assert passes(forward="fused") == (steps + 2, steps, 1, steps + 3, steps + 2)


@pytest.mark.parametrize("forward", ["separate", "fused"])
@pytest.mark.parametrize(("inner", "attack_passes"), [("kl", 3), ("cross_entropy", 2)])
@pytest.mark.parametrize("mode", ["eval", "batch", "train"])
def test_running_statistics_move_as_often_as_documented(mode: str, inner: str, attack_passes: int, forward: str):
    attack = two_steps(attack_bn=mode)
    method = Trades(attack=attack, inner=inner, forward=forward, threat=Linf(0.07))  # pyright: ignore
    model, one = network(), batch()
    before = {name: value.clone() for name, value in model.named_buffers()}
    generator = method.losses(model, one, {})
    with counted(model) as passes:
        objective = next(generator)
    assert (passes.forwards, passes.input_backwards, passes.full_backwards) == (attack_passes, 2, 0)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert model.training
    moved = attack_passes if mode == "train" else 0
    assert tracked(model) == moved
    assert all(torch.equal(value, before[name]) != bool(moved) for name, value in model.named_buffers())
    first = objective()
    assert tracked(model) == moved + (2 if forward == "separate" else 1)
    assert torch.equal(objective(), first)


def test_a_confident_prediction_has_a_finite_gradient_in_float32():
    clean = torch.tensor([[0.0, -300.0, 5.0], [0.0, 200.0, -40.0]], requires_grad=True)
    robust = torch.tensor([[1.0, 2.0, 3.0], [0.0, -200.0, 4.0]], requires_grad=True)
    value = divergence(clean, robust)
    value.sum().backward()
    assert value.isfinite().all()
    assert clean.grad is not None
    assert clean.grad.isfinite().all()
    assert robust.grad is not None
    assert torch.allclose(robust.grad, robust.softmax(1).detach() - clean.softmax(1).detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("forward", ["separate", "fused"])
def test_a_rank_without_an_example_trains_on_none(forward: str):
    one = batch()
    none = Batch(
        x=one.x[:0], y=one.y[:0], index=one.index[:0], noise=one.noise[:0], size=1, classes=CLASSES, extra=None
    )
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)).double()
    method = Trades(attack=two_steps(), forward=forward, threat=Linf(0.07))  # pyright: ignore
    losses = next(iter(method.losses(model, none, {})))()
    assert losses.shape == (0,)
    losses.sum().backward()


def test_batch_accuracy_is_shown_for_what_can_be_told_apart():
    model, one = network(), batch()
    for forward, kinds in {"separate": {"clean", "robust"}, "fused": set()}.items():
        method, meters = Trades(attack=two_steps(), forward=forward, threat=Linf(0.07)), Meters()  # pyright: ignore
        objective = next(iter(method.losses(model, one, {})))
        with meters.watching(model) as seen:
            losses = objective()
        meters.add(losses, seen, one.y, method.forwards)
        assert set(meters.read()) == {"loss", *(f"{kind}_batch_accuracy" for kind in kinds)}


def test_the_inner_loss_is_the_truth_about_the_attack():
    assert Trades().attack == AttackSpec(name="pgd", steps=10, loss="kl")
    assert Trades(inner="margin", attack=two_steps()).attack.settings["loss"] == "margin"
    assert Trades(inner="margin", attack=two_steps(loss="margin")).attack.settings["loss"] == "margin"
    assert Trades(inner="margin", attack=AttackSpec(name="apgd_targeted")).attack.settings["loss"] == "margin"
    again = Trades.model_validate(Trades(inner="cross_entropy").model_dump())
    assert again == Trades(inner="cross_entropy")
    with pytest.raises(ValueError, match=r"attack\.loss is margin, but trades attacks its inner loss, kl; leave"):
        Trades(attack=two_steps(loss="margin"))
    for name in ("square", "deepfool", "apgd"):
        with pytest.raises(ValueError, match=f"attack {name} cannot maximise the inner loss kl; take one"):
            Trades(attack=AttackSpec(name=name))
    with pytest.raises(ValueError, match="'kl', 'cross_entropy' or 'margin'"):
        Trades(inner="dlr")  # pyright: ignore
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        Trades(beta=-1)


def test_noise_is_that_of_the_batch():
    one = batch()
    other = replace(one, noise=Stream((1, "train", 0), one.index, block=N))
    method = Trades(attack=two_steps(True), threat=Linf(0.07))
    a, b, c = (next(iter(method.losses(network(), each, method.init(spec()))))() for each in (one, one, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
