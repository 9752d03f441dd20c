"""Counting passes: exact numbers, and the cost in natural steps."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from toughen.attacks import pgd
from toughen.models.cost import Passes, count_on_toy, counted
from toughen.modes import frozen
from toughen.threat import Linf


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))


@pytest.fixture
def x() -> torch.Tensor:
    return torch.full((5, 3, 2, 2), 0.5)


def natural_step(model, x, y):
    F.cross_entropy(model(x), y).backward()


def adversarial_step(model, x, y):
    natural_step(model, pgd(model, x, y, threat=Linf(0.1), steps=10), y)


def test_a_natural_step_costs_one():
    passes = count_on_toy(natural_step, channels=3, classes=10)
    assert passes == Passes(forwards=1, full_backwards=1, example_forwards=2, example_backwards=2)
    assert passes.natural_steps == 1


def test_pgd_10_training_costs_23_thirds():
    passes = count_on_toy(adversarial_step, channels=3, classes=10, batch=4)
    assert passes == Passes(11, 10, 1, 44, 44)
    assert passes.backwards == 11
    assert passes.natural_steps == pytest.approx(23 / 3, abs=1e-15)


def test_the_kinds_of_pass_are_told_apart(model, x):
    with counted(model) as passes:
        with torch.no_grad():
            model(x)
        assert (passes.forwards, passes.backwards) == (1, 0)
        with frozen(model):
            model(x)  # nothing asks for a gradient
            model(x.clone().requires_grad_()).sum().backward()
        assert (passes.input_backwards, passes.full_backwards) == (1, 0)
        model(x[:2]).sum().backward()
    assert passes == Passes(4, 1, 1, 17, 7)
    assert passes.natural_steps == (4 + 1 + 2) / 3


def test_a_backward_pass_counts_each_time_it_runs(model, x):
    with counted(model) as passes:
        logits = model(x)
        logits.sum().backward(retain_graph=True)
        logits.square().sum().backward()
        model(x)
    assert passes == Passes(2, 0, 2, 10, 10)


def test_a_backward_pass_in_which_one_weight_has_a_gradient_is_full(model, x):
    model[1].weight.requires_grad_(False)
    with counted(model) as passes:
        model(x).sum().backward()
    assert (passes.full_backwards, passes.input_backwards) == (1, 0)


def test_counts_add_up_in_a_record_that_is_given(model, x):
    passes = Passes(forwards=7)
    for _ in range(2):
        with counted(model, passes) as same:
            model(x)
        assert same is passes
    assert passes == Passes(9, 0, 0, 10, 0)


def test_nothing_is_counted_afterwards(model, x):
    with counted(model) as passes:
        pass
    with pytest.raises(KeyError), counted(model) as failed:
        raise KeyError
    model(x).sum().backward()
    assert passes == failed == Passes()
    assert not model._forward_hooks


def test_counting_changes_no_gradient(model, x):
    model(x).square().sum().backward()
    expected = model[1].weight.grad.clone()
    model.zero_grad()
    with counted(model):
        model(x).square().sum().backward()
    assert torch.equal(model[1].weight.grad, expected)


def test_the_toy_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    seen = []
    count_on_toy(lambda model, x, y: seen.append((x, y, model(x))), channels=1, classes=3, size=4, batch=5)
    count_on_toy(lambda model, x, y: seen.append((x, y, model(x))), channels=1, classes=3, size=4, batch=5)
    assert torch.equal(torch.get_rng_state(), before)
    (x, y, logits), (_, _, again) = seen
    assert x.shape == (5, 1, 4, 4)
    assert (x.min(), x.max()) == (0, 1)
    assert y.tolist() == [0, 1, 2, 0, 1]
    assert logits.shape == (5, 3)
    assert torch.equal(logits, again)
