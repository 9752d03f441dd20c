"""A stranger's model at the door: what is found out, what is refused, and that nothing is left behind."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toughen.models.adapted import AdaptedModel
from toughen.models.batched import Batched
from toughen.models.cost import counted
from toughen.models.prepared import ball_of, inference, prepare, prepared
from toughen.threat import Linf

X = torch.linspace(0, 1, 3 * 2 * 4 * 4).reshape(3, 2, 4, 4)
Y = torch.tensor([0, 4, 2])


class Small(nn.Module):
    """A convolution and a linear layer, with something done to the images before and to the logits after."""

    def __init__(self, before: Callable[[Tensor], Tensor] = lambda x: x, after: Callable[[Tensor], Any] = lambda z: z):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(12, 5)
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Any:
        return self.after(self.head(self.norm(self.conv(self.before(x))).flatten(1)))


class Viewing(Small):
    """Flattens by `view`, which takes one layout alone."""

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv(x)
        return self.head(features.view(len(x), -1))


class Answer:
    """What some libraries return in place of a tensor."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


def of_size(n: int) -> Callable[[Tensor], Tensor]:
    """Images only where there are n."""

    def check(x: Tensor) -> Tensor:
        if len(x) != n:
            raise ValueError(f"give {n} images, not {len(x)}")
        return x

    return check


def no_gradient(z: Tensor) -> Tensor:
    return z.detach()


def scripted() -> nn.Module:
    return torch.jit.script(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 5)))


MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "plain": (Small, {}),
    "without parameters": (lambda: nn.Sequential(nn.AvgPool2d(4), nn.Flatten()), {"classes": 2}),
    "half logits": (lambda: Small(after=lambda z: z.half()), {}),
    "half": (lambda: Small().half(), {"adapted": True, "fast": False}),
    "a tuple": (lambda: Small(after=lambda z: (z, 0)), {"adapted": True, "said": "a tuple"}),
    "a list": (lambda: Small(after=lambda z: [z]), {"adapted": True, "said": "a tuple"}),
    "a mapping": (lambda: Small(after=lambda z: {"loss": None, "logits": z}), {"adapted": True, "said": "a mapping"}),
    "an object": (lambda: Small(after=Answer), {"adapted": True, "said": "an object"}),
    "no gradient": (lambda: Small(after=no_gradient), {}),
    "in place": (lambda: Small(before=lambda x: x.relu_()), {"adapted": True}),
    "in place, one value": (lambda: Small(before=lambda x: x.mul_(0.5)), {"adapted": True}),
    "view": (Viewing, {"fast": False}),
    "one image alone": (lambda: Small(before=of_size(1)), {"fast": False}),
    # torch calls no hook of what it has compiled.
    "torch.jit": (scripted, {"adapted": True}),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize(("make", "differs"), MODELS.values(), ids=MODELS)
def test_what_is_found_out_of_a_model(make: Callable[[], nn.Module], differs: dict[str, Any]):
    expected = {"classes": 5, "fast": True, "adapted": False, "said": "", **differs}
    for model in (make().eval(), make().train()):
        found = prepare(model, X, None, 3)
        assert (found.classes, found.fast) == (expected["classes"], expected["fast"])
        assert isinstance(found.model.model, AdaptedModel) == expected["adapted"]
        assert (found.model.model is model) != expected["adapted"]
        assert [text.startswith(f"the model returns {expected['said']}, ") for text in found.said] == [True] * bool(
            expected["said"]
        )


def test_the_door_leaves_no_trace():
    def drawn(x: Tensor) -> Tensor:
        return x + torch.rand(1)

    model, x = Small(before=drawn), X.clone()
    model.norm.eval()
    model.conv.weight.requires_grad_(False)
    state, random = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    laid_out = model.conv.weight.stride()
    prepare(model, x, Y, 3)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(x, X)
    assert [module.training for module in (model, model.conv, model.norm)] == [True, True, False]
    assert [p.requires_grad for p in model.parameters()] == [False, *[True] * 5]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.conv.weight.stride() == laid_out
    assert not model._forward_hooks


def test_the_door_costs_a_pass_of_one_image_and_two_both_ways_for_the_layout():
    model, bare = Small(), nn.Sequential(nn.Flatten(), nn.Linear(32, 5))
    with counted(model) as passes, prepared(model, X, Y, 256):
        assert (passes.example_forwards, passes.example_backwards) == (1 + 2 * 2, 2 * 2)
    with counted(bare) as passes, prepared(bare, X, Y, 256):
        assert (passes.example_forwards, passes.example_backwards) == (1, 0)


def test_a_prepared_model_is_in_inference_mode_frozen_and_in_pieces():
    seen: list[tuple[int, bool, bool, torch.dtype]] = []
    model = Small().double()

    def note(x: Tensor) -> Tensor:
        seen.append((len(x), model.training, model.head.weight.requires_grad, x.dtype))
        return x

    model.before = note
    pixels = (X * 255).round().to(torch.uint8)
    with prepared(model, pixels, Y, 2) as subject:
        assert (subject.device, subject.dtype, subject.classes) == (torch.device("cpu"), torch.float64, 5)
        images = subject.images(pixels)
        assert torch.equal(images, pixels.double() / 255)
        seen.clear()
        logits = subject.predict(images, ids=torch.arange(3), under="clean")
    assert seen == [(2, False, False, torch.float64), (1, False, False, torch.float64)]
    assert model.training
    assert model.head.weight.requires_grad
    torch.testing.assert_close(logits, model.eval()(images).detach())


def test_autocast_of_the_caller_does_not_reach_the_model():
    model = Small()
    with torch.autocast("cpu", torch.bfloat16), prepared(model, X, Y, 3) as subject:
        found = subject.predict(subject.images(X), ids=torch.arange(3), under="clean")
    with inference(model, X.device), torch.no_grad():
        torch.testing.assert_close(found, model(X), rtol=1e-6, atol=1e-6)


def test_a_copy_for_attacks_has_no_batchnorm_and_the_same_logits():
    model = Small()
    with prepared(model, X, Y, 2) as subject, torch.no_grad():
        quick = subject.folded(X)
        assert quick.size == 2
        assert not any(isinstance(module, nn.BatchNorm2d) for module in quick.modules())
        torch.testing.assert_close(quick(X), subject.model(X))
    bare = nn.Sequential(nn.Flatten(), nn.Linear(32, 5))
    with prepared(bare, X, Y, 2) as subject:
        assert subject.folded(X).model is bare


REFUSED: dict[str, tuple[Callable[[], nn.Module], Tensor, str]] = {
    "another shape": (lambda: nn.Linear(7, 5), Y, r"^EV226 the model does not take images of 2x4x4: mat1 and mat2"),
    "a fixed batch": (
        lambda: Small(before=of_size(7)),
        Y,
        r"^EV226 .*: give 7 images, not 1 \(test_prepared\.py, line \d+\);",
    ),
    "no logits": (lambda: Small(after=lambda z: (None, z)), Y, r"^the model returns a tuple of NoneType, Tensor; it "),
    "classes": (
        lambda: Small(after=lambda z: z.argmax(1)),
        Y,
        r"^the model returned torch.int64 of shape \(1,\) ",
    ),
    "one column": (lambda: Small(after=lambda z: z[:, :1]), Y, r"^the model returned one number z for each image"),
    "a map": (lambda: Small(after=lambda z: z[:, :, None]), Y, r"float32 of shape \(1, 5, 1\) .* at least 2 classes$"),
    "a label too high": (Small, Y + 1, r"^labels run from 1 to 5 but the model has classes 0 to 4$"),
}


@pytest.mark.parametrize(("make", "y", "says"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_classifier_of_the_images_is_refused(make: Callable[[], nn.Module], y: Tensor, says: str):
    with pytest.raises(ValueError, match=says):
        prepare(make(), X, y, 3)


def test_labels_are_looked_at_where_there_are_some():
    assert prepare(Small(), X, None, 3).classes == 5


def test_memory_that_runs_out_is_no_fault_of_the_images():
    error = torch.OutOfMemoryError("full")

    def full(x: Tensor) -> Tensor:
        raise error

    with pytest.raises(torch.OutOfMemoryError) as caught:
        prepare(Small(before=full), X, Y, 3)
    assert caught.value is error


def test_a_model_in_pieces_keeps_its_size():
    subject = prepare(Small(), X, Y, 2)
    assert isinstance(subject.model, Batched)
    assert subject.model.size == 2


def test_the_ball_of_some_examples():
    device, rows = torch.device("cpu"), torch.tensor([2, 0])
    assert ball_of(Linf(0.1), rows, device) == Linf(0.1)
    found = torch.as_tensor(ball_of(Linf(torch.tensor([0.1, 0.2, 0.3])), rows, device).eps)
    assert torch.equal(found, torch.tensor([0.3, 0.1]))
    assert float(ball_of(Linf(torch.tensor(0.25)), rows, device).eps) == 0.25
