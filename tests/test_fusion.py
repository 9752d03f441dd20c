"""The fused copy answers as the model does, and is not made where it could not."""

import pytest
import torch
from torch import Tensor, nn

from toughen.fusion import fused
from toughen.models import build
from toughen.modes import channels_last


@pytest.fixture
def x() -> Tensor:
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def trained(name: str, settings: dict) -> nn.Module:
    """With running statistics and affine weights that matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(name, num_classes=5, **settings).double().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean = torch.randn_like(module.weight) * 0.3
                module.running_var = torch.rand_like(module.weight) + 0.5
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
    return model


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize(("name", "settings"), [("small_cnn", {"width": 4, "norm": "batch"}), ("resnet18", {})])
def test_the_copy_has_the_same_logits_and_gradients(x, name, settings):
    model = trained(name, settings)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with channels_last(model):
        copy = fused(model, x)
    assert norms(copy) == 0 < norms(model)
    asking = x.clone().requires_grad_()
    expected = model(asking)
    (gradient,) = torch.autograd.grad(expected.square().sum(), asking)
    found = copy(asking)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), asking)[0], gradient, rtol=1e-9, atol=1e-9)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Branches(nn.Module):
    """With code that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)
        self.norm.running_mean = torch.tensor([0.5, -0.5])

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.conv(x)).mean((2, 3))
        return out if out.sum() > 0 else -out


class Elsewhere(Branches):
    """Its convolution is also used without the BatchNorm."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        return (self.norm(out) + out).mean((2, 3))


class Again(Branches):
    """Its convolution is used for two things."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).mean((2, 3)) + self.conv(x.flip(0)).mean((2, 3))


class Between(Branches):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x).relu()).mean((2, 3))


class Noisy(Branches):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).mean((2, 3)) + torch.rand(1)


def test_code_that_depends_on_values_is_no_hindrance(x):
    model = Branches().double().eval()
    copy = fused(model, x)
    assert norms(copy) == 0
    torch.testing.assert_close(copy(x), model(x))
    torch.testing.assert_close(copy(-x), model(-x))


@pytest.mark.parametrize("kind", [Elsewhere, Again, Between, Noisy])
def test_what_cannot_be_fused_is_left_as_it_is(x, kind):
    model = kind().double().eval()
    assert fused(model, x) is model


def test_a_model_without_norms_or_with_listeners_is_left_as_it_is(x):
    plain = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten()).double().eval()
    assert fused(plain, x) is plain
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten()).double().eval()
    assert fused(model, x) is not model
    model[1].register_forward_hook(lambda module, given, out: None)
    assert fused(model, x) is model
