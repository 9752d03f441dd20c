"""Gradient accumulation: a batch in parts, where the memory is too small for it; the optimiser steps once on all.

    with divided(method, batch, state, rows=128) as parts:
        for objectives in zip(*(part.method.losses(model, part.batch, part.state) for part in parts)):
            ...                                       # one optimiser step: the gradients of all objectives, added up

Every draw and every mean is that of the whole batch, so the step is the same to rounding, with one exception that
nothing can mend: BatchNorm in training mode normalises each part by its own statistics.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from toughen.data import Batch
from toughen.methods import Method, State
from toughen.methods.wrapper import Wrapper
from toughen.parallel import ranks


@dataclass(frozen=True)
class MicroBatch:
    """Some rows of a batch, and what runs on them.

    Attributes:
        method: without its wrappers, which have seen the whole batch.
        batch: the rows; its `size` counts those of this part over all ranks.
        state: the method's, of these rows: slots are theirs, what belongs to training examples is shared.
    """

    method: Method
    batch: Batch
    state: State


@contextmanager
def divided(method: Method, batch: Batch, state: State, rows: int | None) -> Iterator[list[MicroBatch]]:
    """A batch in parts of at most so many rows on each rank; the method's state is whole again at the end.

    Args:
        method: of training.
        batch: this rank's rows of a global batch.
        state: of the method; changed in place by what runs on the parts.
        rows: of a part; None for one part, the batch as it is.
    """
    most = -(-batch.size // ranks.world())
    if rows is None or most <= rows:
        yield [MicroBatch(method, batch, state)]
        return
    while isinstance(method, Wrapper):
        method, batch = method.method, method.changed(batch)
    parts = [_part(method, batch, state, slice(at, at + rows)) for at in range(0, most, rows)]
    yield parts
    # Each part has moved a copy of its own, as if it were the whole batch, and all in the same way.
    for name in _replicated(method, state):
        state[name].copy_(parts[0].state[name])


def _part(method: Method, batch: Batch, state: State, rows: slice) -> MicroBatch:
    world, kinds = ranks.world(), method.state_kinds
    # Row i of the global batch lives on rank i mod world, so the same slice of every rank is a stretch of that batch.
    size = min(rows.stop * world, batch.size) - rows.start * world
    own = {name: value[rows] if kinds[name] == "slot" else value for name, value in state.items()}
    own |= {name: state[name].clone() for name in _replicated(method, state)}
    part = replace(
        batch,
        x=batch.x[rows],
        y=batch.y[rows],
        index=batch.index[rows],
        noise=batch.noise[rows],
        extra=None if batch.extra is None else batch.extra[rows],
        size=size,
    )
    return MicroBatch(method, part, own)


def _replicated(method: Method, state: State) -> list[str]:
    return [name for name in state if method.state_kinds[name] == "replicated"]
