"""FAB against closed forms, against the algorithm written out for one image, and to the pass."""

import pytest
import torch
from torch import Tensor, nn

from conftest import few
from oracles import EPS, RowByRow, linear_problem
from toughen.attacks.fab import fab, to_plane
from toughen.attacks.refine import refined
from toughen.losses import margin
from toughen.models.batched import Batched
from toughen.models.cost import Passes, counted
from toughen.noise import fixed
from toughen.threat import L2, Linf, Threat

NORMS = {"linf": Linf(1), "l2": L2(1)}


def sorted_plane(point: Tensor, w: Tensor, gap: float, norm: str) -> Tensor:
    """One projection, by sorting the breakpoints of its dual, in float64: the textbook's way."""
    point, w = point.double(), w.double()
    way = -w.sign() * (1 if gap > 0 else -1)
    room = torch.where(way > 0, 1 - point, point)
    share = w.abs() if norm == "l2" else torch.ones_like(w)
    order = (room / share).nan_to_num(0, 0).argsort()
    slope, reached, at = (w.abs() * share).sum(), torch.zeros(()).double(), torch.zeros(()).double()
    for i in order[w[order] != 0].tolist():
        stop = room[i] / share[i]
        if reached + slope * (stop - at) >= abs(gap):
            return way * torch.minimum((at + (abs(gap) - reached) / slope) * share, room)
        reached, at = reached + slope * (stop - at), stop
        slope = slope - w[i].abs() * share[i]
    return way * room


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e20])
def test_projections_are_exact(norm, dtype, size):
    draw = torch.Generator().manual_seed(7)
    n, d = 60, 96
    point = (torch.rand(n, d, generator=draw, dtype=torch.float64) * 1.6 - 0.3).clamp(0, 1).to(dtype)
    w = torch.randn(n, d, generator=draw, dtype=torch.float64) ** 3
    w[torch.rand(n, d, generator=draw) < 0.2] = 0
    # From hardly anything to more than the box has room for.
    most = (w.abs() * torch.where(w > 0, point, 1 - point)).sum(1)
    gap = most * torch.logspace(-6, 0.3, n, dtype=torch.float64)
    gap[::3] *= -1
    w[5], gap[7] = 0, 0
    w, gap = (w * size).to(dtype), (gap * size).to(dtype)
    found = to_plane(point.reshape(n, 6, 4, 4), w.reshape(n, 6, 4, 4), gap, NORMS[norm]).flatten(1).double()
    expected = torch.stack([sorted_plane(point[i], w[i], gap[i].item(), norm) for i in range(n)])
    expected[[5, 7]] = 0
    digits = 3e-6 if dtype == torch.float32 else 1e-13
    scale = expected.abs().amax(1, keepdim=True)
    assert ((found - expected).abs() <= digits * scale + torch.finfo(dtype).tiny).all()
    assert ((point + found) <= 1 + 1e-7).all()
    assert ((point + found) >= -1e-7).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("w", "gap"), [(1e38, 3e38), (1.0, torch.nan), (1.0, torch.inf), (1e-45, 1.0)])
def test_projections_of_extreme_numbers_end_in_the_box(norm, w, gap):
    point = torch.rand(2, 5, generator=torch.Generator().manual_seed(0))
    found = to_plane(point, torch.full((2, 5), w), torch.tensor([gap, -1.0]), NORMS[norm])
    assert ((point + found >= 0) & (point + found <= 1)).all()


def written_out(model: nn.Module, x: Tensor, label: int, others: list[int], norm: str, steps: int) -> Tensor:
    """A run of the algorithm for one image, with whole Jacobians and the textbook's projection."""

    def size(way: Tensor) -> Tensor:
        return (way.norm() if norm == "l2" else way.abs().max()).clamp(min=1e-8)

    best, nearest, point = x, float("inf"), x
    for _ in range(steps):
        logits = model(point.unsqueeze(0))[0].detach()
        jacobian = torch.autograd.functional.jacobian(lambda z: model(z.unsqueeze(0))[0], point)
        planes = []
        for k in others:
            gap, w = logits[k] - logits[label], jacobian[k] - jacobian[label]
            planes.append(((gap.abs() / (w.norm() if norm == "l2" else w.abs().sum())).item(), gap, w))
        _, gap, w = min(planes, key=lambda plane: plane[0])
        at_clean = gap + (w * (x - point)).sum()
        one = sorted_plane(point.flatten(), w.flatten(), gap.item(), norm).reshape(x.shape)
        two = sorted_plane(x.flatten(), w.flatten(), at_clean.item(), norm).reshape(x.shape)
        alpha = min(0.1, (size(one) / (size(one) + size(two))).item())
        point = ((1 - alpha) * (point + 1.05 * one) + alpha * (x + 1.05 * two)).clamp(0, 1)
        if model(point.unsqueeze(0))[0].argmax() != label:
            if size(point - x) < nearest:
                best, nearest = point, size(point - x)
            point = x + 0.9 * (point - x)
    return best


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("targets", [None, 1, 2, 9])
def test_as_written_out(smooth, x, norm, targets):
    logits = smooth(x)
    y = logits.argmax(1)
    found = fab(smooth, x, y, threat=NORMS[norm], steps=12, targets=targets, refine=0)
    crossed = 0
    for i in range(len(x)):
        ranked = logits[i].argsort(descending=True).tolist()[1:]
        rounds = [ranked] if targets is None else [[k] for k in ranked[:targets]]
        runs = [written_out(smooth, x[i], int(y[i]), others, norm, 12) for others in rounds]
        sizes = torch.stack([(run - x[i]).flatten().norm(p=2 if norm == "l2" else torch.inf) for run in runs])
        expected = runs[int(torch.where(sizes > 0, sizes, torch.inf).argmin())]
        torch.testing.assert_close(found[i], expected, rtol=0, atol=1e-9)
        crossed += not torch.equal(expected, x[i])
    assert crossed == 8


@pytest.mark.parametrize("seed", few(0, 1, 2))
def test_breakable_linear_problems(seed):
    problem = linear_problem(seed)
    x_adv = fab(problem.model, problem.x, problem.y, threat=Linf(EPS), steps=30, targets=9, stop_inside=True)
    inside = Linf(0).size(x_adv.double() - problem.x.double()) <= EPS + 6e-8
    found = inside & (problem.model(x_adv).argmax(1) != problem.y)
    assert not (found & ~problem.breakable()).any()
    assert found.sum() >= 0.982 * problem.breakable().sum()


@pytest.mark.parametrize("targets", [None, 9])
def test_distances_of_linear_problems(targets):
    problem = linear_problem(3, inner=True, n=100)
    x_adv = fab(problem.model, problem.x, problem.y, threat=L2(1), steps=30, targets=targets)
    assert (problem.model(x_adv).argmax(1) != problem.y).all()
    size, best = L2(0).size(x_adv.double() - problem.x.double()), problem.distance_l2()
    assert (size >= best - 1e-6).all()
    assert (size <= 1.01 * best).all()


class Far(nn.Module):
    """Three classes, none of which the first ever yields to; gradients everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        lead = 2 + x.flatten(1).sum(1).sin()
        return torch.stack([lead, -lead, -2 * lead], 1)


class Slope(nn.Module):
    """Two classes, linear: every step, with its overshoot, crosses."""

    def forward(self, x: Tensor) -> Tensor:
        lead = x.flatten(1).mean(1) - 0.1
        return torch.stack([lead, -lead], 1)


@pytest.mark.parametrize(
    ("model", "settings", "forwards", "backwards"),
    [
        (Far(), {"steps": 1}, 2, 2),
        (Far(), {"steps": 7}, 1 + 7, 2 * 7),
        (Far(), {"steps": 7, "targets": 1}, 1 + 7, 7),
        (Far(), {"steps": 7, "targets": 2}, 2 * (1 + 7), 2 * 7),
        (Far(), {"steps": 7, "targets": 9, "restarts": 3}, 6 * (1 + 7), 6 * 7),
        # the first crossing takes one by surprise; then two forwards a step; the last step is only looked at
        (Slope(), {"steps": 1}, 2, 1),
        (Slope(), {"steps": 2}, 1 + 2 + 1, 1 + 2),
        (Slope(), {"steps": 7}, 1 + 2 * 6 + 1, 1 + 2 + 5),
        (Slope(), {"steps": 7, "targets": 1, "stop_inside": True}, 1 + 2 * 6 + 1, 1 + 2 + 5),
    ],
)
def test_a_standing_example_costs_exactly(x, model, settings, forwards, backwards):
    with counted(model) as passes:
        found = fab(model, x, torch.zeros(8, dtype=torch.int64), threat=L2(0.01), refine=0, **settings)
    assert passes == Passes(forwards, backwards, 0, 8 * forwards, 8 * backwards)
    assert torch.equal(found, x) == isinstance(model, Far)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_stop_inside_the_found_leave(x, dtype):
    """Those that the ball holds a way for are found at the first step, before they cost another pass."""
    x, y = x.to(dtype), torch.zeros(8, dtype=torch.int64)
    distance = (x.flatten(1).mean(1) - 0.1) * 32**0.5
    eps = torch.where(torch.arange(8) < 5, 1.2 * distance, 0.5 * distance)
    with counted(model := Slope()) as passes:
        found = fab(model, x, y, threat=L2(eps), steps=4, restarts=2, targets=1, stop_inside=True)
    assert (L2(0).size(found - x)[:5] <= eps[:5]).all()
    assert (model(found).argmax(1) != y).all()
    assert passes.example_forwards == 5 * 2 + 3 * 2 * (1 + 2 * 3 + 1)
    torch.testing.assert_close(L2(0).size(found - x)[:5], (1.05 * distance)[:5], rtol=0.2, atol=0)


@pytest.mark.parametrize(
    "settings", [{}, {"targets": 3, "restarts": 2}, {"targets": 3, "restarts": 2, "stop_inside": True}]
)
@pytest.mark.parametrize("threat", [Linf(0.05), L2(torch.linspace(0, 0.5, 8))], ids=str)
def test_company_does_not_matter(x, threat: Threat, settings):
    y, noise, settings = (model := RowByRow())(x).argmax(1), fixed(8), {"steps": 8, **settings}
    whole = fab(model, x, y, threat=threat, noise=noise, **settings)
    assert (whole != x).flatten(1).any(1).all()
    for order in torch.tensor([3, 1, 7, 0, 5]), torch.tensor([6]):
        part = fab(model, x[order], y[order], threat=threat[order], noise=noise[order], **settings)
        assert torch.equal(part, whole[order])
    assert torch.equal(fab(Batched(model, 3), x, y, threat=threat, noise=noise, **settings), whole)


def test_more_targets_find_what_is_nearer(x):
    y, threat = (model := RowByRow())(x).argmax(1), L2(2.0)
    one, three = (threat.size(fab(model, x, y, threat=threat, steps=4, targets=targets) - x) for targets in (1, 3))
    assert (three <= one).all()
    assert (three < one).any()


class Plateau(nn.Module):
    """Flat around grey, falling on all sides further out."""

    def forward(self, x: Tensor) -> Tensor:
        lead = 0.01 - torch.relu((x.flatten(1).mean(1) - 0.5).abs() - 0.003)
        return torch.stack([lead, -lead], 1)


def test_restarts_leave_a_plateau():
    """By a start in a ball of half the radius, in which one in two lies outside the flat part."""
    x, y = torch.full((8, 2, 4, 4), 0.5, dtype=torch.float64), torch.zeros(8, dtype=torch.int64)
    found = [fab(Plateau(), x, y, threat=Linf(0.1), steps=3, restarts=r) for r in (1, 2, 12)]
    moved = torch.stack([(z != x).flatten(1).any(1) for z in found])
    assert moved.sum(1)[0] == 0
    assert 0 < moved.sum(1)[1] < 8
    assert moved.sum(1)[2] == 8
    assert (Linf(0).size(found[2] - x) >= 0.013).all()
    starts = [(x + Linf(0.05).sample(x, fixed(8).child("fab", 0, r))).clamp(0, 1) for r in range(1, 12)]
    outside = torch.stack([(start.flatten(1).mean(1) - 0.5).abs() > 0.003 for start in starts])
    assert torch.equal(moved[1], outside[0])


def test_the_radius_counts_where_it_is_asked_for(x):
    y = (model := RowByRow())(x).argmax(1)
    free = fab(model, x, y, threat=Linf(0.0), steps=6, refine=0)
    assert torch.equal(fab(model, x, y, threat=Linf(0.5), steps=6, refine=0), free)
    assert torch.equal(fab(model, x, y, threat=Linf(0.0), steps=6, stop_inside=True), free)
    assert not torch.equal(fab(model, x, y, threat=Linf(0.5), steps=6, stop_inside=True), free)


def test_what_is_found_is_refined(x):
    """By `refine.refined`, unless `stop_inside` is set: AutoAttack's passes are what they were."""
    y, threat = (model := RowByRow())(x).argmax(1), L2(0.0)
    first, last = (fab(model, x, y, threat=threat, steps=6, refine=rounds) for rounds in (0, 3))
    assert torch.equal(refined(model, x, y, first, margin(model(x).detach(), y), threat=threat, rounds=3), last)
    assert (threat.size(last - x) < threat.size(first - x)).all()
    assert torch.equal(fab(model, x, y, threat=threat, steps=6, refine=3, stop_inside=True), first)


def test_what_is_misclassified_is_left(x):
    y = (model := RowByRow())(x).argmax(1)
    wrong = torch.arange(8) % 2 == 0
    found = fab(model, x, torch.where(wrong, (y + 1) % 4, y), threat=L2(1), steps=3, targets=2)
    assert torch.equal(found[wrong], x[wrong])
    assert torch.equal(found[~wrong], fab(model, x[~wrong], y[~wrong], threat=L2(1), steps=3, targets=2))


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_gradients_of_no_use_find_nothing(x, value):
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            lead = x.flatten(1).sum(1)
            if lead.requires_grad:
                lead.register_hook(lambda grad: grad * value)
            return torch.stack([lead, -lead], 1)

    y = torch.zeros(8, dtype=torch.int64)
    assert torch.equal(fab(Broken(), x, y, threat=Linf(0.1), steps=3), x)


def test_probabilities_and_empty_batches(smooth, x):
    y = smooth(x).argmax(1)
    found = fab(smooth, x, nn.functional.one_hot(y, 4).double(), threat=L2(1), steps=3)
    assert torch.equal(found, fab(smooth, x, y, threat=L2(1), steps=3))
    assert fab(smooth, x[:0], y[:0], threat=L2(1), steps=3, targets=2).shape == (0, 2, 4, 4)


@pytest.mark.parametrize("settings", [{"eta": 0.9}, {"beta": 1}, {"alpha_max": 2}, {"targets": 0}, {"steps": 0}])
def test_errors(x, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        fab(Far(), x, torch.zeros(8, dtype=torch.int64), threat=L2(1), **settings)
