import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("kills.py")


def test_runs_that_were_killed_end_with_the_bits_of_one_that_was_not(tmp_path: Path):
    command = [sys.executable, str(SCRIPT), str(tmp_path), "3"]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    trials = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(trials) == 12
    for method in ("free", "pgd", "instance_adaptive"):
        assert len({trial["digest"] for trial in trials if trial["method"] == method}) == 1
    # The seeds are fixed, the moments are not: some trials must have been hit for this to be a test.
    assert sum(trial["kills"] for trial in trials) >= 2
