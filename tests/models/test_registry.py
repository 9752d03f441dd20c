import pytest
import torch
from torch import Tensor, nn

from toughen.models import MODELS, Classifier, Normalize, PerImageStandardize, build
from toughen.models.networks.wide_resnet import MadryResNet, WideResNet
from toughen.models.registry import find, try_options


class Mine(nn.Module):
    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean((2, 3)))


def test_names() -> None:
    assert set(MODELS) >= {"small_cnn", "resnet18", "preact_resnet18", "wrn-D-W", "madry-w32-10"}


def test_a_wide_resnet_is_found_by_its_numbers() -> None:
    net = find("wrn-16-2")(num_classes=7, in_channels=1)
    assert isinstance(net, WideResNet)
    same = build("wrn-D-W", num_classes=7, in_channels=1, depth=16, width=2).net
    assert [p.shape for p in net.parameters()] == [p.shape for p in same.parameters()]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wrn-27-10", r"6n \+ 4.*got 27; try 28"),
        ("wrn-4-10", r"6n \+ 4.*got 4; try 10"),
        ("wrn-28-0", "at least 1, got 0"),
        ("wrn-28", "'wrn-28' is not a known model.*'wrn-D-W'"),
        ("wrn-28-10-1", "is not a known model"),
        ("resnet-18", "allowed: small_cnn, resnet18.*did you mean 'resnet18'"),
        ("zzzz", "'zzzz' is not a known model; allowed:"),
    ],
)
def test_refused_names(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        find(name)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("small_cnn", {"widht": 8}, "no option 'widht'.*allowed are width, norm, activation.*did you mean 'width'"),
        ("wrn-16-1", {"depth": 22}, "no option 'depth'; allowed are activation"),
        ("wrn-D-W", {"depth": 16}, "also needs the options width"),
        ("wrn-D-W", {"depth": 15, "width": 1}, "got 15; try 16"),
        ("resnet18", {"activation": "rellu"}, "did you mean 'relu'"),
        ("small_cnn", {"norm": "layer"}, "allowed are none, batch"),
        ("small_cnn", {"width": 0}, "at least 1, got 0"),
        ("small_cnn", {"mean": (0.5,), "std": (0.5,)}, "each of the 3 channels, got 1"),
        ("small_cnn", {"std": (0.5,) * 3}, "got std without mean"),
    ],
)
def test_refused_options(name: str, options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(name, num_classes=10, **options)


def test_a_network_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "mine", Mine)
    model = build("mine", num_classes=4, in_channels=2, mean=(0.5, 0.5), std=(0.2, 0.2))
    assert isinstance(model.net, Mine)
    assert model(torch.rand(3, 2, 8, 8)).shape == (3, 4)
    with pytest.raises(ValueError, match="it takes none"):
        build("mine", num_classes=4, width=2)


def test_a_builder_that_takes_anything_gets_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def builder(num_classes: int, in_channels: int, **options: object) -> nn.Module:
        seen.update(options)
        return Mine(num_classes, in_channels)

    monkeypatch.setitem(MODELS, "open", builder)
    build("open", num_classes=4, anything=1)
    assert seen == {"anything": 1}


def test_a_builder_tries_its_options_once_and_no_other_builder_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[object] = []

    def one(num_classes: int, in_channels: int, width: object = 1) -> nn.Module:
        built.append(width)
        if width == 7:
            raise ValueError("no sevens")
        return nn.Linear(in_channels, num_classes)

    def another(num_classes: int, in_channels: int, width: object = 1) -> nn.Module:
        built.append("another")
        return nn.Linear(in_channels, num_classes)

    monkeypatch.setitem(MODELS, "mine", one)
    # Equal for Python, not for a builder.
    for width in (1, True, 1.0, 1, True):
        try_options("mine", {"width": width})
    assert [(type(width), width) for width in built] == [(int, 1), (bool, True), (float, 1.0)]
    for _ in range(2):
        with pytest.raises(ValueError, match="no sevens"):
            try_options("mine", {"width": 7})
    assert built[3:] == [7, 7]
    monkeypatch.setitem(MODELS, "mine", another)
    try_options("mine", {"width": 1})
    assert built[5:] == ["another"]


def test_wide_resnets_of_other_sizes_are_tried_each(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[tuple[int, int]] = []

    def wide(num_classes: int, in_channels: int, depth: int, width: int) -> nn.Module:
        built.append((depth, width))
        return nn.Linear(in_channels, num_classes)

    monkeypatch.setitem(MODELS, "wrn-D-W", wide)
    for name in ("wrn-10-1", "wrn-16-1", "wrn-10-1"):
        try_options(name, {})
    assert built == [(10, 1), (16, 1)]


def test_an_exact_key_wins_over_the_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "wrn-28-10", Mine)
    assert find("wrn-28-10") is Mine


def test_normalisation_is_the_callers_choice() -> None:
    with torch.device("meta"):
        plain = build("madry-w32-10", num_classes=10)
        per_image = build("madry-w32-10", num_classes=10, per_image=True)
    assert isinstance(plain, Classifier)
    assert isinstance(plain.net, MadryResNet)
    assert isinstance(plain.normalize, nn.Identity)
    assert isinstance(per_image.normalize, PerImageStandardize)
    chosen = build("small_cnn", num_classes=10, in_channels=1, mean=[0.1], std=[0.3])
    assert isinstance(chosen.normalize, Normalize)
