"""What a run writes: two logs, and checkpoints that are written beside the training that goes on.

    with Outputs(...) as outputs:
        outputs.write({"step": 1600, "loss": 1.25})
        outputs.save(job, winners=["weights"], slots=128)    # returns as soon as the tensors have been copied
        outputs.wait()                                       # until the checkpoint is on the disk

A disk that refuses does not end a run: lines are held back, and what a checkpoint would have kept goes into the next.
Three refusals in a row do, with the last good checkpoint as it was.
"""

import errno
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch

from toughen.data.dataset_card import DatasetCard
from toughen.models.batched import out_of_memory
from toughen.parallel import ranks
from toughen.storage import files
from toughen.storage.checkpoint import save_checkpoint
from toughen.training.catastrophic_overfitting import OverfittingMonitor
from toughen.training.loop import Job
from toughen.training.state import Tensors, capture

ATTEMPTS = 3
"""So many checkpoints in a row may fail to be written before the run ends."""


@dataclass(frozen=True)
class _PendingSave:
    """A checkpoint to write: its step, tensors on the CPU, state, and whose best weights it holds."""

    step: int
    tensors: Tensors
    state: Mapping[str, Any]
    candidates: Sequence[str]


@dataclass
class Checkpointer:
    """What a run writes, and what its checkpoints must remember of that.

    Attributes:
        folder: the run folder.
        logs: `metrics.jsonl`, equal bytes for equal runs, and `timing.jsonl`, the same steps on the wall clock; only
            on the first rank.
        about: the data that training began with.
        extra: fingerprint of the extra set, where there is one.
        watch: for catastrophic overfitting.
        selected_by: see `early_stopping.improved`.
        note: is told what the user should know.
        best: for each candidate the step and accuracies of its best weights.
        seconds: of training and validating, over all sittings, up to the last `tick`.
        clock: when that was.
        unvalidated: whether the validation that is due at this step is still to come.
        newest: the last checkpoint, from which unchanged best weights are carried on.
    """

    folder: Path
    logs: tuple[files.Log, files.Log] | None
    about: DatasetCard
    extra: str | None
    watch: OverfittingMonitor
    selected_by: str | None
    note: Callable[[str], None]
    best: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0
    clock: float = field(default_factory=time.monotonic)
    unvalidated: bool = False
    newest: Path | None = None
    _held: list[tuple[files.Log, dict[str, Any]]] = field(default_factory=list)
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "checkpoint"))
    _writing: Future[Path] | None = None
    # What is being written, or could not be.
    _task: _PendingSave | None = None
    # Best weights of a checkpoint that is not on the disk yet.
    _owed: Tensors = field(default_factory=dict)
    _failures: int = 0
    _failed_with: str = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Let a checkpoint that is being written be finished, also when the run fails."""
        self._thread.shutdown()
        for log in self.logs or ():
            log.close()

    def tick(self) -> float:
        """Seconds since it was last called, which are added to `seconds`."""
        elapsed = time.monotonic() - self.clock
        self.clock += elapsed
        self.seconds += elapsed
        return elapsed

    def write(self, metrics: dict[str, Any], timing: dict[str, Any] | None = None) -> None:
        """A line of the log, and what the clock said; held back while the disk refuses."""
        if not self.logs:
            return
        refused = bool(self._held)
        self._held += [(self.logs[0], metrics)] + ([(self.logs[1], timing)] if timing else [])
        try:
            self._drain()
        except OSError as error:
            # Said once, when it begins.
            if not refused:
                self.note(f"{self._said(error)}; training goes on, and the log's lines wait.")

    def _drain(self) -> None:
        while self._held:
            log, record = self._held[0]
            log.write(record)
            del self._held[0]

    def save(self, job: Job, *, winners: Sequence[str], slots: int) -> None:
        """Begin to write a checkpoint, which holds the best weights too, so that it is whole by itself.

        Every rank calls it, and the first one writes.

        Args:
            job: between two batches.
            winners: the candidates whose best weights these are.
            slots: rows of the global batch.

        Raises:
            OSError: this was the third checkpoint in a row that could not be written.
            ValueError: the state is not finite (CK322).
            distributed.Diverged: ranks hold different weights.
        """
        ranks.check_equal(job.model)
        tensors, state = capture(job, slots=slots)
        self.wait()
        if not self.logs:
            return
        # Copies, for training changes the tensors while they are written.
        copies = {
            group: {name: value.detach().to("cpu", copy=True) for name, value in members.items()}
            for group, members in tensors.items()
        }
        self._owed |= {f"best-{name}": copies[name] for name in winners}
        state |= {
            "best": {name: dict(found) for name, found in self.best.items()},
            "selected_by": self.selected_by,
            "overfitting": asdict(self.watch.memory),
            "seconds": self.seconds,
            "unvalidated": self.unvalidated,
            "data": self.about.state,
            "extra": self.extra,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        self._task = _PendingSave(job.step, copies | self._owed, state, tuple(self.best))
        self._begin()

    def _begin(self) -> None:
        assert self._task
        assert self.logs
        try:
            self._drain()
        except OSError as error:
            self._failed(error)
            return
        lengths = {"metrics": self.logs[0].length, "timing": self.logs[1].length}
        self._writing = self._thread.submit(self._put, self._task, lengths)

    def _put(self, task: _PendingSave, lengths: dict[str, int]) -> Path:
        for log in self.logs or ():
            log.flush()
        groups = [f"best-{name}" for name in task.candidates]
        newest = self.newest or Path()
        carry = {group: newest / f"{group}.safetensors" for group in groups if group not in task.tensors}
        try:
            return save_checkpoint(self.folder, task.step, task.tensors, {**task.state, **lengths}, carry=carry)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            # As a disk that is full.
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error

    def wait(self) -> None:
        """Until the last checkpoint is written, or has failed, which `save` survives twice in a row.

        Raises:
            OSError, ValueError: see `save`.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            self.newest = writing.result()
        except (OSError, files.Damaged) as error:
            # Damaged is what does not read back as it was written.
            self._failed(error)
        else:
            self._failures, self._failed_with, self._owed, self._task = 0, "", {}, None

    def settle(self) -> None:
        """Until the last checkpoint is written, in as many attempts as are left.

        Raises:
            OSError, ValueError: see `save`.
        """
        self.wait()
        while self._failed_with:
            self._begin()
            self.wait()

    def _failed(self, error: OSError | files.Damaged) -> None:
        self._failures += 1
        last = f"the last good checkpoint is {self.newest.name}" if self.newest else "there is no checkpoint yet"
        self._failed_with = f"{self._said(error)}; {last}"
        if self._failures == ATTEMPTS:
            raise OSError(f"{self._failed_with}, and {ATTEMPTS} saves in a row have failed") from error
        self.note(f"{self._failed_with}; training goes on, and the next save tries again.")

    def _said(self, error: OSError | files.Damaged) -> str:
        if isinstance(error, files.Damaged):
            return f"CK312 {self.folder} cannot be written ({error.reason})"
        where = error.filename or self.folder
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(self.folder).free
            return f"CK311 Not enough space to write {where} ({free / 1e9:.2f} GB are free)"
        return f"CK312 {where} cannot be written ({error.strerror or error})"
