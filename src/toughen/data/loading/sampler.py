"""One of the sets that batches are drawn from: its order, its labels and its pixels.

part = SampledSet(train, index, 96, 1, seed=0, start=0, short=False, device=device)
pixels, labels, index = part.take(1000)          # 96 rows of batch 1000, or this rank's share of them
"""

from collections.abc import Callable

import torch
from torch import Tensor

from toughen.data.base import Examples
from toughen.data.lazy_split import LazySplit
from toughen.data.loading.prefetch import Rows, Streamed
from toughen.devices import sent
from toughen.noise import generator


class Sampler:
    """Which examples of a set are in which batch.

    The set is gone through again and again, each time in an order that is a pure function of (seed, how often before).

    Args:
        n: examples of the set.
        distinct: examples of the set in a batch.
        repeats: rows of each in that batch, side by side.
        seed: of the orders.
        short: whether the examples at the end of an order make a batch with fewer of them; else they are left out.
        mine: this rank's rows among those of the global batch.
        device: where rows are wanted.
    """

    def __init__(
        self, n: int, distinct: int, repeats: int, seed: int, *, short: bool, mine: slice, device: torch.device
    ) -> None:
        self.n, self.distinct, self.repeats, self.seed = n, distinct, repeats, seed
        self.batches = -(-n // distinct) if short else n // distinct
        self._mine, self._device = mine, device
        self._orders: dict[int, Tensor] = {}

    def leave_out_short(self) -> None:
        """Make no batch of fewer examples any more."""
        self.batches = self.n // self.distinct

    def size(self, number: int) -> int:
        """Rows in the global batch `number`, over all ranks."""
        return min(self.distinct, self.n - number % self.batches * self.distinct) * self.repeats

    def rows(self, number: int) -> Rows:
        """Which examples make this rank's rows of batch `number`."""
        epoch, place = divmod(number, self.batches)
        examples = self._order(epoch)[place * self.distinct : (place + 1) * self.distinct].long()
        repeats = torch.arange(self.repeats).expand(len(examples), -1)
        return Rows(
            examples[:, None].expand(-1, self.repeats).flatten()[self._mine], epoch, repeats.flatten()[self._mine]
        )

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            # Drawn on the CPU, so that the order is the same on every device.
            order = torch.randperm(self.n, generator=generator(self.seed, "order", epoch))
            # Half the memory, which for many millions of images counts.
            order = order.int() if self.n < 2**31 else order
            # Two of them, because a queue of batches may be an epoch ahead of training.
            self._orders = {**dict(list(self._orders.items())[-1:]), epoch: sent(order, self._device)}
        return self._orders[epoch]


class SampledSet:
    """Some rows of every batch, from one set of examples.

    Args:
        split: the set, N examples.
        index: (N,) int64, their numbers among all examples that are trained on; or the first of N that follow on one
            another.
        distinct, repeats, seed, short: see `Sampler`.
        start: the first of their rows in the global batch.
        device: where labels and pixels are wanted.
        workers, note: see `prefetch.Streamed`.
        rank: this process's number among `world`.
        world: number of ranks that share each global batch.
    """

    def __init__(
        self,
        split: Examples,
        index: Tensor | int,
        distinct: int,
        repeats: int,
        seed: int,
        *,
        start: int,
        short: bool,
        device: torch.device,
        workers: int | None = None,
        note: Callable[[str], None] = lambda text: None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        # Of the global batch's rows rank, rank + world, ...: those of this part.
        mine = slice((rank - start) % world, None, world)
        streamed = isinstance(split, LazySplit)
        # Where the examples are chosen: on the device, or for worker processes on the CPU.
        home = torch.device("cpu") if streamed else device
        self.start = start
        self.order = Sampler(len(split), distinct, repeats, seed, short=short, mine=mine, device=home)
        self._device, self._labels = device, split.labels.to(home)
        self._index = index.to(home) if isinstance(index, Tensor) else index
        if streamed:
            self._images = Streamed(
                split, self.order.rows, seed=seed, device=device, workers=workers, world=world, note=note
            )
        else:
            # In the usual order: how a run lays images out is its own choice, see `training.acceleration.Acceleration`.
            self._images = split.images.to(device, memory_format=torch.contiguous_format)

    def take(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """This rank's rows of batch `number`: pixels (n, C, H, W) uint8, labels, and numbers (n,), on the device."""
        chosen = self.order.rows(number).rows
        pixels = self._images[number] if isinstance(self._images, Streamed) else self._images[chosen]
        index = self._index[chosen] if isinstance(self._index, Tensor) else chosen + self._index
        return pixels, sent(self._labels[chosen], self._device), sent(index, self._device)

    def close(self) -> None:
        """End the processes that decode for it."""
        if isinstance(self._images, Streamed):
            self._images.close()
