import itertools
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from toughen.models import build
from toughen.models.networks.activations import ACTIVATIONS, activation
from toughen.models.networks.preact_resnet import PreActBlock
from toughen.models.networks.small_cnn import SmallCNN, pool_to_grid
from toughen.models.networks.wide_resnet import MadryResNet, MadryUnit, WideResNet
from toughen.testing import Promise, model_promises

TINY: dict[str, dict[str, Any]] = {
    "small_cnn": {"width": 2},
    "resnet18": {"width": 4},
    "preact_resnet18": {"width": 4},
    "wrn-10-1": {},
    "madry-w32-10": {"width": 1},
}
NUMBER_OF_ACTIVATIONS = {"small_cnn": 4, "resnet18": 17, "preact_resnet18": 17, "wrn-10-1": 7, "madry-w32-10": 31}
every_network = pytest.mark.parametrize("name", TINY)


def tiny(name: str, in_channels: int = 3, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return build(name, num_classes=10, in_channels=in_channels, **TINY[name], **options).eval()


def on_meta(name: str, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return build(name, num_classes=10, **options)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def randomise_norms(model: nn.Module) -> nn.Module:
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.3)
    return model


def _seeded(name: str) -> nn.Module:
    """With weights from the global generator, as users build it, and statistics that matter."""
    return randomise_norms(build(name, num_classes=10, **TINY[name]))


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("resnet18", 11.17),
        ("preact_resnet18", 11.17),
        ("wrn-28-10", 36.48),
        ("wrn-34-10", 46.16),
        ("wrn-70-16", 266.80),
    ],
)
def test_published_parameter_counts(name: str, millions: float) -> None:
    assert parameters(on_meta(name)) / 1e6 == pytest.approx(millions, abs=0.006)


def test_parameters_of_the_madry_network() -> None:
    sizes = [16] + [160] * 5 + [320] * 5 + [640] * 5
    units = sum(9 * a * b + 9 * b * b + 2 * a + 2 * b for a, b in itertools.pairwise(sizes))
    assert parameters(on_meta("madry-w32-10")) == 9 * 3 * 16 + units + 2 * 640 + 640 * 10 + 10


def test_a_small_cnn_of_two_thousand_parameters() -> None:
    assert parameters(SmallCNN(10, 1, width=2)) == 1830
    assert parameters(SmallCNN(10, 3, width=2)) == 1866
    assert SmallCNN(10, 3, width=2)(torch.rand(2, 3, 8, 8)).shape == (2, 10)


@every_network
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64), (2, 9, 14)])
def test_output_shapes(name: str, shape: tuple[int, int, int]) -> None:
    logits = tiny(name, shape[0])(torch.rand(2, *shape))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()


@every_network
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_every_activation_is_the_one_asked_for(name: str, kind: str) -> None:
    model = on_meta(name, **TINY[name], activation=kind)
    nonlinear = tuple(type(activation(other)) for other in ACTIVATIONS)
    found = [layer for layer in model.modules() if isinstance(layer, nonlinear)]
    assert {type(layer) for layer in found} == {type(activation(kind))}
    assert len(found) == NUMBER_OF_ACTIVATIONS[name]


@every_network
def test_the_activation_changes_the_function(name: str) -> None:
    x = torch.rand(2, 3, 16, 16)
    smooth, kinked = tiny(name, activation="softplus"), tiny(name, activation="relu")
    assert not torch.allclose(smooth(x), kinked(x))


def test_activations_to_closed_form() -> None:
    z = torch.tensor([-2.0, 0.5])
    assert activation("leaky_relu")(z).tolist() == pytest.approx([-0.2, 0.5])
    torch.testing.assert_close(activation("silu")(z), z / (1 + torch.exp(-z)))
    torch.testing.assert_close(activation("softplus")(z), torch.log1p(torch.exp(z)))
    assert activation("elu")(z)[0] == pytest.approx(torch.expm1(z[0]).item())
    assert z.tolist() == [-2.0, 0.5]
    with pytest.raises(ValueError, match=r"'swsh' is not a known activation; allowed: relu"):
        activation("swsh")


PROMISES = [
    pytest.param(promise, id=f"{name}-{promise.name}")
    for name in TINY
    for promise in model_promises(partial(_seeded, name), shape=(3, 16, 16), classes=10)
]


@pytest.mark.parametrize("promise", PROMISES)
def test_every_promise_holds(promise: Promise) -> None:
    promise()


@every_network
def test_input_gradient_in_double_precision(name: str) -> None:
    model = randomise_norms(tiny(name, 1, activation="silu")).double()
    x = torch.rand(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, x, fast_mode=name != "small_cnn")


@every_network
def test_initial_logits_of_a_training_batch_are_moderate(name: str) -> None:
    logits = tiny(name).train()(torch.rand(16, 3, 16, 16))
    assert 1e-2 < logits.std() < 10


def test_he_initialisation_by_fan_out() -> None:
    net = WideResNet(10, depth=10, width=4)
    weights = [layer.weight for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    for weight in weights[1:]:
        outputs, _, side, _ = weight.shape
        assert weight.std().item() == pytest.approx((2 / (outputs * side**2)) ** 0.5, rel=0.1)
    assert not net.linear.bias.any()
    assert all((n.weight == 1).all() and not n.bias.any() for n in net.modules() if isinstance(n, nn.BatchNorm2d))


def test_small_cnn_without_norm_is_the_same_function_in_both_modes() -> None:
    x = torch.rand(4, 1, 12, 12)
    net = SmallCNN(10, 1, width=2)
    assert torch.equal(net.train()(x), net.eval()(x))
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in net.modules())
    normed = SmallCNN(10, 1, width=2, norm="batch")
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in normed.modules()) == 4


def test_small_cnn_refuses_images_below_eight_pixels() -> None:
    with pytest.raises(ValueError, match="at least 8 pixels"):
        SmallCNN(10, 1, width=1)(torch.rand(1, 1, 8, 7))


@pytest.mark.parametrize("shape", [(4, 4), (7, 8), (2, 9), (16, 5)])
def test_pool_to_grid_keeps_the_sum(shape: tuple[int, int]) -> None:
    x = torch.rand(2, 3, *shape, dtype=torch.float64)
    tile = -(-shape[0] // 4) * -(-shape[1] // 4)
    pooled = pool_to_grid(x, 4)
    assert pooled.shape == (2, 3, 4, 4)
    torch.testing.assert_close(pooled.sum((2, 3)) * tile, x.sum((2, 3)))


def test_preact_shortcut_takes_the_activated_input_where_channels_change() -> None:
    x = torch.randn(2, 2, 6, 6)
    block = PreActBlock(2, 4, 2, "relu").eval()
    nn.init.zeros_(block.conv2.weight)
    assert block.shortcut is not None
    torch.testing.assert_close(block(x), block.shortcut(torch.relu(x / (1 + 1e-5) ** 0.5)))
    same = PreActBlock(2, 2, 1, "relu").eval()
    nn.init.zeros_(same.conv2.weight)
    assert torch.equal(same(x), x)


def test_the_madry_network_has_no_convolution_of_one_by_one() -> None:
    net = MadryResNet(10, width=1)
    convolutions = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 31
    assert {layer.kernel_size for layer in convolutions} == {(3, 3)}
    norms = [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert {(layer.eps, layer.momentum) for layer in norms} == {(1e-3, 0.1)}
    shared = [unit.activate_before_residual for unit in net.modules() if isinstance(unit, MadryUnit)]
    assert shared == [True] + [False] * 14
    assert net.linear.weight.abs().max() <= (3 / 64) ** 0.5
    assert not net.linear.bias.any()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shared", [False, True])
def test_madry_shortcut_is_pooling_and_zero_channels(stride: int, shared: bool) -> None:
    x = torch.randn(2, 2, 6, 8, dtype=torch.float64)
    unit = MadryUnit(2, 6, stride, "leaky_relu", activate_before_residual=shared).double().eval()
    nn.init.zeros_(unit.conv2.weight)
    kept = x / (1 + 1e-3) ** 0.5 if shared else x
    kept = torch.where(kept < 0, 0.1 * kept, kept) if shared else kept
    by_hand = sum(kept[:, :, i::stride, j::stride] for i in range(stride) for j in range(stride)) / stride**2
    out = unit(x)
    torch.testing.assert_close(out[:, 2:4], by_hand)
    assert not out[:, :2].any()
    assert not out[:, 4:].any()


def test_madry_strided_convolution_pads_an_even_image_at_its_end() -> None:
    # TensorFlow's SAME puts the first 3x3 window on pixels 0 to 2; torch's padding=1 would put it on -1 to 1.
    x = torch.rand(1, 2, 6, 6)
    unit = MadryUnit(2, 4, 2, "leaky_relu").eval()
    nn.init.zeros_(unit.conv1.weight)
    nn.init.zeros_(unit.conv2.weight)
    with torch.no_grad():
        unit.conv1.weight[0, 0] = 1  # sums a window of the first channel
        unit.conv2.weight[0, 0, 1, 1] = 1  # hands it on
    scale = (1 + 1e-3) ** 0.5
    sums = F.pad(x[0, 0] / scale, (0, 1, 0, 1)).unfold(0, 3, 2).unfold(1, 3, 2).sum((2, 3)) / scale
    torch.testing.assert_close(unit(x)[0, 0], sums)
