"""Training batches, each a pure function of (seed, number): nothing to replay after a resume, nothing to hand to ranks.

The whole data set lives on the device as uint8. Batch `number` counts over the whole run; its epoch says in which order
the examples stand, and each rank takes every `world`-th row of the global batch.

    batches = Batches(train, index, batch_size=128, seed=0, device="cuda", pad=4, flip=True)
    batch = batches[1000]                            # x (128, 3, 32, 32) float32 in [0, 1] on the device
    epoch = 1000 // len(batches)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from toughen.data.augment import augment, check_padding
from toughen.data.base import Split, to_float
from toughen.noise import Stream, generator


@dataclass(frozen=True, eq=False)
class Batch:
    """One rank's rows of a global batch.

    Args:
        x: (N, C, H, W) float32 in [0, 1], augmented. N may be 0 on a rank of a short batch.
        y: (N,) int64 class indices, or (N, K) probabilities where something has mixed them; -1, or a row of zeros,
            where an example has no label.
        index: (N,) int64, the examples' positions in the original training set.
        noise: the draws for these examples at this step, with the same rows on any number of ranks.
        size: examples in the global batch, over all ranks.
        classes: K, how many classes there are.
        extra: (N,) bool, which examples are of the extra, pseudo-labelled set; None where there is no such set.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    noise: Stream
    size: int
    classes: int
    extra: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)


class Batches:
    """The batches of a run, by number.

    Epoch e (batches e * len(self) to (e + 1) * len(self) - 1) holds every example exactly once, in an order that is a
    pure function of (seed, e). The last batch of an epoch is kept when it is short.

    With `repeats` R that one time is R rows of the same batch, each with a crop and mirroring of its own: a batch of B
    rows holds B / R examples, and an epoch has R times as many batches. The rows of an example stand side by side, so
    that ranks, which take every world-th row, share them out. This is the `emulated_workers` of Gowal et al.'s release
    (facts: METHODS 1.10). Deviation: there each device has all rows of its examples.

    Args:
        split: the training images, N of them; copied to the device once.
        index: (N,) int64, the examples' positions in the original training set.
        batch_size: rows of a global batch, 1 to N (to N R with repeats), a multiple of R.
        seed: of the order and the augmentation, and the first part of every batch's noise key.
        device: where the images live and batches are made.
        pad: pixels of padding before a random crop; 0 for none.
        flip: whether images are mirrored with probability 1/2.
        pad_mode: "constant" (zeros) or "reflect".
        repeats: R, rows for each example in its batch, at least 1.
        classes: number of classes; by default one more than the highest label.
        rank: which rows of a global batch: rank, rank + world, rank + 2 * world, ...
        world: number of ranks.

    Raises:
        ValueError: an argument is outside what is allowed.
    """

    def __init__(
        self,
        split: Split,
        index: Tensor,
        *,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        pad: int = 0,
        flip: bool = False,
        pad_mode: str = "constant",
        repeats: int = 1,
        classes: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        check_repeats(batch_size, repeats)
        if not 1 <= batch_size <= len(split) * repeats:
            raise ValueError(
                f"batch_size is {batch_size}, but there are {len(split)} training images; "
                f"give a batch size from 1 to {len(split) * repeats}."
            )
        if index.shape != (len(split),):
            raise ValueError(
                f"index has shape {tuple(index.shape)}, but must give one position for {len(split)} images."
            )
        if not 0 <= rank < world:
            raise ValueError(f"rank is {rank}, but {world} ranks allow 0 to {world - 1}.")
        check_padding(pad, pad_mode, *split.images.shape[2:])
        self.classes = int(split.labels.max()) + 1 if classes is None else classes
        self.batch_size, self.seed, self.device = batch_size, seed, torch.device(device)
        self.pad, self.flip, self.pad_mode = pad, flip, pad_mode
        self.repeats, self.distinct = repeats, batch_size // repeats
        self.rank, self.world = rank, world
        self._images = split.images.to(self.device)
        self._labels = split.labels.to(self.device)
        self._index = index.to(self.device)
        self._order: tuple[int, Tensor] | None = None

    # Numbers have no end, so Python's iteration by index would run for ever.
    __iter__ = None

    def __len__(self) -> int:
        """Batches per epoch."""
        return -(-len(self._labels) // self.distinct)

    def __getitem__(self, number: int) -> Batch:
        """This rank's rows of batch `number` (0 or more, counted over the whole run)."""
        if number < 0:
            raise IndexError(f"Batch {number} was asked for, but batches are numbered from 0 on.")
        epoch, place = divmod(number, len(self))
        examples = self._epoch_order(epoch)[place * self.distinct : (place + 1) * self.distinct]
        global_batch = examples[:, None].expand(-1, self.repeats).flatten()
        chosen = global_batch[self.rank :: self.world]
        rows = torch.arange(len(global_batch))[self.rank :: self.world]
        noise = Stream((self.seed, "augment", number), rows, len(global_batch), self.device)
        x = augment(self._images[chosen], noise, pad=self.pad, flip=self.flip, mode=self.pad_mode)
        return Batch(
            x=to_float(x),
            y=self._labels[chosen],
            index=self._index[chosen],
            noise=Stream((self.seed, "train", number), rows, len(global_batch), self.device),
            size=len(global_batch),
            classes=self.classes,
        )

    def _epoch_order(self, epoch: int) -> Tensor:
        if self._order is None or self._order[0] != epoch:
            # Drawn on the CPU, so that the order is the same on every device.
            order = torch.randperm(len(self._labels), generator=generator(self.seed, "order", epoch))
            self._order = (epoch, order.to(self.device))
        return self._order[1]


def check_repeats(batch_size: int, repeats: int) -> None:
    """Refuse a batch that cannot hold each of its examples `repeats` times.

    Raises:
        ValueError: `repeats` is less than 1, or does not divide `batch_size`.
    """
    if repeats < 1 or batch_size % repeats:
        raise ValueError(
            f"batch_size is {batch_size} and repeats is {repeats}; give repeats of 1 or more, and a batch size that is "
            "a multiple of it, so that each image stands so often in its batch."
        )
