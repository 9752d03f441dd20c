"""What a model does as it is given, and besides returning logits, as far as it can be seen: facts, and no verdicts.

watched = WatchedModel(model)
with watched.observing() as seen:
    logits = watched(x.requires_grad_())
seen.of_gradients()               # " The model computes round of the image."
"""

import random
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from toughen.devices import in_float64, own_draws, random_states, sent
from toughen.evaluation.audit.gradient_repairs import (
    COMPARISONS,
    DETACHING,
    STEP_FUNCTIONS,
    eagerly,
    leads_to,
    own_derivatives,
    sets_hook,
    to_integers,
)
from toughen.evaluation.audit.statistics import not_finite
from toughen.losses import full_precision, margin
from toughen.models.batched import Batched, out_of_memory, predict

# A pixel's change that is far above rounding and far below one grey level.
TINY = 1e-5


@dataclass
class Observed:
    """What was seen of some forward passes.

    Attributes:
        steps: functions of the image whose derivative is zero or none: rounding, signs, comparisons, integers.
        own: names of derivatives of the user's own (`torch.autograd.Function`).
        parted: ways in which values of the image were taken out of the gradient's reach, or the gradient was changed.
        normalises: whether a BatchNorm used the statistics of the batch.
        told: whether what may concern the gradient was told.
        autograd: calls of `torch.autograd.grad` and `backward`, `Tensor.backward` and what is built on them.
        low_precision: whether any operation gave numbers of 16 bits.
        draws: whose random numbers were drawn or set.
        changes: attributes and buffers of the model that are others than before, by name.
        gradient: whether the output leads back to the image in autograd's eyes.
    """

    steps: set[str] = field(default_factory=set)
    own: set[str] = field(default_factory=set)
    parted: set[str] = field(default_factory=set)
    normalises: bool = False
    autograd: int = 0
    low_precision: bool = False
    draws: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    gradient: bool = True
    told: bool = False

    def of_gradients(self) -> str:
        """What may concern the gradient, once, in sentences with a blank before them; often nothing."""
        if self.told:
            return ""
        self.told = True
        found = "" if self.gradient else " No gradient of the output reaches the images."
        found += f" The model computes {', '.join(sorted(self.steps))} of the image." if self.steps else ""
        if self.own:
            found += f" It has derivatives of its own (torch.autograd.Function): {', '.join(sorted(self.own))}."
        if self.parted:
            found += f" It calls {', '.join(sorted(self.parted))} on values of the image."
        return found

    def of_repeats(self) -> str:
        """What may make two passes differ, likewise."""
        return f" The forward pass draws or sets random numbers of {' and '.join(self.draws)}." if self.draws else ""


class Operations(TorchFunctionMode):
    """Looks at what a model computes until the context ends."""

    def __init__(self, seen: Observed) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The call itself."""
        seen, given = self.seen, kwargs or {}
        seen.autograd += func in (torch.autograd.grad, torch.autograd.backward, Tensor.backward)
        asks = any(isinstance(arg, Tensor) and arg.requires_grad for arg in args)
        if func is F.batch_norm and (given.get("training") or (len(args) > 5 and args[5])):
            seen.normalises = True
        if asks and (func in DETACHING or sets_hook(func, args)):
            seen.parted.add(DETACHING.get(func, "register_hook"))
        result = func(*args, **given)
        if asks and (func in STEP_FUNCTIONS or func in COMPARISONS):
            seen.steps.add((STEP_FUNCTIONS | COMPARISONS)[func])
        elif asks and to_integers(func, result):
            seen.steps.add("whole numbers")
        seen.low_precision |= isinstance(result, Tensor) and result.dtype in (torch.float16, torch.bfloat16)
        return result


class WatchedModel(nn.Module):
    """A model that counts the logits and gradients that are not finite.

    Where its logits do not depend on the images in autograd's eyes, their gradient is zero instead of an error.

    Args:
        model: the classifier.

    Attributes:
        nonfinite_logits: rows of logits that held NaN or infinity, since the last `forget`.
        nonfinite_gradients: likewise of input gradients.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._observed: Observed | None = None
        self.forget()

    def forget(self) -> None:
        """Count anew."""
        self.nonfinite_logits: Tensor | int = 0
        self.nonfinite_gradients: Tensor | int = 0

    @contextmanager
    def observing(self) -> Iterator[Observed]:
        """What is seen of the forward passes until the context ends."""
        self._observed = seen = Observed()
        random_before, before = _random_states(), _marks(self.model)
        try:
            yield seen
        finally:
            self._observed = None
        drawn = _random_states()
        seen.draws = tuple(whose for whose, state in random_before.items() if drawn[whose] != state)
        after = _marks(self.model)
        seen.changes = tuple(name for name, mark in after.items() if not _same(before.get(name), mark))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        asked = torch.is_grad_enabled() and x.requires_grad
        if self._observed is None:
            logits = self.model(x)
        else:
            with eagerly(), Operations(self._observed):
                logits = self.model(x)
            if asked:
                self._observed.gradient &= leads_to(logits, x)
                self._observed.own |= {name for name, _ in own_derivatives(logits)}
        self.nonfinite_logits = self.nonfinite_logits + not_finite(logits.detach()).sum()
        if asked:
            x.register_hook(self._see)
            return logits + (0 * x.flatten(1).sum(1, keepdim=True)).to(logits.dtype)
        return logits

    def _see(self, grad: Tensor) -> None:
        self.nonfinite_gradients = self.nonfinite_gradients + not_finite(grad).sum()


@dataclass(frozen=True)
class LogitsAsGiven:
    """What a model returns in the mode in which it was given, where that is not inference mode.

    Attributes:
        logits: of the first examples, (M, K); NaN where it then returns no logits.
        names: its modules in training mode.
    """

    logits: Tensor
    names: list[str]


@contextmanager
def undisturbed(device: torch.device, seed: int) -> Iterator[None]:
    """The global random state restored, and inside fixed: a random model then gives the same verdict every time."""
    with own_draws(device):
        torch.manual_seed(seed)
        yield


def as_given(model: nn.Module, x: Tensor) -> LogitsAsGiven | None:
    """The model's logits in the mode in which it was given, where that is not inference mode; buffers are restored."""
    training = {name or "the model": module for name, module in model.named_modules() if module.training}
    if not training:
        return None
    names = [name for name, module in training.items() if not any(module.children())] or list(training)
    kept, logits = [(buffer, buffer.clone()) for buffer in model.buffers()], None
    try:
        # BatchNorm refuses to train on a single example.
        logits = model(x if len(x) > 1 else torch.cat([x, x]))
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
    finally:
        for buffer, before in kept:
            buffer.copy_(before)
    if logits is None:
        return as_given(model, x[: len(x) // 2]) if len(x) > 1 else None
    if not isinstance(logits, Tensor):
        # As of networks with outputs for training alone.
        return LogitsAsGiven(torch.full((len(x), 1), torch.nan), names)
    return LogitsAsGiven(full_precision(logits[: len(x)]).clone(), names)


@dataclass(frozen=True)
class Slope:
    """The change of the margin between two points near an image, and the change that a gradient promises.

    Attributes:
        kept: the change (n,).
        promised: by the gradient, (n,).
        above: logits at one of the two points, (n, K).
        still: which examples have the same logits at both, (n,).
    """

    kept: Tensor
    promised: Tensor
    above: Tensor
    still: Tensor


def measure_slope(
    model: Batched, x: Tensor, y: Tensor, grad: Tensor, direction: Tensor, length: Tensor | float = TINY
) -> Slope:
    """Go a length (n, 1, 1, 1) of a direction (n, C, H, W) from images to either side, by two forward passes.

    Its two changes are computed in float64.
    """
    up, down = ((x + step * direction).clamp(0, 1) for step in (length, -length))
    above, below = (full_precision(predict(model, end)) for end in (up, down))
    promised = (in_float64(grad).nan_to_num() * in_float64(up - down)).flatten(1).sum(1)
    wide, there = in_float64(above), y.to(promised.device)
    kept = margin(wide, there) - margin(in_float64(below), there)
    return Slope(sent(kept, x.device), sent(promised, x.device), above, (above == below).all(1))


def batch_norms(model: nn.Module) -> list[str]:
    """Names of BatchNorms that normalise by the batch in inference mode too."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and (module.running_mean is None or module.training)
    ]


def _random_states() -> dict[str, Any]:
    """The states of global random generators by whose they are, to be compared."""
    states: tuple[Any, ...] = np.random.get_state()  # pyright: ignore[reportAssignmentType]
    return {
        "torch": [state.numpy().tobytes() for state in random_states()],
        "numpy": (states[1].tobytes(), *states[2:]),
        "Python": random.getstate(),
    }


Mark = tuple[Any, int] | None
"""A value, held so that no other can have its place, and how often it was written to or how much it holds."""


def _marks(model: nn.Module) -> dict[str, Mark]:
    """What tells whether attributes and buffers of a model's modules have changed, by name."""
    found: dict[str, Mark] = {}
    for prefix, module in model.named_modules():
        own = {key: value for key, value in vars(module).items() if not key.startswith("_") and key != "training"}
        for key, value in {**own, **module._buffers}.items():
            version = value._version if isinstance(value, Tensor) else len(value) if isinstance(value, Sized) else 0
            found[f"{prefix}.{key}" if prefix else key] = value, version
    return found


def _same(before: Mark, after: Mark) -> bool:
    if before is None or after is None:
        return False
    plain = isinstance(before[0], int | float | str)
    return before[1] == after[1] and (before[0] is after[0] or (plain and before[0] == after[0]))
