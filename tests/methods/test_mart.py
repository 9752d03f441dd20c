import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from steps import CLASSES, SHAPE, batch, network, sgd_steps
from toughen.attacks import AttackSpec
from toughen.data import Batch
from toughen.methods.mart import Mart, boosted_cross_entropy
from toughen.models.cost import counted
from toughen.threat import L2, Linf, Threat

TWO = AttackSpec(name="pgd", steps=2, step_size=0.03, random_start="gaussian")


def tracked(model: nn.Module) -> int:
    """How often the running statistics have moved."""
    return int(dict(model.named_buffers())["1.num_batches_tracked"])


def norms(delta: Tensor) -> Tensor:
    return delta.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)


def start_of(one: Batch) -> Tensor:
    noise = one.noise.child("attack").child("pgd", 0).child("gaussian")
    return one.x + 0.001 * noise.normal(SHAPE, dtype=torch.float64)


def by_hand(model: nn.Module, one: Batch, threat: Threat) -> Tensor:
    """Two steps of length 0.03 up the cross-entropy, written out; the model in inference mode."""
    model.eval()
    x_adv = start_of(one)
    for _ in range(2):
        x_adv = x_adv.detach().requires_grad_()
        value = -model(x_adv).softmax(1).gather(1, one.y[:, None]).log().sum()
        (g,) = torch.autograd.grad(value, x_adv)
        if isinstance(threat, Linf):
            delta = (x_adv + 0.03 * g.sign() - one.x).clamp(-0.07, 0.07)
        else:
            delta = x_adv + 0.03 * g / norms(g) - one.x
            delta = delta * (0.4 / norms(delta)).clamp(max=1)
        x_adv = (one.x + delta).clamp(0, 1)
    model.train()
    return x_adv.detach()


def equation(clean: Tensor, robust: Tensor, y: Tensor, beta: float) -> Tensor:
    """The paper's loss, one example after the other; -1 has no label."""
    rows = []
    for p, q, k in zip(clean.softmax(1), robust.softmax(1), y.tolist(), strict=True):
        kl = (p * (p / q).log()).sum()
        if k < 0:
            rows.append(beta * kl)
            continue
        wrong = torch.stack([q[j] for j in range(len(q)) if j != k]).max()
        rows.append(-q[k].log() - (1 - wrong).log() + beta * kl * (1 - p[k]))
    return torch.stack(rows)


@pytest.mark.parametrize("threat", [Linf(0.07), L2(0.4)], ids=str)
def test_two_steps_of_training_are_those_worked_out_by_hand(threat: Threat):
    model = network()
    hand = copy.deepcopy(model)
    batches = [batch(0), batch(1, n=4)]
    seen = sgd_steps(Mart(attack=TWO, beta=6, threat=threat), model, batches, {}, lr=0.1)
    for one, losses in zip(batches, seen, strict=True):
        x_adv = by_hand(hand, one, threat)
        expected = equation(hand(one.x), hand(x_adv), one.y, 6)
        assert torch.allclose(losses, expected.detach(), rtol=0, atol=1e-10)
        gradients = torch.autograd.grad(expected.mean(), list(hand.parameters()))
        with torch.no_grad():
            for parameter, g in zip(hand.parameters(), gradients, strict=True):
                parameter -= 0.1 * g
    for (name, a), b in zip(model.state_dict().items(), hand.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-10), name


def test_the_boosted_term_is_the_likeliest_wrong_class_whoever_is_first():
    p = torch.tensor([[0.6, 0.3, 0.1]] * 3, dtype=torch.float64)
    found = boosted_cross_entropy(p.log(), torch.tensor([0, 1, 2]))
    expected = torch.tensor([0.6 * 0.7, 0.3 * 0.4, 0.1 * 0.4], dtype=torch.float64).log().neg()
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    two = boosted_cross_entropy(torch.tensor([[0.8, 0.2]], dtype=torch.float64).log(), torch.tensor([1]))
    assert torch.allclose(two, torch.tensor([0.2 * 0.2], dtype=torch.float64).log().neg(), rtol=0, atol=1e-12)


def test_the_loss_is_linear_in_the_label():
    one = batch()
    a, b = one.y, (one.y + 1) % CLASSES
    of_a, of_b = (nn.functional.one_hot(y, CLASSES).double() for y in (a, b))
    draws = [(of_a, 1.0), (of_b, 0.0), (0.3 * of_a + 0.7 * of_b, 0.3)]
    logits = one.noise.child("logits").normal((CLASSES,), dtype=torch.float64)
    for y, share in draws:
        expected = share * boosted_cross_entropy(logits, a) + (1 - share) * boosted_cross_entropy(logits, b)
        assert torch.allclose(boosted_cross_entropy(logits, y), expected, rtol=0, atol=1e-12)
    # With no step to take, the attacked batch is the same for any label, and so the whole loss is linear too.
    method = Mart(attack=TWO, threat=Linf(0))
    first, second, mixed = (
        next(iter(method.losses(network(), replace(one, y=y), {})))() for y in (a, b, 0.3 * of_a + 0.7 * of_b)
    )
    assert torch.allclose(mixed, 0.3 * first + 0.7 * second, rtol=0, atol=1e-12)


def test_rows_without_a_label_count_in_the_divergence_alone():
    one = batch()
    y = one.y.clone()
    y[[1, 4]] = -1
    soft = nn.functional.one_hot(one.y, CLASSES).double()
    soft[[1, 4]] = 0
    model = network()
    x_adv = by_hand(model, one, Linf(0.07))
    x_adv[[1, 4]] = start_of(one).clamp(0, 1)[[1, 4]]  # no gradient to follow
    expected = equation(model(one.x), model(x_adv), y, 5)
    for labels in (y, soft):
        method = Mart(attack=TWO, beta=5, threat=Linf(0.07))
        for objective in method.losses(network(), replace(one, y=labels), {}):
            assert torch.allclose(objective(), expected, rtol=0, atol=1e-10)
    assert (expected[[1, 4]] > 0).all()


def official(clean: Tensor, robust: Tensor, y: Tensor, beta: float) -> Tensor:
    """The equation with the constants of the authors' code."""
    p, q = clean.softmax(1), robust.softmax(1)
    wrong = q.scatter(1, y[:, None], -1).amax(1)
    kl = (p * (p.log() - (q + 1e-12).log())).sum(1)
    right = p.gather(1, y[:, None]).squeeze(1)
    bce = -robust.log_softmax(1).gather(1, y[:, None]).squeeze(1) - (1.0001 - wrong + 1e-12).log()
    return bce + beta * kl * (1.0000001 - right)


def test_the_constants_of_the_authors_code_move_the_gradient_by_at_most_one_percent():
    draw = batch(n=64).noise.child("logits")
    y = draw.child("y").integers(CLASSES)
    clean, robust = (2 * draw.child(kind).normal((CLASSES,), dtype=torch.float64) for kind in ("clean", "robust"))
    # A wrong class with a probability of 0.99 is the worst that the bound speaks of.
    robust[0] = torch.tensor([0.99, 0.005, 0.005], dtype=torch.float64).log()
    y[0] = 1
    assert robust.softmax(1).scatter(1, y[:, None], 0).amax() <= 0.99 + 1e-12
    exact, theirs = equation(clean, robust, y, 6), official(clean, robust, y, 6)
    assert ((exact - theirs).abs() <= 0.01).all()
    assert not torch.allclose(exact, theirs, rtol=0, atol=1e-10)
    gradients = []
    for loss in (lambda z: boosted_cross_entropy(z, y), lambda z: official(z, z, y, 0)):
        z = robust.clone().requires_grad_()
        gradients.append(torch.autograd.grad(loss(z).sum(), z)[0].norm(dim=1))
    assert ((gradients[0] / gradients[1] - 1).abs() < 0.01).all()


def test_a_confidently_wrong_prediction_has_a_finite_loss_and_gradient_in_float32():
    logits = torch.tensor([[300.0, 0.0, -5.0], [0.0, 0.0, 90.0]], requires_grad=True)
    loss = boosted_cross_entropy(logits, torch.tensor([1, 0]))
    loss.sum().backward()
    # 1 - p_wrong is exp(-300) (1 + exp(-5)) and 2 exp(-90).
    expected = torch.tensor([600 - torch.tensor(-5.0).exp().log1p(), 180 - torch.tensor(2.0).log()])
    assert torch.allclose(loss, expected, rtol=1e-6)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert torch.allclose(logits.grad[:, [0, 2]].diagonal(), torch.tensor([2.0, 2.0]), atol=1e-5)


@pytest.mark.parametrize("steps", [1, 7, 10])
def test_passes(steps: int):
    method = Mart(attack=AttackSpec(name="pgd", steps=steps), threat=Linf(0.1))
    found = method.passes()
    assert (found.forwards, found.input_backwards, found.full_backwards) == (steps + 2, steps, 2)
    assert method.forwards == ("clean", "robust")


def test_beta_zero_is_the_boosted_loss_on_the_attack_alone():
    method, one = Mart(attack=TWO, beta=0, threat=Linf(0.07)), batch()
    model = network()
    x_adv = by_hand(model, one, Linf(0.07))
    expected = equation(model(one.x), model(x_adv), one.y, 0)
    other = network()
    objective = next(iter(method.losses(other, one, {})))
    assert torch.allclose(objective(), expected, rtol=0, atol=1e-10)
    assert tracked(other) == 1
    found = method.passes()
    assert (found.forwards, found.input_backwards, found.full_backwards) == (3, 2, 1)
    assert method.forwards == ("robust",)


@pytest.mark.parametrize("mode", ["eval", "batch", "train"])
def test_running_statistics_move_as_often_as_documented(mode: str):
    attack = AttackSpec(name="pgd", steps=2, attack_bn=mode)
    model, one = network(), batch()
    before = {name: value.clone() for name, value in model.named_buffers()}
    generator = Mart(attack=attack, threat=Linf(0.07)).losses(model, one, {})
    with counted(model) as passes:
        objective = next(generator)
    assert (passes.forwards, passes.input_backwards, passes.full_backwards) == (2, 2, 0)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert model.training
    moved = 2 if mode == "train" else 0
    assert tracked(model) == moved
    assert all(torch.equal(value, before[name]) != bool(moved) for name, value in model.named_buffers())
    first = objective()
    assert tracked(model) == moved + 2
    assert torch.equal(objective(), first)


@pytest.mark.parametrize("labels", ["classes", "probabilities"])
def test_a_rank_without_an_example_trains_on_none(labels: str):
    one = batch()
    y = one.y if labels == "classes" else nn.functional.one_hot(one.y, CLASSES).double()
    none = Batch(x=one.x[:0], y=y[:0], index=one.index[:0], noise=one.noise[:0], size=1, classes=CLASSES)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)).double()
    losses = next(iter(Mart(attack=TWO, threat=Linf(0.07)).losses(model, none, {})))()
    assert losses.shape == (0,)
    losses.sum().backward()


def test_settings_are_checked():
    assert Mart.model_validate(Mart(beta=5).model_dump()) == Mart(beta=5)
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        Mart(beta=-1)
