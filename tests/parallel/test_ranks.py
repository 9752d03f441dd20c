"""What of several ranks can be looked at from one; the rest is in `training/test_many.py` and `test_ranks.py`."""

import copy

import pytest
import torch
from torch import Tensor, nn

from toughen.models import build
from toughen.models.folding import fused
from toughen.modes import attacking, evaluating
from toughen.noise import generator
from toughen.optim.ema import Averages
from toughen.parallel import ranks as distributed
from toughen.parallel import sharding
from toughen.training.activation_checkpointing import blocks, recomputed


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    found = build("resnet18", num_classes=4, in_channels=1, width=4)
    for buffer in found.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5, generator=generator("buffers", len(buffer)))
    return found


@pytest.fixture
def x() -> Tensor:
    return torch.rand(3, 1, 16, 16, generator=generator("x"))


def layers(model: nn.Module) -> list[nn.SyncBatchNorm]:
    return [module for module in model.modules() if isinstance(module, nn.SyncBatchNorm)]


def test_synchronised_batchnorm_keeps_parameters_names_and_verdicts(model: nn.Module, x: Tensor):
    before, twin = dict(model.named_parameters()), copy.deepcopy(model)
    found = distributed.synchronised(model)
    assert found is model
    assert len(layers(found)) == sum(isinstance(module, nn.BatchNorm2d) for module in twin.modules()) > 0
    assert all(before[name] is parameter for name, parameter in found.named_parameters())
    assert list(found.state_dict()) == list(twin.state_dict())
    with evaluating(found), evaluating(twin):
        assert torch.equal(found(x), twin(x))
    # A plain model takes its weights, as that of an evaluation does, and the other way round.
    twin.load_state_dict(found.state_dict())
    found.load_state_dict(twin.state_dict())


def test_an_average_of_a_synchronised_model_has_the_names_of_a_plain_one(model: nn.Module):
    plain = Averages(copy.deepcopy(model), [0.9]).models()["average-0.9"].state_dict()
    found = Averages(distributed.synchronised(model), [0.9]).models()["average-0.9"].state_dict()
    assert list(found) == list(plain)
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_attack_modes_and_recomputation_reach_synchronised_batchnorm(model: nn.Module, x: Tensor):
    found = distributed.synchronised(model)
    with attacking(found, "batch"):
        assert all(layer.training and not layer.track_running_stats for layer in layers(found))
    with attacking(found, "eval"):
        assert not any(layer.training for layer in layers(found))
    # One process: torch's layer computes as plain BatchNorm does.
    twin = copy.deepcopy(found)
    found(x).sum().backward()
    with recomputed(blocks(twin)):
        twin(x).sum().backward()
    for name, value in found.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name


def test_synchronised_layers_are_left_as_they_are_by_fusion(model: nn.Module, x: Tensor):
    found = distributed.synchronised(model).eval()
    assert fused(found, x) is found


def test_running_statistics_are_averaged_over_ranks(model: nn.Module, monkeypatch: pytest.MonkeyPatch):
    first, second = copy.deepcopy(model), copy.deepcopy(model)
    for buffer in second.buffers():
        buffer.mul_(3)
    theirs = torch.cat([b.flatten() for n, b in second.named_buffers() if n.endswith(("running_mean", "running_var"))])
    asked: list[Tensor] = []
    monkeypatch.setattr(distributed, "world", lambda: 2)
    monkeypatch.setattr(distributed, "total", lambda value: (asked.append(value), value + theirs)[1])
    distributed.average_statistics(first)
    assert len(asked) == 1
    for name, buffer in first.named_buffers():
        before = dict(model.named_buffers())[name]
        assert torch.allclose(buffer, before * 2 if name.endswith(("running_mean", "running_var")) else before), name
    # Those of synchronised layers are equal as they are, and other models have none.
    distributed.average_statistics(distributed.synchronised(model))
    distributed.average_statistics(nn.Linear(2, 2))
    assert len(asked) == 1


def test_alone_nothing_is_exchanged_or_copied(model: nn.Module):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    distributed.average_statistics(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert distributed.wrapped(model) is model
    assert sharding.whole(model) is model
    parameters = list(model.parameters())
    assert all(a is b for a, b in zip(sharding.parts(parameters), parameters, strict=True))
    with sharding.gathered(model):
        pass


def test_each_process_of_a_machine_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert distributed.local_device(torch.device("cuda")) == torch.device("cuda:3")
    assert distributed.local_device(torch.device("cuda:1")) == torch.device("cuda:1")
    assert distributed.local_device(torch.device("cpu")) == torch.device("cpu")
    monkeypatch.delenv("LOCAL_RANK")
    assert distributed.local_device(torch.device("cuda")) == torch.device("cuda:0")


@pytest.mark.parametrize("ranks", [*range(1, 5), 64])
@pytest.mark.parametrize("n", [0, 1, 2, 7, 63, 64, 100, 101])
def test_every_row_belongs_to_one_rank_and_none_is_padded(n: int, ranks: int, monkeypatch: pytest.MonkeyPatch):
    rows, taken = torch.arange(n), []
    monkeypatch.setattr(distributed, "world", lambda: ranks)
    for own in range(ranks):
        monkeypatch.setattr(distributed, "rank", lambda own=own: own)
        part = distributed.shard(rows)
        assert len(part) == distributed.slots(n)
        taken += part.tolist()
    assert sorted(taken) == list(range(n))
