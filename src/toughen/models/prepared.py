"""A user's model as the library works with it: checked, in inference mode, frozen and in pieces, on its device.

    y, index = check_examples(x, y, index, batch_size)
    with prepared(model, x, y, batch_size) as classifier:
        for rows in chunks(len(x), batch_size):
            logits = classifier.predict(classifier.images(x[rows]), ids=index[rows], under="clean")

What a user's model does and supports is found out once, by passes of one image, which are none of what an evaluation
states. Whatever the library does to a model for speed (the layout of its weights, BatchNorm folded into convolutions)
is done here, tried first, and left out where it fails or changes the answer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toughen.devices import own_draws, sent
from toughen.errors import UsageError
from toughen.losses import full_precision
from toughen.models import batched
from toughen.models.adapted import FOUND_IN, NoLogits, adapt, check_logits, half_of
from toughen.models.batched import Batched
from toughen.models.folding import agree, fused
from toughen.models.inputs import as_input, check_classes, placement
from toughen.models.refusals import is_models, naming_theirs, refusal
from toughen.modes import channels_last, evaluating, float32, frozen, plain
from toughen.outcomes import CLEAN
from toughen.threat import Threat

CHUNK = 4
"""Passes' worth of examples in a chunk from which some leave, so that the passes stay full."""

ProgressFunction = Callable[[str, int, int], None]
"""(what is being done, how much of it is done, how much there is)"""


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
        fast: whether its weights are laid out for speed.
        said: what a reader of a result should know of the way in which the model is run; often nothing.
    """

    model: Batched
    device: torch.device
    dtype: torch.dtype
    classes: int
    fast: bool
    said: tuple[str, ...]

    @contextmanager
    def ready(self) -> Iterator[None]:
        """The state in which the model is run, and afterwards that in which it was."""
        with inference(self.model.model, self.device, fast=self.fast), naming_theirs():
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
        logits = batched.predict(self.model, sent(x, self.device).to(self.dtype))
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
    stranger = adapt(model)
    device, dtype = placement(stranger, x)
    one = as_input(x[:1], device, dtype)
    try:
        logits = _logits(stranger, one, device, fast=False)
    except NoLogits:
        raise
    except Exception as error:
        if not is_models(error):
            raise
        found = refusal(stranger, one.shape[1:], error, device, dtype)
        raise UsageError("EV226 ", found) from error
    check_logits(logits, 1)
    if y is not None:
        check_classes(y, logits.shape[1])
    model = stranger if stranger.needed else model
    kind = stranger.returned
    said = () if kind == "tensor" else (f"the model returns {FOUND_IN[kind]}",)
    fast = supports_channels_last(model, one, device)
    return PreparedModel(Batched(model, batch_size), device, dtype, logits.shape[1], fast, said)


def _logits(model: nn.Module, x: Tensor, device: torch.device, *, fast: bool) -> Tensor:
    """Logits of one image, with the model and the random state left as they were."""
    # Some networks draw in inference mode too.
    with own_draws(device), inference(model, device, fast=fast):
        return batched.predict(model, x)


def supports_channels_last(model: nn.Module, x: Tensor, device: torch.device) -> bool:
    """Whether a model takes weights with channels last, and gives the same logits and the same gradient of them.

    What flattens by `view` does not take them, which is among the commonest lines there are. Tried on two images, for a
    line that joins the images of a batch, or a backward pass of the model's own, shows in no other way.

    Args:
        model: in any mode, which is left as it was.
        x: an image (1, C, H, W).
        device: of the model.
    """
    if device.type == "cuda" or not any(tensor.ndim == 4 for tensor in (*model.parameters(), *model.buffers())):
        return True
    if half_of(model) is not None:
        # Whose rounding is no measure of anything.
        return False
    two = torch.cat([x, x.flip(3)])
    try:
        return all(map(agree, _answers(model, two, device, fast=True), _answers(model, two, device, fast=False)))
    except Exception as error:
        if not (is_models(error) or (isinstance(error, RuntimeError) and batched.out_of_memory(error))):
            raise
        return False


def _answers(model: nn.Module, x: Tensor, device: torch.device, *, fast: bool) -> tuple[Tensor, ...]:
    """Logits of images and, where there is one, a gradient of them."""
    with own_draws(device), inference(model, device, fast=fast):
        try:
            return batched.value_and_grad(model, x, lambda logits, _: logits.amax(1))
        except batched.NoGradient:
            return (batched.predict(model, x),)


@contextmanager
def prepared(model: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> Iterator[PreparedModel]:
    """The model as `prepare` gives it, and ready to run until the context ends."""
    classifier = prepare(model, x, y, batch_size)
    with classifier.ready():
        yield classifier


def chunks(n: int, size: int, progress: ProgressFunction | None = None, what: str = "") -> Iterator[Tensor]:
    """The numbers 0 to n - 1, `size` at a time, each time reported as `what` when they are done with."""
    for rows in torch.arange(n).split(size):
        yield rows
        if progress is not None:
            progress(what, int(rows[-1]) + 1, n)


def ball_of(threat: Threat, rows: Tensor, device: torch.device) -> Threat:
    """The threat model of some examples, on a device."""
    return threat[rows].on(device)
