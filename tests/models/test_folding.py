"""The fused copy answers as the model does, and is not made where it could not."""

import pytest
import torch
from torch import Tensor, nn

from toughen.models import build
from toughen.models.folding import Folding, fused
from toughen.modes import attacking, channels_last, foldable


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


class Shared(nn.Module):
    """A convolution whose result a BatchNorm and a shortcut take, then one that feeds a BatchNorm alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv, self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return (x + self.second(self.conv(self.first(x).relu())).relu()).mean((2, 3))


def test_a_fresh_model_is_folded_only_where_it_will_always_hold():
    """Fresh BatchNorms change nothing, so that a shortcut past one would not be seen by its logits."""
    torch.manual_seed(0)
    model, x = Shared().double(), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    folding = Folding.of(model, x)
    assert folding is not None
    for _ in range(3):
        model.train()(torch.rand(16, 3, 8, 8, dtype=torch.float64))
    model.eval()
    expected = model(x)
    seen: list[bool] = []
    with folding.on(), torch.no_grad():
        handles = [
            m.register_forward_hook(lambda module, given, out: seen.append(out is given[0]))
            for m in (model.first, model.second)
        ]
        found = model(x)
    for handle in handles:
        handle.remove()
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert not torch.equal(found, expected)
    assert seen == [False, True]
    assert torch.equal(model(x), expected)


def test_attacks_in_inference_mode_fold_and_others_do_not():
    torch.manual_seed(0)
    model, x = Shared().double(), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    model.train()(torch.rand(16, 3, 8, 8, dtype=torch.float64))
    expected = model.eval()(x)
    with foldable(model, Folding.of(model, x)):
        with attacking(model, "eval"):
            assert "forward" in vars(model.conv)
            assert torch.allclose(model(x), expected, rtol=0, atol=1e-12)
            with attacking(model, "eval"):
                assert torch.allclose(model(x), expected, rtol=0, atol=1e-12)
        for mode in ("batch", "train"):
            with attacking(model, mode):
                assert "forward" not in vars(model.conv)
    with attacking(model.eval(), "eval"):
        assert torch.equal(model(x), expected)


def test_nothing_to_fold():
    assert Folding.of(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten()), torch.rand(1, 3, 8, 8)) is None


class Uncopyable(nn.Sequential):
    def __deepcopy__(self, memo: object) -> "Uncopyable":
        raise RuntimeError("only leaf tensors can be copied")


def test_a_model_that_cannot_be_copied_is_trained_unfolded():
    model = Uncopyable(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten())
    assert Folding.of(model, torch.rand(1, 3, 8, 8)) is None


def test_a_deep_network_is_looked_through_in_few_passes():
    model = build("resnet50", num_classes=3, in_channels=3, width=2)
    passes: list[int] = []
    model.register_forward_hook(lambda module, given, out: passes.append(len(out)))
    folding = Folding.of(model, torch.rand(2, 3, 32, 32))
    assert folding is not None
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    with folding.on():
        assert sum("forward" in vars(module) for module in convolutions) == len(convolutions)
    assert len(passes) == 2, "once as it is, once folded"
