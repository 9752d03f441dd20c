"""Images that a network does not take: one sentence with what they are, what it said, and what it does take.

check_takes(model, (3, 64, 64), device)    # ValueError: the model does not take images of 3x64x64: mat1 and mat2
                                           # shapes cannot be multiplied; it takes 3x32x32: give view=ResizeCrop(32)
"""

from collections.abc import Sequence

import torch
from torch import nn

from toughen.errors import Option, UsageError, image_size
from toughen.models.batched import out_of_memory
from toughen.models.classifier import Classifier
from toughen.modes import evaluating

# Sides of images, from the commonest.
SIDES = (32, 224, 28, 64, 96, 256, 299, 384)

# What a network says by raising that an input does not suit it.
REFUSALS = (RuntimeError, ValueError, TypeError, AssertionError, IndexError)


def check_takes(
    model: nn.Module,
    shape: Sequence[int],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    *,
    what: str = "the model",
) -> None:
    """One forward pass of two black images in inference mode; model and random state are as before.

    Args:
        model: classifier of images in [0, 1].
        shape: (C, H, W) of the images that it will be given.
        device: where it is.
        dtype: in which it computes.
        what: what to call it in the error.

    Raises:
        ValueError: it does not take such images, see `refusal`.
    """
    try:
        _forward(model, shape, 2, device, dtype)
    except REFUSALS as error:
        if isinstance(error, RuntimeError) and out_of_memory(error):
            raise
        raise refusal(model, shape, error, device, dtype, what=what) from error


def refusal(
    model: nn.Module,
    shape: Sequence[int],
    error: Exception,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    *,
    what: str = "the model",
) -> UsageError:
    """What to tell a user whose images a model refused.

    Args:
        model: classifier that raised.
        shape: (C, H, W) of the images.
        error: what it raised.
        device: where it is.
        dtype: in which it computes.
        what: what to call it.
    """
    said = first_line(error).removesuffix(".")
    channels = _channels(model)
    if channels is not None and channels != shape[0]:
        remedy: tuple[str | Option, ...] = (f"it takes images of {channels} channels",)
        if channels == 3:
            remedy += (": give ", image_size(_named_side(model) or 224), ", which makes all images RGB")
    elif taken := _side_taken(model, shape, device, dtype):
        remedy = (f"it takes {'x'.join(map(str, (shape[0], taken, taken)))}: give ", image_size(taken))
    else:
        remedy = ("nor those of usual sizes; look at what it expects, and give ", image_size("N"), " for another side")
    return UsageError(f"{what} does not take images of {'x'.join(map(str, shape))}: {said}; ", *remedy)


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _forward(model: nn.Module, shape: Sequence[int], n: int, device: torch.device, dtype: torch.dtype) -> None:
    # Some networks draw random numbers in inference mode too.
    with torch.random.fork_rng(), evaluating(model), torch.no_grad():
        model(torch.zeros(n, *shape, device=device, dtype=dtype))


def _side_taken(model: nn.Module, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> int | None:
    """The side of square images that the model does take: what timm says of it, or else the first that runs."""
    for side in (_named_side(model), *SIDES):
        if side is None or (side, side) == tuple(shape[1:]):
            continue
        try:
            _forward(model, (shape[0], side, side), 1, device, dtype)
        except REFUSALS:
            continue
        return side
    return None


def _named_side(model: nn.Module) -> int | None:
    """The side that timm names for a network's weights."""
    for module in model.modules():
        found = getattr(module, "pretrained_cfg", None)
        if isinstance(found, dict) and found.get("input_size"):
            return int(found["input_size"][-1])
    return None


def _channels(model: nn.Module) -> int | None:
    """Channels of the images that the model takes, as far as that is known."""
    for module in model.modules():
        if isinstance(module, Classifier) and module.in_channels is not None:
            return module.in_channels
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return None
