"""The session that is meant for the first minutes with a GPU runs from end to end, here on a pretended one."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def session(out: Path, *parts: str) -> list[dict[str, Any]]:
    """Rows that a session adds."""
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_session.py"), "--toy", "--out", str(out), *parts]
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    return [json.loads(line) for line in said.stdout.splitlines()]


@pytest.mark.faults
@pytest.mark.full
def test_every_part_runs_and_a_second_session_asks_nothing_again(tmp_path: Path) -> None:
    rows = session(tmp_path)
    assert [row["part"] for row in rows if row["name"] == "ended"] == [
        *("attacks", "methods", "verdicts", "resumed", "waits", "compiled", "ceilings"),
        *("steps", "evaluation", "speedrun", "profile", "more_steps", "peers"),
    ]
    assert [row for row in rows if "error" in row or not row.get("ok", True)] == []
    assert {row["device"] for row in rows} == {"pretended"}
    heading, *lines = (tmp_path / "gpu.md").read_text().splitlines()
    assert heading == "# On a GPU"
    assert "- Nothing failed, and all is as it should be." in lines
    # Of libraries that are not installed it is looked again whether they are.
    assert {row["part"] for row in session(tmp_path)} <= {"peers"}


def test_a_part_writes_its_figures(tmp_path: Path) -> None:
    (row, *_) = session(tmp_path, "ceilings")
    assert row["device"] == "pretended"
    page = (tmp_path / "gpu.md").read_text()
    assert "- Nothing failed" in page
    assert "| pretended, torch" in page
