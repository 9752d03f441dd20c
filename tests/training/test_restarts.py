"""Two ranks: one told to stop stops both at one step; one that is killed means one restart and the same bits."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conftest import Faults
from killed_runs import digest
from processes import run_script
from toughen.parallel import ranks

SCRIPT = Path(__file__).with_name("restarts.py")
PATHS = os.pathsep.join([str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")])
ENVIRONMENT = {**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, faults: Faults) -> tuple[Path, list[dict[str, Any]]]:
    """A folder with the undisturbed run of two ranks, and what became of those that were told to stop."""
    folder = tmp_path_factory.mktemp("stopped")
    done = run_script(SCRIPT, "stops", folder, faults.trials(small=1, full=20))
    assert done.returncode == 0, done.stderr
    return folder / "whole", [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.faults
def test_a_rank_that_is_told_to_stop_stops_both_at_one_step(stopped: tuple[Path, list[dict[str, Any]]], faults: Faults):
    _, trials = stopped
    assert trials
    for trial in trials:
        assert [end["status"] for end in trial["ended"]] == [0, 0], trial
        assert trial["equal"]
        assert [end["status"] for end in trial["stopped"]] == [75, 75], trial
        said = f"RN511 SIGTERM: saved step {trial['saved']} in "
        assert all(end["said"].startswith(said) for end in trial["stopped"]), trial
    slowest = max(end["took"] for trial in trials for end in trial["stopped"])
    faults.tell(
        "2 stop signals",
        f"SIGTERM to the second of two ranks amid a step, {len(trials)} runs: both stopped at the same step with exit "
        f"code 75, {slowest:.2f} s after they had begun at most, and ended with the undisturbed bits",
    )


def torchrun(folder: Path, where: str, restarts: int) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "--max-restarts", str(restarts), str(SCRIPT), "rank", str(folder), where]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)


@pytest.mark.faults
@pytest.mark.full
def test_a_killed_rank_means_one_restart_and_the_same_bits(
    tmp_path: Path, stopped: tuple[Path, list[dict[str, Any]]], faults: Faults
):
    number = 10
    slowest = 0.0
    for trial in range(number):
        folder, started = tmp_path / str(trial), time.monotonic()
        done = torchrun(folder, "save" if trial % 2 else "step", 3)
        slowest = max(slowest, time.monotonic() - started)
        assert done.returncode == 0, done.stderr
        begun = sorted(path.name for path in folder.glob("attempt-*"))
        assert begun == [f"attempt-{attempt}-rank-{rank}" for attempt in range(2) for rank in range(2)]
        assert digest(folder / "run") == digest(stopped[0])
    faults.tell(
        "7 ranks",
        f"one of two ranks SIGKILLed under plain torchrun, amid a step or amid a save, {number} times: {number} times "
        f"exactly one restart and the bits of the undisturbed run, within {slowest:.0f} s of the launch",
    )


@pytest.mark.faults
@pytest.mark.slow
def test_where_restarts_are_spent_the_run_ends_with_a_sentence(tmp_path: Path, faults: Faults):
    if not faults.full:
        pytest.skip("in full only: a restart takes ten seconds")
    (tmp_path / "spent").mkdir()
    (tmp_path / "spent" / "always").touch()
    done = torchrun(tmp_path / "spent", "step", 1)
    assert done.returncode != 0
    assert re.search(r"DD601 Rank 0 lost another one|RN511 SIGTERM", done.stderr), done.stderr
    faults.tell("7 ranks", "restarts spent: torchrun ends with a code other than 0, and the rank that lives says DD601")


class Ranks:
    """Two ranks of one process."""

    def __init__(self, others: list[int]) -> None:
        self.others = others

    def __call__(self, value: list[int]) -> list[list[int]]:
        return [value, [a + b for a, b in zip(value, self.others, strict=True)]]


def test_ranks_whose_weights_differ_are_told_apart(monkeypatch: pytest.MonkeyPatch):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    monkeypatch.setattr(ranks, "world", lambda: 2)
    monkeypatch.setattr(ranks, "from_every", Ranks([0] * len(model.state_dict())))
    ranks.check_equal(model)
    sums: list[list[int]] = []
    monkeypatch.setattr(ranks, "from_every", lambda value: sums.append(value) or [value, value])
    ranks.check_equal(model)
    with torch.no_grad():
        next(model.parameters()).view(torch.int32)[1, 1] ^= 1
    ranks.check_equal(model)
    assert [a == b for a, b in zip(*sums, strict=True)] == [False, True, True, True, True, True, True]
    monkeypatch.setattr(ranks, "from_every", Ranks([1] + [0] * 6))
    with pytest.raises(ranks.Diverged, match="DD602 Parameters differ between ranks 0 and 1"):
        ranks.check_equal(model)
