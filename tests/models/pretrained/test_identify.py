from typing import Any

import pytest
import torch

from conftest import FULL
from models import published
from models.published import DEEPMIND, TRADES
from toughen.models import build, identify
from toughen.models.pretrained.key_names import describe_network

OURS: list[Any] = [
    ("resnet18", {}, "resnet18 with 10 classes"),
    ("resnet18", {"width": 8, "stem": "imagenet"}, "resnet18 with 10 classes, stem: imagenet, width: 8"),
    ("resnet34", {"width": 8}, "resnet34 with 10 classes, width: 8"),
    ("resnet50", {"stem": "cifar"}, "resnet50 with 10 classes, stem: cifar"),
    ("resnet101", {}, "resnet101 with 10 classes"),
    # Of a third more layers, and found by the same count.
    pytest.param("resnet152", {}, "resnet152 with 10 classes", marks=FULL),
    ("wide_resnet50_2", {}, "wide_resnet50_2 with 10 classes"),
    ("preact_resnet18", {"width": 16}, "preact_resnet18 with 10 classes, width: 16"),
    ("wrn-34-10", {}, "wrn-34-10 with 10 classes"),
    ("wrn-10-1", {"in_channels": 1, "num_classes": 1}, "wrn-10-1 with 1 class, in_channels: 1"),
    ("madry-w32-10", {"width": 2}, "madry-w32-10 with 10 classes, width: 2"),
    ("small_cnn", {"norm": "batch", "width": 4}, "small_cnn with 10 classes, width: 4, norm: batch"),
    ("small_cnn", {}, "small_cnn with 10 classes"),
]


@pytest.mark.parametrize(("name", "options", "words"), OURS)
def test_every_network_here_knows_itself(name: str, options: dict[str, Any], words: str):
    with torch.device("meta"):
        state = build(name, **{"num_classes": 10, **options}).net.state_dict()
        found, given, share = identify(state)[0]
        assert (found, share) == (name, 1.0)
        assert describe_network(found, given) == words
        again = build(found, **given).net.state_dict()
    assert {key: value.shape for key, value in again.items()} == {key: value.shape for key, value in state.items()}


@pytest.mark.parametrize(
    ("state", "name", "options"),
    [
        (published.resnet((3, 4, 6, 3), deep=True), "resnet50", {"width": 4}),
        (published.resnet((3, 4, 6, 3), deep=True, wide=2), "wide_resnet50_2", {"width": 4}),
        (published.kuangliu((2, 2, 2, 2)), "resnet18", {"width": 4}),
        (published.kuangliu((3, 4, 6, 3)), "resnet34", {"stem": "cifar", "width": 4}),
        (published.preact(), "preact_resnet18", {"width": 4}),
        (published.wide_resnet(TRADES, 16, 2), "wrn-16-2", {}),
        (published.wide_resnet(DEEPMIND, 22, 1), "wrn-22-1", {"padding": "end"}),
    ],
)
def test_other_peoples_names(state: published.State, name: str, options: dict[str, Any]):
    assert identify(state)[0] == (name, {"num_classes": 5, "in_channels": 3, **options}, 1.0)


def test_a_part_of_a_network_is_known_by_the_rest():
    state = published.wide_resnet(TRADES, 16, 2)
    lacking = {key: value for key, value in state.items() if not key.startswith(("fc.", "bn1."))}
    name, options, share = identify(lacking)[0]
    assert (name, options) == ("wrn-16-2", {"in_channels": 3})
    counted = [key for key in state if "num_batches" not in key]
    assert share == pytest.approx(1 - 6 / len(counted))


@pytest.mark.parametrize(
    "state",
    [{}, {"a": torch.zeros(3, 3)}, {"stem.weight": torch.zeros(2, 2, 2, 2)}, {"linear.weight": torch.zeros(2, 2)}],
)
def test_what_is_like_nothing_here(state: published.State):
    assert identify(state) == []


def test_absurd_shapes_do_no_harm():
    state = {"stem.weight": torch.zeros(1, 1, 1, 1), "groups.0.conv1.weight": torch.zeros(0, 1, 1, 1)}
    assert identify(state | {"features.0.weight": torch.zeros(0, 3, 3, 3)}) == []
