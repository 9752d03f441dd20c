"""What every attack promises and checks: `@attack` on a function (model, x, y, *, settings...) -> x_adv.

The keyword arguments of an attack are its settings: their annotations say what is allowed, in Python and in recipes
alike, and `naming.settings_of` turns them into the model by which both are checked.

    @attack
    def my_attack(model, x, y, *, threat: Threat, steps: Count = 10) -> Tensor: ...
"""

import functools
from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BeforeValidator
from torch import Tensor

from toughen.losses import LOSSES, Loss
from toughen.naming import known, parse_number, settings_of

Attack = Callable[..., Tensor]

# Given by the caller of an attack, never part of a recipe.
GIVEN = ("model", "x", "y", "threat", "noise")


def _positive(value: float | Tensor | None) -> float | Tensor | None:
    if isinstance(value, Tensor):
        # An example with a radius of 0 may have a step of 0.
        sound, allowed = bool(((value >= 0) & value.isfinite()).all()), "not be negative, and be finite"
    else:
        sound, allowed = value is None or 0 < value < float("inf"), "be positive and finite"
    if not sound:
        raise ValueError(f"it must {allowed}, like 2/255; it is {value}")
    return value


Length = Annotated[
    float | Tensor | None,
    BeforeValidator(lambda value: parse_number(value) if isinstance(value, str) else value),
    AfterValidator(_positive),
]
LossName = Annotated[
    str | Loss, AfterValidator(lambda loss: known(loss, LOSSES, "loss") if isinstance(loss, str) else loss)
]


def check_images(x: Tensor) -> None:
    """Refuse what is no batch of images in [0, 1].

    Raises:
        ValueError: for another type or shape, or values that are not finite or outside [0, 1] by more than rounding.
    """
    if not x.is_floating_point() or x.ndim != 4:
        raise ValueError(
            f"images are {x.dtype} of shape {tuple(x.shape)}; give floats of shape (N, C, H, W) in [0, 1], "
            "such as uint8 images divided by 255"
        )
    low, high = (x.amin().item(), x.amax().item()) if x.numel() else (0.0, 0.0)
    # Some decoders overshoot by rounding; 1e-6 is far below one grey level (0.004).
    if not (low >= -1e-6 and high <= 1 + 1e-6):
        raise ValueError(
            f"images are in [{low:.3g}, {high:.3g}] but must be in [0, 1]: divide by 255, or move the normalisation "
            "into the model with Classifier(net, mean=..., std=...)"
        )


def check_labels(y: Tensor, n: int, classes: int | None = None) -> None:
    """Refuse labels that do not fit the images: neither n classes (n,) nor n rows of probabilities (n, K).

    Raises:
        ValueError: for another shape or type, or labels outside 0 .. classes - 1.
    """
    if len(y) != n or y.ndim > 2 or y.is_floating_point() != (y.ndim == 2):
        raise ValueError(
            f"labels are {y.dtype} of shape {tuple(y.shape)} for {n} images; give class numbers (N,) or "
            "probabilities (N, K)"
        )
    if y.ndim == 1 and len(y) and classes is not None and not (int(y.min()) >= 0 and int(y.max()) < classes):
        raise ValueError(
            f"labels run from {int(y.min())} to {int(y.max())} but the model has classes 0 to {classes - 1}"
        )


def attack(function: Attack) -> Attack:
    """Check the arguments of an attack at each call from Python, and run it outside the caller's gradient.

    A recipe or suite calls the function underneath (`AttackSpec`): its settings were checked when it was read and its
    images when they were loaded, and looking at their values would make the device wait at every training step.
    """

    @functools.wraps(function)
    def checked(model: torch.nn.Module, x: Tensor, y: Tensor, **kwargs: Any) -> Tensor:
        given = {key: kwargs.pop(key) for key in GIVEN if key in kwargs}
        settings = dict(settings_of(function, GIVEN).model_validate(kwargs))
        check_images(x)
        check_labels(y, len(x))
        if torch.is_inference_mode_enabled():
            raise ValueError("attacks need gradients, which torch.inference_mode() rules out; use torch.no_grad()")
        return function(model, x, y, **given, **settings)

    return checked


def minimal_norm(function: Attack) -> Attack:
    """Mark an attack that looks for the nearest adversarial example, wherever it lies.

    What it returns may lie outside the ball, and then breaks nothing: an evaluation records its distance and counts
    the example as standing, where any other attack would be stopped as unsound. Of `threat` such an attack reads the
    norm, and the radius only where `stop_inside` says that an example found within it is near enough.
    """
    function.minimal_norm = True  # pyright: ignore[reportFunctionMemberAccess]
    return function


def is_minimal_norm(function: Attack) -> bool:
    """Whether an attack, or an `AttackSpec` of one, is marked by `minimal_norm`."""
    return getattr(function, "minimal_norm", False)
