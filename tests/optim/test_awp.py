import copy

import pytest
import torch
from torch import Tensor, nn

from conftest import tiny_data
from toughen.data import DATA
from toughen.models.cost import counted
from toughen.optim.awp import gradient, perturbable, perturbed
from toughen.recipes.text import build
from toughen.training.loop import Job, train_batch
from toughen.training.setup import set_up, splits

GAMMA = 0.02


def job_of(method: object = "natural", **changes: object):
    recipe = build(
        {
            "data": "tiny",
            "model": {"name": "small_cnn", "width": 2, "norm": "batch"},
            "method": method,
            "threat": "linf:0.1",
            "batch_size": 32,
            "steps": 12,
            "optimizer": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
            "weight_perturbation": {"gamma": GAMMA},
            **changes,
        }
    )
    data = tiny_data()
    split, _, index = splits(recipe, data)
    return set_up(recipe, data, split, index, torch.device("cpu"), dtype=torch.float64), recipe


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATA, "tiny", tiny_data)


def doubled(batch):
    return type(batch)(**{**vars(batch), "x": batch.x.double()})


def moved(model: nn.Module, loss) -> nn.Module:
    """A copy at theta + v, from the paper's equation 10, layer by layer."""
    grads = torch.autograd.grad(loss(model), list(model.parameters()))
    twin = copy.deepcopy(model)
    for theta, g in zip(twin.parameters(), grads, strict=True):
        if theta.ndim > 1:
            theta.data = theta.data + GAMMA * theta.data.norm() / g.norm() * g
    return twin


def by_hand(model: nn.Module, momentum: list[Tensor] | None, rate: float, loss) -> list[Tensor]:
    """One step of SGD at theta with the gradient of theta + v; the momentum after it."""
    statistics = [b.clone() for b in model.buffers()]
    twin = moved(model, loss)
    for buffer, before in zip(twin.buffers(), statistics, strict=True):
        buffer.copy_(before)
    grads = torch.autograd.grad(loss(twin), list(twin.parameters()))
    with torch.no_grad():
        directions = [g + 0.01 * p for g, p in zip(grads, model.parameters(), strict=True)]
        if momentum:
            directions = [0.9 * m + d for m, d in zip(momentum, directions, strict=True)]
        for p, d in zip(model.parameters(), directions, strict=True):
            p -= rate * d
        for buffer, after in zip(model.buffers(), twin.buffers(), strict=True):
            buffer.copy_(after)
    return directions


def close(job: Job, hand: nn.Module) -> None:
    for name, value in job.model.state_dict().items():
        assert torch.allclose(value, hand.state_dict()[name], rtol=0, atol=1e-10), name


def test_steps_worked_out_by_hand():
    (job, batches), _ = job_of()
    hand, momentum = copy.deepcopy(job.model), None
    for number in range(3):
        batch = doubled(batches[number])
        train_batch(job, batch)
        hand.train()
        loss = lambda model, b=batch: nn.functional.cross_entropy(model(b.x), b.y)  # noqa: E731
        momentum = by_hand(hand, momentum, 0.05, loss)
        close(job, hand)


def test_free_reads_the_gradient_of_its_own_backward_pass_alone():
    (job, batches), _ = job_of({"name": "free", "replays": 2})
    hand, momentum = copy.deepcopy(job.model).train(), None
    batch = doubled(batches[0])
    delta = torch.zeros_like(batch.x)
    train_batch(job, batch)
    for _ in range(2):
        d = delta.clone().requires_grad_()
        loss = lambda model, d=d: nn.functional.cross_entropy(model((batch.x + d).clamp(0, 1)), batch.y)  # noqa: E731
        before = copy.deepcopy(hand)
        momentum = by_hand(hand, momentum, 0.05, loss)
        (g,) = torch.autograd.grad(loss(moved(before, loss)), d)
        delta = (delta + 0.1 * g.sign()).clamp(-0.1, 0.1)
    assert torch.allclose(job.state["delta"], delta, rtol=0, atol=1e-10)
    close(job, hand)


@pytest.mark.parametrize(
    ("method", "extra"),
    [("natural", (1, 1)), ({"name": "free", "replays": 3}, (3, 3)), ({"name": "adversarial"}, (1, 1))],
)
def test_it_costs_one_more_pass_of_the_objective(method: object, extra: tuple[int, int]):
    (job, batches), recipe = job_of(method)
    with counted(job.model) as passes:
        train_batch(job, doubled(batches[0]))
    alone = recipe.method.resolved(recipe.threat).passes()
    assert (passes.forwards, passes.full_backwards) == (alone.forwards + extra[0], alone.full_backwards + extra[1])
    assert passes.input_backwards == alone.input_backwards
    assert recipe.natural_steps == pytest.approx(recipe.batches * passes.natural_steps)


def test_it_begins_at_its_share_of_the_budget():
    (job, batches), recipe = job_of(weight_perturbation={"gamma": GAMMA, "start": 0.5})
    (plain, _), _ = job_of(weight_perturbation=None)
    for number in range(12):
        batch = doubled(batches[number])
        with counted(job.model) as passes:
            train_batch(job, batch)
        train_batch(plain, batch)
        assert passes.forwards == (1 if number < 6 else 2)
        same = all(torch.equal(a, b) for a, b in zip(job.model.parameters(), plain.model.parameters(), strict=True))
        assert same == (number < 6)
    assert recipe.natural_steps == 18


def test_weights_come_back_exactly_and_nothing_else_moves():
    (job, batches), _ = job_of()
    model, batch = job.model.train(), doubled(batches[0])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = perturbable(model)

    def loss() -> Tensor:
        return nn.functional.cross_entropy(model(batch.x), batch.y)

    found = gradient(model, weights, [loss])
    with perturbed(weights, found, GAMMA):
        for weight, g in zip(weights, found, strict=True):
            theta = before[next(n for n, p in model.named_parameters() if p is weight)]
            v = (weight - theta).detach()
            assert float(v.norm()) == pytest.approx(float(GAMMA * theta.norm()))
            assert nn.functional.cosine_similarity(v.flatten(), g.flatten(), dim=0) > 1 - 1e-12
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_layer_without_a_gradient_is_not_moved():
    weight = nn.Parameter(torch.ones(2, 2))
    with perturbed([weight], [torch.zeros(2, 2)], 1.0):
        assert torch.equal(weight, torch.ones(2, 2))
