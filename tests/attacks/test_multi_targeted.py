"""MultiTargeted against the linear problem's truth, run by run against the ascent, and to the pass."""

import math

import pytest
import torch
from torch import Tensor, nn

from conftest import few
from oracles import EPS, linear_problem
from toughen.attacks import ascend, multi_targeted
from toughen.losses import margin
from toughen.models.batched import Batched
from toughen.models.cost import Passes, counted
from toughen.noise import fixed
from toughen.threat import L2, Linf


@pytest.mark.parametrize("seed", few(0, 1, 2))
def test_all_breakable_examples_of_a_linear_model_are_broken(seed):
    problem = linear_problem(seed)
    found = multi_targeted(problem.model, problem.x, problem.y, threat=Linf(EPS), steps=50, restarts=1, targets="all")
    assert torch.equal(problem.model(found).argmax(1) != problem.y, problem.breakable())


def test_survivors_get_the_highest_margin_there_is():
    problem = linear_problem(0, n=60, dtype=torch.float64)
    found = multi_targeted(problem.model, problem.x, problem.y, threat=Linf(EPS), steps=20, targets="all", restarts=1)
    highest = margin(problem.model(found), problem.y)
    standing = ~problem.breakable()
    assert standing.sum() > 10
    torch.testing.assert_close(highest[standing], problem.best_linf()[standing], rtol=0, atol=1e-9)


def test_l2_breaks_what_lies_beyond_the_boundary():
    """Inside [0.3, 0.7] the box is out of reach, and the closed-form distance exact."""
    problem = linear_problem(1, n=100, dtype=torch.float64, inner=True)
    distance = problem.distance_l2()
    eps = float(distance.median())
    found = multi_targeted(problem.model, problem.x, problem.y, threat=L2(eps), steps=30, restarts=9)
    broken = problem.model(found).argmax(1) != problem.y
    assert not broken[distance > eps].any()
    assert broken[distance < eps * (1 - 1e-6)].all()


def towards(target: Tensor, y: Tensor):
    return lambda logits, rows: (logits.gather(1, target[rows, None]) - logits.gather(1, y[rows, None])).squeeze(1)


@pytest.mark.parametrize(("targets", "restarts", "ranks"), [("cycle", 5, [0, 1, 2, 0, 1]), ("all", 2, [0, 1, 2] * 2)])
def test_runs_one_by_one(smooth, x, targets, restarts, ranks):
    """Nothing breaks in so small a ball: every run is an ascent of its own, and the best iterate of all is kept."""
    y, threat, steps = smooth(x).argmax(1), Linf(1e-3), 4
    ranked = smooth(x).scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)
    seen = [x]
    for number, rank in enumerate(ranks):
        start = (x + threat.sample(x, fixed(8).child("multi_targeted", number))).clamp(0, 1)
        lengths = [1e-3 * (1 + math.cos(math.pi * k / steps)) / 2 for k in range(steps)]
        objective = towards(ranked[:, rank], y)
        for taken in range(steps + 1):
            seen.append(
                ascend(smooth, x, objective, threat=threat, steps=taken, step_size=lengths[:taken], start=start)
            )
    margins = torch.stack([margin(smooth(at), y) for at in seen])
    assert (margins < 0).all()
    expected = torch.stack([seen[best][i] for i, best in enumerate(margins.argmax(0).tolist())])
    found = multi_targeted(smooth, x, y, threat=threat, steps=steps, restarts=restarts, targets=targets)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


class Line(nn.Module):
    """Class 0 leads by mean(x) - 0.5 over class 1, and by 10 more over class 2."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        lead = self.weight * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([lead, -lead, lead - 10], 1)


def line(*means: float) -> tuple[Tensor, Tensor]:
    x = torch.tensor(means, dtype=torch.float64).reshape(-1, 1, 1, 1) * torch.ones(len(means), 1, 2, 2).double()
    return x, torch.zeros(len(means), dtype=torch.int64)


def test_examples_leave_at_the_iterate_that_breaks():
    """Of three, one never breaks, one is misclassified as it is, and one breaks on the way."""
    x, y = line(0.9, 0.45, 0.52)
    model = Line()
    with counted(model) as passes:
        found = multi_targeted(model, x, y, threat=Linf(0.1), steps=4, step_size=0.02, restarts=3)
    broken = model(found).argmax(1) != y
    assert broken.tolist() == [False, True, True]
    assert torch.equal(found[1], x[1])
    # the first is never broken: the clean pass, then three times four steps and an end point
    first = 1 + 3 * 5
    # the last: a random start within 0.1, down by 0.02 a step, until its mean is below 0.5
    at, iterate = (x + Linf(0.1).sample(x, fixed(3).child("multi_targeted", 0)))[2], 0
    while at.mean() >= 0.5:
        at, iterate = (at - 0.02).clamp(min=0.42), iterate + 1
    assert 0 < iterate < 4
    last = 1 + iterate + 1
    assert passes.example_forwards == first + 1 + last
    assert passes.example_backwards == 3 * 4 + iterate + 1


@pytest.mark.parametrize(("targets", "runs"), [("cycle", 3), ("all", 6)])
def test_it_costs_exactly(targets, runs):
    x, y = line(0.9, 0.95)
    model = Line()
    with counted(model) as passes:
        multi_targeted(model, x, y, threat=Linf(0.1), steps=4, restarts=3, targets=targets)
    assert passes == Passes(1 + runs * 5, runs * 4, 0, 2 * (1 + runs * 5), 2 * runs * 4)


def test_misclassified_images_cost_one_pass_and_stay():
    x, y = line(0.1, 0.2)
    model = Line()
    with counted(model) as passes:
        assert torch.equal(multi_targeted(model, x, y, threat=Linf(0.1)), x)
    assert passes == Passes(1, 0, 0, 2, 0)


def test_the_first_runs_of_all_are_those_of_cycle(smooth, x):
    y = smooth(x).argmax(1)
    cycle = multi_targeted(smooth, x, y, threat=Linf(0.1), steps=5, restarts=6)
    every = multi_targeted(smooth, x, y, threat=Linf(0.1), steps=5, restarts=2, targets="all")
    assert torch.equal(cycle, every)


def test_a_pass_may_be_smaller_than_the_batch(smooth, x):
    y, settings = smooth(x).argmax(1), {"threat": L2(0.3), "steps": 5, "restarts": 3}
    pieces = multi_targeted(Batched(smooth, 3), x, y, **settings)
    torch.testing.assert_close(pieces, multi_targeted(smooth, x, y, **settings), rtol=0, atol=1e-12)


def test_one_class_is_too_few(x):
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 1)).double()
    with pytest.raises(ValueError, match="the model returned one number z for each image"):
        multi_targeted(model, x, torch.zeros(8, dtype=torch.int64), threat=Linf(0.1))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"targets": "each"}, "'cycle' or 'all'"),
        ({"restarts": 0}, "restarts\n.*greater than or equal to 1"),
        ({"loss": "margin"}, "unknown; allowed: steps, step_size, restarts, targets"),
    ],
)
def test_settings_that_are_refused(linear, x, y, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        multi_targeted(linear, x, y, threat=Linf(0.1), **settings)
