import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toughen.models import build, find_head, freeze_trunk, head_parameters, replace_head, trunk_parameters
from toughen.modes import attacking

X = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Timm(nn.Module):
    """A network with timm's two functions, and a linear layer after its head."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.reset_classifier(num_classes)
        self.distilled = nn.Linear(3, 2)

    def reset_classifier(self, num_classes: int) -> None:
        self.fc = nn.Linear(3, num_classes)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(x).mean((2, 3)))


@pytest.mark.parametrize("name", ["small_cnn", "resnet18", "preact_resnet18", "wrn-10-1", "madry-w32-10", "resnet50"])
def test_the_head_of_every_network_here(name: str):
    torch.manual_seed(0)
    options: dict[str, Any] = {} if name.startswith("wrn") else {"width": 2}
    model = build(name, num_classes=10, **options).double()
    trunk = [parameter.clone() for parameter in trunk_parameters(model)]
    assert find_head(model)[0] == "net.linear"
    assert find_head(model.net)[0] == "linear"
    assert replace_head(model, 7) == "net.linear"
    assert model(X.double()).shape == (4, 7)
    weight, bias = head_parameters(model)
    assert weight.dtype == torch.float64
    assert weight.std() > 0
    assert not bias.any()
    assert all(torch.equal(a, b) for a, b in zip(trunk, trunk_parameters(model), strict=True))
    assert len(trunk) + 2 == len(list(model.parameters()))


def test_timm_says_itself_which_layer_is_its_head():
    net = Timm().double()
    assert find_head(net)[0] == "fc"
    assert replace_head(net, 3) == "fc"
    assert net(X.double()).shape == (4, 3)
    assert net.fc.weight.dtype == torch.float64


def test_a_head_without_bias_stays_without():
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 4, bias=False))
    assert replace_head(net, 6) == "1"
    assert net(X).shape == (4, 6)
    assert len(head_parameters(net)) == 1


def test_refused():
    with pytest.raises(ValueError, match="Sequential does not end in a linear layer, so its head cannot be told"):
        find_head(nn.Sequential(nn.Conv2d(3, 5, 1)))
    with pytest.raises(ValueError, match="a head needs at least 1 class, got 0"):
        replace_head(build("small_cnn", num_classes=2), 0)
    with pytest.raises(ValueError, match="the network is its own head, a single linear layer; build a new one"):
        replace_head(nn.Linear(3, 2), 4)


def test_a_frozen_trunk_is_the_same_bits_after_training():
    torch.manual_seed(0)
    model = build("preact_resnet18", num_classes=5, width=2)
    head = sum(parameter.numel() for parameter in head_parameters(model))
    keys = list(model.state_dict())
    assert freeze_trunk(model) + head == sum(parameter.numel() for parameter in model.parameters())
    assert freeze_trunk(model) + head == sum(parameter.numel() for parameter in model.parameters())
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(head_parameters(model), lr=0.1)
    model.train()
    for mode in ("eval", "train", "batch"):
        with attacking(model, mode):
            model(X)
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
    after = model.state_dict()
    assert list(after) == keys
    assert {key for key in keys if not torch.equal(before[key], after[key])} == {"net.linear.weight", "net.linear.bias"}


def test_in_training_mode_a_frozen_trunk_computes_what_it_does_in_evaluation():
    torch.manual_seed(0)
    model = build("resnet18", num_classes=5, width=2)
    model(X)
    freeze_trunk(model)
    copied = copy.deepcopy(model).train()
    expected = model.eval()(X)
    assert torch.equal(copied(X), expected)
    assert torch.equal(model.train()(X), expected)
    assert model.training
    assert isinstance(copied.net.get_submodule("stem.1"), nn.BatchNorm2d)
    assert type(copied.net.get_submodule("stem.1")).__name__ == "BatchNorm2d"
