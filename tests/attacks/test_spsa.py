"""SPSA: its estimate against the exact gradient of a linear model, its steps by hand, and exact counts."""

import pytest
import torch
from torch import Tensor, nn

from oracles import EPS, RowByRow, linear_problem
from toughen.attacks.spsa import DIRECTIONS, PROBES, estimate, spsa
from toughen.losses import margin
from toughen.models.batched import Batched
from toughen.models.cost import counted
from toughen.noise import Stream, fixed
from toughen.threat import L2, Linf

FEW = {"steps": 3, "samples": 4}


def estimated(linear: nn.Module, x: Tensor, y: Tensor, samples: int, noise: Stream) -> Tensor:
    return estimate(linear, x, y, margin, samples=samples, delta=0.01, noise=noise).flatten(1)


def test_the_estimate_has_the_gradient_as_its_mean(linear, inner, y):
    """Of a linear loss g, an entry of one direction's estimate is g_i plus the others times random signs.

    So its variance is ||g||^2 - g_i^2, and 4 standard errors bound 4096 directions' mean (256 entries, seeded).
    """
    gradient = linear.uphill(y).flatten(1)
    samples = 4096
    error = (estimated(linear, inner, y, samples, fixed(8)) - gradient).abs()
    deviation = (gradient.square().sum(1, keepdim=True) - gradient.square()).sqrt() / samples**0.5
    assert (error < 4 * deviation).all()
    # and it is no smaller than chance makes it: an average that used the gradient itself would be
    assert 0.8 < (error / deviation).square().mean() < 1.2


def test_one_direction_by_hand(smooth, x, y):
    noise = fixed(8)
    v = torch.where(noise.child(0).uniform((1, 2, 4, 4)) >= 0, 1.0, -1.0).double().squeeze(1)
    assert v.abs().min() == 1
    with torch.no_grad():
        slope = (margin(smooth(x + 0.05 * v), y) - margin(smooth(x - 0.05 * v), y)) / 0.1
    found = estimate(smooth, x, y, margin, samples=1, delta=0.05, noise=noise)
    torch.testing.assert_close(found, slope.reshape(-1, 1, 1, 1) * v, rtol=0, atol=1e-12)


def test_directions_differ_between_draws_examples_and_steps(linear, inner, y):
    found = estimated(linear, inner[:1].expand(8, -1, -1, -1), y[:1].expand(8), 1, fixed(8))
    assert len(found.sign().unique(dim=0)) == 8
    two = estimated(linear, inner, y, 2 * DIRECTIONS, fixed(8)) * 2 - estimated(linear, inner, y, DIRECTIONS, fixed(8))
    assert (two - estimated(linear, inner, y, DIRECTIONS, fixed(8))).abs().amin(1).max() > 1e-3


def by_hand(model, x: Tensor, y: Tensor, ball, steps: int, noise: Stream) -> list[Tensor]:
    """The points of Adam with torch's own optimiser, projected."""
    delta = torch.zeros_like(x, requires_grad=True)
    adam, points = torch.optim.Adam([delta], lr=0.05, maximize=True), []
    for step in range(1, steps + 1):
        at = (x + delta).detach()
        delta.grad = estimate(model, at, y, margin, samples=4, delta=0.01, noise=noise.child("spsa", step))
        adam.step()
        with torch.no_grad():
            points.append((x + ball.project(delta)).clamp(0, 1))
            delta.copy_(points[-1] - x)
    return points


@pytest.mark.parametrize("ball", [Linf(0.3), L2(1.0)], ids=str)
def test_the_steps_are_adams_and_the_best_point_is_kept(smooth, x, ball):
    with torch.no_grad():
        y = smooth(x).argmax(1)
        noise = Stream(("by hand",), torch.arange(8))
        points = by_hand(smooth, x, y, ball, 6, noise)
        gain = torch.stack([margin(smooth(point), y) for point in points])
    found = spsa(smooth, x, y, threat=ball, steps=6, samples=4, step_size=0.05, noise=noise)
    # the first point that breaks, or the highest of all
    which = [int((g > 0).nonzero()[0]) if (g > 0).any() else int(g.argmax()) for g in gain.T]
    assert len(set(which)) > 1
    expected = torch.stack([points[step][i] for i, step in enumerate(which)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_linf_optimum_of_a_linear_model(linear, inner):
    """With directions enough, every entry of the estimate has its sign most of the time, and Adam averages the rest."""
    with torch.no_grad():
        y = linear(inner).argmax(1)
    eps = 0.5 * ((linear.weight[0] - linear.weight[1]) @ inner.flatten(1).T + 0.5).abs().detach()
    eps = eps / (linear.weight[0] - linear.weight[1]).abs().sum().detach()
    found = spsa(linear, inner, y, threat=Linf(eps), steps=40, samples=256)
    best = inner + eps.reshape(-1, 1, 1, 1) * linear.uphill(y).sign()
    with torch.no_grad():
        lost = margin(linear(best), y) - margin(linear(found), y)
        gained = margin(linear(best), y) - margin(linear(inner), y)
    assert (lost >= -1e-12).all()
    assert (lost <= 0.02 * gained).all()


def test_it_breaks_breakable_examples_alone():
    problem = linear_problem(0, n=40)
    found = spsa(problem.model, problem.x, problem.y, threat=Linf(EPS), steps=20)
    with torch.no_grad():
        gain = margin(problem.model(found), problem.y)
    best = problem.best_linf()
    assert not (gain > best + 1e-5).any()
    assert ((gain > 0) & (best > 0)).sum() >= 0.9 * (best > 0).sum()


# --- cost


@pytest.mark.parametrize("samples", [1, DIRECTIONS, DIRECTIONS + 3])
def test_a_step_costs_two_passes_a_direction_and_one(linear, inner, samples):
    with torch.no_grad():
        y = linear(inner).argmax(1)
    with counted(linear) as passes:
        spsa(linear, inner, y, threat=Linf(1e-4), steps=5, samples=samples)
    assert passes.example_forwards == 8 * 5 * (2 * samples + 1)
    assert passes.backwards == 0


def test_a_broken_example_takes_no_more_passes(linear, inner, y):
    """Whoever is misclassified after the first step leaves with that point."""
    with torch.no_grad():
        wrong = linear(inner).argmax(1) != y
    assert 0 < int(wrong.sum()) < 8
    with counted(linear) as passes:
        spsa(linear, inner, y, threat=Linf(1e-6), **FEW)
    assert passes.example_forwards == 9 * (int(wrong.sum()) + 3 * int((~wrong).sum()))


def test_no_room_costs_nothing(linear, x, y):
    with counted(linear) as passes:
        assert torch.equal(spsa(linear, x, y, threat=L2(0), **FEW), x)
        assert spsa(linear, x[:0], y[:0], threat=Linf(1), **FEW).shape == (0, 2, 4, 4)
    assert passes.forwards == 0


# --- one example, whatever the others


@pytest.mark.parametrize("loss", ["margin", "cross_entropy"])
@pytest.mark.parametrize("kind", [Linf, L2])
def test_an_example_does_not_depend_on_its_batch_mates(kind, loss):
    """More examples than are probed at once."""
    n = PROBES // (2 * DIRECTIONS) + 8
    model = RowByRow()
    x, y = model.images(n)
    eps = torch.linspace(0.2, 2, n, dtype=torch.float64) * (EPS if kind is Linf else 0.2)
    noise, order = Stream(("run",), 10 + torch.arange(n)), torch.randperm(n, generator=torch.Generator())
    settings = {"steps": 4, "samples": DIRECTIONS, "loss": loss}
    whole = spsa(model, x, y, threat=kind(eps), noise=noise, **settings)
    mixed = spsa(model, x[order], y[order], threat=kind(eps[order]), noise=noise[order], **settings)
    assert torch.equal(mixed, whole[order])
    parts = [spsa(model, x[p], y[p], threat=kind(eps[p]), noise=noise[p], **settings) for p in torch.arange(n).split(9)]
    assert torch.equal(torch.cat(parts), whole)
    small = spsa(Batched(model, size=7), x, y, threat=kind(eps), noise=noise, **settings)
    assert torch.equal(small, whole)
    assert not torch.equal(spsa(model, x, y, threat=kind(eps), noise=noise.child(1), **settings), whole)


# --- settings


@pytest.mark.parametrize(
    ("setting", "value"), [("steps", 0), ("samples", 0), ("delta", 0), ("step_size", -1), ("loss", "margn")]
)
def test_settings_out_of_range_are_refused(linear, x, y, setting, value):
    with pytest.raises(ValueError, match=setting):
        spsa(linear, x, y, threat=Linf(0.1), **{setting: value})


def test_kl_is_refused(linear, x, y):
    with pytest.raises(ValueError, match="use loss: margin"):
        spsa(linear, x, y, threat=Linf(0.1), loss="kl")


def test_probabilities_and_losses_of_ones_own(smooth, x, y):
    soft = nn.functional.one_hot(y, 4).double() * 0.6 + 0.1
    settings = {"threat": Linf(0.1), **FEW}
    assert torch.equal(spsa(smooth, x, soft, **settings), spsa(smooth, x, y, **settings))
    assert torch.equal(spsa(smooth, x, y, loss=margin, **settings), spsa(smooth, x, y, **settings))
    entropy = spsa(smooth, x, soft, loss="cross_entropy", **settings)
    assert not torch.equal(entropy, spsa(smooth, x, y, loss="cross_entropy", **settings))
