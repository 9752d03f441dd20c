"""What every model promises; `toughen.testing.check_model` looks at it."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from toughen.evaluation import check
from toughen.evaluation.audit import statistics
from toughen.losses import cross_entropy
from toughen.models.batched import predict, value_and_grad
from toughen.noise import generator
from toughen.testing.promises import Promise, PromiseSuite, expect, random_states, seed_everything

Builder = Callable[[], nn.Module]

models = PromiseSuite()


@dataclass(eq=False)
class ModelUnderTest:
    """A model as it is looked at: always a copy of it, so that it stays as it was.

    Attributes:
        given: as users have it, or a function that builds it.
        shape: of an image.
        classes: K, or None for whatever it returns.
        data: labelled images, or None.
    """

    given: nn.Module | Builder
    shape: tuple[int, int, int]
    classes: int | None
    data: tuple[Tensor, Tensor] | None

    def build(self, seed: int = 0) -> nn.Module:
        """A copy, or a new one whose weights are those of the seed, in inference mode."""
        if isinstance(self.given, nn.Module):
            return copy.deepcopy(self.given).eval()
        seed_everything(seed)
        return self.given().eval()

    @cached_property
    def device(self) -> torch.device:
        """Where its weights are."""
        tensors = [*(model := self.build()).parameters(), *model.buffers()]
        return tensors[0].device if tensors else torch.device("cpu")

    def images(self, n: int = 8) -> Tensor:
        """Images in [0, 1]: given ones, or noise that is darker in some images than in others."""
        if self.data is not None:
            x = self.data[0][:n]
            return (x.float() / 255 if x.dtype == torch.uint8 else x.float()).to(self.device)
        x = torch.rand(n, *self.shape, generator=generator("testing", "model"))
        return (x * torch.linspace(0.2, 1, n).reshape(-1, 1, 1, 1)).to(self.device)


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    found = predict(model, x)
    expect(isinstance(found, Tensor), f"it returned a {type(found).__name__}")
    return found


def _apart(found: Tensor, expected: Tensor) -> str:
    return f"logits differ by up to {float((found - expected).abs().max()):.2g}"


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    yield
    now = model.state_dict()
    moved = [name for name in before if name not in now or not torch.equal(now[name], before[name])]
    expect(not moved, f"{', '.join(moved)} has moved")
    expect([module.training for module in model.modules()] == flags, "modules have changed their mode")


@models.promise("return the logits alone, (N, K) in float32, and compute them in float32 outside of autocast")
def logits(one: ModelUnderTest) -> None:
    """Images (N, C, H, W) in [0, 1] become finite float32 logits (N, K)."""
    x = one.images()
    found = _logits(one.build(), x)
    shape = tuple(found.shape)
    expect(found.ndim == 2 and len(found) == len(x) and shape[1] > 1, f"for {len(x)} images it returned {shape}")
    expect(one.classes in (None, shape[1]), f"it returned {shape[1]} logits for {one.classes} classes")
    expect(found.dtype == torch.float32, f"it returned {found.dtype} for float32 images")
    expect(found.isfinite().all(), "logits are not finite")


@models.promise("return the logits without softmax: losses have it")
def no_softmax(one: ModelUnderTest) -> None:
    """The output is logits, or log-probabilities, which are logits too, but not probabilities."""
    found = _logits(one.build(), one.images())
    expect(not statistics.are_probabilities(found), "every row is nowhere negative and adds up to 1")


@models.promise("flatten with x.flatten(1), and let no layer squeeze the batch away")
def batch_sizes(one: ModelUnderTest) -> None:
    """A batch may have any number of images: 1, 3 and 8."""
    for n in (1, 3, 8):
        found = _logits(one.build(), one.images()[:n])
        expect(len(found) == n, f"for {n} images it returned {tuple(found.shape)}")


@models.promise("use the input, and leave the last layers some weights: constant outputs cannot be attacked")
def looks_at_the_image(one: ModelUnderTest) -> None:
    """Other images have other logits."""
    expect(not statistics.are_constant(_logits(one.build(), one.images())), "eight images have the same logits")


@models.promise("take nn.Dropout and the like, which rest in inference mode, for whatever is random")
def deterministic(one: ModelUnderTest) -> None:
    """In inference mode the same images have the same logits, and no global random state moves."""
    model, x = one.build(), one.images()
    seed_everything(1)
    before = random_states()
    first = _logits(model, x)
    expect(random_states() == before, "a forward pass moves a global random state")
    seed_everything(2)
    second = _logits(model, x)
    expect(torch.equal(first, second), f"a second pass gives others: {_apart(second, first)}")


@models.promise("normalise by running statistics in inference mode (nn.BatchNorm2d, track_running_stats=True)")
def batch_mates(one: ModelUnderTest) -> None:
    """In inference mode an image's logits do not depend on the other images of its batch."""
    model, x, tolerance = one.build(), one.images(), 1e-4
    try:
        exact, doubled = copy.deepcopy(model).double(), x.double()
        _logits(exact, doubled)
        model, x, tolerance = exact, doubled, 1e-12
    except RuntimeError:
        pass  # it insists on float32, in which sums in another order differ a little
    together = _logits(model, x)
    alone = torch.cat([_logits(model, x[i : i + 1]) for i in range(len(x))])
    fine = torch.allclose(together, alone, rtol=tolerance, atol=tolerance * max(1.0, float(together.abs().max())))
    expect(fine, f"alone and in a batch {_apart(alone, together)}")


@models.promise("change nothing in forward() but what training changes, and that in training mode alone")
def inference_changes_nothing(one: ModelUnderTest) -> None:
    """In inference mode no weight, buffer or mode moves, and the images stay as they were."""
    model, x = one.build(), one.images()
    before = x.clone()
    with _unchanged(model):
        _logits(model, x)
    expect(torch.equal(x, before), "it has written into the images")


@models.promise("let nothing between image and logits be rounded, detached, or saturated")
def input_gradients(one: ModelUnderTest) -> None:
    """The gradient of the loss reaches the image: finite, not zero, and the slope of the output."""
    model, x = one.build(), one.images()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    y = _logits(model, x).argmax(1)
    _, grad, _ = value_and_grad(model, x, lambda logits, rows: cross_entropy(logits, y[rows]))
    expect(grad.isfinite().all(), "it is not finite")
    zeros = statistics.all_zero(grad)
    expect(not zeros.any(), f"it is zero for {int(zeros.sum())} of {len(x)} images")
    wrong = [item for item in check(model, x, y).wrong if item.what == "gradients"]
    expect(not wrong, "; ".join(item.evidence for item in wrong))


@models.promise("register what it needs as parameters and buffers, plain tensors all")
def state_dict(one: ModelUnderTest) -> None:
    """Its state_dict holds all that its logits depend on."""
    model, x = one.build(), one.images()
    expected = _logits(model, x)
    state = dict(model.state_dict())
    other = [name for name, value in state.items() if not isinstance(value, Tensor)]
    expect(not other, f"{', '.join(other)} is no tensor")
    state = {name: value.clone() for name, value in state.items()}
    fresh = one.build(seed=1)
    with torch.no_grad():
        for value in fresh.state_dict().values():
            value.zero_()
    fresh.load_state_dict(state)
    found = _logits(fresh, x)
    expect(torch.equal(found, expected), f"another model with that state_dict: {_apart(found, expected)}")


@models.promise("use every parameter in forward(), and detach none of them")
def training(one: ModelUnderTest) -> None:
    """In training mode a batch gives every parameter a finite gradient, and logits of the same shape."""
    model, x = one.build(), one.images()
    shape = tuple(_logits(model, x).shape)
    model.train()
    found = model(x)
    expect(isinstance(found, Tensor), f"in training mode it returned a {type(found).__name__}")
    expect(tuple(found.shape) == shape, f"in training mode it returned {tuple(found.shape)} instead of {shape}")
    cross_entropy(found, torch.arange(len(x), device=x.device) % shape[1]).mean().backward()
    asking = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    without = [name for name, grad in asking.items() if grad is None]
    expect(not without, f"no gradient reaches {', '.join(without[:5])}, for which ranks would wait in vain")
    lost = [name for name, grad in asking.items() if grad is not None and not grad.isfinite().all()]
    expect(not lost, f"gradients of {', '.join(lost[:5])} are not finite")


@models.promise("see toughen.check(model, images, labels)", lambda one: one.data is not None)
def fed_as_it_was_trained(one: ModelUnderTest) -> None:
    """On labelled images `toughen.check` finds nothing wrong: normalisation inside, channels and classes in order."""
    assert one.data is not None
    found = check(one.build(), *one.data)
    expect(found.fine, " ".join(f"{item.code} {item.evidence} Remedy: {item.remedy}" for item in found.wrong[:1]))


def model_promises(
    model: nn.Module | Builder,
    *,
    shape: tuple[int, int, int] = (3, 32, 32),
    classes: int | None = None,
    data: tuple[Tensor, Tensor] | None = None,
) -> list[Promise]:
    """What `check_model` looks at, one by one; see there for the arguments."""
    name = type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", "the model")
    return models.of(ModelUnderTest(model, shape, classes, data), name)
