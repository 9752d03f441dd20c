"""A model run in pieces answers as the whole does, and shrinks its pieces where memory runs out."""

import pytest
import torch
from torch import Tensor, nn

from toughen.losses import cross_entropy
from toughen.models.batched import Batched, predict, value_and_grad
from toughen.models.cost import counted


class Cramped(nn.Module):
    """Has memory for `most` examples, and notes what it was given."""

    def __init__(self, most: int, error: Exception | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4).double()
        self.most, self.seen, self.error = most, [], error or torch.OutOfMemoryError("CUDA out of memory")

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        if len(x) > self.most:
            raise self.error
        return self.linear(x)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(10, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 3, 10, 99])
def test_pieces_answer_as_the_whole(x, size):
    model, y = Cramped(99), torch.arange(10) % 4

    def objective(logits: Tensor, rows: slice) -> Tensor:
        return cross_entropy(logits, y[rows])

    whole = value_and_grad(model, x, objective)
    with counted(model) as passes:
        parts = value_and_grad(Batched(model, size), x, objective)
    for part, expected in zip(parts, whole, strict=True):
        torch.testing.assert_close(part, expected, rtol=0, atol=1e-15)
        assert not part.requires_grad
    assert (passes.example_forwards, passes.example_backwards) == (10, 10)
    assert passes.forwards == passes.backwards == -(-10 // size)
    torch.testing.assert_close(predict(Batched(model, size), x), whole[2], rtol=0, atol=1e-15)


@pytest.mark.parametrize("error", [None, RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")])
def test_no_memory_halves_the_pieces_and_runs_the_same_examples_again(x, error):
    cramped = Cramped(2, error)
    model = Batched(cramped, 10)
    found = predict(model, x)
    assert cramped.seen == [10, 5, 2, 2, 2, 2, 2]
    torch.testing.assert_close(found, cramped.linear(x).detach(), rtol=0, atol=1e-15)
    assert model.size == 2


def test_a_single_example_that_does_not_fit_is_an_error(x):
    with pytest.raises(torch.OutOfMemoryError):
        predict(Batched(Cramped(0), 4), x)
    with pytest.raises(torch.OutOfMemoryError):
        predict(Cramped(2), x)


def test_other_errors_pass(x):
    with pytest.raises(RuntimeError, match="shape"):
        predict(Batched(Cramped(3, RuntimeError("shape")), 4), x)


def test_a_caller_who_asks_for_a_gradient_gets_one_pass(x):
    model = Cramped(99)
    asking = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(Batched(model, 4)(asking).sum(), asking)
    torch.testing.assert_close(grad, model.linear.weight.sum(0).expand(10, 3))
    assert model.seen == [10]


def test_no_examples(x):
    value, grad, logits = value_and_grad(Batched(Cramped(9), 4), x[:0], lambda logits, rows: logits.sum(1))
    assert (value.shape, grad.shape, logits.shape) == ((0,), (0, 3), (0, 4))
