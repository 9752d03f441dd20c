"""Training batches, each a pure function of (seed, number): nothing to replay after a resume, nothing to hand to ranks.

Batch `number` counts over the whole run; its epoch decides the order of the examples, and each rank takes every
`world`-th row of the global batch. Pixels lie on the device or are decoded ahead by worker processes (see `prefetch`).

    batches = Batches(train, index, batch_size=128, seed=0, device="cuda", pad=4, flip=True)
    batch = batches[1000]                            # x (128, 3, 32, 32) float32 in [0, 1] on the device
    epoch = 1000 // len(batches)

An extra, pseudo-labelled set is mixed in at a fixed ratio (Carmon et al. 2019; Limits, section 4.3.2):

    extra = Extra(pseudo_labelled, offset=50_000, labelled=0.3)
    mixed = Batches(train, index, batch_size=1024, seed=0, device="cuda", extra=extra)
    mixed[0].extra.sum()                             # 717 of 1,024, in every batch
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from toughen.data.base import Examples, to_float
from toughen.data.loading.augment import augment, check_padding
from toughen.data.loading.sampler import SampledSet
from toughen.devices import sent
from toughen.errors import UsageError, image_size
from toughen.losses import probabilities
from toughen.noise import Stream, derive


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


@dataclass(frozen=True, eq=False)
class Extra:
    """A pseudo-labelled set, and how much of a batch it is.

    Args:
        examples: images and labels: class indices, -1 for none, or probabilities.
        offset: number of the first of them, beyond every number of a training example.
        labelled: share of each batch that are training examples, in (0, 1).
    """

    examples: Examples
    offset: int
    labelled: float


class Batches:
    """The batches of a run, by number.

    Epoch e (batches e * len(self) to (e + 1) * len(self) - 1) holds every example exactly once, in an order that is a
    pure function of (seed, e). The last batch of an epoch is kept when it is short, but see `leave_out_short`.

    With `repeats` R that one time is R rows of the same batch, each with a crop and mirroring of its own: a batch of B
    rows holds B / R examples, and an epoch has R times as many batches. The rows of an example are side by side, so
    that ranks, which take every world-th row, share them out. This is the `emulated_workers` of Gowal et al.'s release
    (docs/methods/extra_data.md, Batch repetition). Deviation: there each device has all rows of its examples.

    With an `extra` set every batch has the same number of training and of extra examples, training examples first. Both
    sets are gone through in orders of their own; the examples at the end of an order that would make a short batch wait
    for the next one, so that the ratio is exact in every batch. `repeats` concerns the training examples. Deviation
    from Carmon et al.'s sampler: extra examples are drawn without replacement.

    Args:
        split: the training images, N of them; pixels in memory are copied to the device once.
        index: (N,) int64, the examples' positions in the original training set.
        batch_size: rows of a global batch, 1 to N (to N R with repeats), a multiple of R.
        seed: of the order and the augmentation, and the first part of every batch's noise key.
        device: where batches are made.
        pad: pixels of padding before a random crop; 0 for none.
        flip: whether each image is mirrored with probability 1/2.
        pad_mode: see `augment.pad_and_crop`.
        repeats: how often each image is in its batch.
        classes: number of classes K; None for one more than the largest label.
        extra: see `Extra`.
        workers: processes that decode stored images; see `prefetch.Streamed`.
        note: is told what went wrong with them and was put right.
        rank: this process's number among `world`.
        world: number of ranks that share each global batch.

    Raises:
        ValueError: a number is out of its range, `index` does not fit, or the padding or the repeats are impossible.
    """

    def __init__(
        self,
        split: Examples,
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
        extra: Extra | None = None,
        workers: int | None = None,
        note: Callable[[str], None] = lambda text: None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        labelled = labelled_rows(batch_size, extra.labelled) if extra else batch_size
        if extra:
            check_extra(extra, batch_size, split)
        check_repeats(labelled, repeats)
        if not 1 <= labelled <= len(split) * repeats:
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
        check_padding(pad, pad_mode, *split.shape[1:])
        self.classes = int(split.labels.max()) + 1 if classes is None else classes
        self.batch_size, self.seed, self.device = batch_size, seed, torch.device(device)
        self.pad, self.flip, self.pad_mode = pad, flip, pad_mode
        self.repeats, self.distinct = repeats, labelled // repeats
        self.rank, self.world = rank, world
        common = {"device": self.device, "rank": rank, "world": world, "workers": workers, "note": note}
        self._parts = [SampledSet(split, index, self.distinct, repeats, seed, start=0, short=extra is None, **common)]
        if extra:
            count, own = batch_size - labelled, derive(seed, "extra")
            self._parts.append(
                SampledSet(extra.examples, extra.offset, count, 1, own, start=labelled, short=False, **common)
            )

    # Numbers have no end, so Python's iteration by index would run for ever.
    __iter__ = None

    def __len__(self) -> int:
        """Batches per epoch."""
        return self._parts[0].order.batches

    def close(self) -> None:
        """End the processes that decode ahead; another batch that is asked for makes them begin anew."""
        for part in self._parts:
            part.close()

    def leave_out_short(self) -> None:
        """End each epoch before its last batch where that is short, from now on."""
        for part in self._parts:
            part.order.leave_out_short()
        # What is decoded ahead may be of batches that are others now.
        self.close()

    @property
    def smallest(self) -> int:
        """Rows of the smallest global batch."""
        return sum(part.order.size(part.order.batches - 1) for part in self._parts)

    def __getitem__(self, number: int) -> Batch:
        """This rank's rows of batch `number` (0 or more, counted over the whole run)."""
        if number < 0:
            raise IndexError(f"Batch {number} was asked for, but batches are numbered from 0 on.")
        size = sum(part.order.size(number) for part in self._parts)
        rows = torch.arange(size)[self.rank :: self.world]
        noise = Stream((self.seed, "augment", number), rows, size, self.device)
        pixels, labels, index = map(list, zip(*(part.take(number) for part in self._parts), strict=True))
        if len({label.ndim for label in labels}) > 1:
            labels = [probabilities(label, self.classes, torch.float32) for label in labels]
        joined = torch.cat(pixels) if len(pixels) > 1 else pixels[0]
        x = augment(joined, noise, pad=self.pad, flip=self.flip, mode=self.pad_mode)
        return Batch(
            x=to_float(x),
            y=torch.cat(labels),
            index=torch.cat(index),
            noise=Stream((self.seed, "train", number), rows, size, self.device),
            size=size,
            classes=self.classes,
            extra=sent(rows >= self._parts[1].start, self.device) if len(self._parts) > 1 else None,
        )


def labelled_rows(batch_size: int, share: float) -> int:
    """Training examples in a batch of which they are a share: the nearest whole number, a half rounded up."""
    return math.floor(batch_size * share + 0.5)


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


def check_extra(extra: Extra, batch_size: int, split: Examples) -> None:
    """Refuse an extra set that does not go with the training images.

    Raises:
        ValueError: a batch would hold none of the one or the other, there are fewer extra examples than a batch takes,
            or they are of another shape.
    """
    rows, n = batch_size - labelled_rows(batch_size, extra.labelled), len(extra.examples)
    if not 0 < rows < batch_size:
        raise ValueError(
            f"labelled is {extra.labelled:g}, which makes {batch_size - rows} training and {rows} extra examples of a "
            f"batch of {batch_size}; give a share that leaves at least one of each."
        )
    if n < rows:
        raise ValueError(
            f"A batch takes {rows} extra examples, but there are {n}; give more, or a larger share labelled."
        )
    if extra.examples.shape != split.shape:
        raise UsageError(
            f"The extra images are {extra.examples.shape} (C, H, W), but the training images are {split.shape}; give ",
            image_size(like=224),
            ", to bring both to one size, or resize the extra images.",
        )
