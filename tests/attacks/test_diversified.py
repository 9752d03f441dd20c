"""PGD from directed starts against closed forms on linear models, and its exact number of passes."""

import math

import pytest
import torch
from torch import Tensor

from conftest import few
from oracles import Affine, linear_problem
from toughen.attacks.deepfool import ranked_by_distance
from toughen.attacks.diversified import AWAY, TOWARDS, _StartDirection, diversified_pgd
from toughen.models.cost import counted
from toughen.noise import fixed
from toughen.threat import L2, Linf

EPS = 2 / 255


@pytest.mark.parametrize("rank", [0, 1, 3])
@pytest.mark.parametrize("seed", few(0, 1, 2))
def test_it_breaks_what_can_be_broken_and_nothing_else(seed, rank):
    problem = linear_problem(seed)
    with torch.no_grad():
        x_adv = diversified_pgd(problem.model, problem.x, problem.y, threat=Linf(EPS), rank=rank, steps=30)
        broken = problem.model(x_adv).argmax(1) != problem.y
    truth = problem.breakable()
    assert not (broken & ~truth).any()
    # A lean towards an unlikely class is a start, and no aim: it leaves some in a corner of the ball.
    assert (broken & truth).sum() >= (0.98 if rank == 1 else 0.9) * truth.sum()


def test_what_stands_takes_so_many_passes_and_what_breaks_leaves():
    problem = linear_problem(0)
    safe = (problem.best_linf(1e-4) < 0).nonzero().squeeze(1)[:20]
    with counted(problem.model) as passes:
        x, y = problem.x[safe], problem.y[safe]
        diversified_pgd(problem.model, x, y, threat=Linf(1e-4), initial_steps=3, steps=5, restarts=2)
    assert (passes.example_forwards, passes.example_backwards) == (20 * 2 * 9, 20 * 2 * 8)
    with counted(problem.model) as passes:
        # Every example is wrong already, at any start.
        wrong = (problem.y + 1) % 10
        found = diversified_pgd(problem.model, problem.x, wrong, threat=Linf(1e-6), restarts=5)
    assert (passes.example_forwards, passes.example_backwards) == (300, 300)
    assert (problem.model(found).argmax(1) != wrong).all()


def test_the_lean_by_hand():
    """A random weight for every class; with a rank, little for the label and much for the class of that rank."""
    logits = torch.tensor([[5.0, 1.0, 3.0, 2.0], [0.0, 4.0, 1.0, 2.0]], dtype=torch.float64)
    label, draws = torch.tensor([0, 2]), fixed(2)
    uniform = draws.child("weights").uniform((4,), dtype=torch.float64)
    for rank, aims in ((1, [2, 1]), (2, [3, 3]), (3, [1, 0]), (4, [2, 1])):
        direction = _StartDirection(rank, draws, None)
        value = direction.towards(label)(logits, slice(0, 2))
        direction.settle(logits, label)
        expected = uniform.clone()
        for row, aim in enumerate(aims):
            expected[row, label[row]] = AWAY[0] + (AWAY[1] - AWAY[0]) * (uniform[row, label[row]] + 1) / 2
            expected[row, aim] = TOWARDS * 4 / 10
        torch.testing.assert_close(direction.weights, expected)
        torch.testing.assert_close(value, (expected * logits).sum(1))
        # Later logits do not turn it.
        torch.testing.assert_close(
            direction.towards(label)(logits.flip(1)[1:], slice(1, 2)), (expected * logits.flip(1)).sum(1)[1:]
        )
    direction = _StartDirection(0, draws, None)
    direction.settle(logits, label)
    torch.testing.assert_close(direction.weights, uniform)


class Recorder(Affine):
    """Notes where it is asked."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__(weight, bias)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return super().forward(x)


@pytest.mark.parametrize("ball", [Linf(0.01), L2(0.01)])
def test_steps_are_full_at_first_and_then_fall_along_a_cosine(ball):
    weight = torch.stack([torch.full((48,), 1.0), torch.full((48,), -1.0)]).double()
    model = Recorder(weight, torch.tensor([50.0, 0.0], dtype=torch.float64))
    x, y = torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64), torch.tensor([0])
    diversified_pgd(model, x, y, threat=ball, initial_steps=2, steps=4, last_step=0.2)
    at = model.seen[0]
    shares = [1.0, 1.0] + [0.2 + 0.8 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]
    uniform = fixed(1).child("diversified_pgd").child(0).child("weights").uniform((2,), dtype=torch.float64)
    lean = uniform[0, 0] * weight[0] + uniform[0, 1] * weight[1]
    for step, share in enumerate(shares):
        direction = (lean if step < 2 else weight[1] - weight[0]).reshape(1, 3, 4, 4)
        at = (x + ball.project(at - x + share * ball.eps * ball.steepest(direction))).clamp(0, 1)
        torch.testing.assert_close(model.seen[step + 1], at, rtol=0, atol=1e-12)
    assert len(model.seen) == 7


@pytest.mark.parametrize("ball", [Linf(EPS), L2(0.1)])
def test_classes_by_the_distance_of_their_boundaries_where_that_is_known(ball):
    """On a linear model the linearised boundaries are the boundaries: gap over the dual norm of the difference."""
    problem = linear_problem(0, n=20, dtype=torch.float64)
    weight, bias = problem.model.weight.detach(), problem.model.bias.detach()
    logits = problem.x.flatten(1) @ weight.T + bias
    gaps = logits.gather(1, problem.y.unsqueeze(1)) - logits
    toward = weight.unsqueeze(0) - weight[problem.y].unsqueeze(1)
    dual = toward.abs().sum(2) if ball.norm == "linf" else toward.norm(dim=2)
    truth = (gaps / dual).scatter(1, problem.y.unsqueeze(1), torch.inf).argsort(1)[:, :-1]
    assert not torch.equal(truth, logits.scatter(1, problem.y.unsqueeze(1), -torch.inf).argsort(1).flip(1)[:, :-1])
    with counted(problem.model) as passes:
        assert torch.equal(ranked_by_distance(problem.model, problem.x, problem.y, ball, 9), truth)
    assert (passes.example_forwards, passes.example_backwards) == (20, 20 * 9)
    # Of four candidates, those of the highest logits.
    four = ranked_by_distance(problem.model, problem.x, problem.y, ball, 4)
    likely = logits.scatter(1, problem.y.unsqueeze(1), -torch.inf).topk(4).indices
    assert torch.equal(four.sort().values, likely.sort().values)
    assert torch.equal(four, torch.stack([row[torch.isin(row, of)] for row, of in zip(truth, likely, strict=True)]))


def test_ranks_by_distance_are_aimed_at_in_turn():
    """The ascent is that of the aimed class over the label, whatever class is likelier."""
    problem = linear_problem(0, n=20, dtype=torch.float64, inner=True)
    weight, ball = problem.model.weight.detach(), Linf(1e-5)
    aims = ranked_by_distance(problem.model, problem.x, problem.y, ball, 9)
    settings = {"threat": ball, "initial_steps": 1, "steps": 1, "last_step": 1.0}
    model = Recorder(weight, problem.model.bias.detach())
    for rank in (1, 2, 9):
        model.seen.clear()
        diversified_pgd(model, problem.x, problem.y, rank=rank, order="distance", **settings)
        toward = (weight[aims[:, rank - 1]] - weight[problem.y]).sign().reshape(problem.x.shape)
        # Passes: the order, the start of the way, of the ascent, and its end. A step of eps from anywhere in the box.
        before, after = model.seen[2:]
        torch.testing.assert_close(
            after, problem.x + (before - problem.x + 1e-5 * toward).clamp(-1e-5, 1e-5), rtol=0, atol=1e-15
        )
    with counted(problem.model) as passes:
        diversified_pgd(problem.model, problem.x, problem.y, rank=1, ranks=3, restarts=2, order="distance", **settings)
    assert (passes.example_forwards, passes.example_backwards) == (20 * (1 + 6 * 3), 20 * (9 + 6 * 2))


def test_with_two_classes_there_is_one_rank():
    weight = torch.stack([torch.full((48,), 1.0), torch.full((48,), -1.0)])
    model, x, y = Affine(weight, torch.tensor([50.0, 0.0])), torch.full((3, 3, 4, 4), 0.5), torch.zeros(3).long()
    with counted(model) as passes:
        diversified_pgd(model, x, y, threat=Linf(0.01), steps=1, initial_steps=1, rank=1, ranks=4, order="distance")
    assert (passes.example_forwards, passes.example_backwards) == (3 * (1 + 3), 3 * (1 + 2))


@pytest.mark.parametrize("settings", [{"ranks": 2}, {"order": "distance"}])
def test_an_order_without_a_rank_is_refused(settings):
    problem = linear_problem(0, n=2)
    with pytest.raises(ValueError, match="rank is 0, which leans towards none; use rank: 1"):
        diversified_pgd(problem.model, problem.x, problem.y, threat=Linf(EPS), **settings)
