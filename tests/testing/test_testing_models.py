"""The public contract suite for models: each seeded fault is told by the promise that it breaks."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from foreign import Network, told
from toughen.testing import BrokenPromise, check_model, model_promises

SMALL = (3, 8, 8)


class Changed(Network):
    """The sound one; a subclass changes its output."""

    def forward(self, x: Tensor) -> Tensor:
        return self.change(x, super().forward(x))

    def change(self, x: Tensor, logits: Tensor) -> Any:
        return logits


class Pair(Changed):
    def change(self, x: Tensor, logits: Tensor) -> Any:
        return logits, x


class Half(Changed):
    def change(self, x: Tensor, logits: Tensor) -> Any:
        return logits.bfloat16()


class Softmax(Changed):
    def change(self, x: Tensor, logits: Tensor) -> Any:
        return logits.softmax(1)


class LogSoftmax(Changed):
    def change(self, x: Tensor, logits: Tensor) -> Any:
        return logits.log_softmax(1)


class Nan(Changed):
    def change(self, x: Tensor, logits: Tensor) -> Any:
        return logits / 0


class Squeezed(Changed):
    def change(self, x: Tensor, logits: Tensor) -> Any:
        return logits.squeeze()


class Constant(Changed):
    def change(self, x: Tensor, logits: Tensor) -> Any:
        return 0 * logits + torch.arange(logits.shape[1])


class Random(Changed):
    def change(self, x: Tensor, logits: Tensor) -> Any:
        return logits + 0.1 * torch.randn_like(logits)


class Centred(Changed):
    """Normalises by the batch."""

    def change(self, x: Tensor, logits: Tensor) -> Any:
        return logits - logits.mean(0)


class Counting(Changed):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def change(self, x: Tensor, logits: Tensor) -> Any:
        self.calls += 1
        return logits


class InPlace(Changed):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach().mul_(0.5) if not x.requires_grad else x * 0.5)


class Rounded(Changed):
    """Rounds to 8 grey levels, of which no gradient comes back."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x * 8).round() / 8)


class StraightThrough(Changed):
    """Rounds, and lies about it in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + ((x * 8).round() / 8 - x).detach())


class Saturated(Changed):
    def change(self, x: Tensor, logits: Tensor) -> Any:
        return logits * 1e6


class Hidden(Changed):
    """Weights that the state_dict does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.secret = torch.randn(5)

    def change(self, x: Tensor, logits: Tensor) -> Any:
        return logits + self.secret


class Unused(Changed):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)


BAD_MODELS: dict[str, tuple[type[nn.Module], str, str]] = {
    "a-pair": (Pair, "logits", "it returned a tuple"),
    "half": (Half, "logits", "it returned torch.bfloat16"),
    "nan": (Nan, "logits", "logits are not finite"),
    "softmax": (Softmax, "no softmax", "adds up to 1"),
    "squeezed": (Squeezed, "batch sizes", "for 1 images it returned (5,)"),
    "constant": (Constant, "looks at the image", "eight images have the same logits"),
    "random": (Random, "deterministic", "moves a global random state"),
    "batch-statistics": (Centred, "batch mates", "alone and in a batch logits differ"),
    "counting": (Counting, "inference changes nothing", "calls has moved"),
    "in-place": (InPlace, "inference changes nothing", "written into the images"),
    "rounded": (Rounded, "input gradients", "it is zero for 8 of 8 images"),
    "straight-through": (StraightThrough, "input gradients", "output"),
    "saturated": (Saturated, "input gradients", "it is zero for"),
    "hidden": (Hidden, "state dict", "another model with that state_dict: logits differ"),
    "unused": (Unused, "training", "no gradient reaches spare.weight, spare.bias"),
}


@pytest.mark.parametrize("case", BAD_MODELS.values(), ids=BAD_MODELS.keys())
def test_a_bad_model_is_told(case: tuple[type[nn.Module], str, str]):
    faulty, name, words = case
    told(model_promises(faulty, shape=SMALL), name, words)
    with pytest.raises(BrokenPromise):
        check_model(faulty, shape=SMALL)


def test_log_probabilities_are_logits_too():
    check_model(LogSoftmax, shape=SMALL)


def test_each_promise_of_a_model_has_a_fault_that_breaks_it():
    assert {name for _, name, _ in BAD_MODELS.values()} == {promise.name for promise in model_promises(Network)}


def test_a_model_that_is_fed_wrongly_is_told():
    images = 255 * torch.rand(40, *SMALL, generator=torch.Generator().manual_seed(0))
    promises = model_promises(Network, data=(images, torch.arange(40) % 5))
    told(promises, "fed as it was trained", "EV221 ")
