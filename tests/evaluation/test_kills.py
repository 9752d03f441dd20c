import json
from pathlib import Path

from processes import run_script

SCRIPT = Path(__file__).with_name("kills.py")


def test_evaluations_that_were_killed_end_with_the_bytes_of_one_that_was_not(tmp_path: Path):
    # A unit passes 9 or 12 points: a stride of 7 meets all of them.
    done = run_script(SCRIPT, tmp_path / "kills", 8, 7)
    assert done.returncode == 0, done.stderr
    folders = [json.loads(line) for line in done.stdout.splitlines()]
    for form in ("random", "point"):
        assert len({folder["digest"] for folder in folders if folder["form"] == form}) == 1
    assert [folder for folder in folders if folder["repeated"]] == []
    assert sum(folder["kills"] for folder in folders if folder["form"] == "random") == 8
    assert sum(folder["kills"] for folder in folders if folder["form"] == "point") >= 8
