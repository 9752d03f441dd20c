"""A model under examination: checked, in inference mode, frozen and in pieces, with its images cut into chunks.

index = check_examples(x, y, index, batch_size)
with under_analysis(model, x, y, batch_size) as subject:
    for rows in chunks(len(x), batch_size):
        logits = subject.predict(subject.images(x[rows]), ids=index[rows], under="clean")
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toughen.attacks.contract import check_images, check_labels
from toughen.errors import UsageError
from toughen.evaluation.referee import check_logits, predict
from toughen.evaluation.work_unit import as_input, placement
from toughen.models import batched
from toughen.models.batched import Batched, out_of_memory
from toughen.models.inputs import REFUSALS, refusal
from toughen.modes import channels_last, evaluating, float32, frozen, plain
from toughen.threat import Threat

CHUNK = 4
"""Passes' worth of examples in a chunk from which some leave, so that the passes stay full."""

Progress = Callable[[str, int, int], None]
"""(what is being done, how much of it is done, how much there is)"""


@dataclass(frozen=True, eq=False)
class PreparedModel:
    """A model in the state in which analyses look at it.

    Args:
        model: the classifier, which decides how many examples it takes in a pass.
        device: where it is.
        dtype: in which it computes.
        classes: number of its logits.
    """

    model: Batched
    device: torch.device
    dtype: torch.dtype
    classes: int

    def images(self, x: Tensor) -> Tensor:
        """Images as the model gets them."""
        return as_input(x, self.device, self.dtype)

    def predict(self, x: Tensor, *, ids: Tensor, under: str) -> Tensor:
        """Finite logits (N, K) on the model's device (see `verify.predict`); `under` names what made the images."""
        return predict(self.model, x.to(self.device, self.dtype), attack=under, ids=ids)


@contextmanager
def under_analysis(model: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> Iterator[PreparedModel]:
    """The model in inference mode, frozen, without autocast; its first image is run forward to see that it fits.

    Computation is in float32 (float64 for a float64 model), on the device of the model's first parameter or buffer.

    Raises:
        ValueError: the model does not take such images (EV226) or returns no logits, or a label is none of its classes.
    """
    model = plain(model)
    device, dtype = placement(model, x)
    with evaluating(model), frozen(model), channels_last(model), float32(device):
        logits = _first_logits(model, as_input(x[:1], device, dtype))
        check_logits(logits, 1)
        check_labels(y, len(x), logits.shape[1])
        yield PreparedModel(Batched(model, batch_size), device, dtype, logits.shape[1])


def _first_logits(model: nn.Module, first: Tensor) -> Tensor:
    try:
        return batched.predict(Batched(model, 1), first)
    except REFUSALS as error:
        if isinstance(error, RuntimeError) and out_of_memory(error):
            raise
        found = refusal(model, first.shape[1:], error, first.device, first.dtype)
        raise UsageError("EV226 ", found) from error


def check_examples(
    x: Tensor, y: Tensor, index: Tensor | None, batch_size: int, threat: Threat | None = None
) -> tuple[Tensor, Tensor]:
    """Refuse examples that do not fit each other, before any work is done.

    Args:
        x: images (N, C, H, W), floats in [0, 1] or uint8.
        y: classes (N,).
        index: example ids (N,), each once; None for 0 to N - 1.
        batch_size: examples per pass, at least 1.
        threat: a ball, whose radii must be as many as the images.

    Returns:
        The classes and the ids, int64 on the CPU.

    Raises:
        ValueError: the sentence says what was given and what is allowed.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError("attacks need gradients, which torch.inference_mode() rules out; use torch.no_grad()")
    if x.dtype != torch.uint8 or x.ndim != 4:
        check_images(x)
    check_labels(y, len(x))
    if y.ndim != 1:
        raise ValueError(f"labels have shape {tuple(y.shape)}; an evaluation needs class numbers (N,)")
    if not len(x):
        raise ValueError("there are no images to evaluate; give at least one")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    index = torch.arange(len(x)) if index is None else index
    if index.shape != y.shape or index.is_floating_point():
        raise ValueError(f"index is {index.dtype} of shape {tuple(index.shape)}; give {len(x)} whole numbers")
    if len(index.unique()) != len(index):
        raise ValueError(f"index holds {len(index.unique())} different ids for {len(x)} images; give each its own")
    if threat is not None and isinstance(threat.eps, Tensor) and threat.eps.ndim and len(threat.eps) != len(x):
        raise ValueError(f"the threat model has {len(threat.eps)} radii for {len(x)} images; give one, or one each")
    return y.cpu().long(), index.cpu().long()


def chunks(n: int, size: int) -> Iterator[Tensor]:
    """The numbers 0 to n - 1, `size` at a time."""
    yield from torch.arange(n).split(size)


def ball_of(threat: Threat, rows: Tensor, device: torch.device) -> Threat:
    """The threat model of some examples, on a device."""
    if not isinstance(threat.eps, Tensor):
        return threat
    return type(threat)(threat.eps.to(device))[rows.to(device)]
