"""Where the pixels of batches come from: memory on the device, or worker processes that decode ahead.

A random view is a pure function of seed, epoch, example and repeat, so neither the number of workers or ranks nor a
resume changes a pixel.

    feed = feed_of(split, lambda number: Rows(torch.tensor([17, 3]), epoch=0), seed=0, device=device)
    feed[1000]                                       # (2, C, H, W) uint8: rows 17 and 3
"""

import itertools
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch._C import _remove_worker_pids
from torch.utils.data import DataLoader, Dataset, get_worker_info

from toughen.data.base import Examples
from toughen.data.lazy_split import LazySplit
from toughen.noise import derive
from toughen.parallel.ranks import TIMEOUT, cores

MOST_WORKERS = 8

PATIENCE = 300.0
"""Seconds without a batch after which its worker is taken to hang; among several ranks less than they wait."""

POLL = 2
"""Seconds after which at the latest it is seen that a worker has died."""

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

    def close(self) -> None:
        """End what works for this feed; who asks for a batch again makes it begin anew."""
        ...


def feed_of(
    split: Examples,
    plan: Plan,
    *,
    seed: int,
    device: torch.device,
    workers: int | None = None,
    world: int = 1,
    note: Callable[[str], None] = lambda text: None,
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
        note: is told what went wrong and was put right.
    """
    if not isinstance(split, LazySplit):
        # In the usual order: how a run lays images out is its own choice, see `training.fast.Ways`.
        return Resident(split.images.to(device, memory_format=torch.contiguous_format), plan)
    if workers is None:
        workers = min(MOST_WORKERS, max(1, cores() // world - 1))
    # Twice in a row, and the other ranks still wait.
    patience = min(PATIENCE, TIMEOUT.total_seconds() / 3) if world > 1 else PATIENCE
    return Streamed(split, plan, seed, device, workers, patience=patience, note=note)


@dataclass(frozen=True, eq=False)
class Resident:
    """Pixels that lie on the device."""

    images: Tensor
    plan: Plan

    def __getitem__(self, number: int) -> Tensor:
        """The rows, as they are."""
        return self.images[self.plan(number).rows]

    def close(self) -> None:
        """Nothing works ahead here."""


class Streamed:
    """Pixels that workers decode while the batches before are trained on.

    Batches that are asked for one after the other come from a queue of two batches a worker; another number makes the
    workers begin anew there, and so does, once, a worker that has died or hangs or an image that cannot be read.
    """

    def __init__(
        self,
        split: LazySplit,
        plan: Plan,
        seed: int,
        device: torch.device,
        workers: int,
        *,
        patience: float = PATIENCE,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._split, self._plan, self._seed, self._device = split, plan, seed, device
        self._workers, self._patience, self._note = workers, patience, note
        self._next: int | None = None
        self._ahead: Ahead | None = None

    def __getitem__(self, number: int) -> Tensor:
        """The rows, decoded.

        Raises:
            ValueError: an image is broken (DA412), or not like the others; or a worker died or gave no sign twice in a
                row (DA411).
        """
        if number != self._next:
            self._begin(number)
        try:
            pixels = self._taken()
        except ValueError as error:
            # A file server may have had a bad moment, and a machine too little memory.
            self._begin(number)
            pixels = self._taken()
            self._note(f"{str(error).rstrip('.')}; it was decoded again, and training goes on.")
        self._next = number + 1
        return pixels.to(self._device, non_blocking=True).permute(0, 3, 1, 2).contiguous()

    def close(self) -> None:
        """End the workers, whoever still holds this feed: an error that came through here does, by its traceback."""
        ahead, self._ahead, self._next = self._ahead, None, None
        if ahead:
            ahead.close()

    def _begin(self, number: int) -> None:
        # The old workers end before new ones begin, which would inherit, and keep open, the pipes between them.
        self.close()
        pinned = self._device.type == "cuda"
        self._ahead = Ahead(self._split, self._plan, self._seed, number, self._workers, self._patience, pinned=pinned)
        self._next = number

    def _taken(self) -> Tensor:
        assert self._ahead is not None
        try:
            return self._ahead.taken()
        except Exception:
            # Whoever asks for this number again gets new workers.
            self.close()
            raise


class Ahead:
    """Batches from one number on, in order, decoded ahead by processes of their own; without any, by this one.

    Args:
        split: the images.
        plan: which rows a batch has.
        seed: of the random views.
        number: of the first batch.
        workers: how many processes.
        patience: seconds after which a batch that does not come is given up.
        pinned: whether pixels are wanted in pinned memory.
    """

    def __init__(
        self, split: LazySplit, plan: Plan, seed: int, number: int, workers: int, patience: float, *, pinned: bool
    ) -> None:
        self._split, self._patience, self._done = split, patience, 0
        # Which image each worker has in hand: the only trace that a dead one leaves.
        self._at = torch.full((max(1, workers),), -1).share_memory_()
        with warnings.catch_warnings():
            # More workers than cores are the user's to ask for.
            warnings.filterwarnings("ignore", "This DataLoader will create")
            self._queue: Iterator[Tensor | str] = iter(
                DataLoader(
                    RandomCrops(split, seed, self._at),
                    batch_sampler=(plan(later).keys for later in itertools.count(number)),
                    num_workers=workers,
                    collate_fn=as_it_is,  # pyright: ignore[reportArgumentType]
                    pin_memory=pinned,
                    # Its own, because the loader draws a number, and the global generator is not ours.
                    generator=torch.Generator(),
                    timeout=POLL if workers else 0,
                )
            )
        _unwatched(self._queue)
        self._processes: list[BaseProcess] = list(getattr(self._queue, "_workers", []))

    def taken(self) -> Tensor:
        """The next batch: (n, H, W, C) uint8.

        Raises:
            ValueError: see `Streamed`; nothing comes from here any more.
        """
        given_up = threading.Event()
        alarm = threading.Timer(self._patience, self._give_up, [given_up])
        alarm.daemon = True
        if self._processes:
            alarm.start()
        try:
            pixels = self._come(given_up)
        finally:
            alarm.cancel()
            if self._processes:
                # Its thread holds these workers: not waited for, it could be the one that ends them, later.
                alarm.join()
        if isinstance(pixels, str):
            raise ValueError(pixels)
        self._done += 1
        return pixels

    def close(self) -> None:
        """End the workers; nothing comes from here any more."""
        if self._processes:
            _shut(self._queue)
            self._processes = []

    def _give_up(self, given_up: threading.Event) -> None:
        # Killed, whoever hangs cannot keep this process waiting: taking over a tensor from a worker knows no timeout.
        given_up.set()
        for process in self._processes:
            process.kill()

    def _come(self, given_up: threading.Event) -> Tensor | str:
        while True:
            try:
                return next(self._queue)
            except (RuntimeError, EOFError, OSError) as error:
                waits = str(error).startswith("DataLoader timed out")
                if self._processes and not waits:
                    # What a worker had begun to send ends before the worker itself has; and its sentinel, which is a
                    # file of its own too, a moment before it counts as dead.
                    ended = wait([process.sentinel for process in self._processes], timeout=POLL)
                    for process in self._processes:
                        if process.sentinel in ended:
                            process.join(POLL)
                if given_up.is_set():
                    worker = self._done % len(self._processes)
                    raise ValueError(self._lost(worker, f"gave no sign for {self._patience:g} s")) from error
                dead = [worker for worker, process in enumerate(self._processes) if not process.is_alive()]
                if dead:
                    raise ValueError(self._lost(dead[0], _ended(self._processes[dead[0]].exitcode))) from error
                # The loader's only sign that it merely waits. Other errors of these types are bugs.
                if not waits:
                    raise

    def _lost(self, worker: int, how: str) -> str:
        row = int(self._at[worker])
        where = f" while decoding {self._split.name(row)}" if row >= 0 else ""
        for process in self._processes:
            # At once: the loader would wait five seconds for each that hangs.
            process.kill()
        for process in self._processes:
            process.join(POLL)
        return (
            f"DA411 Data worker {worker} {how}{where}; the same command goes on from the last checkpoint, with "
            "data.workers=0 without workers."
        )


def _ended(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended (exit code {code})"
    often = {signal.SIGKILL: ", often out of memory", signal.SIGBUS: ", often out of shared memory"}
    return f"was killed (signal {-code}{often.get(signal.Signals(-code), '')})"


def _shut(queue: Any) -> None:
    """What the loader's iterator does when its last reference goes, which may be long after."""
    queue._shutdown_workers()


def _unwatched(queue: Any) -> None:
    """Take workers off the list that torch looks at when a child dies: it raises wherever the run is."""
    if getattr(queue, "_worker_pids_set", False):
        _remove_worker_pids(id(queue))
        queue._worker_pids_set = False


class RandomCrops(Dataset["Tensor | str"]):
    """Random views of stored images by key, in whatever process asks.

    Args:
        split: the images.
        seed: of the views.
        at: (workers,) int64 in shared memory, where each notes which image it has in hand.
    """

    def __init__(self, split: LazySplit, seed: int, at: Tensor) -> None:
        self.split, self.seed, self.at = split, seed, at

    def __getitems__(self, keys: list[Key]) -> Tensor | str:
        """(n, H, W, C) uint8; or what is wrong with an image, as text: errors change on their way from workers."""
        info = get_worker_info()
        at = self.at.numpy()[info.id if info else 0 :]
        channels, height, width = self.split.shape
        # Written in place, because copies are what streaming adds to the time that decoding takes.
        pixels = torch.empty((len(keys), height, width, channels), dtype=torch.uint8)
        rows = pixels.numpy()
        for number, (row, epoch, again) in enumerate(keys):
            at[0] = row
            draw = np.random.default_rng(derive(self.seed, "view", epoch, int(self.split.rows[row]), again))
            try:
                rows[number] = self.split.random(row, draw)
            except ValueError as error:
                return str(error)
        at[0] = -1
        return pixels


def as_it_is(pixels: Tensor | str) -> Tensor | str:
    """What a worker made, which is a batch already; with a name, so that it finds its way into other processes."""
    return pixels
