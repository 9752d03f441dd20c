"""When broken examples leave an attack: at once where that costs nothing, on an accelerator every ten steps.

    leaving = Leaving(model)
    for step in range(steps):
        ...                                             # gone: (n,), which examples are broken, so far or for good
        write(found, rows, newly_broken, points)
        if (stay := leaving.stay(gone)) is not None:
            rows, points, gone = rows[stay], points[stay], gone[stay]

To know who leaves, the host has to wait until an accelerator has done all that it was given, whose queue is then empty.
So there a broken example goes on, for nothing: what broke it is written down first, and what comes of it later is not.
It is never the other examples' affair, and their points and verdicts are the same in either way.
"""

import torch
from torch import Tensor, nn

from toughen.models.batched import Batched
from toughen.threat import broadcastable

EVERY = 10
"""Steps after which broken examples leave where the host waits for that."""

AT_ONCE = ("cpu",)
"""Kinds of devices on which they leave at once."""


def waits(device: torch.device) -> bool:
    """Whether the host has to wait for a device to see what it has found."""
    return device.type not in AT_ONCE


class Leaving:
    """Says who goes on, step after step, and counts the passes of those who need not.

    Args:
        model: the classifier; of one that is `Batched` its `idle` counts them.
        every: steps after which the host looks where it has to wait; 1 where a step is so many passes that waiting is
            cheaper than those for nothing.
    """

    def __init__(self, model: nn.Module, every: int = EVERY) -> None:
        self._model, self._every, self._steps = model, every, 0

    def stay(self, gone: Tensor, passes: int = 2) -> Tensor | None:
        """Who goes on, their positions (m,); None where all do, or the host does not look this time.

        Args:
            gone: which examples are done (n,).
            passes: how many, of an example, come until this is asked again.
        """
        self._steps += 1
        if waits(gone.device):
            if self._steps % self._every:
                self.idle(gone, passes)
                return None
            staying = (~gone).nonzero().squeeze(1)
            return None if len(staying) == len(gone) else staying
        return (~gone).nonzero().squeeze(1) if gone.any() else None

    def idle(self, who: Tensor, passes: int = 1) -> None:
        """Count so many passes of some examples (n,), a mask, that are made so that nobody need wait."""
        if isinstance(self._model, Batched):
            self._model.idle = self._model.idle + passes * who.sum()


def write(into: Tensor, rows: Tensor | None, which: Tensor, values: Tensor) -> None:
    """into[rows[which]] = values[which], in place.

    Args:
        into: (N, ...).
        rows: positions in it, each once, (n,); None for all, one after the other.
        which: of these rows (n,), a mask.
        values: for all of them, (n, ...).
    """
    if not waits(into.device):
        which = which.nonzero().squeeze(1)
        # Whole rows are copied by index_copy_, single entries by indexing.
        into.index_copy_(0, which if rows is None else rows[which], values.index_select(0, which))
        return
    old = into if rows is None else into.index_select(0, rows)
    new = torch.where(broadcastable(which, old), values, old)
    if rows is None:
        into.copy_(new)
    else:
        into.index_copy_(0, rows, new)
