"""Evaluations that are killed, each in a fork of one warm process: `python kills.py FOLDER KILLS STRIDE`.

First at random times, the same folder again and again until it is done, until KILLS were made in all; then at every
STRIDE-th point of the writer, each in a folder of its own. Prints one JSON line for each folder: the digest of
everything that must be equal, how often it was killed, and the units that were begun although they were done. The full
form, about a minute:

    PYTHONPATH=tests python tests/evaluation/kills.py FOLDER 50 1
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Imported here, so that no fork has to.
import filelock  # noqa: F401
import pyarrow.parquet  # noqa: F401
import torch

from conftest import Saving
from toughen.attacks import ATTACKS, AttackSpec
from toughen.evaluation import evaluate
from toughen.evaluation.plan import AttackStage
from toughen.evaluation.resume import FinishedUnits, Keep
from toughen.evaluation.work_unit import EvaluationTask, UnitResult
from toughen.storage import files as store
from toughen.threat import Linf
from toys import labels, network, photographs, spec

SETTINGS: dict[str, dict[str, object]] = {
    "fgsm": {},
    "pgd": {"steps": 4, "restarts": 2},
    "apgd": {"steps": 5},
    "apgd_targeted": {"steps": 4, "targets": 2},
    "fab": {"steps": 3, "stop_inside": True},
    "square": {"queries": 12},
}
SUITE = {name: spec(name, **settings) for name, settings in SETTINGS.items() if name in ATTACKS}
SHORT = {"fgsm": spec("fgsm"), "pgd": spec("pgd", steps=2, restarts=2)}


def run(folder: Path, suite: dict[str, AttackSpec], n: int, chunk_size: int, keep: Keep) -> None:
    model, x = network(), photographs(n)
    y = labels(model, x.float() / 255)
    y[::10] = (y[::10] + 1) % 5
    evaluate(
        model, x, y, threat=Linf(2 / 255), suite=suite, chunk_size=chunk_size, folder=folder, keep=keep, audit=False
    )


def long(folder: Path) -> None:
    run(folder, SUITE, 100, 24, "float32")


def short(folder: Path) -> None:
    run(folder, SHORT, 60, 40, "uint8")


def journal(path: Path) -> None:
    """Write down when a unit is begun and when it is done."""

    def note(what: str, label: str, ids: Any) -> None:
        with open(path, "a") as file:
            file.write(f"{what} {label} {ids.tolist()}\n")

    clean, attacked, put = EvaluationTask.clean, EvaluationTask.run, FinishedUnits.put

    def begin_clean(self: EvaluationTask, rows: torch.Tensor) -> UnitResult:
        note("begun", "clean", self.index[rows])
        return clean(self, rows)

    def begin(self: EvaluationTask, stage: AttackStage, rows: torch.Tensor) -> UnitResult:
        note("begun", stage.label, self.index[rows])
        return attacked(self, stage, rows)

    def done(self: FinishedUnits, key: str, unit: UnitResult, took: dict[str, Any]) -> None:
        put(self, key, unit, took)
        note("done", str(unit.outcomes.attack[0]), unit.outcomes.index)

    EvaluationTask.clean, EvaluationTask.run, FinishedUnits.put = begin_clean, begin, done


def repeated(path: Path) -> list[str]:
    """The units that were begun after they were done."""
    lines = [line.split(" ", 1) for line in path.read_text().splitlines()]
    done: set[str] = set()
    again: list[str] = []
    for what, unit in lines:
        if what == "done":
            done.add(unit)
        elif unit in done:
            again.append(unit)
    assert done
    return again


def digest(folder: Path) -> str:
    """Of everything in a finished folder; what the clock said is not compared."""
    total = hashlib.sha256()
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    assert not [name for name in files if ".tmp-" in name or name.startswith("units")], list(files)
    assert {"examples.parquet", "result.json"} < files.keys()
    for name, path in files.items():
        if name == "result.json":
            result = json.loads(path.read_text())
            assert result.pop("seconds") > 0
            total.update(json.dumps(result).encode())
        elif not name.startswith(".lock"):
            total.update(name.encode() + path.read_bytes())
    return total.hexdigest()


def in_child(
    work: Callable[[Path], None], folder: Path, *, after: float | None = None, point: int | None = None
) -> bool:
    """Evaluate in a fork, killed after some seconds or at a point of the writer; whether it ended by itself."""
    child = os.fork()
    if child == 0:
        try:
            journal(folder.with_suffix(".journal"))
            if point is not None:
                store.point = Saving.stop_at(point, lambda: os.kill(os.getpid(), signal.SIGKILL))
            work(folder)
        finally:
            # Never back into the parent's code, whatever happened.
            if sys.exception():
                traceback.print_exc()
            os._exit(sys.exception() is not None)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return not os.WIFSIGNALED(status)


def report(form: str, folder: Path, kills: int) -> None:
    again = repeated(folder.with_suffix(".journal"))
    print(json.dumps({"form": form, "digest": digest(folder), "kills": kills, "repeated": again}), flush=True)


def main(parent: Path, kills: int, stride: int) -> None:
    parent.mkdir(parents=True, exist_ok=True)
    # With one thread forking is safe.
    torch.set_num_threads(1)
    # What a killed process has written is there, on the disk or not; only a power cut would tell.
    os.fsync = lambda handle: None
    short(parent / "warm")
    started = time.monotonic()
    in_child(long, parent / "whole")
    length = time.monotonic() - started
    report("random", parent / "whole", 0)
    draw, made, trial = random.Random(0), 0, 0
    while made < kills:
        folder, here = parent / f"random-{trial}", 0
        while not in_child(long, folder, after=draw.uniform(0, length) if made + here < kills else None):
            here += 1
        report("random", folder, here)
        made, trial = made + here, trial + 1
    in_child(short, parent / "short")
    report("point", parent / "short", 0)
    point = 0
    while not in_child(short, parent / f"point-{point}", point=point):
        assert in_child(short, parent / f"point-{point}")
        report("point", parent / f"point-{point}", 1)
        point += stride


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
