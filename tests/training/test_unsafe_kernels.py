"""Keeping clear of a gradient that torch cannot compute: which networks are concerned, and that no way leads there."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toughen import models
from toughen.data import Batches
from toughen.data.base import Split
from toughen.recipes import RecipeError
from toughen.recipes.text import build
from toughen.training import acceleration, setup
from toughen.training.acceleration import Acceleration, measured
from toughen.training.loop import Job
from toughen.training.setup import load_data, set_up, splits
from toughen.training.unsafe_kernels import REASON, narrow

SHAPE, CPU = (3, 16, 16), torch.device("cpu")


def job_of(told: list[str], ways: Acceleration | None = None, width: int = 2, **changes: object) -> Job:
    """A run on the tiny data in its first state; what it says goes into `told`."""
    recipe = build(
        {
            "data": {"source": "tiny", "validation": 16, "pad": 1},
            "model": {"name": "preact_resnet18", "width": width},
            "method": "natural",
            "threat": "linf:0.1",
            "batch_size": 19,
            "steps": 3,
            **changes,
        }
    )
    data = load_data(recipe)
    split, _, index = splits(recipe, data)
    return set_up(recipe, data, split, index, CPU, note=told.append, ways=ways)[0]


class Shortcut(nn.Module):
    """One convolution on what another makes."""

    def __init__(self, second: nn.Module, change: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.first, self.second, self.change = nn.Conv2d(3, 4, 3, padding=1), second, change

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.change(self.first(x))).mean((2, 3))


class Functional(nn.Module):
    """The same without a layer that could be asked."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, stride=2)


def channels_last(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last).copy_(x)


@pytest.mark.parametrize(
    ("name", "width", "expected"),
    [
        ("preact_resnet18", 2, True),
        ("preact_resnet18", 16, False),
        ("resnet50", 2, True),
        ("wrn-10-1", None, False),
        ("small_cnn", 2, False),
    ],
)
def test_networks_of_ours(name: str, width: int | None, expected: bool):
    options: dict[str, Any] = {} if width is None else {"width": width}
    assert narrow(models.build(name, num_classes=3, in_channels=3, **options), SHAPE, CPU) is expected


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (nn.Conv2d(4, 8, 1, stride=2), True),
        (nn.Conv2d(4, 8, 1, stride=(1, 2)), True),
        (Functional(), True),
        (nn.ConvTranspose2d(4, 8, 1, stride=2, output_padding=1), True),
        (nn.Conv2d(4, 8, 1), False),
        (nn.Conv2d(4, 8, 3, stride=2), False),
        (nn.Conv2d(4, 8, 1, stride=2, groups=2), False),
        (nn.Sequential(nn.Conv2d(4, 16, 1), nn.Conv2d(16, 8, 1, stride=2)), False),
    ],
)
def test_networks_of_other_people(second: nn.Module, expected: bool):
    assert narrow(Shortcut(second), SHAPE, CPU) is expected
    assert not narrow(Shortcut(second).double(), SHAPE, CPU, torch.float64)


def test_weights_come_into_the_usual_order_and_nothing_else_changes():
    model = Shortcut(nn.Sequential(nn.Conv2d(4, 8, 1, stride=2), nn.BatchNorm2d(8), nn.Dropout()))
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = channels_last(parameter.data)
    # Weights of one pixel are contiguous in any order: only their strides tell.
    assert [p.stride() for p in model.parameters() if p.ndim == 4] == [(27, 1, 9, 3), (4, 1, 4, 4)]
    parameters, values, drawn = list(model.parameters()), dict(model.state_dict()), torch.get_rng_state()
    assert narrow(model, SHAPE, CPU)
    assert [p.stride() for p in model.parameters() if p.ndim == 4] == [(27, 9, 3, 1), (4, 1, 1, 1)]
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    for name, value in model.state_dict().items():
        assert torch.equal(value, values[name]), name
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_weights_of_other_networks_stay_in_their_order():
    model = Shortcut(nn.Conv2d(4, 8, 3, stride=2)).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    assert not narrow(model, SHAPE, CPU)
    assert [p.stride() for p in model.parameters() if p.ndim == 4] == [(27, 1, 9, 3), (36, 1, 12, 4)]


def test_a_network_that_lays_its_images_out_itself_is_refused():
    with pytest.raises(ValueError, match="lays out itself"):
        narrow(Shortcut(nn.Conv2d(4, 8, 1, stride=2), channels_last), SHAPE, CPU)
    assert not narrow(Shortcut(nn.Conv2d(4, 8, 3, stride=2), channels_last), SHAPE, CPU)


def test_a_run_refuses_it_in_one_sentence(tiny: str, monkeypatch: pytest.MonkeyPatch):
    real = setup.build_model

    def building(*given: Any) -> models.Classifier:
        model = real(*given)
        model.net.register_forward_pre_hook(lambda net, x: (channels_last(x[0]),))
        return model

    monkeypatch.setattr(setup, "build_model", building)
    with pytest.raises(RecipeError, match=r"^model: .*; take the memory format out of its code"):
        job_of([])


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[Acceleration]:
    """What is tried by measuring; nothing is computed, and all take a second."""
    seen: list[Acceleration] = []

    def timed(model: nn.Module, x: Tensor, y: Tensor, ways: list[Acceleration]) -> dict[Acceleration, float]:
        seen.extend(ways)
        return dict.fromkeys(ways, 1.0)

    monkeypatch.setattr(acceleration, "_timed", timed)
    return seen


def test_measuring_tries_nothing_that_could_end_the_process(tiny: str, tried: list[Acceleration]):
    told: list[str] = []
    for width in (2, 16):
        job_of(told, width=width, fast="measure")
    sound = [Acceleration(), Acceleration(bf16=True)]
    others = [
        Acceleration(),
        Acceleration(channels_last=True),
        Acceleration(bf16=True),
        Acceleration(bf16=True, channels_last=True),
    ]
    assert tried == [*sound, *others, Acceleration(compiled=True)]
    # Before it comes what becomes of a last batch of one image.
    first, second = (said for said in told if said.startswith("measured"))
    assert first == (
        f"measured a natural step: plain float32 1000 ms; bf16 1000 ms; neither channels_last nor graphs were tried: "
        f"{REASON}; taken: plain float32"
    )
    assert "neither" not in second


def test_measuring_by_hand_tries_no_more_than_it_is_told(tried: list[Acceleration]):
    model = models.build("small_cnn", num_classes=2, in_channels=1)
    x, y = torch.zeros(2, 1, 8, 8), torch.zeros(2).long()
    measured(model, x, y, bf16=(True,), compiles=True, narrow=True)
    assert tried == [Acceleration(bf16=True)]


def test_a_run_that_began_elsewhere_goes_on_without(tiny: str):
    told: list[str] = []
    job = job_of(told, Acceleration(bf16=True, channels_last=True, compiled=True))
    assert job.ways == Acceleration(bf16=True)
    assert job.graphs is None
    assert all(p.is_contiguous() for p in job.model.parameters())
    assert told[-1:] == [f"computing in bf16 from here on: {REASON}"]


@pytest.mark.parametrize("channels", [1, 3])
def test_batches_lie_in_the_usual_order_whatever_the_split_does(channels: int):
    pixels = torch.randint(0, 256, (8, 6, 6, channels), dtype=torch.uint8).permute(0, 3, 1, 2)
    batches = Batches(
        Split(pixels, torch.zeros(8).long()), torch.arange(8), batch_size=4, seed=0, device=CPU, classes=2
    )
    assert batches[0].x.stride() == (36 * channels, 36, 6, 1)
