"""What a model raises: whether it takes such images, and errors of a user's own code named as theirs.

check_takes(model, (3, 64, 64), device)    # ValueError: the model does not take images of 3x64x64: mat1 and mat2
                                           # shapes cannot be multiplied; it takes 3x32x32: give view=ResizeCrop(32)
with naming_theirs():
    logits = model(x)                      # ValueError: the model raises KeyError: 'fc' (net.py, line 12)
"""

import os
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

import toughen
from toughen.devices import own_draws
from toughen.errors import UsageError, image_size
from toughen.models import adapted
from toughen.models.adapted import NoLogits, check_logits, find_logits
from toughen.models.batched import out_of_memory
from toughen.models.classifier import Classifier
from toughen.modes import evaluating

# Sides of images, from the commonest.
SIDES = (32, 224, 28, 64, 96, 256, 299, 384)

# What a network says by raising that an input does not suit it.
REFUSALS = (RuntimeError, ValueError, TypeError, AssertionError, IndexError)

OURS, TORCH = (f"{Path(module.__path__[0])}{os.sep}" for module in (toughen, torch))
INSTALLED = tuple(f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "purelib", "platlib"))


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
        with torch.no_grad():
            logits = find_logits(_forward(model, shape, 2, device, dtype))[1]
        check_logits(logits, 2)
    except NoLogits as error:
        raise NoLogits(f"{what}: {error}") from None
    except Exception as error:
        if not is_models(error):
            raise
        raise refusal(model, shape, error, device, dtype, what=what) from error


def check_trains(
    model: nn.Module,
    shape: Sequence[int],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    *,
    classes: int,
    what: str = "the model",
) -> None:
    """Refuse a network that cannot be trained on such images, by a pass as in `check_takes` and one with a gradient.

    Args (all else as for `check_takes`):
        classes: of the data.

    Raises:
        ValueError: it takes no such images, has another number of logits, no weights, or no gradient reaches them.
    """
    check_takes(model, shape, device, dtype, what=what)
    with torch.enable_grad():
        logits = find_logits(_forward(model, shape, 2, device, dtype))[1]
    if logits.shape[1] != classes:
        raise ValueError(
            f"{what} returns {logits.shape[1]} logits, and the data has {classes} classes; give it as many"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"{what} has no weights to train; give another")
    if not logits.requires_grad:
        raise ValueError(
            f"{what}: no gradient of its output reaches its weights: its forward runs under no_grad or inference_mode, "
            "or through numpy or integers; mend that"
        )


def is_models(error: Exception) -> bool:
    """Whether an error of a model's pass is the model's own: it refuses its input, or its code raises what it likes."""
    if isinstance(error, RuntimeError) and out_of_memory(error):
        return False
    return isinstance(error, REFUSALS) or place(error) != ""


def place(error: BaseException) -> str:
    """Where in a model's own code an error was raised, like `net.py, line 12`; empty where anything else raised it.

    A model's code is what a module's call runs, or a plain function's, from the last of ours inwards.
    """
    # What watches every operation of torch is on the way to it, whoever asked.
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name != "__torch_function__"]
    last = max((at for at, frame in enumerate(frames) if frame.filename.startswith(OURS)), default=-1)
    called = last >= 0 and frames[last].filename == adapted.__file__
    found, users = "", False
    for frame in frames[last + 1 :]:
        if frame.filename.startswith(TORCH):
            # The latter where a module's own autograd function is run backwards.
            called = called or frame.name in ("_call_impl", "apply")
        elif called and not frame.filename.startswith("<"):
            # The innermost, but a line of the user's own rather than one of the packages that it calls.
            installed = frame.filename.startswith(INSTALLED)
            if not (users and installed):
                found, users = f"{Path(frame.filename).name}, line {frame.lineno}", not installed
    if not found and called and isinstance(error, TypeError) and frames[-1].name in ("_call_impl", "forward"):
        # As of a forward that wants more than images.
        return "where it is called"
    return found


@contextmanager
def naming_theirs() -> Iterator[None]:
    """What the code of a user's model raises within becomes one sentence that says so, with its line."""
    try:
        yield
    except Exception as error:
        if (isinstance(error, RuntimeError) and out_of_memory(error)) or not place(error):
            raise
        raise ValueError(f"the model raises {described(error, kind=True)}") from error


def refusal(
    model: nn.Module,
    shape: Sequence[int],
    error: Exception,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    *,
    what: str = "the model",
) -> UsageError:
    """What to tell a user whose images a model refused, by raising `error`; all else is as for `check_takes`.

    What is said to help was tried: images of other channels and sides are run.
    """
    channels, height, width = shape
    asked, said = "x".join(map(str, shape)), described(error)
    refused = f"{what} does not take images of {asked}: {said}; "
    texts = {first_line(error)}

    @torch.no_grad()
    def takes(*tried: int) -> bool:
        try:
            _forward(model, tried, 1, device, dtype)
        except Exception as other:
            if not is_models(other):
                raise
            # Of other channels it may well say other things.
            texts.update([first_line(other)] if tried[0] == channels else ())
            return False
        return True

    if width < 5 and takes(width, channels, height):
        return UsageError(refused, f"channels come last in these: give x.permute(0, 3, 1, 2), {width} channels first")
    for other, side, across in shapes_to_try(model, shape):
        if not takes(other, side, across):
            continue
        if other == channels:
            return UsageError(refused, f"it takes {channels}x{side}x{side}: give ", image_size(side))
        remedy = (": give ", image_size(side), ", which makes all images RGB") if other == 3 else ()
        return UsageError(refused, f"it takes images of {other} channels", *remedy)
    if len(texts) == 1 or not isinstance(error, REFUSALS):
        everywhere = ", and on those of other sizes" * (len(texts) == 1)
        return UsageError(f"{what} raises on images of {asked}{everywhere}: {said}; mend that")
    return UsageError(
        refused, "nor those of usual sizes; look at what it expects, and give ", image_size("N"), " for another side"
    )


def shapes_to_try(model: nn.Module, shape: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Shapes (C, H, W) that a model may take which does not take this one: of other sides, then of other channels."""
    channels, height, width = shape
    usual = [(side, side) for side in dict.fromkeys((_named_side(model), *SIDES)) if side]
    yield from ((channels, *sides) for sides in usual if sides != (height, width))
    for other in dict.fromkeys((*_channels(model), 3, 1)):
        if other != channels:
            yield from ((other, *sides) for sides in ((height, width), *usual))


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def described(error: Exception, *, kind: bool = False) -> str:
    """What an error of a model says, in one line, with its place where known and its kind where the words need it.

    Args:
        error: of a pass.
        kind: whether its kind is named in any case.
    """
    where, named = place(error), kind or not isinstance(error, REFUSALS)
    return f"{type(error).__name__}: " * named + f"{first_line(error).removesuffix('.')}" + f" ({where})" * bool(where)


def _forward(model: nn.Module, shape: Sequence[int], n: int, device: torch.device, dtype: torch.dtype) -> object:
    """What it returns for n black images, in the caller's gradient mode."""
    # Some networks draw random numbers in inference mode too.
    with own_draws(device), evaluating(model):
        return model(torch.zeros(n, *shape, device=device, dtype=dtype))


def _named_side(model: nn.Module) -> int | None:
    """The side that timm names for a network's weights."""
    for module in model.modules():
        found = getattr(module, "pretrained_cfg", None)
        if isinstance(found, dict) and found.get("input_size"):
            return int(found["input_size"][-1])
    return None


def _channels(model: nn.Module) -> list[int]:
    """Channels of the images that the model may take."""
    modules = list(model.modules())
    found = [module.in_channels for module in modules if isinstance(module, Classifier) and module.in_channels]
    return found or [module.in_channels for module in modules if isinstance(module, nn.Conv2d)][:1]
