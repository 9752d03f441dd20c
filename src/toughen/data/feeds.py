"""Where the pixels of batches come from: memory on the device, or worker processes that decode ahead.

A random view is a pure function of seed, epoch, example and repeat, so neither the number of workers or ranks nor a
resume changes a pixel.

    feed = feed_of(split, lambda number: Rows(torch.tensor([17, 3]), epoch=0), seed=0, device=device)
    feed[1000]                                       # (2, C, H, W) uint8: rows 17 and 3
"""

import itertools
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from toughen.data.base import Examples
from toughen.data.stored import Stored
from toughen.noise import derive

MOST_WORKERS = 8
Key = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Rows:
    """Which examples of a split stand in a batch.

    Attributes:
        rows: (n,) int64, their places in the split.
        epoch: how often the split was gone through before.
        repeats: (n,) int64, which of an example's repeats each row is.
    """

    rows: Tensor
    epoch: int
    repeats: Tensor

    @property
    def keys(self) -> list[Key]:
        """Row, epoch and repeat of each, in Python's numbers."""
        return [(row, self.epoch, again) for row, again in zip(self.rows.tolist(), self.repeats.tolist(), strict=True)]


Plan = Callable[[int], Rows]
"""Batch number -> the rows of this rank."""


class Feed(Protocol):
    """The pixels of batches, by number."""

    def __getitem__(self, number: int) -> Tensor:
        """(n, C, H, W) uint8 on the device: this rank's rows of batch `number`."""
        ...


def feed_of(
    split: Examples, plan: Plan, *, seed: int, device: torch.device, workers: int | None = None, world: int = 1
) -> Feed:
    """The feed that suits a split.

    Args:
        split: the training images.
        plan: which rows a batch has.
        seed: of the random views.
        device: where pixels are wanted.
        workers: processes that decode, 0 for none but this one; None for the cores that a rank has, less one for the
            training itself, 1 to 8.
        world: ranks that share this machine's cores.
    """
    if not isinstance(split, Stored):
        return Resident(split.images.to(device), plan)
    if workers is None:
        workers = min(MOST_WORKERS, max(1, cores() // world - 1))
    return Streamed(split, plan, seed, device, workers)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, eq=False)
class Resident:
    """Pixels that lie on the device."""

    images: Tensor
    plan: Plan

    def __getitem__(self, number: int) -> Tensor:
        """The rows, as they are."""
        return self.images[self.plan(number).rows]


class Streamed:
    """Pixels that workers decode while the batches before are trained on.

    Batches that are asked for one after the other come from a queue of two batches a worker; another number makes the
    workers begin anew there.
    """

    def __init__(self, split: Stored, plan: Plan, seed: int, device: torch.device, workers: int) -> None:
        self._views, self._plan, self._device, self._workers = Views(split, seed), plan, device, workers
        self._next: int | None = None
        self._queue: Iterator[Tensor | str] = iter(())

    def __getitem__(self, number: int) -> Tensor:
        """The rows, decoded.

        Raises:
            ValueError: an image is broken, or not like the others.
        """
        if number != self._next:
            # The old workers end before new ones begin, which would inherit, and keep open, the pipes between them.
            self._queue = iter(())
            self._queue = self._from(number)
        pixels = next(self._queue)
        if isinstance(pixels, str):
            self._queue = iter(())
            raise ValueError(pixels)
        self._next = number + 1
        return pixels.to(self._device, non_blocking=True).permute(0, 3, 1, 2).contiguous()

    def _from(self, number: int) -> Iterator[Tensor | str]:
        # Named here, because a queue that held this object would keep its workers alive until garbage is collected.
        plan = self._plan
        with warnings.catch_warnings():
            # More workers than cores are the user's to ask for.
            warnings.filterwarnings("ignore", "This DataLoader will create")
            return iter(
                DataLoader(
                    self._views,
                    batch_sampler=(plan(later).keys for later in itertools.count(number)),
                    num_workers=self._workers,
                    collate_fn=as_it_is,  # pyright: ignore[reportArgumentType]
                    pin_memory=self._device.type == "cuda",
                    # Its own, because the loader draws a number, and the global generator is not ours.
                    generator=torch.Generator(),
                )
            )


class Views(Dataset["Tensor | str"]):
    """Random views of stored images by key, in whatever process asks."""

    def __init__(self, split: Stored, seed: int) -> None:
        self.split, self.seed = split, seed

    def __getitems__(self, keys: list[Key]) -> Tensor | str:
        """(n, H, W, C) uint8; or what is wrong with an image, as text: errors change on their way from workers."""
        channels, height, width = self.split.shape
        # Written in place, because copies are what streaming adds to the time that decoding takes.
        pixels = torch.empty((len(keys), height, width, channels), dtype=torch.uint8)
        rows = pixels.numpy()
        for number, (row, epoch, again) in enumerate(keys):
            draw = np.random.default_rng(derive(self.seed, "view", epoch, int(self.split.rows[row]), again))
            try:
                rows[number] = self.split.random(row, draw)
            except ValueError as error:
                return str(error)
        return pixels


def as_it_is(pixels: Tensor | str) -> Tensor | str:
    """What a worker made, which is a batch already; with a name, so that it finds its way into other processes."""
    return pixels
