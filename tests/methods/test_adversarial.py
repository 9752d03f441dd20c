"""Adversarial training on each kind of attack, by hand; its noise, its regulariser and its radius."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steps import CLASSES, SHAPE, N, batch, network, sgd_steps
from toughen.attacks import AttackSpec, pgd
from toughen.losses import cross_entropy
from toughen.methods import AdversarialTraining
from toughen.methods.adversarial import misalignment
from toughen.models.cost import counted
from toughen.threat import L2, Linf, Threat

EXACT: dict[str, Any] = {"rtol": 0, "atol": 1e-10}
BALLS = [Linf(0.1), L2(0.4)]
FGSM = AttackSpec(name="fgsm")


def uniform(one, *purpose: str | int) -> Tensor:
    """The batch's draws for a purpose, in [-1, 1)."""
    return one.noise.child(*purpose).uniform(SHAPE, dtype=torch.float64)


class Linear(nn.Module):
    """Logits W x + b."""

    def __init__(self, seed: int = 0):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(CLASSES, 64, generator=draw, dtype=torch.float64) / 8)
        self.bias = nn.Parameter(torch.randn(CLASSES, generator=draw, dtype=torch.float64) / 8)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


def first_objective(method: AdversarialTraining, model: nn.Module, one):
    return next(iter(method.losses(model, one, {})))


def gradient(model: nn.Module, x: Tensor, loss) -> Tensor:
    at = x.detach().requires_grad_()
    return torch.autograd.grad(loss(model(at)).sum(), at)[0]


def after_one_step(method: AdversarialTraining, model: nn.Module, one) -> Tensor:
    """The losses of one step, which moves the model."""
    return sgd_steps(method, model, [one], {})[0]


def same_weights(model: nn.Module, other: nn.Module) -> bool:
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return all(torch.allclose(p, q, **EXACT) for p, q in pairs)


def descend(model: nn.Module, loss: Tensor) -> None:
    grads = torch.autograd.grad(loss, list(model.parameters()))
    with torch.no_grad():
        for p, g in zip(model.parameters(), grads, strict=True):
            p -= 0.1 * g


# --- the attack is an argument


def test_it_is_the_loss_on_the_attack_with_the_batch_noise():
    model, one = network(), batch()
    attack = AttackSpec(name="pgd", steps=3, step_size=0.03)
    method = AdversarialTraining(attack=attack, threat=Linf(0.1))
    x_adv = pgd(model, one.x, one.y, threat=Linf(0.1), steps=3, step_size=0.03, noise=one.noise.child("attack"))
    losses = first_objective(method, model, one)()
    assert torch.equal(losses, cross_entropy(model(x_adv), one.y))


@pytest.mark.parametrize("inner", ["cross_entropy", "kl", "margin"])
def test_the_inner_losses_of_limits_by_hand(inner: str):
    """AT-XENT, AT-KL and AT-MARGIN: two inner steps of signs from a uniform start, then the cross-entropy."""
    model, one = network(), batch()
    hand, y = copy.deepcopy(model).eval(), one.y
    clean = hand(one.x).softmax(1).detach()
    others = torch.ones(N, CLASSES, dtype=torch.bool).scatter(1, y.unsqueeze(1), False)

    def rises(z: Tensor) -> Tensor:
        if inner == "kl":
            return (clean * (clean.log() - z.log_softmax(1))).sum(1)
        label = z.gather(1, y.unsqueeze(1)).squeeze(1)
        if inner == "margin":
            return z[others].reshape(N, CLASSES - 1).amax(1) - label
        return z.logsumexp(1) - label

    x_adv = (one.x + 0.1 * uniform(one, "attack", "pgd", 0)).clamp(0, 1)
    for _ in range(2):
        delta = x_adv + 0.04 * gradient(hand, x_adv, rises).sign() - one.x
        x_adv = (one.x + delta.clamp(-0.1, 0.1)).clamp(0, 1)
    hand.train()
    expected = F.cross_entropy(hand(x_adv), y, reduction="none")
    descend(hand, expected.mean())

    method = AdversarialTraining(attack=AttackSpec(name="pgd", steps=2, step_size=0.04, loss=inner), threat=Linf(0.1))
    assert torch.allclose(after_one_step(method, model, one), expected.detach(), **EXACT)
    assert same_weights(model, hand)


def test_attack_passes_compute_no_weight_gradients_and_leave_batchnorm_alone():
    model, one = network(), batch()
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    generator = AdversarialTraining(threat=Linf(0.1)).losses(model, one, {})
    with counted(model) as passes:
        next(generator)
    assert (passes.forwards, passes.input_backwards, passes.full_backwards) == (10, 10, 0)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    for name, value in model.named_buffers():
        assert torch.equal(value, buffers[name])


ONE_STEP = [{"name": name} for name in ("fgsm", "r_fgsm", "rs_fgsm")]


@pytest.mark.parametrize(
    ("attack", "options", "cost"),
    [
        *[({"name": "pgd", "steps": k}, {}, (k + 1, k, 1)) for k in (1, 7, 10)],
        ({"name": "pgd", "steps": 7, "loss": "kl"}, {}, (9, 7, 1)),
        ({"name": "adam_pgd"}, {}, (11, 10, 1)),
        *[(attack, {}, (2, 1, 1)) for attack in ONE_STEP],
        (ONE_STEP[0], {"noise_scale": 2}, (2, 1, 1)),
        *[(attack, {"alignment": 0.2}, (4, 1, 5)) for attack in ONE_STEP],
    ],
)
def test_it_costs_exactly(attack: dict[str, Any], options: dict[str, Any], cost: tuple[int, int, int]):
    method = AdversarialTraining(attack=AttackSpec(**attack), threat=Linf(0.1), **options)
    toy = method.passes()
    with counted(model := network()) as passes:
        first_objective(method, model, batch())().mean().backward()
    for found in (toy, passes):
        assert (found.forwards, found.input_backwards, found.full_backwards) == cost


def test_the_radius_is_scaled_and_the_step_is_not():
    """A step of 0.3 eps stays so in a ball of 1.2 eps, whose surface the fourth step reaches."""
    linear, one = Linear(), replace(batch(), x=torch.full((N, *SHAPE), 0.5, dtype=torch.float64))
    for steps, reach in ((3, 0.09), (4, 0.12), (5, 0.12)):
        attack = AttackSpec(name="pgd", steps=steps, step_size=0.03, random_start=False)
        seen: list[Tensor] = []
        method = AdversarialTraining(attack=attack, threat=Linf(0.1), radius_scale=1.2)
        objective = first_objective(method, linear, one)

        def note(module: nn.Module, inputs: tuple[Tensor], seen: list[Tensor] = seen) -> None:
            seen.append(inputs[0])

        handle = linear.register_forward_pre_hook(note)
        objective()
        handle.remove()
        farthest = (seen[0] - 0.5).flatten(1).abs().amax(1)
        assert torch.allclose(farthest, torch.full_like(farthest, reach), **EXACT)


# --- N-FGSM


@pytest.mark.parametrize("threat", BALLS, ids=str)
def test_n_fgsm_by_hand(threat: Threat):
    """Noise of 2 eps clipped to [0, 1], then a full step from there; nothing is clipped to the ball around x."""
    model, one = network(), batch()
    hand = copy.deepcopy(model).eval()
    if isinstance(threat, Linf):
        eta = 0.2 * uniform(one, "noise")
    else:
        eta = one.noise.child("noise", "direction").normal(SHAPE, dtype=torch.float64)
        dropped = one.noise.child("noise", "length").normal((2,), dtype=torch.float64)
        square = eta.square().sum((1, 2, 3)) + dropped.square().sum(1)
        eta = 0.8 * eta / square.sqrt().reshape(-1, 1, 1, 1)
    noisy = (one.x + eta).clamp(0, 1)
    g = gradient(hand, noisy, lambda z: F.cross_entropy(z, one.y, reduction="none"))
    step = 0.1 * g.sign() if isinstance(threat, Linf) else 0.4 * g / g.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    x_adv = (noisy + step).clamp(0, 1)
    hand.train()
    expected = F.cross_entropy(hand(x_adv), one.y, reduction="none")
    descend(hand, expected.mean())

    method = AdversarialTraining(attack=FGSM, threat=threat, noise_scale=2)
    assert torch.allclose(after_one_step(method, model, one), expected.detach(), **EXACT)
    assert same_weights(model, hand)
    assert (threat.size(x_adv - one.x) > 1.5 * threat.eps).any()


def test_the_noise_counts_in_radii_of_the_scaled_ball():
    one = batch()
    twice = AdversarialTraining(attack=FGSM, noise_scale=0.5, threat=Linf(0.1), radius_scale=2)
    wide = AdversarialTraining(attack=FGSM, noise_scale=0.5, threat=Linf(0.2))
    assert torch.equal(first_objective(twice, network(), one)(), first_objective(wide, network(), one)())


def test_without_noise_nothing_changes():
    one = batch()
    for attack in (FGSM, AttackSpec(name="pgd", steps=2)):
        plain = AdversarialTraining(attack=attack, threat=Linf(0.1))
        zero = AdversarialTraining(attack=attack, threat=Linf(0.1), noise_scale=0, alignment=0)
        assert torch.equal(first_objective(plain, network(), one)(), first_objective(zero, network(), one)())


# --- GradAlign


@pytest.mark.parametrize("threat", BALLS, ids=str)
def test_gradalign_by_hand_on_batch_statistics(threat: Threat):
    """The cosine of two input gradients, through which the weights are differentiated once more."""
    model, one = network(), batch()
    hand = copy.deepcopy(model)
    draws = one.noise.child("alignment")
    eta = 0.1 * draws.uniform(SHAPE, dtype=torch.float64) if isinstance(threat, Linf) else threat.sample(one.x, draws)
    hand.eval()
    slope = gradient(hand, one.x, lambda z: F.cross_entropy(z, one.y, reduction="none"))
    length = 1 if isinstance(threat, Linf) else slope.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    step = slope.sign() if isinstance(threat, Linf) else slope / length
    x_adv = (one.x + float(threat.eps) * step).clamp(0, 1)
    hand.train()
    outer = F.cross_entropy(hand(x_adv), one.y, reduction="none")
    slopes = []
    for x in (one.x, one.x + eta):
        at = x.requires_grad_()
        slopes.append(torch.autograd.grad(F.cross_entropy(hand(at), one.y), at, create_graph=True)[0].flatten(1))
    cosine = (slopes[0] * slopes[1]).sum(1) / (slopes[0].square().sum(1) * slopes[1].square().sum(1)).sqrt()
    expected = outer + 0.7 * (1 - cosine)
    descend(hand, expected.mean())

    # Running statistics move with the attacked batch alone.
    reference = network().train()
    reference(x_adv)
    method = AdversarialTraining(attack=FGSM, threat=threat, alignment=0.7)
    assert torch.allclose(after_one_step(method, model, one), expected.detach(), **EXACT)
    assert same_weights(model, hand)
    assert (1 - cosine > 1e-3).all()
    for a, b in zip(model.buffers(), reference.buffers(), strict=True):
        assert torch.allclose(a, b, **EXACT)


def test_gradalign_against_the_closed_form_of_a_linear_model():
    """grad_x L = W' (p - e_y), so the regulariser is a plain function of W: no second derivative in the oracle."""
    model, one = Linear(), batch()
    weight, bias = (p.detach().clone().requires_grad_() for p in model.parameters())
    hot = F.one_hot(one.y, CLASSES).double()

    def slope(x: Tensor) -> Tensor:
        return ((x.flatten(1) @ weight.T + bias).softmax(1) - hot) @ weight

    near = one.x + 0.3 * uniform(one, "alignment")
    x_adv = (one.x + 0.3 * slope(one.x).detach().sign().reshape(one.x.shape)).clamp(0, 1)
    outer = F.cross_entropy(x_adv.flatten(1) @ weight.T + bias, one.y, reduction="none")
    expected = outer + 2.5 * (1 - F.cosine_similarity(slope(one.x), slope(near), dim=1))
    expected.mean().backward()

    method = AdversarialTraining(attack=FGSM, threat=Linf(0.3), alignment=2.5)
    objective = first_objective(method, model, one)
    losses = objective()
    losses.mean().backward()
    assert torch.allclose(losses, expected, **EXACT)
    for found, hand in zip(model.parameters(), (weight, bias), strict=True):
        assert found.grad is not None
        assert hand.grad is not None
        assert torch.allclose(found.grad, hand.grad, **EXACT)
    assert torch.equal(objective(), losses)


def test_a_gradient_of_zero_is_aligned_and_makes_no_nan():
    v = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1e-30, 0.0], [3.0, 0.0], [0.0, 0.0], [2.0, 1.0]]).requires_grad_()
    w = torch.tensor([[1.0, -1.0], [1.0, 2.0], [1e-25, 1e-25], [-2.0, 0.0], [0.0, 0.0], [0.0, 0.0]]).requires_grad_()
    found = misalignment(v, w)
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0, 1 - 0.5**0.5, 2.0, 0.0, 0.0]), rtol=0, atol=1e-6)
    found.sum().backward()
    assert v.grad is not None
    assert w.grad is not None
    assert v.grad.isfinite().all()
    assert torch.equal(v.grad[[1, 4, 5]], torch.zeros(3, 2))
    # A quarter turn away: d(-cos)/dv is -w / (|v| |w|).
    torch.testing.assert_close(v.grad[0], torch.tensor([-0.5, 0.5]), rtol=0, atol=1e-6)

    flat = Linear()
    for p in flat.parameters():
        nn.init.zeros_(p)
    method = AdversarialTraining(attack=FGSM, threat=Linf(0.1), alignment=0.2)
    losses = after_one_step(method, flat, batch())
    assert torch.allclose(losses, torch.tensor(CLASSES).double().log(), **EXACT)
    assert all(p.isfinite().all() for p in flat.parameters())


def test_what_has_no_label_has_no_alignment():
    one = batch()
    method = AdversarialTraining(attack=AttackSpec(name="rs_fgsm"), threat=Linf(0.1), alignment=0.2)
    assert (after_one_step(method, network(), one) > 0).all()
    missing = replace(one, y=torch.where(torch.arange(N) == 2, -1, one.y))
    losses = after_one_step(method, network(), missing)
    assert losses[2] == 0
    assert (losses > 0).sum() == N - 1


def test_the_passes_are_named_for_the_log():
    assert AdversarialTraining().forwards == ("robust",)
    aligned, one, seen = AdversarialTraining(attack=FGSM, threat=Linf(0.1), alignment=0.2), batch(), []
    assert aligned.forwards == ("robust", "clean")
    model = network()
    objective = first_objective(aligned, model, one)
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    objective()
    assert torch.equal(seen[1], one.x)
    assert (seen[0] - one.x).abs().amax() <= 0.1 + 1e-12
    assert not torch.equal(seen[0], one.x)


@pytest.mark.parametrize("options", [{}, {"noise_scale": 2}, {"alignment": 0.2}], ids=str)
@pytest.mark.parametrize("threat", BALLS, ids=str)
def test_a_rank_without_rows_does_not_crash(threat: Threat, options: dict[str, Any]):
    for attack in (FGSM, AttackSpec(name="rs_fgsm"), AttackSpec(name="adam_pgd", steps=2)):
        method, model = AdversarialTraining(attack=attack, threat=threat, **options), network()
        before = copy.deepcopy(model)
        losses = first_objective(method, model, batch(0, 0))()
        losses.sum().backward()
        assert losses.shape == (0,)
        assert same_weights(model, before)


@pytest.mark.parametrize("field", ["noise_scale", "alignment"])
def test_settings_that_are_refused(field: str):
    with pytest.raises(ValueError, match=rf"{field}\n.*greater than or equal to 0"):
        AdversarialTraining.model_validate({"name": "adversarial", field: -0.1})
