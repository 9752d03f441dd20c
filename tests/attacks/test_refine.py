"""Refinement against closed forms, and to the pass."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from oracles import RowByRow, linear_problem
from toughen.attacks.refine import refined
from toughen.losses import margin
from toughen.models.batched import Batched
from toughen.models.cost import Passes, counted
from toughen.threat import L2, Linf


class Slope(nn.Module):
    """Two classes, linear."""

    def forward(self, x: Tensor) -> Tensor:
        lead = x.flatten(1).mean(1) - 0.1
        return torch.stack([lead, -lead], 1)


def to_black(x: Tensor) -> Tensor:
    """A success on `Slope`, far from the nearest: only the first pixels have changed."""
    found = x.clone().flatten(1)
    found[:, :30] = 0
    return found.reshape(x.shape)


@pytest.fixture
def grey(x):
    return 0.5 + 0.1 * x


def test_linear_models_are_solved_in_l2():
    problem = linear_problem(inner=True, dtype=torch.float64, n=40)
    draw = torch.Generator().manual_seed(0)
    far = torch.rand(40, 200, *problem.x.shape[1:], generator=draw, dtype=torch.float64)
    wrong = problem.model(far.flatten(0, 1)).argmax(1).reshape(40, 200) != problem.y.unsqueeze(1)
    assert wrong.any(1).all()
    found = far[torch.arange(40), wrong.double().argmax(1)]
    lead = margin(problem.model(problem.x).detach(), problem.y)
    sizes = [
        L2(0).size(refined(problem.model, problem.x, problem.y, found, lead, threat=L2(0), rounds=r) - problem.x)
        for r in (0, 3, 10, 40)
    ]
    assert all((less <= more).all() for more, less in itertools.pairwise(sizes))
    # Each ends at the nearest point of a boundary, most at that of the nearest of them all.
    assert (sizes[-1] >= problem.distance_l2() * (1 - 1e-9)).all()
    assert (sizes[0] > 2 * problem.distance_l2()).all()
    assert (sizes[-1] < 1.001 * problem.distance_l2()).double().mean() > 0.5


@pytest.mark.parametrize("threat", [Linf(0), L2(0)], ids=["linf", "l2"])
@pytest.mark.parametrize("confidence", [0.0, 0.05])
def test_the_nearest_point_of_the_one_boundary(grey, threat, confidence):
    y = torch.zeros(8, dtype=torch.int64)
    lead = margin(Slope()(grey), y)
    found = refined(
        Slope(), grey, y, to_black(grey), lead, threat=threat, rounds=30, confidence=confidence
    )  # fmt: skip
    # The lead falls by twice the mean of the change, which is the same for all pixels where it is smallest.
    each = (confidence - lead) / 2
    best = each if threat.norm == "linf" else each * 32**0.5
    size = threat.size(found - grey)
    assert (size >= best * (1 - 1e-12)).all()
    assert (size <= 1.001 * best).all()
    assert (margin(Slope()(found), y) > confidence + 2e-5).all()


def test_the_way_straight_back(grey):
    """Without rounds: on a linear model five probes find the boundary, each leaving a hundredth of the last rest."""
    y, found = torch.zeros(8, dtype=torch.int64), to_black(grey)
    lead, end = margin(Slope()(grey), y), margin(Slope()(found), y)
    back = refined(Slope(), grey, y, found, lead, threat=L2(0), rounds=0)
    share = ((2e-5 - lead) / (end - lead)).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(back, torch.lerp(grey, found, share), rtol=0, atol=1e-8)


@pytest.mark.parametrize("rounds", [0, 1, 4])
def test_costs(grey, rounds):
    y, found = torch.zeros(8, dtype=torch.int64), to_black(grey)
    lead = margin(Slope()(grey), y)
    with counted(model := Slope()) as passes:
        refined(model, grey, y, found, lead, threat=L2(0), rounds=rounds)
    # In these first rounds every move along the sphere succeeds.
    forwards = 6 + 5 * rounds
    assert passes == Passes(forwards, rounds, 0, 8 * forwards, 8 * rounds)


def test_those_near_enough_leave(grey):
    y, found = torch.zeros(8, dtype=torch.int64), to_black(grey)
    lead = margin(Slope()(grey), y)
    back = refined(Slope(), grey, y, found, lead, threat=L2(0), rounds=0)
    enough = torch.where(torch.arange(8) < 5, 1.001 * L2(0).size(back - grey), 0)
    with counted(model := Slope()) as passes:
        some = refined(model, grey, y, found, lead, threat=L2(0), rounds=2, enough=enough)
    assert torch.equal(some[:5], back[:5])
    assert torch.equal(some[5:], refined(Slope(), grey, y, found, lead, threat=L2(0), rounds=2)[5:])
    assert passes.example_forwards == 8 * 6 + 3 * 10
    assert passes.example_backwards == 3 * 2


@pytest.mark.parametrize("threat", [Linf(0), L2(0)], ids=["linf", "l2"])
def test_company_does_not_matter(x, threat):
    logits = (model := RowByRow())(x)
    y, lead = logits.argmax(1), margin(logits.detach(), logits.argmax(1))
    far = torch.rand(8, 200, 2, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wrong = model(far.flatten(0, 1)).argmax(1).reshape(8, 200) != y.unsqueeze(1)
    found = far[torch.arange(8), wrong.double().argmax(1)]
    whole = refined(model, x, y, found, lead, threat=threat, rounds=6)
    assert (model(whole).argmax(1) != y).all()
    assert (threat.size(whole - x) < threat.size(found - x)).all()
    for order in torch.tensor([3, 1, 7, 0, 5]), torch.tensor([6]), torch.tensor([], dtype=torch.int64):
        part = refined(model, x[order], y[order], found[order], lead[order], threat=threat, rounds=6)
        assert torch.equal(part, whole[order])
    assert torch.equal(refined(Batched(model, 3), x, y, found, lead, threat=threat, rounds=6), whole)


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_without_gradients_the_way_straight_back_is_all(grey, value):
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            lead = x.flatten(1).mean(1) - 0.1
            if lead.requires_grad:
                lead.register_hook(lambda grad: grad * value)
            return torch.stack([lead, -lead], 1)

    y, found = torch.zeros(8, dtype=torch.int64), to_black(grey)
    lead = margin(Slope()(grey), y)
    back = refined(Flat(), grey, y, found, lead, threat=L2(0), rounds=0)
    torch.testing.assert_close(
        refined(Flat(), grey, y, found, lead, threat=L2(0), rounds=3), back, rtol=0, atol=1e-8
    )  # fmt: skip
