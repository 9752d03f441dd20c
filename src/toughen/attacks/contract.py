"""What every attack promises and checks: `@attack` on a function (model, x, y, *, settings...) -> x_adv.

The keyword arguments of an attack are its settings: their annotations say what is allowed, in Python and in recipes
alike, and `naming.settings_of` turns them into the model by which both are checked.

    @attack
    def my_attack(model, x, y, *, threat: Threat, steps: Count = 10) -> Tensor: ...
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BeforeValidator
from torch import Tensor

from toughen.devices import sent
from toughen.losses import LOSSES, Loss
from toughen.models.adapted import adapt, check_logits
from toughen.models.batched import Batched
from toughen.models.inputs import as_labels, check_classes, check_grad_mode, check_images
from toughen.models.refusals import naming_theirs
from toughen.settings import as_number, known, settings_of
from toughen.threat import Radius, Threat, as_threat

Attack = Callable[..., Tensor]
Schedule = Callable[[int], Radius]
"""step, counted from 0 -> its length, a number or (N,)"""

# Given by the caller of an attack, never part of a recipe.
GIVEN = ("model", "x", "y", "threat", "noise", "donors")


def _positive(value: Radius | Schedule | None) -> Radius | Schedule | None:
    if callable(value):
        return value
    if isinstance(value, Tensor):
        # An example with a radius of 0 may have a step of 0.
        sound, allowed = bool(((value >= 0) & value.isfinite()).all()), "not be negative, and be finite"
    else:
        sound, allowed = value is None or 0 < value < float("inf"), "be positive and finite"
    if not sound:
        raise ValueError(f"it must {allowed}, like 2/255; it is {value}")
    return value


_from_text = BeforeValidator(as_number)
Length = Annotated[float | Tensor | None, _from_text, AfterValidator(_positive)]
StepSize = Annotated[float | Tensor | Schedule | None, _from_text, AfterValidator(_positive)]
LossName = Annotated[
    str | Loss, AfterValidator(lambda loss: known(loss, LOSSES, "loss") if isinstance(loss, str) else loss)
]


def lengths(step_size: Radius | Schedule, steps: int, x: Tensor) -> Radius | list[Radius]:
    """The length of every step: one for all, or those that a function of the step gives, checked.

    Looking at them makes the device wait once, for all of them.

    Args:
        step_size: a number, (N,), or a function of the step, counted from 0, that returns one of them.
        steps: number of steps.
        x: the images (N, C, H, W), on whose device the lengths will be.

    Raises:
        ValueError: the function returns anything else, or what is negative or not finite. (0 it may return: schedules
            end there.)
    """
    if not callable(step_size):
        return step_size
    values = [step_size(step) for step in range(steps)]
    for step, value in enumerate(values):
        fits = value.shape in ((), (len(x),)) if isinstance(value, Tensor) else isinstance(value, Real)
        if not fits:
            given = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise ValueError(f"step_size gives {given} at step {step}; it must give a number or a tensor ({len(x)},)")
    values = [sent(value, x.device) if isinstance(value, Tensor) else value for value in values]
    looked = [value if isinstance(value, Tensor) else x.new_full((), value) for value in values]
    sound = torch.stack([((value >= 0) & value.isfinite()).all() for value in looked]).tolist()
    if not all(sound):
        step = sound.index(False)
        raise ValueError(f"step_size gives {values[step]} at step {step}; it must not be negative, and be finite")
    return values


def attack(function: Attack) -> Attack:
    """Check the arguments of an attack at each call from Python, and run it outside the caller's gradient.

    Labels, radii, step sizes, targets, donors and draws are brought to the device of the images, here and once.

    A recipe or suite calls the function underneath (`AttackSpec`): its settings were checked when it was read and its
    images when they were loaded, and looking at their values would make the device wait at every training step.
    """

    @functools.wraps(function)
    def checked(model: Any, x: Tensor, y: Any, **kwargs: Any) -> Tensor:
        given = {key: kwargs.pop(key) for key in GIVEN if key in kwargs}
        if "threat" in given:
            given["threat"] = as_threat(given["threat"])
        model = model if isinstance(model, Batched) else adapt(model)
        settings = dict(settings_of(function, GIVEN).model_validate(kwargs))
        check_images(x)
        y = sent(as_labels(y, len(x), soft=True), x.device)
        given, settings = on_device_of(x, given), on_device_of(x, settings)
        check_grad_mode()
        if "threat" in given:
            check_norm(checked, given["threat"])
        with _checked_at_first_logits(model, y), naming_theirs():
            return function(model, x, y, **given, **settings)

    return checked


def on_device_of(x: Tensor, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an attack on the device of its images, whatever holds tensors there: a ball, a stream, donors."""
    return {
        name: sent(value, x.device) if isinstance(value, Tensor)
        else value.on(x.device) if name in GIVEN and value is not None
        else value
        for name, value in arguments.items()
    }  # fmt: skip


@contextmanager
def _checked_at_first_logits(model: torch.nn.Module, y: Tensor) -> Iterator[None]:
    """Look at the labels when the first logits say how many classes there are: on a GPU a loss would end the process.

    No pass is made for it.
    """

    def look(module: torch.nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        handle.remove()
        check_logits(logits, len(inputs[0]))
        check_classes(y, logits.shape[1])

    handle = model.register_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()


def minimal_norm(function: Attack) -> Attack:
    """Mark an attack that looks for the nearest adversarial example, wherever it lies.

    What it returns may lie outside the ball, and then breaks nothing: an evaluation records its distance and counts
    the example as not broken, where any other attack would be stopped as unsound. Of `threat` such an attack reads the
    norm, and the radius only where `stop_inside` says that an example found within it is near enough.
    """
    function.minimal_norm = True  # pyright: ignore[reportFunctionMemberAccess]
    return function


def for_norm(norm: str, *, instead: str) -> Callable[[Attack], Attack]:
    """Mark an attack that knows the balls of one norm alone, so that any other is refused before the work begins.

    Args:
        norm: as `Threat.norm`.
        instead: what to use with another.
    """

    def mark(function: Attack) -> Attack:
        function.norm, function.instead = norm, instead  # pyright: ignore[reportFunctionMemberAccess]
        return function

    return mark


def check_norm(function: Attack, threat: Threat) -> None:
    """Refuse a ball that an attack does not know (see `for_norm`).

    Raises:
        ValueError: it is of another norm.
    """
    norm = getattr(function, "norm", threat.norm)
    if norm != threat.norm:
        raise ValueError(
            f"{function.__name__} is for {norm} balls, the threat is {threat}; use {getattr(function, 'instead', '')}"
        )


def is_minimal_norm(function: Attack) -> bool:
    """Whether an attack, or an `AttackSpec` of one, is marked by `minimal_norm`."""
    return getattr(function, "minimal_norm", False)
