"""A model of another make as a classifier here: images in [0, 1] go in, logits come out, and hooks can be set on it.

    model = adapt(net)                    # or a plain function of images, or what torch.jit made
    model(torch.rand(2, 3, 32, 32))       # (2, K), whether the net returns a tensor, a tuple or a mapping
    model.returned                        # "tensor", "tuple", "mapping" or "object": what the logits were found in

What a model computes in half precision is asked in float32: the images keep their values, and attacks their ball.
"""

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from toughen.modes import plain

Returned = Literal["tensor", "tuple", "mapping", "object"]

FOUND_IN: dict[Returned, str] = {
    "tuple": "a tuple, of which the first element was taken as its logits",
    "mapping": "a mapping, of which `logits` was taken",
    "object": "an object, of which `logits` was taken",
}
"""Where logits that are not the output itself were found."""

HALF = (torch.float16, torch.bfloat16)


class NoLogits(ValueError):
    """A model returned nothing that could be logits."""


class AdaptedModel(nn.Module):
    """A stranger's model, with its parameters, buffers and attributes.

    Args:
        model: a module, or a function of images (N, C, H, W) in [0, 1].

    Attributes:
        model: the module, or one that calls the function.
        returned: in what the logits of the last pass were found.
        writes: whether the last pass wrote into the images that it was given.
    """

    def __init__(self, model: nn.Module | Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.model = model if isinstance(model, nn.Module) else _Function(model)
        self.returned: Returned = "tensor"
        self.writes = False
        self.training = getattr(self.model, "training", False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images (N, C, H, W): as floats of 32 bits or more.

        Raises:
            ValueError: no logits are found in what the model returns.
        """
        half = half_of(self.model)
        # A copy: a model that writes into its input must move neither the caller's images nor a leaf of the graph.
        given = x.clone() if half is None else x.to(half, copy=True)
        version = given._version
        self.returned, logits = find_logits(self.model(given))
        self.writes = given._version > version
        return logits.float() if logits.dtype in HALF else logits

    @property
    def is_function(self) -> bool:
        """Whether it is a function, whose weights, if it has any, are not known."""
        return isinstance(self.model, _Function)

    @property
    def needed(self) -> bool:
        """Whether the model itself, by its last pass, would not do in its place."""
        strange = self.is_function or isinstance(self.model, torch.jit.ScriptModule) or half_of(self.model) is not None
        return strange or self.writes or self.returned != "tensor"

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # What Python asks of objects, such as how to copy them, is not the model's to answer.
            model = self.__dict__.get("_modules", {}).get("model")
            if model is None or name.startswith("__"):
                raise
            return getattr(model, name)


class _Function(nn.Module):
    """A function of images as a module: a black box."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def adapt(model: Any) -> AdaptedModel:
    """A model as a classifier here; what is one already is left as it is.

    Raises:
        ValueError: it is neither a module nor a function.
    """
    if isinstance(model, AdaptedModel):
        return model
    if isinstance(model, list | tuple | nn.ModuleList):
        raise ValueError(
            f"{len(model)} models in a {type(model).__name__} are no classifier; give toughen.Ensemble(models), the "
            "mean of their probabilities"
        )
    if not callable(model):
        raise ValueError(f"{type(model).__name__} is no model; give a torch.nn.Module or a function of images")
    if isinstance(model, type):
        raise ValueError(f"{model.__name__} is a class; give a model of it, such as {model.__name__}()")
    if isinstance(model, nn.Module) and any(map(is_lazy, chain(model.parameters(), model.buffers()))):
        raise ValueError("the model has weights that take their shape from its first input; run it on one image first")
    return AdaptedModel(model)


def as_module(model: Any, *, kept: str = "") -> nn.Module:
    """A model as a module, without what runs it on several ranks.

    Args:
        model: a module or a function of images.
        kept: what to do instead, where results are to be kept by the weights that they are of; empty where none are.

    Raises:
        ValueError: it is neither; or results of a function were to be kept.
    """
    stranger = adapt(plain(model))
    if stranger.is_function and kept:
        raise ValueError(
            "a plain function does not say which weights it runs, so that what a folder keeps might be another's; "
            f"{kept}"
        )
    return stranger if stranger.is_function else stranger.model


def half_of(model: nn.Module) -> torch.dtype | None:
    """The type of half precision that a model computes in, by its first floating parameter or buffer; else None."""
    tensors = chain(model.parameters(), model.buffers())
    found = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), None)
    return found if found in HALF else None


def find_logits(out: object) -> tuple[Returned, Tensor]:
    """In what a model returned its logits, and these.

    They are the tensor itself; the attribute `logits`; of a mapping what has this key; the first of a tuple or list.

    Raises:
        NoLogits: none of these is a tensor.
    """
    kind: Returned
    if isinstance(out, Tensor):
        return "tensor", out
    if isinstance(out, Mapping):
        kind, found = "mapping", out.get("logits")
    elif hasattr(out, "logits"):
        kind, found = "object", out.logits  # pyright: ignore[reportAttributeAccessIssue]
    elif isinstance(out, tuple | list):
        kind, found = "tuple", out[0] if out else None
    else:
        kind, found = "object", None
    if not isinstance(found, Tensor):
        raise NoLogits(
            f"the model returns {_described(out)}; it must return logits, a tensor (N, K), or a tuple that begins with "
            "them, or hold them under the name logits"
        )
    return kind, found


def check_logits(logits: Tensor, n: int) -> None:
    """Refuse what are no logits of `n` images.

    Raises:
        NoLogits: anything but floats (n, K) with K at least 2.
    """
    if logits.is_floating_point() and logits.shape in ((n,), (n, 1)):
        raise NoLogits(
            "the model returned one number z for each image, as before a sigmoid; give it two classes, 0 and 1, by "
            "logits [0, z]: torch.cat([torch.zeros_like(z), z], 1) with z of shape (N, 1)"
        )
    if not logits.is_floating_point() or logits.ndim != 2 or len(logits) != n or logits.shape[1] < 2:
        raise NoLogits(
            f"the model returned {logits.dtype} of shape {tuple(logits.shape)} for {n} images; it must return logits, "
            "floats (N, K) with one column for each of at least 2 classes"
        )


def _described(out: object) -> str:
    if isinstance(out, Mapping):
        return f"a mapping of {', '.join(map(str, out)) or 'nothing'}"
    if isinstance(out, tuple | list):
        return f"a {type(out).__name__} of {', '.join(type(part).__name__ for part in out) or 'nothing'}"
    return f"{type(out).__name__}"
