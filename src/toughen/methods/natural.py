"""Natural training, and natural training with replay (Free: Shafahi et al. 2019, section 4 and figure 1).

Example:
    Natural()                       # the usual thing
    Natural(replays=8)              # each minibatch 8 times in a row: Free without an adversary

The whole of it: docs/methods/natural.md.
"""

from collections.abc import Iterator
from typing import Literal

from torch import nn

from toughen.data import Batch
from toughen.losses import cross_entropy
from toughen.methods.base import Method, Objective, State
from toughen.settings import Count


class Natural(Method, frozen=True):
    """minimise mean cross_entropy(model(x), y), `replays` steps on each minibatch.

    Replay isolates what repeating a minibatch does to generalisation from what the adversary does; the budget counts
    optimiser steps, so with m replays a run sees one m-th of the minibatches.

    Attributes:
        name: "natural".
        replays: optimiser steps on each minibatch.
    """

    name: Literal["natural"] = "natural"
    replays: Count = 1

    @property
    def robust_training(self) -> bool:
        """No: nothing is attacked."""
        return False

    @property
    def steps_per_batch(self) -> int:
        """The replays."""
        return self.replays

    def losses(self, model: nn.Module, batch: Batch, state: State) -> Iterator[Objective]:
        """The clean loss, `replays` times."""
        for _ in range(self.replays):
            yield lambda: cross_entropy(model(batch.x), batch.y)
