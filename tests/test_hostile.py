"""Files from strangers: nothing in them is run, nothing is written elsewhere, and each is refused in one sentence."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

import hostile_data  # noqa: F401  (enters its files into CASES)
import hostile_folders  # noqa: F401
import hostile_layouts  # noqa: F401
import hostile_texts  # noqa: F401
from conftest import Faults
from hostile import CANARY, CASES, MARKUP, SMALL, Fine, Place
from hostile_child import CANARY as MODULE
from processes import run_script
from toughen import recipes
from toughen.export import export
from toughen.training import train

ROOT = Path(__file__).resolve().parents[1]
HANG = 30.0
"""Seconds after which a command has plainly hung; the figures are measured by the full form."""
MEMORY = 300 * 2**20
UNSAFE = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, faults: Faults) -> list[dict[str, Any]]:
    """Each sixth hostile file opened by the first command that would read it; in full, all by all."""
    top = tmp_path_factory.mktemp("hostile")
    whole = top / "whole"
    whole.mkdir()
    (whole / "small.yaml").write_text(SMALL)
    train(recipes.load(str(whole / "small.yaml")), whole / "run")
    export(whole / "run", whole / "exported")
    places = top / "places"
    jobs = []
    for name in list(CASES)[:: faults.trials(small=6, full=1)]:
        place = Place(places / name, whole / "run", whole / "exported")
        commands = CASES[name](place)
        for number, command in enumerate(commands if faults.full else commands[:1]):
            jobs.append(job(name, place.folder, command, environment={}, number=number))
            if faults.full and ".pt" in " ".join(command):
                jobs.append(job(name, place.folder, command, environment=UNSAFE, number=number))
    # What must be noticed, and what must not.
    control = Place(places / "control", whole / "run", whole / "exported")
    control.run()
    jobs += [
        job("warm", control.folder, ["evaluate", "run", "--limit", "4", "--suite", "pgd-1"]),
        job("caught", control.folder, ["evaluate", f"{MODULE}.py:Net", "--data", "mnist5k"]),
    ]
    before = snapshot(top, places)
    (top / "jobs.json").write_text(json.dumps(jobs))
    environment = {"MPLCONFIGDIR": str(top), "TOUGHEN_CACHE": "cache", "HF_HOME": str(top / "hf"), "TMPDIR": str(top)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        done = run_script(ROOT / "tests/hostile_child.py", top / "jobs.json")
    assert done.returncode == 0, done.stderr
    assert snapshot(top, places) == before
    return [json.loads(line) for line in done.stdout.splitlines()]


def job(case: str, cwd: Path, command: list[str], *, environment: Any = None, number: int = 0) -> dict[str, Any]:
    fine = isinstance(command, Fine)
    return {
        "case": case,
        "cwd": str(cwd),
        "argv": list(command),
        "environment": environment or {},
        "fine": fine,
        "n": number,
    }


def snapshot(top: Path, places: Path) -> dict[str, bytes]:
    """Everything outside the folders of the cases."""
    expected = places / f"{CANARY}-control"
    files = [*top.glob("whole/**/*"), *places.glob("outside/**/*"), *places.iterdir()]
    return {str(path): path.read_bytes() for path in files if path.is_file() and path != expected}


def faults_of(done: dict[str, Any]) -> list[str]:
    """What is wrong with how one command took a hostile file."""
    wrong = []
    if done["code"] != (0 if done["fine"] else 2):
        wrong.append(f"exit code {done['code']}")
    if "Traceback" in done["stderr"]:
        wrong.append("a traceback")
    lines = done["stderr"].splitlines()
    if not done["fine"] and not (lines and all(line.startswith("error: ") for line in lines)):
        wrong.append("no sentence")
    if re.search(r"[\x00-\x08\x0b-\x1f\x7f]", done["stderr"] + done["stdout"]):
        wrong.append("bytes that a terminal obeys")
    if len(done["stderr"]) > 5000:
        wrong.append(f"{len(done['stderr'])} characters of error")
    if done["seconds"] > HANG:
        wrong.append(f"{done['seconds']} s")
    if done["memory"] > MEMORY:
        wrong.append(f"{done['memory'] / 2**20:.0f} MiB")
    page = Path(done["cwd"]) / "page.html"
    if page.is_file() and MARKUP in page.read_text():
        wrong.append("markup on the page")
    return [*wrong, *done["noted"]]


def test_the_corpus_is_large():
    assert len(CASES) >= 45


@pytest.mark.faults
def test_nothing_is_run_written_or_left_unsaid(corpus: list[dict[str, Any]], faults: Faults):
    wrong = {}
    for done in corpus:
        if done["case"] in CASES and (found := faults_of(done)):
            wrong[f"{done['case']}: toughen {' '.join(done['argv'])[:150]}"] = (found, done["stderr"][-300:])
    assert not wrong, "\n".join(f"{what}\n    {found}" for what, found in wrong.items())
    opened = [done for done in corpus if done["case"] in CASES]
    slowest = max(opened, key=lambda done: done["seconds"])
    largest = max(opened, key=lambda done: done["memory"])
    unsafe = sum(bool(done["environment"]) for done in opened)
    faults.tell(
        "5 malicious files",
        f"{len(CASES)} files opened by {len(opened)} commands ({unsafe} with TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1): "
        f"no code run, nothing written outside, no traceback, each refused; slowest {slowest['seconds']:.2f} s "
        f"({slowest['case']}), most memory {largest['memory'] / 2**20:.0f} MiB ({largest['case']})",
    )
    if faults.full:
        assert slowest["seconds"] < 2


def test_the_watch_sees_code_of_the_users_own_and_nothing_else(corpus: list[dict[str, Any]]):
    found = {done["case"]: done for done in corpus}
    assert found["warm"]["code"] == 0, found["warm"]["stderr"]
    assert found["warm"]["noted"] == []
    noted = " ".join(found["caught"]["noted"])
    assert "exec" in noted
    assert f"{CANARY}-control' for writing" in noted
    assert (Path(found["caught"]["cwd"]).parent / f"{CANARY}-control").exists()
