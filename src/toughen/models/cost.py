"""Counting passes: what a method or an attack costs is how often it runs the model forward and backward.

    with counted(model) as passes:
        attack(model, x, y, threat=threat)
    passes.forwards, passes.backwards           # 10, 10 for ten-step PGD

The unit of cost is the *natural step*, one forward and one full backward pass. A forward is a third of it, the
backward's gradient of the inputs a third and that of the weights a third (each is one multiplication by the weight or
activation matrix per layer), so PGD-10 training costs (11 + 10 + 2) / 3 = 23/3.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toughen.devices import own_draws


@dataclass
class Passes:
    """Passes of whole batches, and of single examples.

    Attributes:
        forwards: forward passes.
        input_backwards: backward passes while every parameter was frozen: the gradient of the input alone.
        full_backwards: backward passes that also computed weight gradients.
        example_forwards: forward passes times examples in them.
        example_backwards: backward passes times examples in them.
    """

    forwards: int = 0
    input_backwards: int = 0
    full_backwards: int = 0
    example_forwards: int = 0
    example_backwards: int = 0

    @property
    def backwards(self) -> int:
        """Backward passes of either kind."""
        return self.input_backwards + self.full_backwards

    @property
    def natural_steps(self) -> float:
        """Cost in units of a natural training step (see the module's text)."""
        return (self.forwards + self.input_backwards + 2 * self.full_backwards) / 3


@contextmanager
def counted(model: nn.Module, passes: Passes | None = None) -> Iterator[Passes]:
    """Count the passes of `model` until the context ends, into `passes` when given.

    A backward pass is counted where its gradient reaches the logits; the count costs two Python calls a pass.
    """
    total = Passes() if passes is None else passes

    def after_forward(module: nn.Module, inputs: object, logits: Tensor) -> None:
        examples = len(logits)
        total.forwards += 1
        total.example_forwards += examples
        if not logits.requires_grad:
            return
        full = any(parameter.requires_grad for parameter in module.parameters())

        def after_backward(grad: Tensor) -> None:
            total.full_backwards += full
            total.input_backwards += not full
            total.example_backwards += examples

        logits.register_hook(after_backward)

    handle = model.register_forward_hook(after_forward)
    try:
        yield total
    finally:
        handle.remove()


def count_on_toy(action, *, channels: int, classes: int, size: int = 8, batch: int = 2) -> Passes:
    """Passes of `action(model, x, y)` on a tiny linear model: the exact cost of whatever does not depend on the data.

    Args:
        action: a function of (model, x, y), run once.
        channels: channels of the images.
        classes: number of classes.
        size: side of the images.
        batch: examples in the batch.
    """
    with own_draws():
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, classes))
    x = torch.linspace(0, 1, batch * channels * size * size).reshape(batch, channels, size, size)
    y = torch.arange(batch) % classes
    with counted(model) as passes:
        action(model, x, y)
    return passes
