"""A method as it is looked at: the barest loop that trains with it, and what makes a GPU wait."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from toughen.data import Batch
from toughen.methods import Method, Spec, State
from toughen.parallel import ranks
from toughen.testing import toys
from toughen.threat import Threat
from toughen.training.micro_batches import divided


@dataclass(eq=False)
class MethodUnderTest:
    """A method as it is looked at.

    Attributes:
        given: as users write it.
        threats: the runs' threat models; the first is used unless all are.
    """

    given: Method
    threats: tuple[Threat, ...]

    @property
    def method(self) -> Method:
        """The method with the run's threat model."""
        return self.given.resolved(self.threats[0])

    @property
    def keeps(self) -> bool:
        """Whether it has a state."""
        return bool(self.given.state_kinds)

    @property
    def moves_statistics(self) -> bool:
        """Whether an attack was told to move BatchNorm's statistics."""
        return "train" in _values(self.given.model_dump(), "attack_bn")


def _values(record: Any, name: str) -> Iterator[Any]:
    if isinstance(record, dict):
        for key, value in record.items():
            if key == name:
                yield value
            yield from _values(value, name)


def spec(slots: int = toys.BATCH) -> Spec:
    """What a method may know before its first batch here."""
    return Spec(shape=toys.SHAPE, slots=slots, examples=toys.EXAMPLES, classes=toys.CLASSES, dtype=torch.float64)


def normed() -> nn.Module:
    """The network with BatchNorm, in training mode."""
    return toys.trained(lambda: nn.BatchNorm2d(6))


def descent(model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of all runs here; it has a state of its own."""
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def train(
    method: Method,
    model: nn.Module,
    batches: Sequence[Batch],
    state: State,
    *,
    rows: int | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> list[Tensor]:
    """What the loop does, in its barest form; the losses (N,) of every step on this rank."""
    optimizer, seen = optimizer or descent(model), []
    for batch in batches:
        model.train()
        with divided(method, batch, state, rows) as parts:
            generators = [part.method.losses(model, part.batch, part.state) for part in parts]
            while True:
                objectives = [next(generator, None) for generator in generators]
                if any(objective is None for objective in objectives):
                    break
                optimizer.zero_grad()
                losses = []
                for objective in objectives:
                    own = objective()  # pyright: ignore[reportOptionalCall]
                    (own.sum() / batch.size).backward()
                    losses.append(own.detach())
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        ranks.total(parameter.grad)
                optimizer.step()
                seen.append(torch.cat(losses))
    return seen


class Waits(TorchDispatchMode):
    """Operations whose result the host must know: on a GPU each waits for all work before it.

    Args:
        on_host: tensors that lie on the CPU whatever the device is.

    Attributes:
        seen: their names.
    """

    KNOWN = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")

    def __init__(self, on_host: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.on_host = on_host
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operation itself."""
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]
        )
        host = name == "_local_scalar_dense" and any(args[0] is value for value in self.on_host)
        if (name in self.KNOWN and not host) or masks:
            self.seen.append("index by a mask" if masks else name)
        return func(*args, **(kwargs or {}))
