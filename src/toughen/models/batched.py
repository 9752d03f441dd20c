"""A model that takes many examples and runs them some at a time.

An attack of an evaluation works on a large chunk, so that the examples which break can leave it and the passes stay
full; how many examples fit into one pass is the model's affair.

    model = Batched(net, size=256)
    logits = predict(model, x)                                         # x of any length; no gradient
    value, grad, logits = value_and_grad(model, x, lambda logits, rows: margin(logits, y[rows]))

Where memory runs out, the size is halved and the same examples are run again.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from toughen.errors import Option, UsageError

Objective = Callable[[Tensor, slice], Tensor]
"""(logits (n, K) of some rows, which rows they are) -> what to ascend, (n,)"""


class Batched(nn.Module):
    """A model with the largest number of examples that it takes in one pass.

    Args:
        model: the classifier.
        size: examples in a pass, at least 1.

    Attributes:
        size: as above; halved where memory ran out.
        idle: passes of single examples, forward and backward, that attacks on an accelerator made of examples which
            they had broken already (see `attacks.compaction`); a tensor there, so that nothing waits for it.
    """

    def __init__(self, model: nn.Module, size: int) -> None:
        super().__init__()
        self.model = model
        self.size = size
        self.idle: int | Tensor = 0

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K): in one pass where a gradient may be asked for, in pieces otherwise."""
        if torch.is_grad_enabled() and x.requires_grad:
            return self.model(x)
        return in_pieces(self, len(x), lambda rows: (self.model(x[rows]),))[0]


def in_pieces(model: nn.Module, n: int, compute: Callable[[slice], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """`compute` on consecutive slices of n rows, each of the size that the model takes; its results, joined.

    Raises:
        torch.OutOfMemoryError: a single example does not fit, or the model is not `Batched`.
    """
    parts: list[tuple[Tensor, ...]] = []
    start = 0
    while start < n or not parts:
        size = model.size if isinstance(model, Batched) else max(n, 1)
        part = None
        try:
            part = compute(slice(start, min(start + size, n)))
        except RuntimeError as error:
            if not (isinstance(model, Batched) and size > 1 and out_of_memory(error)):
                raise
        # Outside the handler, whose traceback would keep the tensors of the failed pass alive.
        if part is None:
            assert isinstance(model, Batched)
            model.size = size // 2
        else:
            parts.append(part)
            start += size
    return parts[0] if len(parts) == 1 else tuple(torch.cat(column) for column in zip(*parts, strict=True))


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, for which the CPU's and MPS's allocators have no type of their own."""
    said = ("can't allocate memory", "MPS backend out of memory", "Invalid buffer size")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in said)


def predict(model: nn.Module, x: Tensor) -> Tensor:
    """Logits (N, K) without a gradient."""
    with torch.no_grad():
        return in_pieces(model, len(x), lambda rows: (model(x[rows]),))[0]


def value_and_grad(model: nn.Module, x: Tensor, objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
    """An objective at x and its gradient, by one forward and one backward pass of each example.

    Args:
        model: classifier, already in the mode wanted.
        x: images (N, C, H, W).
        objective: see `Objective`; each value may depend on its own row of logits alone.

    Returns:
        The values (N,), their gradients (N, C, H, W) and the logits (N, K), all detached.
    """

    def compute(rows: slice) -> tuple[Tensor, ...]:
        piece = x[rows].detach().requires_grad_()
        with torch.enable_grad():
            logits = model(piece)
            value = objective(logits, rows)
            grad = input_gradient(value, piece)
        return value.detach(), grad, logits.detach()

    value, grad, logits = in_pieces(model, len(x), compute)
    return value, grad, logits


class NoGradient(UsageError):
    """No gradient of a model's output reaches the images."""


def input_gradient(value: Tensor, x: Tensor, **given: bool) -> Tensor:
    """The gradient of `value.sum()` by the images x (N, C, H, W), of their shape.

    Args:
        value: computed from `x`, of any shape.
        x: asks for a gradient.
        given: see `torch.autograd.grad`.

    Raises:
        NoGradient: there is none.
    """
    if value.requires_grad:
        try:
            (grad,) = torch.autograd.grad(value, x, torch.ones_like(value), allow_unused=True, **given)
        except RuntimeError as error:
            if "use_reentrant" not in str(error):
                raise
            raise ValueError(
                "the model checkpoints its activations with use_reentrant=True, with which torch gives no gradient of "
                "the images alone; give use_reentrant=False there"
            ) from error
        if grad is not None:
            return grad
    raise NoGradient(
        "no gradient of the model's output reaches the images: its forward runs under no_grad or inference_mode, or "
        "through numpy, integers, comparisons or a quantised layer; mend that, or attack without gradients by ",
        Option("suite", "square", python='toughen.evaluate(..., suite="square")'),
        ", or by adversarial examples of another model (toughen.evaluation.transfer)",
    )
