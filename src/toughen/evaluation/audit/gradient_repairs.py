"""Remedies: the same classifier with a gradient that an attack can use.

    remedied = RepairedModel(model, {STRAIGHT})
    x_adv = pgd(remedied, x, y, threat=threat, loss="margin")       # then classified by the model itself

None of them changes what the model answers: at worst the logits are rescaled or rounded otherwise.
"""

import sys
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from toughen.devices import in_float64, sent

STRAIGHT = "straight-through gradients"
REPAIRED = "NaN of single operations set to zero"
LOGARITHM = "the logarithm of the probabilities"
DOUBLE = "float64"
MARGIN = "the margin loss"
OWN = "the identity for derivatives of its own"
THROUGH = "the gradient through detach, no_grad and hooks"
REVERSED = "the gradient reversed"


def _named(*names: str) -> dict[Callable[..., Any], str]:
    """The functions of torch and methods of tensors of these names, and the names."""
    homes = (torch, Tensor)
    return {getattr(home, name): name.strip("_") for name in names for home in homes if hasattr(home, name)}


STEP_FUNCTIONS = _named("round", "floor", "ceil", "trunc", "fix", "sign", "sgn", "heaviside")
"""Functions with a derivative that is zero wherever it exists, and their names."""

RISING = _named("gt", "ge", "greater", "greater_equal", "__gt__", "__ge__")
FALLING = _named("lt", "le", "less", "less_equal", "__lt__", "__le__")
COMPARISONS = {function: f"comparisons ({name})" for function, name in (RISING | FALLING).items()}
"""Comparisons, of which no gradient comes at all, and their names."""

DETACHING = {**_named("detach", "detach_"), Tensor.data.__get__: "data"}  # pyright: ignore[reportAttributeAccessIssue]
"""What takes values out of the gradient's reach, and their names."""

_LEAVING = _named("numpy", "tolist", "item", "__array__", "__float__", "__int__", "__bool__", "__index__")
_CONVERSIONS = {
    getattr(Tensor, name)
    for name in ("to", "type", "type_as", "float", "double", "half", "bfloat16", "int", "long", "short", "byte", "bool")
}
_SHAPES = _named("reshape", "view", "flatten", "unsqueeze", "squeeze", "permute", "transpose", "expand", "__getitem__")
_LOGICAL = {
    **dict.fromkeys(_named("logical_and", "bitwise_and", "__and__"), torch.minimum),
    **dict.fromkeys(_named("logical_or", "bitwise_or", "__or__"), torch.maximum),
    **dict.fromkeys(_named("logical_not", "bitwise_not", "__invert__"), torch.neg),
}
_ARITHMETIC = _named(
    *("add", "sub", "mul", "div", "true_divide", "sum", "mean", "__add__", "__radd__", "__sub__", "__rsub__"),
    *("__mul__", "__rmul__", "__truediv__", "__rtruediv__", "cat", "stack"),
)

GRAPH = 20_000
"""Nodes of autograd's graph that are looked at."""


def to_integers(func: Callable[..., Any], result: object) -> bool:
    """Whether a call turned numbers into whole ones or truth values."""
    return func in _CONVERSIONS and isinstance(result, Tensor) and not result.is_floating_point()


def eagerly() -> AbstractContextManager[Any]:
    """Compiled models run as they were written until the context ends: a compiled graph asks no mode."""
    # Whatever was compiled has imported this, which by itself takes seconds.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def sets_hook(func: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    """Whether a call sets a hook on a tensor, by which its gradient may be changed; ours only count."""
    ours = any(str(getattr(arg, "__module__", "")).startswith("toughen.") for arg in args[1:])
    return func is Tensor.register_hook and not ours


def _nodes(logits: Tensor) -> Iterator[Any]:
    """The nodes of autograd's graph behind some logits, as many as are looked at."""
    ahead, known = [logits.grad_fn], set[Any]()
    while ahead and len(known) < GRAPH:
        node = ahead.pop()
        if node is not None and node not in known:
            known.add(node)
            ahead += [after for after, _ in node.next_functions]
            yield node


def leads_to(logits: Tensor, x: Tensor) -> bool:
    """Whether logits depend on an image in autograd's eyes, and not on weights alone."""
    return any(node is x.grad_fn or getattr(node, "variable", None) is x for node in _nodes(logits))


def own_derivatives(logits: Tensor) -> Iterator[tuple[str, Any]]:
    """Name and node of each `torch.autograd.Function` in the graph behind some logits that is not torch's own."""
    for node in _nodes(logits):
        own = getattr(type(node), "_forward_cls", None) if isinstance(node, BackwardCFunction) else None
        if own is not None and own.__module__.partition(".")[0] != "torch":
            yield own.__name__, node


class _Gradients(TorchFunctionMode):
    """Replaces derivatives of single operations while a forward pass runs; values stay as they are.

    Args:
        straight: steps pass the gradient on as if they were the identity (Bengio et al. 2013; for attacks, BPDA,
            Athalye et al. 2018, section 4.1); comparisons as if they were differences.
        repaired: NaN and infinity that an operation's derivative gives for one of its arguments become zero. The usual
            cause is infinity times zero, as of sqrt at 0 in a branch that is not taken.
        through: values that are detached, or computed without a gradient, keep theirs; hooks on tensors are left out.
        width: how near a step may be reached by an attack, above 0.
    """

    def __init__(self, *, straight: bool, repaired: bool, through: bool, width: float) -> None:
        super().__init__()
        self.straight, self.repaired, self.through, self.width = straight, repaired, through, width
        # By its id, a tensor of truth values or whole numbers (held, so that no other gets this id), and what its
        # derivative is taken from.
        self.soft: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The call itself, on arguments whose gradient is looked after."""
        given = kwargs or {}
        if self.through and func in DETACHING:
            return args[0]
        if self.through and sets_hook(func, args):
            return RemovableHandle(OrderedDict())
        if self.through and func in _LEAVING:
            args = (args[0].detach(), *args[1:])
        if self.repaired and _computes(func):
            args = tuple(
                type(arg)(map(_repaired, arg)) if type(arg) in (list, tuple) else _repaired(arg) for arg in args
            )
        with torch.enable_grad() if self.through else nullcontext():
            return self._straightened(func, args, given) if self.straight else func(*args, **given)

    def _straightened(self, func: Callable[..., Any], args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        """The call, with a derivative where it has none or where what it is given has none."""
        if func is Tensor.__setitem__ and (chosen := self._soft(args[1])) is not None:
            before = args[0].detach().clone()
            func(*args, **given)
            to = args[2] if torch.as_tensor(args[2]).numel() == 1 else args[0]
            args[0].add_((torch.as_tensor(to).detach() - before) * _zero(chosen))
            return None
        result = func(*args, **given)
        first: Any = args[0] if args else None
        if func in STEP_FUNCTIONS and _asks(first):
            return _straight(result, first)
        if not isinstance(result, Tensor):
            return result
        if func in COMPARISONS and (_asks(first) or _asks(args[1])):
            self._keep(result, self._stand_in((first - args[1]) * (1 if func in RISING else -1)))
        elif to_integers(func, result) and _asks(first):
            self._keep(result, first)
        elif any(self._soft(arg) is not None for arg in _flat(args)):
            return self._of_soft(func, args, given, result)
        return result

    def _stand_in(self, difference: Tensor) -> Tensor:
        """What rises as a comparison does: steadily, so that every pixel is led, and steeply near the step."""
        return difference + (difference / (2 * self.width)).clamp(-0.5, 0.5)

    def _of_soft(
        self, func: Callable[..., Any], args: tuple[Any, ...], given: dict[str, Any], result: Tensor
    ) -> Tensor:
        """What a call returned that was given truth values or whole numbers which have a derivative here."""
        soft = self._soft(args[0])
        if func in (torch.where, Tensor.where, Tensor.masked_fill, torch.masked_fill):
            which, yes, no = args
            if func in (Tensor.masked_fill, torch.masked_fill):
                which, yes, no = args[1], args[2], args[0]
            elif func is Tensor.where:
                which, yes, no = args[1], args[0], args[2]
            if (chosen := self._soft(which)) is None or not result.is_floating_point():
                return result
            height = torch.as_tensor(yes).detach() - torch.as_tensor(no).detach()
            return result + height * _zero(chosen)
        if func in _CONVERSIONS and soft is not None:
            return _straight(result, soft) if result.is_floating_point() else self._keep(result, soft)
        if func in _SHAPES and soft is not None:
            return self._keep(result, func(soft, *args[1:], **given))
        if func in _LOGICAL:
            parts = [self._soft(arg) for arg in args]
            known = [part for part in parts if part is not None]
            return self._keep(result, _LOGICAL[func](*known) if len(known) == len(parts) else known[0])
        if func in _ARITHMETIC:
            as_floats = func(*(self._as_floats(arg) for arg in args), **given)
            return _straight(result, as_floats) if result.is_floating_point() else self._keep(result, as_floats)
        return result

    def _as_floats(self, arg: Any) -> Any:
        if type(arg) in (list, tuple):
            return type(arg)(map(self._as_floats, arg))
        soft = self._soft(arg)
        return arg if soft is None else _straight(arg.to(soft.dtype), soft)

    def _soft(self, arg: Any) -> Tensor | None:
        return self.soft[id(arg)][1] if isinstance(arg, Tensor) and id(arg) in self.soft else None

    def _keep(self, result: Tensor, soft: Tensor) -> Tensor:
        self.soft[id(result)] = result, soft
        return result


def _flat(args: tuple[Any, ...]) -> Iterator[Any]:
    for arg in args:
        yield from arg if type(arg) in (list, tuple) else (arg,)


def _asks(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _zero(soft: Tensor) -> Tensor:
    """Exactly zero, with the derivative of `soft`."""
    return soft - soft.detach()


def _straight(result: Tensor, soft: Tensor) -> Tensor:
    """A result to the last bit, with the derivative of something else."""
    return result.detach() + _zero(soft).to(result.dtype)


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


def _pass_on(inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """A hook by which a node passes its gradient on to whatever it was computed from that has its shape."""
    if len(outputs) != 1 or outputs[0] is None:
        return None
    return tuple(outputs[0] if grad is not None and grad.shape == outputs[0].shape else grad for grad in inputs)


class RepairedModel(nn.Module):
    """A model with remedies.

    Args:
        model: the classifier.
        names: any of the remedies above; `DOUBLE` for a model in float64, on the host where the device has none.
        width: the radius of the attack, above 0: comparisons are steep so near their steps.
    """

    def __init__(self, model: nn.Module, names: Collection[str], width: float = 8 / 255) -> None:
        super().__init__()
        self.model, self.names, self.width = model, frozenset(names), width

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        device = x.device
        if DOUBLE in self.names:
            x = in_float64(x)
        if REVERSED in self.names:
            x = 2 * x.detach() - x
        asked = torch.is_grad_enabled()
        replaced = {"straight": STRAIGHT in self.names and asked, "through": THROUGH in self.names and asked}
        repairs = _Gradients(**replaced, repaired=REPAIRED in self.names, width=self.width)
        with eagerly(), repairs:
            logits = self.model(x)
        if OWN in self.names and asked:
            for _, node in list(own_derivatives(logits)):
                node.register_hook(_pass_on)
        if LOGARITHM in self.names:
            logits = logits.clamp_min(torch.finfo(logits.dtype).tiny).log()
        return sent(logits, device)
