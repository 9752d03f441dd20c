"""Bilateral training against its equations (docs/methods/bilateral.md), written out here in float64, same draws."""

import copy
import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from steps import CLASSES, SHAPE, N, batch, network, sgd_steps, spec
from toughen.attacks import AttackSpec
from toughen.data import Batch
from toughen.methods import AdversarialTraining
from toughen.methods.bilateral import Bilateral, last_weight, most_confusing, one_step_closest, random_other
from toughen.models.cost import counted
from toughen.models.registry import MODELS, build
from toughen.noise import Stream
from toughen.threat import L2, Linf, Threat

TARGETS = ("most_confusing", "random", "mosa", "mix")
LABELS = ("main", "supplement", "none")
MODES = ("eval", "train", "batch")
EVERY = list(itertools.product(TARGETS, LABELS, MODES))
BETA, GAMMA, EPS, RATE = 7.0, 0.02, 0.07, 0.1


def method_of(threat: Threat | None = None, **settings: object) -> Bilateral:
    return Bilateral.model_validate({"threat": threat or Linf(EPS), "beta": BETA, "gamma": GAMMA, **settings})


def run_in(mode: str, model: nn.Module, x: Tensor) -> Tensor:
    """A forward pass in one of the three modes, by its definition."""
    model.train(mode != "eval")
    # A copy's running statistics move in place of the model's.
    net = copy.deepcopy(model) if mode == "batch" else model
    return net(x)


def target_by_hand(kind: str, f: list[float], c: int, w: Tensor, share: float) -> int:
    others = [k for k in range(len(f)) if k != c]
    confusing = max(others, key=lambda k: f[k])
    if kind == "most_confusing" or (kind == "mix" and f[confusing] > f[c]):
        return confusing
    if kind == "random":
        return others[int(share * len(others))]
    near = {k: (f[c] - f[k]) / (w[c] - w[k]).norm().item() for k in others if f[c] - f[k] > 1e-4}
    return min(near, key=lambda k: near[k]) if near else confusing


def label_by_hand(kind: str, f: Tensor, c: int, largest: int | None) -> Tensor:
    y = torch.zeros_like(f)
    v = -(f - f.exp().sum().log())
    wrong = sorted((k for k in range(len(f)) if k != c), key=lambda k: -v[k].item())[:largest]
    v_mc, v_ll, total = v[wrong].min(), v[wrong].max(), v[wrong].sum()
    if kind == "none":
        y[c] = 1
    elif kind == "main":
        denominator = total - len(wrong) * (v_mc - GAMMA)
        eps = 1 / (1 + BETA * (v_ll - v_mc + GAMMA) / denominator)
        y[wrong], y[c] = eps / denominator * (v[wrong] - v_mc + GAMMA), 1 - eps
    else:
        eps = 1 / (1 + BETA * v_ll / total)
        y[wrong], y[c] = eps * v[wrong] / total, 1 - eps
    return y


def delta_by_hand(threat: Threat, noise: Stream) -> Tensor:
    if isinstance(threat, Linf):
        return EPS * noise.uniform(SHAPE, dtype=torch.float64)
    image = noise.child("direction").normal(SHAPE, dtype=torch.float64)
    dropped = noise.child("length").normal((2,), dtype=torch.float64)
    square = image.square().sum((1, 2, 3)) + dropped.square().sum(1)
    return EPS * image / square.sqrt().reshape(-1, 1, 1, 1)


def step_by_hand(model: nn.Module, one: Batch, threat: Threat, target: str, labels: str, mode: str, largest=None):
    noise = one.noise.child("attack", "targeted_pgd", 0)
    assert isinstance(model, nn.Sequential)
    head = model[4]
    assert isinstance(head, nn.Linear)
    w = head.weight.detach()
    f = None
    if (target, labels) != ("random", "none"):
        f = run_in(mode, model, one.x).detach()
    shares = (noise.child("target").uniform((), dtype=torch.float64) + 1) / 2
    aims, y = [], []
    for i, c in enumerate(one.y.tolist()):
        row = torch.zeros(CLASSES, dtype=torch.float64) if f is None else f[i]
        aims.append(target_by_hand(target, row.tolist(), c, w, shares[i].item()))
        y.append(label_by_hand(labels, row, c, largest))
    x = (one.x + delta_by_hand(threat, noise.child("start"))).requires_grad_()
    loss = nn.functional.cross_entropy(run_in(mode, model, x), torch.tensor(aims), reduction="sum")
    (g,) = torch.autograd.grad(loss, x)
    with torch.no_grad():
        if isinstance(threat, Linf):
            delta = (x - EPS * g.sign() - one.x).clamp(-EPS, EPS)
        else:
            delta = x - EPS * g / g.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1) - one.x
            delta = delta * (EPS / delta.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)).clamp(max=1)
        x_adv = (one.x + delta).clamp(0, 1)
    logits = run_in("train", model, x_adv)
    losses = -(torch.stack(y) * logits.log_softmax(1)).sum(1)
    weights = torch.autograd.grad(losses.mean(), list(model.parameters()))
    with torch.no_grad():
        for p, d in zip(model.parameters(), weights, strict=True):
            p -= RATE * d
    return losses.detach()


def agree(model: nn.Module, other: nn.Module, seen: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(seen, expected, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-10)
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-10), name


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("target", TARGETS)
def test_steps_worked_out_by_hand(target: str, labels: str, mode: str):
    batches = [batch(0), batch(1, n=4), batch(2)]
    for threat in (Linf(EPS), L2(EPS)):
        model = network()
        hand = copy.deepcopy(model)
        seen = sgd_steps(method_of(threat, target=target, labels=labels, attack_bn=mode), model, batches, {}, lr=RATE)
        agree(model, hand, seen, [step_by_hand(hand, one, threat, target, labels, mode) for one in batches])


@pytest.mark.parametrize("labels", ["main", "supplement"])
def test_steps_by_hand_where_only_the_largest_loss_receives(labels: str):
    model = network()
    hand = copy.deepcopy(model)
    seen = sgd_steps(method_of(labels=labels, largest=1), model, [batch(0), batch(1)], {}, lr=RATE)
    expected = [step_by_hand(hand, batch(i), Linf(EPS), "most_confusing", labels, "eval", largest=1) for i in range(2)]
    agree(model, hand, seen, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("target", ["most_confusing", "random"])
@pytest.mark.parametrize("mode", MODES)
def test_without_label_adversary_it_is_one_step_targeted_training_bit_for_bit(
    mode: str, target: str, dtype: torch.dtype
):
    batches = [replace(one, x=one.x.to(dtype)) for one in (batch(0), batch(1), batch(2, n=4), batch(3), batch(4))]
    for threat in (Linf(EPS), L2(0.5)):
        attack = AttackSpec(
            name="targeted_pgd", target=target, steps=1, step_size=threat.eps, random_start="unclipped", attack_bn=mode
        )
        one, other = network().to(dtype), network().to(dtype)
        a = sgd_steps(AdversarialTraining(attack=attack, threat=threat), one, batches, {})
        b = sgd_steps(method_of(threat, target=target, labels="none", attack_bn=mode), other, batches, {})
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        for x, y in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("settings", EVERY)
def test_three_forwards_and_two_backwards(settings: tuple[str, str, str]):
    target, labels, mode = settings
    method, model, one = method_of(target=target, labels=labels, attack_bn=mode), network().train(), batch()
    before = {name: value.clone() for name, value in model.named_buffers()}
    # A random target without a label adversary has no use for the clean logits.
    attack_forwards = 1 if (target, labels) == ("random", "none") else 2
    with counted(model) as passes:
        objective = next(iter(method.losses(model, one, method.init(spec()))))
        assert (passes.forwards, passes.input_backwards, passes.full_backwards) == (attack_forwards, 1, 0)
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
        assert model.training
        moved = any((value != before[name]).any() for name, value in model.named_buffers())
        assert moved == (mode == "train")
        first = objective()
        first.mean().backward()
    assert (passes.forwards, passes.input_backwards, passes.full_backwards) == (attack_forwards + 1, 1, 1)
    assert isinstance(model, nn.Sequential)
    tracked = 1 + attack_forwards * (mode == "train")
    assert int(model[1].num_batches_tracked) == tracked  # pyright: ignore[reportArgumentType]
    assert torch.equal(first, objective())
    told = method.passes()
    assert (told.forwards, told.input_backwards, told.full_backwards) == (attack_forwards + 1, 1, 1)


def test_cost_can_be_told_for_more_receiving_classes_than_the_tiny_model_has():
    assert method_of(largest=50).passes().natural_steps == pytest.approx((3 + 1 + 2) / 3)


def test_targets_on_logits_worked_out_by_hand():
    logits = torch.tensor(
        [[2.0, 1.9, 0.0, -1.0], [2.0, 1.9, 0.0, -1.0], [-4.0, -3.0, -2.0, -1.0], [1.0, 1.0, 1.0, 1.0]]
    )
    label = torch.tensor([0, 1, 0, 2])
    # From row 0: 0.1 at distance 0.01 is 10, 2 at distance 1 is 2, 3 at distance 2 is 1.5. From row 1 (class 0 is
    # above it): 1.9 / 0.99 and 2.9 / 1.99. In the last two rows nobody is below the label.
    weight = torch.tensor([[0.0, 0.0], [0.01, 0.0], [1.0, 0.0], [2.0, 0.0]])
    assert most_confusing(logits, label).tolist()[:3] == [1, 0, 3]
    found = one_step_closest(logits, label, weight)
    assert found.tolist() == [3, 3, 3, int(most_confusing(logits, label)[3])]
    assert one_step_closest(logits[:1], label[:1], weight * torch.tensor([[1], [100], [1], [1]])).tolist() == [1]
    # Untrained heads of zeros set no class apart.
    assert torch.equal(one_step_closest(logits, label, torch.zeros(4, 2)), most_confusing(logits, label))
    # A lead of less than 1e-4 does not count.
    close = torch.tensor([[1.0, 1.0 - 5e-5, 0.0]], dtype=torch.float64)
    assert one_step_closest(close, torch.tensor([0]), torch.eye(3, dtype=torch.float64)).tolist() == [2]


def test_mix_is_mosa_where_the_model_is_right_and_never_the_label_itself():
    # All logits but the label's are negative where the model is right: the official product with zeros prefers it.
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()
    head = model[1]
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight.zero_()
        head.weight[:, 0] = torch.tensor([0.0, 0.1, 5.0])
        head.bias.copy_(torch.tensor([-1.0, -3.0, -4.0]))
    x = torch.zeros(2, *SHAPE, dtype=torch.float64)
    one = replace(batch(0, n=2), x=x, y=torch.tensor([0, 1]))
    seen = []
    head.register_forward_hook(lambda module, inputs, logits: seen.append(inputs[0]))

    def pixel(target: str) -> list[float]:
        seen.clear()
        next(iter(method_of(target=target, labels="none").losses(model, one, {})))()
        return [value.item() for value in seen[-1][:, 0]]

    # Image 0 is right: MOSA's target is class 2 (3 / 5 < 2 / 0.1), which brightens the pixel, as the step of size eps
    # from a start within the ball shows. Image 1 is wrong: class 0, which darkens it; MOSA would take class 2.
    assert pixel("mix")[0] > 0
    assert pixel("mix")[1] == 0
    assert pixel("mosa")[1] > 0


def test_random_targets_are_uniform_over_the_other_classes_and_over_all_without_a_label():
    rows = torch.arange(40_000)
    noise = Stream(("test",), rows, block=len(rows))
    y = rows % 5 - 1
    found = random_other(y, 4, noise)
    for label in range(-1, 4):
        share = torch.bincount(found[y == label], minlength=4) / 8000
        allowed = 4 if label == -1 else 3
        # Five standard deviations of a share of 8,000 draws are below 0.027.
        assert all(abs(s - (0 if k == label else 1 / allowed)) < 0.027 for k, s in enumerate(share.tolist()))
        assert label == -1 or share[label] == 0


@pytest.mark.parametrize("target", TARGETS)
def test_a_rank_takes_its_rows_of_the_whole_batch(target: str):
    def image_of(one: Batch) -> Tensor:
        model, seen = network().train(), []
        objective = next(iter(method_of(target=target).losses(model, one, {})))
        model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        objective()
        return seen[0]

    whole = batch()
    for rank in range(2):
        mine = slice(rank, None, 2)
        part = replace(whole, x=whole.x[mine], y=whole.y[mine], index=whole.index[mine], noise=whole.noise[mine])
        assert torch.allclose(image_of(part), image_of(whole)[mine], rtol=0, atol=1e-12)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("target", TARGETS)
def test_missing_labels_cost_nothing_and_their_image_is_that_of_the_prediction(target: str, labels: str):
    model, one = network(), batch()
    predicted = copy.deepcopy(model).eval()(one.x).argmax(1)
    missing = torch.arange(N) < 3
    method = method_of(target=target, labels=labels)

    def run(y: Tensor) -> tuple[Tensor, Tensor]:
        fresh, seen = copy.deepcopy(model).train(), []
        objective = next(iter(method.losses(fresh, replace(one, y=y), {})))
        fresh.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        losses = objective()
        losses.mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in fresh.parameters())
        return losses.detach(), seen[0]

    losses, x_adv = run(torch.where(missing, -1, one.y))
    assert (losses[missing] == 0).all()
    if target != "random":
        full, same = run(torch.where(missing, predicted, one.y))
        assert torch.equal(x_adv, same)
        assert torch.equal(losses[~missing], full[~missing])
    assert not run(torch.full((N,), -1))[0].any()


@pytest.mark.parametrize("settings", EVERY)
def test_an_empty_share_of_a_batch(settings: tuple[str, str, str]):
    target, labels, mode = settings
    whole = batch()
    empty = replace(whole, x=whole.x[:0], y=whole.y[:0], index=whole.index[:0], noise=whole.noise[:0])
    for threat in (Linf(EPS), L2(EPS)):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)).double()
        method = method_of(threat, target=target, labels=labels, attack_bn=mode)
        losses = next(iter(method.losses(model, empty, {})))()
        assert losses.shape == (0,)
        losses.sum().backward()


@pytest.mark.parametrize("name", ["wrn-10-1", *(name for name in MODELS if name != "wrn-D-W")])
def test_every_model_has_its_last_weights_found(name: str):
    options = {} if name.startswith("wrn") else {"width": 1 if name == "madry-w32-10" else 2}
    model = build(name, num_classes=7, mean=(0.5,) * 3, std=(0.5,) * 3, **dict[str, Any](options)).eval()
    weight = last_weight(model, 7)
    assert not weight.requires_grad
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        logits = model(x)
        # Twice the weights of the last layer are twice the logits, its bias being zero.
        weight.mul_(2)
        assert torch.allclose(model(x), 2 * logits, rtol=1e-5)
        assert (logits[0] != logits[1]).any()


def test_models_without_a_last_linear_layer_are_refused_for_mosa_and_mix_alone():
    pooled = nn.Sequential(nn.Conv2d(1, CLASSES, 8), nn.Flatten()).double()
    wider = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Unflatten(1, (5, 1)), nn.Flatten(), nn.ZeroPad1d((0, 1)))
    for target in ("mosa", "mix"):
        with pytest.raises(ValueError, match=r"3 classes, but it has no nn.Linear; use target: most_confusing"):
            next(iter(method_of(target=target).losses(pooled, batch(), {})))
        with pytest.raises(ValueError, match=r"6 classes, but its last nn.Linear has 5 rows"):
            next(iter(method_of(target=target).losses(wider.double(), batch(), {})))
    for target in ("most_confusing", "random"):
        sgd_steps(method_of(target=target), pooled, [batch()], {})


def test_what_is_refused():
    soft = replace(batch(), y=nn.functional.one_hot(batch().y, CLASSES).double())
    with pytest.raises(ValueError, match="method bilateral needs class numbers"):
        next(iter(method_of().losses(network(), soft, {})))
    with pytest.raises(ValueError, match="the 3 of the largest loss, but the model has 3 classes"):
        next(iter(method_of(largest=3).losses(network(), batch(), {})))
    with pytest.raises(ValidationError, match=r"largest: 2 says who receives mass, but labels: none moves none"):
        method_of(labels="none", largest=2)
    for setting in ({"beta": 0}, {"gamma": 0}, {"largest": 0}, {"target": "+"}, {"labels": "sup"}, {"attack_bn": "x"}):
        with pytest.raises(ValidationError):
            Bilateral.model_validate(setting)
    single = nn.Sequential(nn.Flatten(), nn.Linear(64, 1)).double()
    lone = replace(batch(), y=torch.zeros(N, dtype=torch.long))
    for target, labels in itertools.product(TARGETS, LABELS):
        with pytest.raises(ValueError, match="at least 2 classes, the model has 1"):
            next(iter(method_of(target=target, labels=labels).losses(single, lone, {})))
