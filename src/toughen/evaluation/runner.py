"""Runs a plan: its stages one after another, each cut into units, each unit once.

runner = Runner(task, ledger, chunk_size=1024, shared=False, watch=None)
board = runner.run(cascade(suite))
runner.notes, runner.earlier
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from toughen.evaluation.plan import Board, Plan
from toughen.evaluation.resume import Ledger
from toughen.evaluation.time_left import ProgressWatch
from toughen.evaluation.work_unit import EvaluationTask, UnitResult
from toughen.outcomes import CLEAN, Outcomes
from toughen.parallel import ranks


@dataclass
class Runner:
    """Runs a plan, unit by unit.

    Attributes:
        earlier: seconds that units took which an earlier process finished.
        notes: what a reader of the result should know.
    """

    task: EvaluationTask
    ledger: Ledger
    chunk_size: int
    shared: bool
    watch: ProgressWatch | None
    earlier: float = 0.0

    def __post_init__(self) -> None:
        self.notes: list[str] = []

    def run(self, plan: Plan) -> Board:
        """All stages of a plan, the clean images first."""
        everyone = torch.arange(len(self.task.x))
        board = Board(self._stage(0, CLEAN, everyone, self.task.clean, None), self.task.index)
        for number, stage in enumerate(plan(board), start=1):
            if len(stage.rows):
                part = self._stage(number, stage.label, stage.rows, lambda rows, s=stage: self.task.run(s, rows), board)
                board.add(part, aside=stage.threat is not None)
        return board

    def _stage(
        self, number: int, label: str, rows: Tensor, work: Callable[[Tensor], UnitResult], board: Board | None
    ) -> Outcomes:
        """The outcomes of a stage's units, in the order of the examples, each done once by one of the ranks."""
        blocks = rows.split(self.chunk_size)
        rank, world = (ranks.rank(), ranks.world()) if self.shared else (0, 1)
        parts: dict[int, Outcomes] = {}
        done = lost = 0
        standing = self.task.index[rows if board is None else board.standing].numpy()
        if self.watch is not None:
            self.watch.enter(label, len(rows), len(standing))
        for number_of_unit in range(rank, len(blocks), world):
            block = blocks[number_of_unit]
            part = parts[number_of_unit] = self._unit(f"{number:03d}-{number_of_unit:05d}", block, work)
            done += len(block)
            lost += int(np.isin(part.index[~part.survived & ~part.aside], standing).sum())
            if self.watch is not None:
                self.watch.unit(done, lost)
        if world > 1:
            for others, notes in ranks.from_every((parts, self.notes)):
                parts |= others
                self._note(notes)
        return Outcomes.concatenate([parts[key] for key in sorted(parts)])

    def _unit(self, key: str, rows: Tensor, work: Callable[[Tensor], UnitResult]) -> Outcomes:
        """A unit's outcomes, from the ledger where it is done already."""
        found = self.ledger.get(key)
        if found is not None and np.array_equal(found[0].index, self.task.index[rows].numpy()):
            outcomes, took = found
            self.earlier += took["seconds"]
            self._note(took["notes"])
            return outcomes
        started, size, notes = time.perf_counter(), self.task.model.size, []
        unit = work(rows)
        self.task.model.size = self.task.quick.size = min(self.task.model.size, self.task.quick.size)
        if self.task.model.size < size:
            notes = [
                f"EV241 Out of memory with {size} examples in a pass; continued with {self.task.model.size}. "
                "Logits may differ by 1e-6 from those of an undisturbed evaluation."
            ]
            self._note(notes)
        self.ledger.put(key, unit, {"seconds": time.perf_counter() - started, "notes": notes})
        return unit.outcomes

    def _note(self, notes: list[str]) -> None:
        self.notes += [note for note in notes if note not in self.notes]
