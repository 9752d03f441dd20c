"""Runs a plan: its stages one after another, each cut into units, each unit once.

runner = Runner(task, finished, chunk_size=1024, shared=False, watch=None)
state = runner.run(cascade(suite))
runner.notes, runner.earlier, runner.idle

Attacks and common corruptions are run by it alike.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from toughen.evaluation.plan import EvaluationState, Plan
from toughen.evaluation.resume import FinishedUnits
from toughen.evaluation.time_left import ProgressWatch
from toughen.evaluation.work_unit import UnitResult
from toughen.models.batched import Batched, out_of_memory
from toughen.outcomes import CLEAN, Outcomes
from toughen.parallel import ranks

CHUNK_VALUES = 1024 * 3 * 32 * 32


class Task(Protocol):
    """What is evaluated, and how a unit of it is done."""

    @property
    def index(self) -> Tensor:
        """Example ids (N,) on the CPU."""
        ...

    @property
    def models(self) -> Sequence[Batched]:
        """The models that are run, which take equally many examples in a pass."""
        ...

    def clean(self, rows: Tensor) -> UnitResult:
        """The examples at these positions (M,) as they are."""
        ...

    def run(self, stage: Any, rows: Tensor) -> UnitResult:
        """The examples at these positions (M,) in a stage of the task's own kind."""
        ...


@dataclass
class Runner:
    """Runs a plan, unit by unit.

    Attributes:
        earlier: seconds that units took which an earlier process finished.
        idle: passes of single examples that attacks made for nothing, see `batched.Batched`.
        notes: what a reader of the result should know.
    """

    task: Task
    finished: FinishedUnits
    chunk_size: int
    shared: bool
    watch: ProgressWatch | None
    earlier: float = 0.0
    idle: int = 0

    def __post_init__(self) -> None:
        self.notes: list[str] = []

    def run(self, plan: Plan) -> EvaluationState:
        """All stages of a plan, the clean images first."""
        index = self.task.index
        everyone = torch.arange(len(index))
        state = EvaluationState(self._stage(0, CLEAN, everyone, self.task.clean, everyone), index)
        for number, stage in enumerate(plan(state), start=1):
            if len(stage.rows):
                work = partial(self.task.run, stage)
                state.add(self._stage(number, stage.label, stage.rows, work, state.unbroken))
        return state

    def _stage(
        self, number: int, label: str, rows: Tensor, work: Callable[[Tensor], UnitResult], unbroken: Tensor
    ) -> Outcomes:
        """The outcomes of a stage's units, in the order of the examples, each done once by one of the ranks."""
        blocks = rows.split(self.chunk_size)
        rank, world = (ranks.rank(), ranks.world()) if self.shared else (0, 1)
        parts: dict[int, Outcomes] = {}
        done = wrong = lost = 0
        idle_before = self.idle
        ids = self.task.index[unbroken].numpy()
        if self.watch is not None:
            self.watch.enter(label, len(rows), len(unbroken))
        for place in range(rank, len(blocks), world):
            part = parts[place] = self._unit(f"{number:03d}-{place:05d}", blocks[place], work)
            done += len(part)
            wrong += int((~part.survived).sum())
            lost += int(np.isin(part.index[~part.survived & ~part.aside], ids).sum())
            if self.watch is not None:
                self.watch.unit(done, wrong, lost)
        if world > 1:
            own, self.idle = self.idle - idle_before, idle_before
            for others, notes, idle in ranks.from_every((parts, self.notes, own)):
                parts |= others
                self._note(notes)
                self.idle += idle
        return Outcomes.concatenate([parts[key] for key in sorted(parts)])

    def _unit(self, key: str, rows: Tensor, work: Callable[[Tensor], UnitResult]) -> Outcomes:
        """A unit's outcomes, from the folder where it is done already."""
        found = self.finished.get(key)
        if found is not None and np.array_equal(found[0].index, self.task.index[rows].numpy()):
            outcomes, took = found
            self.earlier += took["seconds"]
            self.idle += took.get("idle", 0)
            self._note(took["notes"])
            return outcomes
        models, notes = self.task.models, []
        for model in models:
            model.idle = 0
        started, size = time.perf_counter(), models[0].size
        unit = work(rows)
        smallest = min(model.size for model in models)
        for model in models:
            model.size = smallest
        if smallest < size:
            notes = [
                f"EV241 Out of memory with {size} examples in a pass; continued with {smallest}. "
                "Logits may differ by 1e-6 from those of an undisturbed evaluation."
            ]
            self._note(notes)
        idle = sum(int(model.idle) for model in models)
        self.idle += idle
        self.finished.put(key, unit, {"seconds": time.perf_counter() - started, "idle": idle, "notes": notes})
        return unit.outcomes

    def _note(self, notes: list[str]) -> None:
        self.notes += [note for note in notes if note not in self.notes]


def default_chunk_size(batch_size: int, values: int) -> int:
    """Examples of a unit of work: 1,024 images of 32 x 32 pixels, fewer larger ones, but a pass at least.

    Args:
        batch_size: examples in a pass.
        values: of an example.
    """
    return max(batch_size, CHUNK_VALUES // max(1, values))


@contextmanager
def memory_explained(remedy: str = "give a smaller chunk_size, a smaller model or more memory") -> Iterator[None]:
    """Say in a sentence that memory ran out where no smaller pass is possible, or none was at fault.

    Raises:
        ValueError: EV242, in place of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise ValueError(
            f"EV242 Out of memory, and passes of fewer examples do not help: {remedy}; finished work is kept where "
            "there is a folder"
        ) from error
