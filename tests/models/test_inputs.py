"""Images that a network does not take, and the sentence about it."""

import re

import pytest
import torch
from torch import Tensor, nn

from toughen.errors import UsageError, in_shell
from toughen.models import Classifier, build
from toughen.models.inputs import check_takes
from toughen.recipes import RecipeError

CPU = torch.device("cpu")


class Linear(nn.Module):
    """Takes images of one size, and says what it was asked."""

    def __init__(self, side: int, channels: int = 3) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm2d(channels), nn.Dropout(0.5)
        self.head = nn.Linear(channels * side * side, 5)
        self.asked: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(tuple(x.shape))
        torch.rand(3)  # a network that draws in inference mode too
        return self.head(self.drop(self.norm(x)).flatten(1))


class Strict(nn.Module):
    """Refuses as timm's transformers do."""

    pretrained_cfg: dict[str, object] = {"input_size": (3, 48, 48)}  # noqa: RUF012

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[2] in (32, 48), f"Input height ({x.shape[2]}) doesn't match model (48).\nAnd more."
        return x.mean((2, 3))


def test_images_that_fit_cost_one_pass_and_leave_no_trace():
    net = Linear(8)
    net.norm.train()
    net.drop.eval()
    state, drawn = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    check_takes(net, (3, 8, 8), CPU)
    assert net.asked == [(2, 3, 8, 8)]
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert (net.training, net.norm.training, net.drop.training) == (True, True, False)
    assert all(parameter.grad is None for parameter in net.parameters())


SAID = r"mat1 and mat2 shapes cannot be multiplied \(2x12288 and 3072x5\)"
CASES = [
    (
        Linear(32),
        (3, 64, 64),
        rf"^the model does not take images of 3x64x64: {SAID}; it takes 3x32x32: give view=ResizeCrop\(32\)$",
    ),
    (Linear(28, 1), (1, 8, 8), r"it takes 1x28x28: give view=ResizeCrop\(28\)$"),
    (
        Linear(7),
        (3, 8, 16),
        r"images of 3x8x16: .*; nor those of usual sizes; look at what it expects, and give view=ResizeCrop\(N\) for",
    ),
    (Linear(7), (3, 64, 64), r"; nor those of usual sizes; .* view=ResizeCrop\(N\) for another side$"),
    # What timm says comes before what happens to run.
    (
        Strict(),
        (3, 64, 64),
        r": Input height \(64\) doesn't match model \(48\); it takes 3x48x48: give view=ResizeCrop\(48\)$",
    ),
    (
        Classifier(Strict(), in_channels=3),
        (1, 48, 48),
        r"takes images of 3 channels: give view=ResizeCrop\(48\), which makes all im",
    ),
    (
        build("small_cnn", num_classes=4, width=2),
        (1, 28, 28),
        r"channels: give view=ResizeCrop\(224\), which makes all images RGB$",
    ),
    (build("small_cnn", num_classes=4, in_channels=1, width=2), (3, 28, 28), r"; it takes images of 1 channels$"),
]


@pytest.mark.parametrize(("model", "shape", "says"), CASES)
def test_one_sentence_with_the_images_its_words_and_a_remedy(model: nn.Module, shape: tuple[int, ...], says: str):
    with pytest.raises(ValueError, match=says) as caught:
        check_takes(model, shape, CPU)
    assert len(str(caught.value).splitlines()) == 1
    # What it says it takes, it takes.
    if found := re.search(r"it takes (\d+)x(\d+)x(\d+)", str(caught.value)):
        check_takes(model, [int(number) for number in found.groups()], CPU)


def test_the_words_of_a_recipe_and_of_the_command_line():
    with pytest.raises(UsageError, match=r"give view=ResizeCrop\(32\)$") as caught:
        check_takes(Linear(32), (3, 64, 64), CPU, what="model: mine")
    assert re.search(r"^model: mine does not take .*; it takes 3x32x32: give --size 32$", in_shell(caught.value))
    assert re.search(r": give data\.size=32$", str(RecipeError(caught.value)))


class Full(nn.Module):
    def __init__(self, error: RuntimeError) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("x: can't allocate memory: y")])
def test_memory_that_runs_out_is_no_matter_of_size(error: RuntimeError):
    with pytest.raises(RuntimeError) as caught:
        check_takes(Full(error), (3, 8, 8), CPU)
    assert caught.value is error
