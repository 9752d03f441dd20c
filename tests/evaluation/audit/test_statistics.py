import math

import pytest
import torch
from torch import nn

from oracles import linear_problem
from toughen.evaluation.audit import statistics
from toughen.evaluation.audit.audit import audit
from toughen.evaluation.audit.gradient_repairs import DOUBLE, LOGARITHM, REPAIRED, STRAIGHT, RepairedModel
from toughen.evaluation.audit.observation import Observed, Operations
from toughen.threat import Linf
from zoo import Around


def gradient(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(model(x)[:, 0].sum(), x)[0]


def test_sign_test_by_hand():
    assert statistics.sign_test(0, 0) == 1
    assert statistics.sign_test(3, 0) == 1 / 8
    assert statistics.sign_test(3, 1) == 5 / 16


def test_better_needs_points_and_evidence():
    given = torch.zeros(100, dtype=torch.bool)
    right = torch.arange(100) < 12
    assert statistics.better(right, given, 0.1, 1e-3)
    assert not statistics.better(right, given, 0.12, 1e-3)
    assert not statistics.better(right[:20], given[:20], 0.1, 2.0**-13)


def test_a_constant_answer_is_no_renaming():
    y = torch.tensor([0] * 80 + [1] * 20)
    for answer in (0, 1):
        assert statistics.relabelling(torch.full_like(y, answer), y, 2) is None


def test_swapped_classes_are_a_renaming():
    y = torch.tensor([0] * 70 + [1] * 30)
    found = statistics.relabelling(1 - y, y, 2)
    assert found is not None
    assert found[0] == "shifted by +1"
    assert found[1].all()


def test_shifts_have_a_sign():
    y = torch.arange(60) % 6
    for by in (1, -2):
        found = statistics.relabelling((y - by) % 6, y, 6)
        assert found is not None
        assert found[0] == f"shifted by {by:+d}"
        assert found.order.tolist() == [(k + by) % 6 for k in range(6)]


def test_random_labels_of_many_classes_are_no_renaming():
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        prediction, y = torch.randint(100, (2, 128), generator=draw)
        assert statistics.relabelling(prediction, y, 100) is None


def test_saturation_begins_at_a_lead_of_104():
    leads = torch.tensor([[16.0, 0], [18.0, 0], [103.0, 0], [105.0, 0]])
    assert statistics.confident(leads).tolist() == [False, True, True, True]
    assert statistics.one_hot(leads).tolist() == [False, False, False, True]


def test_differences_count_nan_once():
    a = torch.tensor([[1.0, math.nan], [1.0, 2.0], [1.0, 2.0], [math.inf, 1.0]])
    b = torch.tensor([[1.0, math.nan], [1.0, math.nan], [1.0, 2.01], [math.inf, 1.0]])
    assert statistics.differ(a, b, 0.01).tolist() == [False, True, False, False]
    assert statistics.differ(a, b, 0.001).tolist() == [False, True, True, False]


def test_repeated_rows():
    assert statistics.repeated(torch.tensor([[1.0, 2], [3, 4], [1, 2]])).tolist() == [True, False, True]


@pytest.mark.parametrize(
    "call",
    [
        lambda x: torch.autograd.grad(x.square().sum(), x),
        lambda x: torch.autograd.backward(x.square().sum()),
        lambda x: x.square().sum().backward(),
        lambda x: torch.func.grad(lambda z: z.square().sum())(x.detach()),
    ],
)
def test_sees_autograd(call):
    with Operations(seen := Observed()):
        call(torch.rand(3, requires_grad=True))
    assert (seen.autograd, seen.low_precision) == (1, False)


def test_sees_low_precision():
    with Operations(seen := Observed()):
        torch.ones(2).bfloat16().float()
    assert (seen.autograd, seen.low_precision) == (0, True)


@pytest.mark.parametrize("step", ["round", "floor", "ceil", "trunc", "sign"])
@pytest.mark.parametrize("of", [torch, torch.Tensor])
def test_straight_through_keeps_values_and_gives_the_slope(of, step):
    problem = linear_problem(n=8)
    model = Around(problem.model, before=lambda x: getattr(of, step)(8 * x - 4) / 8)
    remedied = RepairedModel(model, [STRAIGHT])
    x = problem.x.requires_grad_()
    assert torch.equal(remedied(x), model(x))
    torch.testing.assert_close(gradient(remedied, x), gradient(problem.model, x))
    assert (gradient(model, x) == 0).all()


@pytest.mark.parametrize(
    "branch",
    [
        lambda z: 0 * (z - z).sqrt(),
        lambda z: torch.where(z > z + 1, (z - z).log(), 0.0),
        lambda z: 0 * torch.stack([z - z, z - z]).norm(dim=0).sqrt(),
    ],
)
def test_repair_gives_the_gradient_without_the_branch(branch):
    problem = linear_problem(n=8, dtype=torch.float64)
    model = Around(problem.model, after=lambda logits: logits + branch(logits))
    assert gradient(model, problem.x).isnan().all()
    remedied = RepairedModel(model, [REPAIRED])
    assert torch.equal(remedied(problem.x), problem.model(problem.x))
    torch.testing.assert_close(gradient(remedied, problem.x), gradient(problem.model, problem.x))


def test_other_remedies_keep_the_order_of_classes():
    problem = linear_problem(n=8)
    probabilities = RepairedModel(Around(problem.model, after=lambda z: z.softmax(1)), [LOGARITHM])
    torch.testing.assert_close(probabilities(problem.x), problem.model(problem.x).log_softmax(1))
    assert RepairedModel(problem.model.double(), [DOUBLE])(problem.x).dtype == torch.float64


def test_a_module_that_is_no_leaf_may_be_in_training_mode():
    class Scaled(Around):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * (1 + self.training)

    problem = linear_problem()
    model = Scaled(problem.model).eval()
    model.training = True
    (found,) = audit(model, problem.x, problem.y, threat=Linf(2 / 255)).findings
    assert found.code == "EV211"
    assert "(first: the model)" in found.message
    assert model.training
