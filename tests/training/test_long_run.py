"""A long run holds in the end what it held in the beginning."""

import json
from pathlib import Path

import pytest

from processes import run_script

SCRIPT = Path(__file__).with_name("long_run.py")


@pytest.mark.faults
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the system does not say what a process holds")
def test_a_long_run_grows_in_nothing(tmp_path, faults):
    steps, saves = faults.trials(300, 2000), faults.trials(30, 100)
    run = tmp_path / "run"
    done = run_script(SCRIPT, run, steps, saves)
    assert done.returncode == 0, done.stderr
    *looks, end = [json.loads(line) for line in done.stdout.splitlines()]

    every = steps // saves
    assert [look["step"] for look in looks] == [every * (save + 1) for save in range(saves)]
    grown = (looks[-1]["resident"] - looks[19]["resident"]) / 2**20
    assert grown < 5
    # From the second save on, by which the thread that writes has begun.
    assert len({json.dumps(look["files"]) for look in looks}) == 1
    assert len({look["threads"] for look in looks[2:]}) == 1
    assert {look["children"] for look in looks} == {0}
    left = [file for file in end["files"] if str(run) in file]
    assert left == []
    assert end["threads"] == 1

    metrics, timing = (run / name for name in ("metrics.jsonl", "timing.jsonl"))
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert len(records) == saves + saves // 5
    assert len(timing.read_text().splitlines()) == saves
    assert max(map(len, metrics.read_text().splitlines())) < 500

    assert {path.name for path in run.iterdir()} == {
        ".lock",
        "recipe.yaml",
        "metrics.jsonl",
        "timing.jsonl",
        "summary.json",
        "checkpoints",
    }
    names = {f"step-{steps:09}", f"step-{steps - every:09}"}
    assert {path.name for path in (run / "checkpoints").iterdir()} == names | {"LATEST"}
    best = {"best-weights.safetensors", "best-average-0.9.safetensors"}
    last = {"weights.safetensors", "average-0.9.safetensors", "method.safetensors", "optimizer.safetensors"}
    for name in names:
        found = {path.name for path in (run / "checkpoints" / name).iterdir()}
        assert found == best | last | {"state.json", "MANIFEST.json"}
    faults.tell(
        "11 long runs",
        f"{steps} steps, {saves} saves: {grown:+.2f} MB from the 20th save to the last, {len(looks[-1]['files'])} "
        f"open files and {looks[-1]['threads']} threads throughout, no zombie, {metrics.stat().st_size} bytes of log, "
        "two checkpoints left, the best in both, no temporary",
    )
