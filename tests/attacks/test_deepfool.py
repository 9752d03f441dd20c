"""DeepFool against the closed form, against the algorithm written out for one image, and to the pass."""

import pytest
import torch
from torch import Tensor, nn

from oracles import RowByRow, linear_problem
from toughen.attacks.deepfool import deepfool, nearest_boundary, ranked_others
from toughen.attacks.refine import refined as refined_from
from toughen.losses import margin
from toughen.models.batched import Batched
from toughen.models.cost import Passes, counted
from toughen.threat import L2, Linf, Threat


def written_out(model: nn.Module, x: Tensor, label: int, norm: str, steps: int, candidates: int) -> Tensor:
    """The algorithm for one image, with whole Jacobians."""
    order = model(x.unsqueeze(0))[0].detach().argsort(descending=True).tolist()
    others = [k for k in order if k != label][: candidates - 1]
    point = x
    for step in range(steps):
        logits = model(point.unsqueeze(0))[0].detach()
        if logits.argmax() != label:
            return point
        jacobian = torch.autograd.functional.jacobian(lambda z: model(z.unsqueeze(0))[0], point)
        ways = []
        for k in others:
            gap, w = (logits[k] - logits[label]).abs(), jacobian[k] - jacobian[label]
            ways.append(((gap / (w.norm() if norm == "l2" else w.abs().sum())).item(), gap, w))
        _, gap, w = min(ways, key=lambda way: way[0])
        if step >= steps / 2:
            w = w * ~((point == 0) & (w < 0) | (point == 1) & (w > 0))
        length = gap / (w.norm() if norm == "l2" else w.abs().sum()) + 1e-4
        point = (point + 1.02 * length * (w / w.norm() if norm == "l2" else w.sign())).clamp(0, 1)
    return point if model(point.unsqueeze(0))[0].argmax() != label else x


class Bowl(nn.Module):
    """Three classes; the first always leads by one at least, and its lead has a gradient almost everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        height = x.flatten(1).square().sum(1)
        return torch.stack([1 + height, -height, -2 * height], 1)


def test_linear_models_are_solved_in_one_step():
    problem = linear_problem(inner=True, dtype=torch.float64)
    distance = problem.distance_l2()
    with counted(problem.model) as passes:
        x_adv = deepfool(problem.model, problem.x, problem.y, threat=L2(0.5), refine=0)
    assert passes == Passes(2, 9, 0, 600, 2700)
    assert (problem.model(x_adv).argmax(1) != problem.y).all()
    size = L2(0).size(x_adv - problem.x)
    assert (size >= distance).all()
    torch.testing.assert_close(size, 1.02 * (distance + 1e-4), rtol=1e-9, atol=0)


def test_linf_goes_to_the_boundary_with_the_smallest_entries():
    problem = linear_problem(inner=True, dtype=torch.float64)
    x_adv = deepfool(problem.model, problem.x, problem.y, threat=Linf(0.1), refine=0)
    size = Linf(0).size(x_adv - problem.x)
    # Where it is breakable at all, at that radius and at none that is smaller by the overshoot.
    assert all(problem.breakable(s.item())[i] for i, s in enumerate(size[:20]))
    assert not any(problem.breakable(s.item() / 1.021 - 1e-4)[i] for i, s in enumerate(size[:20]))


@pytest.mark.parametrize("norm", [Linf, L2])
@pytest.mark.parametrize(("steps", "candidates"), [(1, 10), (2, 10), (50, 10), (50, 3), (50, 2)])
def test_as_written_out(smooth, x, norm, steps, candidates):
    y = smooth(x).argmax(1)
    found = deepfool(smooth, x, y, threat=norm(0.1), steps=steps, candidates=candidates, refine=0)
    expected = torch.stack([written_out(smooth, x[i], int(y[i]), norm.norm, steps, candidates) for i in range(len(x))])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert steps < 50 or (found != x).flatten(1).any(1).all()


@pytest.mark.parametrize(("steps", "candidates", "backwards"), [(1, 3, 2), (5, 3, 2), (5, 2, 1), (5, 10, 2)])
def test_a_standing_example_costs_exactly(x, steps, candidates, backwards):
    with counted(model := Bowl()) as passes:
        found = deepfool(model, x, torch.zeros(8, dtype=torch.int64), threat=L2(1), steps=steps, candidates=candidates)
    # With nothing ever to be found; where the gradient vanishes, at 0, an example leaves early.
    assert torch.equal(found, x)
    assert passes.forwards <= 2 * steps
    assert passes.backwards <= backwards * steps
    assert passes.example_backwards <= 8 * backwards * steps
    if steps == 1:
        assert passes == Passes(2, backwards, 0, 16, 8 * backwards)


class Far(nn.Module):
    """Two classes and a lead that grows as the other class is neared: never broken, never without a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        lead = 2 + (40 * x.flatten(1).sum(1)).sin()
        return torch.stack([lead, -lead, -2 * lead], 1)


def test_the_cost_of_the_longest_way(x):
    with counted(model := Far()) as passes:
        found = deepfool(model, x, torch.zeros(8, dtype=torch.int64), threat=L2(1), steps=6)
    assert torch.equal(found, x)
    assert passes == Passes(12, 12, 0, 96, 96)


def test_found_examples_leave(smooth, x):
    """One pass for all, and then each pays for its own steps alone."""
    y = smooth(x).argmax(1)
    alone = []
    for i in range(8):
        with counted(smooth) as passes:
            deepfool(smooth, x[i : i + 1], y[i : i + 1], threat=L2(1))
        alone.append(passes)
    with counted(smooth) as passes:
        deepfool(smooth, x, y, threat=L2(1))
    assert len({single.forwards for single in alone}) > 1
    assert passes.example_forwards == sum(single.example_forwards for single in alone)
    assert passes.example_backwards == sum(single.example_backwards for single in alone)
    assert passes.forwards == max(single.forwards for single in alone)


@pytest.mark.parametrize("threat", [Linf(0.1), L2(torch.linspace(0, 1, 8))], ids=str)
def test_company_does_not_matter(x, threat: Threat):
    y = (model := RowByRow())(x).argmax(1)
    whole = deepfool(model, x, y, threat=threat)
    assert (whole != x).flatten(1).any(1).all()
    order = torch.tensor([3, 1, 7, 0, 5])
    assert torch.equal(deepfool(model, x[order], y[order], threat=threat[order]), whole[order])
    assert torch.equal(deepfool(Batched(model, 3), x, y, threat=threat), whole)


def test_what_is_found_is_refined(smooth, x):
    """By `refine.refined`, as far as is asked for and, with `stop_inside`, as is needed."""
    y, threat = smooth(x).argmax(1), L2(0)
    first, refined = (deepfool(smooth, x, y, threat=threat, refine=rounds) for rounds in (0, 3))
    lead = margin(smooth(x).detach(), y)
    assert torch.equal(refined_from(smooth, x, y, first, lead, threat=threat, rounds=3), refined)
    far, near = threat.size(first - x), threat.size(refined - x)
    assert (near < far).all()
    found = deepfool(smooth, x, y, threat=L2(torch.where(torch.arange(8) < 4, far, 0)), stop_inside=True, refine=3)
    size = threat.size(found - x)
    assert (size <= far).all()
    assert (size[:4] > near[:4]).any()
    assert torch.equal(found[4:], refined[4:])


@pytest.mark.parametrize("norm", [Linf, L2])
def test_the_walk_goes_on_along_the_box(norm):
    """Of two pixels the one with most weight is white already; from half of the steps on the other counts."""

    class Two(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            lead = 1 - 10 * (x[:, 0, 0, 0] - 1) - x[:, 0, 0, 1]
            return torch.stack([lead, torch.full_like(lead, 0.5)], 1)

    x, y = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2), torch.zeros(1, dtype=torch.int64)
    with counted(model := Two()) as passes:
        found = deepfool(model, x, y, threat=norm(1), steps=4, refine=0)
    assert found[0, 0, 0, 0] == 1
    assert passes.backwards == {Linf: 3, L2: 3}[norm]
    assert model(found).argmax(1) == 1


def test_what_is_misclassified_is_left(smooth, x):
    y = smooth(x).argmax(1)
    wrong = torch.arange(8) % 2 == 0
    found = deepfool(smooth, x, torch.where(wrong, (y + 1) % 4, y), threat=L2(1))
    assert torch.equal(found[wrong], x[wrong])
    assert torch.equal(found[~wrong], deepfool(smooth, x[~wrong], y[~wrong], threat=L2(1)))


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_no_gradient_no_step(x, value):
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            lead = x.flatten(1).sum(1)
            if lead.requires_grad:
                lead.register_hook(lambda grad: grad * value)
            return torch.stack([lead, -lead], 1)

    with counted(model := Flat()) as passes:
        found = deepfool(model, x, torch.zeros(8, dtype=torch.int64), threat=L2(1))
    assert torch.equal(found, x)
    assert passes == Passes(1, 1, 0, 8, 8)


def test_probabilities_and_empty_batches(smooth, x):
    y = smooth(x).argmax(1)
    found = deepfool(smooth, x, nn.functional.one_hot(y, 4).double(), threat=L2(1))
    assert torch.equal(found, deepfool(smooth, x, y, threat=L2(1)))
    assert deepfool(smooth, x[:0], y[:0], threat=L2(1)).shape == (0, 2, 4, 4)


def test_errors(x):
    y = torch.zeros(8, dtype=torch.int64)
    with pytest.raises(ValueError, match="candidates is 1, which is the label alone; give at least 2"):
        deepfool(Far(), x, y, threat=L2(1), candidates=1)
    with pytest.raises(ValueError, match="the model returned one number z for each image"):
        deepfool(nn.Sequential(nn.Flatten(), nn.Linear(32, 1).double()), x, y, threat=L2(1))


def test_ranking():
    logits = torch.tensor([[1.0, 4.0, 2.0, 3.0], [5.0, 5.0, 5.0, 6.0]])
    assert ranked_others(logits, torch.tensor([1, 2])).tolist() == [[3, 2, 0], [3, 0, 1]]


def test_boundaries_of_a_linear_model():
    problem = linear_problem(inner=True, dtype=torch.float64, n=20)
    boundary = nearest_boundary(
        problem.model, problem.x, problem.y, lambda logits, rows: ranked_others(logits, problem.y[rows]), L2(1)
    )
    torch.testing.assert_close(boundary.distance, problem.distance_l2(), rtol=1e-12, atol=0)
    on = problem.x - (boundary.gap / boundary.normal.flatten(1).square().sum(1)).reshape(-1, 1, 1, 1) * boundary.normal
    top = problem.model(on).detach().topk(2).values
    torch.testing.assert_close(top[:, 0], top[:, 1], rtol=1e-9, atol=1e-12)
