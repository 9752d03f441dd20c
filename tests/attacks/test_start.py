"""Where an ascent starts, by name and by hand, and RS-FGSM, which is little more than its start."""

import pytest
import torch
from torch import Tensor, nn

from toughen.attacks import AttackSpec, adam_pgd, fgsm, pgd, rs_fgsm, targeted_pgd
from toughen.losses import cross_entropy
from toughen.models.cost import Passes, counted
from toughen.noise import Stream, fixed
from toughen.threat import L2, Linf, Threat

BALLS = [Linf(0.1), L2(0.4)]
each_ball = pytest.mark.parametrize("threat", BALLS, ids=str)
NOISE = Stream(("start",), 30 + torch.arange(8))


def gradient(model: nn.Module, at: Tensor, y: Tensor) -> Tensor:
    at = at.detach().requires_grad_()
    return torch.autograd.grad(nn.functional.cross_entropy(model(at), y, reduction="sum"), at)[0]


def first_seen(model: nn.Module, attack, *args, **settings) -> Tensor:
    """The images of an attack's first pass."""
    seen: list[Tensor] = []
    handle = model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    attack(model, *args, **settings)
    handle.remove()
    return seen[0]


def uniform(x: Tensor, threat: Threat, draws: Stream) -> Tensor:
    """Uniform in the ball: each entry in Linf; in L2 all but two coordinates of a point on the unit sphere of 34."""
    if isinstance(threat, Linf):
        return 0.1 * draws.uniform((2, 4, 4), dtype=x.dtype)
    v = draws.child("direction").normal((2, 4, 4), dtype=x.dtype)
    dropped = draws.child("length").normal((2,), dtype=x.dtype)
    square = v.square().sum((1, 2, 3)) + dropped.square().sum(1)
    return 0.4 * v / square.sqrt().reshape(-1, 1, 1, 1)


@each_ball
@pytest.mark.parametrize(
    ("attack", "key"),
    [
        (pgd, ("pgd", 0)),
        (rs_fgsm, ("pgd", 0)),
        (adam_pgd, ("adam_pgd", 0)),
        (targeted_pgd, ("targeted_pgd", 0, "start")),
    ],
)
def test_every_start_by_hand(smooth, x, y, threat, attack, key):
    draws = NOISE.child(*key)
    drawn = x + uniform(x, threat, draws)
    assert ((drawn < 0) | (drawn > 1)).any()
    for kind, expected in (
        (True, drawn.clamp(0, 1)),
        (False, x),
        ("unclipped", drawn),
        ("gaussian", x + 0.001 * draws.child("gaussian").normal((2, 4, 4), dtype=x.dtype)),
    ):
        found = first_seen(smooth, attack, x, y, threat=threat, random_start=kind, noise=NOISE)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@each_ball
@pytest.mark.parametrize("kind", ["unclipped", "gaussian"])
def test_a_start_outside_the_box_ends_inside(smooth, x, y, threat, kind):
    """Even where no step moves it."""
    black = (x - 0.5).clamp(0, 1)
    for attack in (pgd, rs_fgsm, adam_pgd):
        found = attack(
            smooth, black, y, threat=threat, random_start=kind, loss=lambda logits, y: 0 * logits.sum(1), noise=NOISE
        )
        assert found.min() == 0
        assert found.max() <= 1
        assert (threat.size(found - black) <= float(threat.eps) + 1e-12).all()


@pytest.mark.parametrize("attack", [pgd, rs_fgsm, adam_pgd, targeted_pgd])
@pytest.mark.parametrize("kind", ["uniform", 2, None])
def test_starts_that_are_refused(linear, x, y, attack, kind):
    with pytest.raises(ValueError, match="random_start"):
        attack(linear, x, y, threat=Linf(0.1), random_start=kind)


@each_ball
@pytest.mark.parametrize("kind", [True, "unclipped", "gaussian"])
def test_kl_rises_from_any_random_start(smooth, x, y, threat, kind):
    for attack in (pgd, rs_fgsm, adam_pgd):
        found = attack(smooth, x, y, threat=threat, random_start=kind, loss="kl", noise=NOISE)
        p = smooth(x).softmax(1)
        assert ((p * (p / smooth(found).softmax(1)).log()).sum(1) > 1e-4).all()


# --- RS-FGSM


@each_ball
@pytest.mark.parametrize("share", [None, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("kind", [True, "unclipped"])
def test_rs_fgsm_by_hand(smooth, x, y, threat, share, kind):
    start = x + uniform(x, threat, NOISE.child("pgd", 0))
    start = start.clamp(0, 1) if kind is True else start
    g, length = gradient(smooth, start, y), (share or 1.25) * float(threat.eps)
    if isinstance(threat, Linf):
        delta = (start - x + length * g.sign()).clamp(-0.1, 0.1)
    else:
        delta = start - x + length * g / g.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
        delta = delta * (0.4 / delta.flatten(1).norm(dim=1)).clamp(max=1).reshape(-1, 1, 1, 1)
    settings = {} if share is None else {"step_share": share}
    found = rs_fgsm(smooth, x, y, threat=threat, random_start=kind, noise=NOISE, **settings)
    torch.testing.assert_close(found, (x + delta).clamp(0, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threat", [*BALLS, Linf(torch.linspace(0, 0.2, 8))], ids=["linf", "l2", "each"])
def test_rs_fgsm_is_pgd_with_one_step(smooth, x, y, threat, dtype):
    model, images = smooth.to(dtype), x.to(dtype)
    step = 1.25 * threat.eps
    expected = pgd(model, images, y, threat=threat, steps=1, step_size=step, noise=NOISE)
    assert torch.equal(rs_fgsm(model, images, y, threat=threat, noise=NOISE), expected)
    assert not torch.equal(rs_fgsm(model, images, y, threat=threat, step_share=1, noise=NOISE), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rs_fgsm_with_a_step_of_eps_from_the_image_is_fgsm(smooth, x, y, dtype):
    model, images = smooth.to(dtype), x.to(dtype)
    for threat in (*BALLS, Linf(torch.linspace(0, 0.2, 8))):
        expected = fgsm(model, images, y, threat=threat)
        assert torch.equal(rs_fgsm(model, images, y, threat=threat, step_share=1, random_start=False), expected)
    # A longer step ends at the same point of the Linf surface.
    threat = Linf(0.1)
    torch.testing.assert_close(
        rs_fgsm(model, images, y, threat=threat, random_start=False), fgsm(model, images, y, threat=threat)
    )


def test_rs_fgsm_costs_one_pass_and_leaves_nobody_out(smooth, x, y):
    with counted(smooth) as found:
        rs_fgsm(smooth, x, y, threat=Linf(0.3))
    assert found == Passes(1, 1, 0, 8, 8)
    with counted(smooth) as found:
        rs_fgsm(smooth, x, y, threat=Linf(0.3), loss="kl")
    assert found == Passes(2, 1, 0, 16, 8)


def test_rs_fgsm_as_text(smooth, x, y):
    spec = AttackSpec.model_validate({"name": "rs_fgsm", "step_share": "5/4", "random_start": "unclipped"})
    assert spec.settings == {
        "step_share": 1.25,
        "random_start": "unclipped",
        "loss": "cross_entropy",
        "attack_bn": "eval",
    }
    expected = rs_fgsm(smooth, x, y, threat=Linf(0.1), random_start="unclipped", loss=cross_entropy, noise=fixed(8))
    assert torch.equal(spec(smooth, x, y, threat=Linf(0.1)), expected)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"step_share": 0}, "step_share\n.*greater than 0"),
        ({"loss": "kl", "random_start": False}, "kl has a zero gradient at the clean image"),
        ({"step_size": 0.1}, "unknown; allowed: step_share, random_start, loss, attack_bn"),
        ({"restarts": 2}, "unknown; allowed: step_share"),
    ],
)
def test_settings_of_rs_fgsm_that_are_refused(linear, x, y, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        rs_fgsm(linear, x, y, threat=Linf(0.1), **settings)
