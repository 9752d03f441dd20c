"""Passes that broken examples cost where they leave an attack late: counted, kept, added up over ranks."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from late_leaving import examples
from toughen.attacks import AttackSpec, compaction
from toughen.evaluation import Evaluation, evaluate
from toughen.evaluation import runner as running
from toughen.evaluation.runner import Runner
from toughen.evaluation.work_unit import EvaluationTask
from toughen.storage import files
from toughen.testing import toys
from toughen.threat import Linf

SUITE = {"apgd": AttackSpec(name="apgd", steps=25), "square": AttackSpec(name="square", queries=40)}


def run(folder: Path | None = None) -> Evaluation:
    model = toys.Rowwise()
    x, y = examples(model)
    given: dict[str, Any] = {"suite": SUITE, "batch_size": 6, "chunk_size": 8, "audit": False, "folder": folder}
    return evaluate(model, x, y, threat=Linf(0.025), **given)


def spent(evaluation: Evaluation) -> int:
    return evaluation.forwards + evaluation.backwards


@pytest.fixture
def at_once() -> Evaluation:
    return run()


@pytest.fixture
def _late(at_once: Evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "AT_ONCE", ())


@pytest.mark.usefixtures("_late")
def test_they_are_what_leaving_at_once_would_save(at_once: Evaluation) -> None:
    late = run()
    assert at_once.idle_passes == 0
    assert 0 < late.idle_passes == spent(late) - spent(at_once)
    assert (late.outcomes.survived == at_once.outcomes.survived).all()


@pytest.mark.usefixtures("_late")
def test_those_of_units_done_before_a_kill_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, attacked, worked = run().idle_passes, EvaluationTask.run, []

    def dying(self: Any, stage: Any, rows: torch.Tensor) -> Any:
        worked.append(stage)
        if len(worked) == 3:
            raise KeyboardInterrupt
        return attacked(self, stage, rows)

    with monkeypatch.context() as patch:
        patch.setattr(EvaluationTask, "run", dying)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "folder")
    found = run(tmp_path / "folder")
    assert found.idle_passes == expected
    assert Evaluation.read(tmp_path / "folder").idle_passes == expected


@pytest.mark.usefixtures("_late")
def test_a_result_from_before_they_were_counted_is_read(tmp_path: Path) -> None:
    run(tmp_path / "folder")
    result = files.read_json(tmp_path / "folder" / "result.json")
    del result["idle_passes"]
    files.write_json(tmp_path / "folder" / "result.json", result)
    assert Evaluation.read(tmp_path / "folder").idle_passes == 0


def test_ranks_add_them_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each brings those of its own units, stage after stage, and all have the sum."""
    rows, outcomes = torch.arange(4), run().outcomes
    task: Any = SimpleNamespace(index=rows, models=(SimpleNamespace(size=2, idle=0),))
    finished: Any = SimpleNamespace(get=lambda key: None, put=lambda *kept: None)

    def work(some: torch.Tensor) -> Any:
        task.models[0].idle += 5
        return SimpleNamespace(outcomes=outcomes)

    given: list[int] = []

    def from_every(own: Any) -> list[Any]:
        given.append(own[2])
        return [own, ({}, [], 100)]

    for name, value in {"rank": lambda: 0, "world": lambda: 2, "from_every": from_every}.items():
        monkeypatch.setattr(running.ranks, name, value)
    runner = Runner(task, finished, 2, True, None)
    for number in range(2):
        runner._stage(number, "stage", rows, work, rows)
    assert given == [5, 5]
    assert runner.idle == 210
