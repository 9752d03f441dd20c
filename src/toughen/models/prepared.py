"""A user's model as the library works with it: checked, in inference mode, frozen and in pieces, on its device.

    y, index = check_examples(x, y, index, batch_size)
    with prepared(model, x, y, batch_size) as classifier:
        for rows in chunks(len(x), batch_size):
            logits = classifier.predict(classifier.images(x[rows]), ids=index[rows], under="clean")

What a user's model does and supports is found out once, by a probe of two images, when `classifier.probe` is first
asked for: its passes are none of what an evaluation states. Whatever the library does to a model for speed (the layout
of its weights, BatchNorm folded into convolutions) is done here.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from toughen.errors import UsageError
from toughen.losses import full_precision
from toughen.models import batched
from toughen.models.batched import Batched, out_of_memory
from toughen.models.folding import fused
from toughen.models.inputs import REFUSALS, as_input, check_labels, placement, refusal
from toughen.modes import channels_last, evaluating, float32, frozen, plain
from toughen.outcomes import CLEAN
from toughen.threat import Threat

CHUNK = 4
"""Passes' worth of examples in a chunk from which some leave, so that the passes stay full."""

ProgressFunction = Callable[[str, int, int], None]
"""(what is being done, how much of it is done, how much there is)"""

T = TypeVar("T")

Returns = Literal["tensor", "tuple", "mapping", "object"]


@dataclass(frozen=True)
class Probe:
    """What a model did with two images, in inference mode and frozen.

    Attributes:
        returns: a tensor, a tuple or list, a mapping, or an object of another kind.
        classes: number of logits of an image; None where no tensor (N, K) was found in what it returns: itself, the
            first of a tuple, or what is called `logits`.
        dtype: of the logits; None where there are none.
        gradient: whether a gradient of the logits reaches the images.
        hooks: whether a forward hook is called.
        in_place: whether it writes into the images that it is given.
        channels_last: whether it runs with its weights laid out with channels last.
        batch_sizes: whether it takes one image as well as two.
    """

    returns: Returns
    classes: int | None
    dtype: torch.dtype | None
    gradient: bool
    hooks: bool
    in_place: bool
    channels_last: bool
    batch_sizes: bool


def probe(model: nn.Module, x: Tensor) -> Probe:
    """Find out what a model does, by passes of one and of two images; it and the random state are left as they were.

    Args:
        model: takes such images.
        x: images (N, C, H, W) on its device and in its type, at least one; two are run, or the only one twice.

    Raises:
        Exception: what the model raises where it takes neither one image nor two.
    """
    two = x[:2] if len(x) > 1 else x.expand(2, -1, -1, -1)
    with _undrawn(x.device), evaluating(model), frozen(model), float32(x.device):
        one = _attempt(lambda: _look(model, two[:1]))
        both = _attempt(lambda: _look(model, two))
        seen = both or one or _look(model, two[:1])
        with channels_last(model), torch.no_grad():
            run = two if both else two[:1]
            laid_out = _attempt(lambda: (model(run.clone()),)) is not None
    return Probe(**seen, channels_last=laid_out, batch_sizes=both is not None and one is not None)


def _attempt(action: Callable[[], T]) -> T | None:
    """What an action returns; None where the model refuses."""
    try:
        return action()
    except REFUSALS:
        return None


def _look(model: nn.Module, x: Tensor) -> dict[str, Any]:
    """What one pass shows, and one backward pass where there can be one."""
    leaf, called = x.detach().clone().requires_grad_(), []
    handle = _attempt(lambda: model.register_forward_hook(lambda *_: called.append(True)))
    try:
        with torch.enable_grad():
            # A copy: a leaf that asks for a gradient may not be written into.
            given = leaf.clone()
            out = model(given)
    finally:
        if handle is not None:
            handle.remove()
    returns, logits = _parts(out, len(x))
    grad = logits is not None and _attempt(lambda: torch.autograd.grad(logits.sum(), leaf, allow_unused=True)[0])
    return {
        "returns": returns,
        "classes": None if logits is None else logits.shape[1],
        "dtype": None if logits is None else logits.dtype,
        "gradient": isinstance(grad, Tensor),
        "hooks": bool(called),
        "in_place": given._version > 0,
    }


def _parts(out: object, n: int) -> tuple[Returns, Tensor | None]:
    """Of what kind a model's output for n images is, and the logits (n, K) in it."""
    if isinstance(out, Tensor):
        kind, found = "tensor", out
    elif isinstance(out, Mapping):
        kind, found = "mapping", out.get("logits")
    elif isinstance(out, tuple | list):
        kind, found = "tuple", out[0] if len(out) else None
    else:
        kind, found = "object", getattr(out, "logits", None)
    fits = isinstance(found, Tensor) and found.is_floating_point() and found.ndim == 2 and len(found) == n
    return kind, found if fits else None


@contextmanager
def _undrawn(device: torch.device) -> Iterator[None]:
    """The global random state restored: some networks draw in inference mode too."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@contextmanager
def inference(model: nn.Module, device: torch.device, *, fast: bool = True) -> Iterator[None]:
    """A model in inference mode and frozen, without autocast, and laid out for speed; all is restored.

    Args:
        model: the classifier.
        device: where it is.
        fast: whether it is laid out for speed, which not every model supports.
    """
    with evaluating(model), frozen(model), channels_last(model) if fast else nullcontext(), float32(device):
        yield


@dataclass(frozen=True, eq=False)
class PreparedModel:
    """A model that takes the images and returns logits (see `prepare`).

    Attributes:
        model: the classifier, which decides how many examples it takes in a pass.
        device: where it is: that of its first parameter or buffer, else that of the images.
        dtype: in which it computes: float64 for a float64 model, float32 for any other.
        classes: number of its logits.
        first: one or two of the images, as the model gets them.
    """

    model: Batched
    device: torch.device
    dtype: torch.dtype
    classes: int
    first: Tensor

    @cached_property
    def probe(self) -> Probe:
        """What is known of the model besides, by a few passes when this is first asked for (see `probe`)."""
        return probe(self.model.model, self.first)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """The state in which the model is run, and afterwards that in which it was."""
        with inference(self.model.model, self.device):
            yield

    def images(self, x: Tensor) -> Tensor:
        """Images as the model gets them."""
        return as_input(x, self.device, self.dtype)

    def predict(self, x: Tensor, *, ids: Tensor, under: str) -> Tensor:
        """Logits (N, K) in float32 or float64, on the model's device, by one forward pass of each image.

        Args:
            x: images (N, C, H, W) in [0, 1].
            ids: example ids (N,).
            under: label of the attack that made them, or "clean".

        Raises:
            ValueError: EV203, when a logit is NaN or infinite; or no logits at all (see `check_logits`).
        """
        logits = batched.predict(self.model, x.to(self.device, self.dtype))
        check_logits(logits, len(x))
        lost = ~logits.isfinite().all(1)
        if lost.any():
            first = ", ".join(str(int(row)) for row in ids[lost.nonzero().squeeze(1)[:5].to(ids.device)])
            where = "without an attack" if under == CLEAN else f"under attack {under!r}"
            raise ValueError(
                f"EV203 Model returned NaN or infinite logits for {int(lost.sum())} of {len(x)} inputs of a batch "
                f"{where}. Counting them either way would be wrong; first ids {first}."
            )
        return full_precision(logits)

    def folded(self, x: Tensor) -> Batched:
        """A copy for attacks whose passes are cheaper, or the model itself (see `folding.fused`); tried on `x[:1]`."""
        return Batched(fused(self.model.model, self.images(x[:1])), self.model.size)


def prepare(model: nn.Module, x: Tensor, y: Tensor | None, batch_size: int) -> PreparedModel:
    """See whether a model takes the images and the labels, by a pass of one image; the model is left as it was.

    Args:
        model: a user's classifier of images in [0, 1], in any mode.
        x: images (N, C, H, W), at least one, floats in [0, 1] or uint8.
        y: classes (N,); None where there are none.
        batch_size: examples that it gets in a pass.

    Raises:
        ValueError: the model does not take such images (EV226) or returns no logits, or a label is none of its classes.
    """
    model = plain(model)
    device, dtype = placement(model, x)
    some = as_input(x[:2], device, dtype)
    with _undrawn(device), inference(model, device):
        try:
            logits = batched.predict(Batched(model, 1), some[:1])
        except REFUSALS as error:
            if isinstance(error, RuntimeError) and out_of_memory(error):
                raise
            found = refusal(model, some.shape[1:], error, device, dtype)
            raise UsageError("EV226 ", found) from error
    check_logits(logits, 1)
    if y is not None:
        check_labels(y, len(y), logits.shape[1])
    return PreparedModel(Batched(model, batch_size), device, dtype, logits.shape[1], some)


@contextmanager
def prepared(model: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> Iterator[PreparedModel]:
    """The model as `prepare` gives it, and ready to run until the context ends."""
    classifier = prepare(model, x, y, batch_size)
    with classifier.ready():
        yield classifier


def check_logits(logits: Tensor, n: int) -> None:
    """Refuse what are no logits of `n` images.

    Raises:
        ValueError: anything but floats (n, K) with K at least 2.
    """
    if not isinstance(logits, Tensor):
        raise ValueError(f"the model returned {type(logits).__name__}; it must return logits, a tensor (N, K)")
    if not logits.is_floating_point() or logits.ndim != 2 or len(logits) != n or logits.shape[1] < 2:
        raise ValueError(
            f"the model returned {logits.dtype} of shape {tuple(logits.shape)} for {n} images; it must return logits, "
            "floats (N, K) with one column for each of at least 2 classes"
        )


def chunks(n: int, size: int, progress: ProgressFunction | None = None, what: str = "") -> Iterator[Tensor]:
    """The numbers 0 to n - 1, `size` at a time, each time reported as `what` when they are done with."""
    for rows in torch.arange(n).split(size):
        yield rows
        if progress is not None:
            progress(what, int(rows[-1]) + 1, n)


def ball_of(threat: Threat, rows: Tensor, device: torch.device) -> Threat:
    """The threat model of some examples, on a device."""
    return threat.of_radius(threat.eps.to(device))[rows.to(device)] if isinstance(threat.eps, Tensor) else threat
