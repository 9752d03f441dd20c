"""Images that worker processes decode ahead of training.

A random view is a pure function of seed, epoch, example and repeat, so neither the number of workers or ranks nor a
resume changes a pixel.

    images = Streamed(split, lambda number: Rows(torch.tensor([17, 3]), 0, torch.tensor([0, 0])), seed=0, device=device)
    images[1000]                                     # (2, C, H, W) uint8: rows 17 and 3
"""

import multiprocessing
import os
import signal
import threading
import traceback
import weakref
from collections.abc import Callable, MutableSequence, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import numpy as np
import torch
from torch import Tensor

from toughen.data.lazy_split import LazySplit
from toughen.devices import QUEUED
from toughen.noise import derive
from toughen.parallel.ranks import TIMEOUT, cores

MOST_WORKERS = 8

PATIENCE = 300.0
"""Seconds without a batch after which its worker is taken to hang; among several ranks less than they wait."""

POLL = 2.0
"""Seconds within which a process that was killed has ended."""

Key = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Rows:
    """Which examples of a split are in a batch.

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


class Streamed:
    """Pixels that worker processes decode while the batches before are trained on.

    Batches that are asked for one after the other are decoded ahead, one by each worker; another number makes the
    workers begin anew there, and so does, once, a worker that has died or hangs or an image that cannot be read.

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

    def __init__(
        self,
        split: LazySplit,
        plan: Plan,
        *,
        seed: int,
        device: torch.device,
        workers: int | None = None,
        world: int = 1,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._split, self._plan, self._seed, self._device, self._note = split, plan, seed, device, note
        self._count = min(MOST_WORKERS, max(1, cores() // world - 1)) if workers is None else workers
        # Twice in a row, and the other ranks still wait.
        self._patience = PATIENCE if world == 1 else min(PATIENCE, TIMEOUT.total_seconds() / 3)
        self._workers: list[DataWorker] = []
        self._first = 0
        self._next: int | None = None
        # Called by `close`, or else where the last reference goes.
        self._end = weakref.finalize(self, _end, self._workers, os.getpid())

    def __getitem__(self, number: int) -> Tensor:
        """(n, C, H, W) uint8 on the device: this rank's rows of batch `number`.

        Raises:
            ValueError: an image is broken (DA412), or not like the others; or a worker died or gave no sign twice in a
                row (DA411).
        """
        if number != self._next:
            self._begin(number)
        try:
            pixels = self._decoded(number)
        except ValueError as error:
            # A file server may have had a bad moment, and a machine too little memory.
            self._begin(number)
            pixels = self._decoded(number)
            self._note(f"{str(error).rstrip('.')}; it was decoded again, and training goes on.")
        self._next = number + 1
        return pixels.to(self._device, non_blocking=self._device.type in QUEUED).permute(0, 3, 1, 2).contiguous()

    def close(self) -> None:
        """End the workers, whoever still holds this: an error that came through here does, by its traceback.

        Who asks for a batch again makes new ones begin.
        """
        self._end()
        self._next = None

    def _begin(self, number: int) -> None:
        # The old workers end before new ones begin, which would inherit, and keep open, their connections.
        self.close()
        self._workers = [start_worker(self._split, self._seed) for _ in range(self._count)]
        self._end = weakref.finalize(self, _end, self._workers, os.getpid())
        self._first = self._next = number
        for later, worker in enumerate(self._workers, start=number):
            worker.give(self._plan(later).keys)

    def _decoded(self, number: int) -> Tensor:
        """(n, H, W, C) uint8, in pinned memory where a GPU fetches it from there."""
        rows = self._plan(number)
        channels, height, width = self._split.shape
        shape, pinned = (len(rows.rows), height, width, channels), self._device.type in QUEUED
        pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        try:
            if self._workers:
                self._receive(number, pixels.numpy())
            else:
                decode(self._split, self._seed, rows.keys, pixels.numpy(), [-1])
        except Exception:
            # Whoever asks for this number again gets new workers.
            self.close()
            raise
        return pixels

    def _receive(self, number: int, pixels: np.ndarray) -> None:
        """The batch from the worker whose turn it is, which then gets its next."""
        place = (number - self._first) % self._count
        worker = self._workers[place]
        # Taking over what a worker has begun to send knows no timeout.
        alarm = threading.Timer(self._patience, worker.give_up)
        alarm.daemon = True
        alarm.start()
        try:
            error = worker.connection.recv()
            if error is None:
                worker.connection.recv_bytes_into(pixels.reshape(-1).data)
        except (EOFError, OSError) as lost:
            raise ValueError(self._lost(place)) from lost
        finally:
            alarm.cancel()
        if error is not None:
            raise error
        worker.give(self._plan(number + self._count).keys)

    def _lost(self, place: int) -> str:
        worker = self._workers[place]
        worker.process.join(POLL)
        how = f"gave no sign for {self._patience:g} s" if worker.hangs else describe_exit(worker.process.exitcode)
        where = f" while decoding {self._split.name(worker.row[0])}" if worker.row[0] >= 0 else ""
        return (
            f"DA411 Data worker {place} {how}{where}; the same command goes on from the last checkpoint, with "
            "data.workers=0 without workers."
        )


@dataclass
class DataWorker:
    """A process that decodes one batch after another.

    Attributes:
        process: it.
        connection: our end of the pipe to it, the only one in this process: it breaks when the worker ends.
        row: of the image that it is decoding, in shared memory: the only trace that a dead one leaves; -1 for none.
        hangs: whether it was given up for giving no sign.
    """

    process: BaseProcess
    connection: Connection
    row: Sequence[int]
    hangs: bool = field(default=False, init=False)

    def give(self, keys: list[Key]) -> None:
        """The next batch to decode. Whether the worker is still alive shows when that is asked for."""
        with suppress(OSError):
            self.connection.send(keys)

    def give_up(self) -> None:
        """Kill it for giving no sign: whoever hangs hears nothing else."""
        self.hangs = True
        self.process.kill()


def start_worker(split: LazySplit, seed: int) -> DataWorker:
    """A new worker for random views of a split."""
    ours, theirs = multiprocessing.Pipe()
    row = multiprocessing.RawArray("q", [-1])
    process = multiprocessing.Process(target=serve, args=(split, seed, row, theirs, ours), daemon=True)
    process.start()
    theirs.close()
    return DataWorker(process, ours, row)


def serve(
    split: LazySplit, seed: int, row: MutableSequence[int], connection: Connection, other_end: Connection
) -> None:
    """What a worker does: answers each batch's keys by None and its pixels, or by what went wrong.

    It ends with the process that began it, whose end of the connection is then gone.
    """
    other_end.close()
    # Ctrl-C is for the run to hear, whose handlers a forked process has taken over.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    channels, height, width = split.shape
    with suppress(EOFError, OSError):
        while True:
            keys = connection.recv()
            pixels = np.empty((len(keys), height, width, channels), np.uint8)
            try:
                decode(split, seed, keys, pixels, row)
            except ValueError as error:
                connection.send(ValueError(str(error)))
            except Exception:
                connection.send(RuntimeError(traceback.format_exc()))
                raise
            else:
                connection.send(None)
                connection.send_bytes(pixels.reshape(-1).data)


def decode(split: LazySplit, seed: int, keys: Sequence[Key], pixels: np.ndarray, row: MutableSequence[int]) -> None:
    """Write random views of stored images, by their keys, into (n, H, W, C) uint8.

    Args:
        split: the images.
        seed: of the views.
        keys: row, epoch and repeat of each.
        pixels: written in place, because copies are what streaming adds to the time that decoding takes.
        row: where it is noted which image is being decoded; -1 for none.

    Raises:
        ValueError: an image is broken (DA412), or not like the others.
    """
    if split.reads_pixels and keys:
        row[0] = keys[0][0]
        pixels[:] = split.read_pixels(np.array([place for place, _, _ in keys]))
        row[0] = -1
        return
    for number, (place, epoch, again) in enumerate(keys):
        row[0] = place
        draw = np.random.default_rng(derive(seed, "view", epoch, int(split.rows[place]), again))
        pixels[number] = split.decode(place, draw)
    row[0] = -1


def describe_exit(code: int | None) -> str:
    """How a process ended, by its exit code."""
    if code is None or code >= 0:
        return f"ended (exit code {code})"
    often = {signal.SIGKILL: ", often out of memory", signal.SIGBUS: ", often out of shared memory"}
    return f"was killed (signal {-code}{often.get(signal.Signals(-code), '')})"


def _end(workers: list[DataWorker], parent: int) -> None:
    # A forked process collects garbage too, and these workers are not its own.
    if os.getpid() == parent:
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.join(POLL)
            worker.connection.close()
