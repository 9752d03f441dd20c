import hashlib

import pytest
import torch
from torch import Tensor, nn

from models import published
from toughen.models import MODELS, Classifier, build, load_weights
from toughen.models.networks.wide_resnet import WideResNet

# torchvision's networks with 1,000 classes.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "wide_resnet50_2": 68_883_240,
}
UNITS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
    "wide_resnet50_2": (3, 4, 6, 3),
}


def drawn(name: str, size: int) -> published.State:
    deep = name not in ("resnet18", "resnet34")
    return published.resnet(UNITS[name], deep=deep, wide=2 if name == "wide_resnet50_2" else 1, size=size)


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_parameter_counts(name: str):
    with torch.device("meta"):
        net = build(name, num_classes=1000, stem="imagenet")
    assert sum(p.numel() for p in net.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
@pytest.mark.parametrize("name", PARAMETERS)
def test_forward_against_the_published_definition(name: str, stem: str):
    state = drawn(name, 7 if stem == "imagenet" else 3)
    x = images(2, 3, 37, 44)
    expected = published.resnet_logits(state, x)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        model = build(name, num_classes=5, stem=stem, width=4).to(dtype).eval()
        load_weights(model, state)
        scale = expected.abs().max()
        with torch.no_grad():
            assert (model(x.to(dtype)) - expected).abs().max() <= tolerance * scale


def test_the_name_resnet18_still_means_what_saved_runs_mean_by_it():
    torch.manual_seed(0)
    state = build("resnet18", num_classes=10, width=8).state_dict()
    digest = hashlib.sha256("".join(f"{key}{tuple(value.shape)}" for key, value in state.items()).encode())
    assert digest.hexdigest() == "e1a0582a3f9711bd6884f363b0c4df6c2bdc2514378744becd8ec2db0786faab"
    # The last bits of what torch draws depend on the processor.
    values = torch.cat([value.flatten().double() for value in state.values()])
    assert float(values @ torch.linspace(-1, 1, len(values), dtype=torch.float64)) == pytest.approx(
        -275.579968165, rel=1e-6
    )


@pytest.mark.parametrize("name", PARAMETERS)
def test_default_stems(name: str):
    with torch.device("meta"):
        first = next(layer for layer in build(name, num_classes=10).modules() if isinstance(layer, nn.Conv2d))
    assert first.kernel_size == ((3, 3) if name == "resnet18" else (7, 7))
    assert name in MODELS


def test_an_unknown_stem_is_refused():
    with pytest.raises(ValueError, match="'imagnet' is not a known stem; allowed: cifar, imagenet; did you mean 'ima"):
        build("resnet50", num_classes=10, stem="imagnet")


@pytest.mark.parametrize("side", [16, 12])
def test_a_wide_resnet_that_pads_at_the_end_is_deepminds(side: int):
    state = published.wide_resnet(published.DEEPMIND, depth=16)
    model = build("wrn-16-2", num_classes=5, padding="end").double().eval()
    load_weights(model, state)
    x = images(2, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(
            model(x), published.wide_resnet_logits(published.DEEPMIND, state, x, 16), rtol=0, atol=1e-10
        )
    both = WideResNet(5, depth=16, width=2).double().eval()
    assert isinstance(model, Classifier)
    both.load_state_dict(model.net.state_dict())
    assert (both(x) - model(x)).abs().max() > 0.01  # the shapes agree, the function does not


def test_padding_at_the_end_takes_odd_sides_and_refuses_other_words():
    assert build("wrn-10-1", num_classes=3, padding="end")(torch.rand(2, 3, 9, 14)).shape == (2, 3)
    with pytest.raises(ValueError, match="'same' is not a known padding; allowed: both, end"):
        build("wrn-10-1", num_classes=3, padding="same")


def test_images_of_another_shape_get_a_sentence():
    model = build("resnet18", num_classes=3, width=2)
    with pytest.raises(ValueError, match=r"takes images \(N, 3, H, W\), got shape \(2, 1, 8, 8\)$"):
        model(torch.rand(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"got shape \(3, 8, 8\); add the batch dimension with x\[None\]"):
        model(torch.rand(3, 8, 8))
