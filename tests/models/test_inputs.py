"""Images, labels, ids and balls that are refused, and images that a network does not take."""

import re

import pytest
import torch
from torch import Tensor, nn

from toughen.errors import UsageError, in_shell
from toughen.models import Classifier, build
from toughen.models.inputs import (
    as_input,
    as_labels,
    check_examples,
    check_images,
    check_radius,
    out_of_unit,
    placement,
    to_uint8,
)
from toughen.models.refusals import check_takes
from toughen.recipes import RecipeError
from toughen.threat import L2, Linf, Threat

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


SAID = r"mat1 and mat2 shapes cannot be multiplied \(2x12288 and 3072x5\) \(test_inputs\.py, line \d+\)"
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
        r": Input height \(64\) doesn't match model \(48\) \(test_inputs\.py, line \d+\); it takes 3x48x48: give "
        r"view=ResizeCrop\(48\)$",
    ),
    (
        Classifier(Strict(), in_channels=3),
        (1, 48, 48),
        r"takes images of 3 channels: give view=ResizeCrop\(48\), which makes all im",
    ),
    (
        build("small_cnn", num_classes=4, width=2),
        (1, 28, 28),
        r"channels: give view=ResizeCrop\(28\), which makes all images RGB$",
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


X = torch.linspace(0, 1, 3 * 4).reshape(3, 1, 2, 2)
Y = torch.tensor([0, 2, 1])


def test_images_may_overshoot_by_rounding():
    for x in (X, X + 9e-7, X - 9e-7, X[:0], X.double()):
        check_images(x)


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (
            (X * 255).to(torch.uint8),
            r"images are torch.uint8 of shape \(3, 1, 2, 2\); give \(N, C, H, W\), floats in \[0, 1\], such",
        ),
        (X[0], r"images are torch.float32 of shape \(1, 2, 2\)"),
        (X + 2e-6, r"images are in \[2e-06, 1\] but must be in \[0, 1\]"),
        (X - 2e-6, r"images are in \[-2e-06, 1\]"),
        (X * 255, r"images are in \[0, 255\] but must be in \[0, 1\]: divide by 255"),
        (X.log(), r"image 0 of 3 holds NaN or infinity"),
        (X * torch.nan, r"image 0 of 3 holds NaN or infinity"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(x: Tensor, says: str):
    with pytest.raises(ValueError, match=says):
        check_images(x)


def test_labels_are_classes_or_rows_of_probabilities():
    for y in (Y, Y.int(), torch.full((3, 4), 0.25)):
        assert torch.equal(as_labels(y, 3, classes=4, soft=True), y)
    for y, says in {
        Y.float(): r"labels are torch.float32 of shape \(3,\) for 3 images",
        Y[:2]: r"labels are torch.int64 of shape \(2,\) for 3 images",
        torch.ones(3, 4, dtype=torch.int64): r"labels are torch.int64 of shape \(3, 4\)",
        torch.full((3, 5), 0.2): "labels are probabilities of 5 classes but the model has 4",
        Y + 2: "labels run from 2 to 4 but the model has classes 0 to 3",
        Y - 1: "labels run from -1 to 1 but the model has classes 0 to 3",
    }.items():
        with pytest.raises(ValueError, match=says):
            as_labels(y, 3, classes=4, soft=True)


def test_examples_that_fit_come_back_as_whole_numbers():
    y, index = check_examples(X, Y.to(torch.uint8), None, 1)
    assert (y.dtype, index.dtype) == (torch.int64, torch.int64)
    assert (y.tolist(), index.tolist()) == ([0, 2, 1], [0, 1, 2])
    pixels, radii = to_uint8(X), Linf(torch.tensor([0.1, 0.2, 0.3]))
    assert check_examples(pixels, Y, torch.tensor([7, 3, 5]), 1, radii)[1].tolist() == [7, 3, 5]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"x": X * 2}, r"images are in \[0, 2\]"),
        ({"x": X[:0], "y": Y[:0]}, "there are no images to evaluate; give at least one"),
        ({"y": torch.full((3, 4), 0.25)}, r"give class numbers \(N,\): y\.argmax\(1\), if that"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"index": torch.arange(2)}, r"index is torch.int64 of shape \(2,\); give 3 whole numbers"),
        ({"index": torch.arange(3.0)}, r"index is torch.float32"),
        ({"index": torch.tensor([1, 2, 1])}, "index holds 2 different ids for 3 images; give each its own"),
        ({"threat": L2(torch.ones(2))}, "the threat model has 2 radii for 3 images; give one, or one each"),
    ],
)
def test_examples_that_do_not_fit_are_refused(changes: dict[str, object], says: str):
    given = {"x": X, "y": Y, "index": None, "batch_size": 4, **changes}
    with pytest.raises(ValueError, match=says):
        check_examples(**given)


def test_no_attack_is_possible_in_torchs_inference_mode():
    with torch.inference_mode(), pytest.raises(ValueError, match=r"inference_mode\(\) rules out; use torch.no_grad"):
        check_examples(X, Y, None, 1)


@pytest.mark.parametrize(
    ("x", "threat", "expected"),
    [
        (X, Linf(1.0), None),
        (X * 0, None, None),
        (X * 255, None, ("Inputs span 0..255", "divide the images by 255")),
        (X / 255, None, ("Inputs span 0..0.00392", "they were divided by 255 twice")),
        (X - 0.5, None, ("Inputs span -0.5..0.5", "undo the normalisation, and make it the model's first layer")),
        (X, Linf(8.0), ("The radius is 8", "write 8/255")),
        (X, L2(8.0), None),
        (to_uint8(X), Linf(0.1), None),
    ],
)
def test_units_other_than_those_of_the_unit_box(x: Tensor, threat: Threat | None, expected: tuple[str, str] | None):
    assert out_of_unit(x, threat) == expected


def test_a_ball_in_a_recipe_has_a_radius_that_makes_sense():
    for ball in (Linf(1.0), Linf(1e-9), L2(300.0)):
        assert check_radius(ball) is ball
    with pytest.raises(ValueError, match=r"the radius of linf:0.0 must be in \(0, 1\], like linf:8/255"):
        check_radius(Linf(0.0))
    with pytest.raises(ValueError, match=r"the radius of l2:0.0 must be positive, like l2:8/255"):
        check_radius(L2(0.0))


def test_where_a_model_is_and_in_what_it_computes():
    assert placement(nn.ReLU(), X) == (CPU, torch.float32)
    assert placement(nn.ReLU(), X.double()) == (CPU, torch.float64)
    assert placement(nn.ReLU(), to_uint8(X)) == (CPU, torch.float32)
    assert placement(nn.Linear(2, 2).half(), X) == (CPU, torch.float32)
    assert placement(nn.BatchNorm2d(2, affine=False).double(), X) == (CPU, torch.float64)
    assert placement(nn.Linear(2, 2, device="meta"), X)[0] == torch.device("meta")


def test_every_grey_level_comes_back_and_rounding_is_clipped():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    for dtype in (torch.float32, torch.float64):
        found = as_input(levels, CPU, dtype)
        assert found.dtype == dtype
        assert torch.equal(found, levels.to(dtype) / 255)
        assert torch.equal(to_uint8(found), levels)
    assert as_input(torch.tensor([-1e-7, 0.5, 1 + 1e-7]), CPU, torch.float32).tolist() == [0.0, 0.5, 1.0]
