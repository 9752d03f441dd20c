"""Exponential moving averages against the recursion by hand."""

import copy

import pytest
import torch
from torch import Tensor, nn

from toughen.optim.ema import Averages, average_name

DECAYS = (0.0, 0.5, 0.995)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2 * 36, 3)).double()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def train(model: nn.Module, averages: Averages | None, steps: int) -> list[dict[str, Tensor]]:
    """Weights before the first and after each step of plain SGD on data of its own."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    data, seen = torch.Generator().manual_seed(1), [weights(model)]
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.rand(8, 1, 8, 8, generator=data, dtype=torch.float64)).logsumexp(1).mean().backward()
        optimizer.step()
        if averages is not None:
            averages.update(model, step)
        seen.append(weights(model))
    return seen


def test_averages_follow_the_recursion_from_the_initial_weights(model):
    averages = Averages(model, DECAYS)
    seen = train(model, averages, 5)
    for tau, average in zip(DECAYS, averages.models().values(), strict=True):
        expected = seen[0]
        for now in seen[1:]:
            expected = {name: tau * expected[name] + (1 - tau) * now[name] for name in now}
        found = weights(average)
        assert found.keys() == expected.keys()
        for name in found:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-13, atol=1e-15)


def test_before_the_first_step_an_average_is_the_initial_model(model):
    initial = weights(model)
    for average in Averages(model, DECAYS).models().values():
        assert all(torch.equal(value, initial[name]) for name, value in weights(average).items())
        assert average is not model


def test_one_update_from_the_initial_weights(model):
    averages = Averages(model, (0.9,))
    initial = weights(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    averages.update(model, 0)
    for name, value in weights(averages.models()["average-0.9"]).items():
        torch.testing.assert_close(value, initial[name] + 0.1, rtol=1e-14, atol=1e-14)


def test_buffers_are_those_of_the_raw_model(model):
    averages = Averages(model, DECAYS)
    train(model, averages, 3)
    raw = dict(model.named_buffers())
    assert raw["1.num_batches_tracked"] == 3
    assert raw["1.running_mean"].abs().sum() > 0
    for average in averages.models().values():
        found = dict(average.named_buffers())
        assert found.keys() == raw.keys()
        assert all(torch.equal(found[name], raw[name]) for name in raw)
        assert all(found[name].data_ptr() != raw[name].data_ptr() for name in raw)


def test_training_is_not_influenced(model):
    alone = copy.deepcopy(model)
    before = torch.get_rng_state()
    averages = Averages(model, DECAYS)
    with_averages, without = train(model, averages, 4), train(alone, None, 4)
    assert torch.equal(torch.get_rng_state(), before)
    for one, other in zip(with_averages, without, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)
    # nor is an average tied to what happens to the model afterwards
    kept = weights(averages.models()["average-0.5"])
    train(model, None, 1)
    assert all(torch.equal(value, kept[name]) for name, value in weights(averages.models()["average-0.5"]).items())


def test_averages_keep_the_names_of_the_weights_and_the_order_of_the_rates(model):
    models = Averages(model, (0.999, 0.9)).models()
    assert list(models) == ["average-0.999", "average-0.9"]
    assert models["average-0.9"].state_dict().keys() == model.state_dict().keys()
    assert average_name(0.995) == "average-0.995"
    assert Averages(model, ()).models() == {}


def test_averages_continue_from_a_state_that_is_loaded(model):
    """As a resumed run does: new averages, the saved weights put into them, then on."""
    averages = Averages(model, (0.9,))
    train(model, averages, 2)
    other = Averages(copy.deepcopy(model), (0.9,))
    other.models()["average-0.9"].load_state_dict(averages.models()["average-0.9"].state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    averages.update(model, 0)
    other.update(model, 0)
    found, expected = weights(other.models()["average-0.9"]), weights(averages.models()["average-0.9"])
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_warm_start_lets_the_rate_rise_with_the_step(model):
    averages = Averages(model, (0.5,), warm_start=True)
    seen = train(model, averages, 12)
    expected = seen[0]
    for t, now in enumerate(seen[1:]):
        tau = min(0.5, (1 + t) / (10 + t))
        expected = {name: tau * expected[name] + (1 - tau) * now[name] for name in now}
    for name, found in weights(averages.models()["average-0.5"]).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-13, atol=1e-15)
