"""Remedies: the same classifier with a gradient that an attack can use.

    remedied = Remedied(model, {"straight-through gradients"})
    x_adv = pgd(remedied, x, y, threat=threat, loss="margin")       # then classified by the model itself

None of them changes what the model answers: at worst the logits are rescaled or rounded otherwise.
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

STRAIGHT = "straight-through gradients"
REPAIRED = "NaN of single operations set to zero"
LOGARITHM = "the logarithm of the probabilities"
DOUBLE = "float64"
MARGIN = "the margin loss"

# Functions with a derivative that is zero wherever it exists.
STEP_FUNCTIONS = {
    *(getattr(torch, name) for name in ("round", "floor", "ceil", "trunc", "fix", "sign", "sgn", "heaviside")),
    *(getattr(Tensor, name) for name in ("round", "floor", "ceil", "trunc", "fix", "sign", "sgn", "heaviside")),
}


class _Gradients(TorchFunctionMode):
    """Replaces derivatives of single operations while a forward pass runs; values stay as they are.

    Args:
        straight: steps pass the gradient on as if they were the identity (Bengio et al. 2013; for attacks, BPDA,
            Athalye et al. 2018, section 4.1).
        repaired: NaN and infinity that an operation's derivative gives for one of its arguments become zero. The usual
            cause is infinity times zero, as of sqrt at 0 in a branch that is not taken.
    """

    def __init__(self, *, straight: bool, repaired: bool) -> None:
        super().__init__()
        self.straight, self.repaired = straight, repaired

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The call itself, on arguments whose gradient is looked after."""
        if self.repaired and _computes(func):
            args = tuple(
                type(arg)(map(_repaired, arg)) if type(arg) in (list, tuple) else _repaired(arg) for arg in args
            )
        result = func(*args, **(kwargs or {}))
        if self.straight and func in STEP_FUNCTIONS and args and args[0].requires_grad:
            # The difference is exactly zero, so that the value is the step's to the last bit.
            return result.detach() + (args[0] - args[0].detach())
        return result


def _computes(func: Callable[..., Any]) -> bool:
    """Whether a function returns something new: it is no access to an attribute and does not write in place."""
    name = getattr(func, "__name__", "")
    dunder = name.startswith("__") and name.endswith("__")
    writes = name.startswith("__i") or name in ("__setitem__", "__get__", "__set__")
    return not writes if dunder else not name.endswith(("_", "hook", "backward", "grad"))


def _repaired(value: Any) -> Any:
    if not (isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled()):
        return value
    # A view for this use alone: the gradients of other uses of the same tensor are summed up behind the hook.
    view = value.view_as(value)
    view.register_hook(lambda grad: torch.where(grad.isfinite(), grad, 0))
    return view


class RepairedModel(nn.Module):
    """A model with remedies.

    Args:
        model: the classifier.
        names: any of `STRAIGHT`, `REPAIRED`, `LOGARITHM`, and `DOUBLE` for a model that is in float64.
    """

    def __init__(self, model: nn.Module, names: Collection[str]) -> None:
        super().__init__()
        self.model, self.names = model, frozenset(names)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        if DOUBLE in self.names:
            x = x.double()
        with _Gradients(straight=STRAIGHT in self.names, repaired=REPAIRED in self.names):
            logits = self.model(x)
        if LOGARITHM in self.names:
            logits = logits.clamp_min(torch.finfo(logits.dtype).tiny).log()
        return logits
