"""The attacks of Carlini & Wagner against closed forms, against plain autograd and Adam, and to the pass."""

import pytest
import torch
from torch import Tensor, nn

from conftest import few
from oracles import EPS, RowByRow, linear_problem
from toughen.attacks.carlini_wagner import carlini_wagner, carlini_wagner_linf
from toughen.losses import margin
from toughen.models.batched import Batched
from toughen.models.cost import Passes, counted
from toughen.threat import L2, Linf


class Sure(nn.Module):
    """Right about class 0, with a gradient, whatever the image."""

    def forward(self, x: Tensor) -> Tensor:
        lead = 2 + x.flatten(1).mean(1)
        return torch.stack([lead, -lead], 1)


def written_out(model, x: Tensor, label: int, rate, const, searches, steps, abort, confidence) -> Tensor:
    """The L2 attack for one image, by torch's own Adam on autograd's own gradient."""
    start = ((2 * x - 1) * 0.999999).atanh()
    centre = (start.tanh() + 1) / 2
    best, nearest, low, high = x, float("inf"), 0.0, 1e10
    for search in range(searches):
        const = high if searches >= 10 and search + 1 == searches else const
        w = start.clone().requires_grad_()
        adam, previous, succeeded = torch.optim.Adam([w], lr=rate), float("inf"), False
        for step in range(steps):
            point = (w.tanh() + 1) / 2
            logits = model(point.unsqueeze(0))[0]
            others = torch.cat([logits[:label], logits[label + 1 :]])
            lead = (logits[label] - others.max() + confidence).clamp(min=0)
            loss = (point - centre).square().sum() + const * lead
            if others.max() > logits[label] + confidence:
                succeeded = True
                if (point - x).norm() < nearest:
                    best, nearest = point.detach(), (point - x).norm().item()
            if abort and step % max(1, steps // 10) == 0:
                if loss > 0.9999 * previous:
                    break
                previous = loss.item()
            adam.zero_grad()
            loss.backward()
            adam.step()
        low, high = (low, min(high, const)) if succeeded else (max(low, const), high)
        const = (low + high) / 2 if high < 1e10 else const * 10
    return best


@pytest.mark.parametrize(
    ("rate", "const", "searches", "steps", "abort", "confidence"),
    [
        (0.01, 0.01, 5, 30, False, 0.0),
        (0.01, 0.01, 5, 60, True, 0.0),
        (0.1, 100.0, 5, 50, True, 0.0),
        (0.02, 0.1, 11, 12, False, 0.0),
        (0.02, 1.0, 4, 40, True, 0.5),
        (0.3, 1.0, 2, 5, True, 0.0),
    ],
)
def test_as_written_out(x, rate, const, searches, steps, abort, confidence):
    y = (model := RowByRow())(x).argmax(1)
    found = carlini_wagner(
        model, x, y, threat=L2(1), learning_rate=rate, initial_const=const, binary_search_steps=searches, steps=steps,
        abort_early=abort, confidence=confidence, refine=0,
    )  # fmt: skip
    # Each second one: an image written out takes longer than all at once.
    expected = torch.stack(
        [written_out(model, x[i], int(y[i]), rate, const, searches, steps, abort, confidence) for i in range(0, 8, 2)]
    )
    torch.testing.assert_close(found[::2], expected, rtol=0, atol=1e-5)
    assert (found != x).flatten(1).any(1).sum() >= 4


def test_distances_of_linear_problems():
    problem = linear_problem(inner=True, n=20)
    settings = {"steps": 150, "learning_rate": 2e-3, "binary_search_steps": 6, "abort_early": False}
    x_adv = carlini_wagner(problem.model, problem.x, problem.y, threat=L2(1), **settings)
    assert (problem.model(x_adv).argmax(1) != problem.y).all()
    size, best = L2(0).size(x_adv.double() - problem.x.double()), problem.distance_l2()
    assert (size >= best - 1e-6).all()
    assert (size <= 1.02 * best).all()


@pytest.mark.parametrize("seed", few(0, 1))
def test_linf_on_linear_problems(seed):
    problem = linear_problem(seed)
    x_adv = carlini_wagner_linf(problem.model, problem.x, problem.y, threat=Linf(EPS))
    found = problem.model(x_adv).argmax(1) != problem.y
    assert not (found & ~problem.breakable()).any()
    assert found.sum() >= 0.95 * problem.breakable().sum()
    assert (x_adv - problem.x).abs().max() <= EPS + 6e-8
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


@pytest.mark.parametrize(("steps", "searches"), [(1, 3), (2, 1), (2, 3), (7, 1), (7, 4)])
def test_a_standing_example_costs_exactly(x, steps, searches):
    y = torch.zeros(8, dtype=torch.int64)
    settings = {"steps": steps, "binary_search_steps": searches, "abort_early": False}
    with counted(model := Sure()) as passes:
        found = carlini_wagner(model, x, y, threat=L2(1), **settings)
    forwards, backwards = 1 + searches * (steps - 1), 1 + searches * max(0, steps - 2)
    assert torch.equal(found, x)
    assert passes == Passes(forwards, backwards, 0, 8 * forwards, 8 * backwards)


def test_early_abort_saves_passes(x):
    """Without an image to move, the loss cannot fall: nothing comes after the first check."""

    class Blind(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([1 + 0 * x.flatten(1).sum(1), 0 * x.flatten(1).sum(1)], 1)

    with counted(model := Blind()) as passes:
        carlini_wagner(model, x, torch.zeros(8, dtype=torch.int64), threat=L2(1), steps=100, binary_search_steps=3)
    assert passes == Passes(1 + 3 * 10, 1 + 3 * 10, 0, 8 * 31, 8 * 31)


def test_with_stop_inside_the_found_leave(x):
    y = (model := RowByRow())(x).argmax(1)
    settings = {"steps": 40, "learning_rate": 0.02, "initial_const": 10}
    nearest = carlini_wagner(model, x, y, threat=L2(0.0), stop_inside=True, **settings)
    size = L2(0).size(nearest - x)
    eps = torch.where(torch.arange(8) < 4, 1.01 * size, 0.9 * size)
    with counted(model) as some:
        found = carlini_wagner(model, x, y, threat=L2(eps), stop_inside=True, **settings)
    with counted(model) as none:
        carlini_wagner(model, x, y, threat=L2(eps), **settings)
    assert (L2(0).size(found - x)[:4] <= eps[:4]).all()
    assert torch.equal(found[4:], nearest[4:])
    assert some.example_forwards < none.example_forwards


@pytest.mark.parametrize("confidence", [0.0, 0.5])
def test_what_is_found_is_refined(x, confidence):
    """By `refine.refined`, to no less confidence than was asked for."""
    y, threat = (model := RowByRow())(x).argmax(1), L2(0.0)
    settings = {"steps": 40, "learning_rate": 0.02, "initial_const": 10, "confidence": confidence}
    first, last = (carlini_wagner(model, x, y, threat=threat, refine=rounds, **settings) for rounds in (0, 3))
    found = (first != x).flatten(1).any(1)
    assert found.sum() >= 4
    assert torch.equal(last[~found], x[~found])
    assert (margin(model(last), y)[found] > confidence).all()
    assert (L2(0).size(last - x) <= L2(0).size(first - x)).all()
    assert (L2(0).size(last - x) < L2(0).size(first - x))[found].double().mean() > 0.5


def test_more_than_enough_is_found_at_once(x):
    y = (model := RowByRow())(x).argmax(1)
    with counted(model) as passes:
        found = carlini_wagner(model, x, y, threat=L2(9), stop_inside=True, learning_rate=0.05, initial_const=100)
    assert (model(found).argmax(1) != y).all()
    assert passes.forwards < 20


@pytest.mark.parametrize("attack", [carlini_wagner, carlini_wagner_linf])
def test_company_does_not_matter(x, attack):
    y = (model := RowByRow())(x).argmax(1)
    threat = {carlini_wagner: L2, carlini_wagner_linf: Linf}[attack](torch.linspace(0, 0.2, 8))
    settings = {"steps": 30, "learning_rate": 0.02} if attack is carlini_wagner else {"steps": 5}
    for more in ({}, {"stop_inside": True}) if attack is carlini_wagner else ({},):
        whole = attack(model, x, y, threat=threat, **settings, **more)
        assert (whole != x).flatten(1).any(1)[1:].all()
        for order in torch.tensor([3, 1, 7, 0, 5]), torch.tensor([6]):
            part = attack(model, x[order], y[order], threat=threat[order], **settings, **more)
            assert torch.equal(part, whole[order])
        assert torch.equal(attack(Batched(model, 3), x, y, threat=threat, **settings, **more), whole)


def test_what_is_misclassified_is_left(x):
    y = (model := RowByRow())(x).argmax(1)
    wrong = torch.arange(8) % 2 == 0
    labels = torch.where(wrong, (y + 1) % 4, y)
    for attack, threat in ((carlini_wagner, L2(1)), (carlini_wagner_linf, Linf(0.1))):
        found = attack(model, x, labels, threat=threat, steps=20)
        assert torch.equal(found[wrong], x[wrong])
        assert torch.equal(found[~wrong], attack(model, x[~wrong], y[~wrong], threat=threat, steps=20))


def line_search(model, x: Tensor, label: int, eps: float, steps: int) -> Tensor:
    """The Linf attack for one image, as the toolbox's text has it."""
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    w, rate = (((x - low) / (high - low) * 2 - 1) * 0.999999).atanh(), eps / 20

    def image(w: Tensor) -> Tensor:
        return (low + (high - low) * (w.tanh() / 0.999999 + 1) / 2).clamp(low, high)

    def lead(z: Tensor) -> Tensor:
        logits = model(z.unsqueeze(0))[0]
        return (logits[label] - torch.cat([logits[:label], logits[label + 1 :]]).max()).clamp(min=0)

    point = x
    for _ in range(steps):
        here = point.clone().requires_grad_()
        if (now := lead(here)) <= 0:
            break
        (grad,) = torch.autograd.grad(now, here)
        way = -grad * (high - low) * (1 - w.tanh() ** 2) / (2 * 0.999999)
        tried = {}
        for halving in range(5):
            tried[rate] = lead(image(w + rate * way)).item()
            if tried[rate] < now or halving == 4:
                break
            rate /= 2
        if len(tried) == 1:
            for _ in range(5):
                tried[2 * rate] = lead(image(w + 2 * rate * way)).item()
                if tried[2 * rate] >= tried[rate]:
                    break
                rate *= 2
        good = {length: value for length, value in tried.items() if value < now}
        if good:
            w = w + min(good, key=lambda length: good[length]) * way
            point = image(w).detach()
    return point


@pytest.mark.parametrize("eps", [0.002, 0.03, 0.3])
def test_the_line_search_as_written_out(x, eps):
    y = (model := RowByRow())(x).argmax(1)
    found = carlini_wagner_linf(model, x, y, threat=Linf(eps), steps=6)
    expected = torch.stack([line_search(model, x[i], int(y[i]), eps, 6) for i in range(8)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


def test_linf_costs(x):
    """All doublings succeed at first: a clean pass, then a gradient and six tries."""
    with counted(model := Sure()) as passes:
        carlini_wagner_linf(model, x, torch.zeros(8, dtype=torch.int64), threat=Linf(0.1), steps=1)
    assert passes == Passes(1 + 1 + 1 + 5, 1, 0, 64, 8)


def test_no_radius_probabilities_and_empty_batches(x):
    y = (model := RowByRow())(x).argmax(1)
    one_hot = nn.functional.one_hot(y, 4).double()
    assert torch.equal(carlini_wagner_linf(model, x, y, threat=Linf(0.0), steps=3), x)
    for attack, threat in ((carlini_wagner, L2(1)), (carlini_wagner_linf, Linf(0.1))):
        found = attack(model, x, y, threat=threat, steps=5)
        assert torch.equal(attack(model, x, one_hot, threat=threat, steps=5), found)
        assert attack(model, x[:0], y[:0], threat=threat, steps=5).shape == (0, 2, 4, 4)


def test_errors(x):
    y = torch.zeros(8, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"is for l2 balls, the threat is linf:8/255; use carlini_wagner_linf"):
        carlini_wagner(Sure(), x, y, threat=Linf(8 / 255))
    with pytest.raises(ValueError, match=r"is for linf balls, the threat is l2:0.5; use carlini_wagner"):
        carlini_wagner_linf(Sure(), x, y, threat=L2(0.5))
    with pytest.raises(ValueError, match="learning_rate"):
        carlini_wagner(Sure(), x, y, threat=L2(0.5), learning_rate=0)
