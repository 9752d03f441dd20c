"""Runs that are killed or told to stop at random times end with the bits of one that was not."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from conftest import FULL, Faults
from killed_runs import SAVE_EVERY
from processes import run_script

SCRIPT = Path(__file__).parents[1] / "killed_runs.py"


def trials(folder: Path, number: int, name: str) -> list[dict[str, Any]]:
    """What each trial met; all of one method have ended with the same bits."""
    found = told(folder, number, name)
    for method in {trial["method"] for trial in found}:
        assert len({trial["digest"] for trial in found if trial["method"] == method}) == 1, method
    return found


def told(folder: Path, number: int, name: str) -> list[dict[str, Any]]:
    """The lines that the script prints."""
    done = run_script(SCRIPT, folder, number, name)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.faults
def test_runs_that_were_killed_end_with_the_bits_of_one_that_was_not(tmp_path: Path, faults: Faults):
    number = faults.trials(small=3, full=200)
    found = trials(tmp_path, number, "SIGKILL")
    kills = [sitting for trial in found for sitting in trial["sittings"]]
    assert {kill["status"] for kill in kills} == {-signal.SIGKILL}
    # What a sitting had saved, less at most an interval of what it had done since, is where the next one goes on.
    assert all(kill["begun"] is None or kill["begun"] == kill["before"] for kill in kills)
    # The seeds are fixed, the moments are not: some trials must have been hit for this to be a test.
    assert len(kills) >= 2
    methods = len({trial["method"] for trial in found})
    faults.tell(
        "1 exact resume",
        f"{number} runs of {methods} methods, {len(kills)} SIGKILLs: {number} ended with the bits of the undisturbed "
        f"run of their method; each went on from its newest checkpoint, one of which is due every {SAVE_EVERY} steps",
    )


@pytest.mark.faults
def test_a_run_that_was_killed_anywhere_in_its_writer_ends_with_the_same_bits(tmp_path: Path, faults: Faults):
    found = told(tmp_path, faults.trials(small=6, full=10**6), "points")
    assert all(trial["equal"] for trial in found)
    assert len(found) >= faults.trials(small=6, full=40)
    said = f"SIGKILL at each of {len(found)} places in the writer of checkpoints: the same bits in all"
    faults.tell("1 exact resume", said)


@pytest.mark.faults
@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGINT", marks=FULL)])
def test_runs_that_were_told_to_stop_finish_their_batch_and_lose_nothing(tmp_path: Path, faults: Faults, name: str):
    number = faults.trials(small=2, full=25)
    stops = [sitting for trial in trials(tmp_path, number, name) for sitting in trial["sittings"]]
    assert {stop["status"] for stop in stops} == {75}
    called = {"SIGTERM": "SIGTERM", "SIGINT": "Ctrl-C"}[name]
    within = [stop for stop in stops if stop["saved"] is not None]
    assert len(within) >= 2
    for stop in within:
        assert stop["said"].startswith(f"RN511 {called}: saved step {stop['newest']} in ")
        assert stop["before"] == stop["begun"]
        # No further only where a validation that an earlier signal had cut short was made up for, or begun at least.
        assert stop["newest"] > stop["before"] or (stop["cut"] and stop["newest"] == stop["before"])
    for stop in stops:
        assert stop["said"].count("\n") == 1, stop["said"]
    slowest = max(stop["took"] for stop in stops)
    faults.tell(
        "2 stop signals",
        f"{len(stops)} {name}s in {number} runs: exit code 75 every time, {len(within)} amid training with the step of "
        f"the batch saved, after {slowest:.2f} s at most; all runs ended with the bits of the undisturbed one",
    )
