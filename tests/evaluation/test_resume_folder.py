"""A folder for an evaluation is empty, or holds one; with anything else in it, it is refused and left as it is."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cli.test_app import TINY, done, everything, failed
from oracles import linear_problem
from toughen.evaluation import evaluate
from toughen.evaluation.corruption.evaluate import corruption_accuracy
from toughen.evaluation.resume import check_folder
from toughen.storage import files
from toughen.threat import Linf

MINE = """
import torch

def build():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4)).eval()
"""

SUITES = (("--suite", "pgd-2", "--threat", "linf:0.1"), ("--suite", "corruptions"))


def photos(folder: Path) -> None:
    (folder / "train" / "cat").mkdir(parents=True)
    (folder / "train" / "cat" / "a.png").write_bytes(b"png")


def units_of_something_else(folder: Path) -> None:
    (folder / "units").mkdir(parents=True)
    (folder / "units" / "mine.txt").write_text("mine")


def other_result(folder: Path) -> None:
    folder.mkdir()
    (folder / "result.json").write_text('[{"identity": 1}]')


def a_file(folder: Path) -> None:
    folder.write_text("text")


FOREIGN: dict[Callable[[Path], None], str] = {
    photos: r"^EV271 .*there holds other files \(train\) and no evaluation; give a new or empty folder$",
    units_of_something_else: r"^EV271 .*there holds other files \(units\) and no evaluation",
    other_result: r"^EV271 .*result\.json is of something else than an evaluation; give a new or empty folder$",
    a_file: r"^EV271 .*there is a file; give a new or empty folder$",
}


@pytest.mark.parametrize("make", FOREIGN)
def test_a_folder_of_something_else_is_refused_and_left_alone(make: Callable[[Path], None], tmp_path: Path):
    make(tmp_path / "there")
    before = everything(tmp_path)
    problem = linear_problem(n=4)
    images = (problem.x * 255).to(torch.uint8)
    for call in (
        lambda: check_folder(tmp_path / "there"),
        lambda: evaluate(
            problem.model, problem.x, problem.y, threat=Linf(0.1), suite="pgd-1", folder=tmp_path / "there"
        ),
        lambda: corruption_accuracy(problem.model, images, problem.y, folder=tmp_path / "there"),
    ):
        with pytest.raises(ValueError, match=FOREIGN[make]):
            call()
    assert everything(tmp_path) == before


def test_what_a_kill_leaves_and_what_was_begun_are_gone_on_with(tmp_path: Path):
    problem = linear_problem(n=4)
    folder = tmp_path / "there"
    check_folder(folder)
    (folder / "units").mkdir(parents=True)
    for name in (".lock", ".lock-owner", ".DS_Store", ".tmp-1", "units/.tmp-identity.json"):
        (folder / name).write_text("")
    check_folder(folder)
    evaluate(problem.model, problem.x, problem.y, threat=Linf(0.1), suite="pgd-1", folder=folder)
    before = everything(folder)
    evaluate(problem.model, problem.x, problem.y, threat=Linf(0.1), suite="pgd-1", folder=folder)
    assert everything(folder) == before
    begun = tmp_path / "begun"
    (begun / "units").mkdir(parents=True)
    files.write_json(begun / "units" / "identity.json", {"model": "1"})
    (begun / "notes.txt").write_text("beside what was begun")
    check_folder(begun)


def test_the_command_refuses_data_and_runs(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    # Opening `mine.py` adds its folder.
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("mine.py").write_text(MINE)
    Path("tiny.yaml").write_text(TINY)
    photos(Path("photos"))
    done("train", "tiny.yaml", "--out", "run")
    before = {path: data for path, data in everything(tmp_path).items() if "__pycache__" not in path.parts}
    for suite in SUITES:
        for out in ("photos", "run"):
            said = failed("evaluate", "mine.py:build", "--data", "tiny", *suite, "--out", out)
            assert f"EV271 {out} holds other files (" in said
    after = {path: data for path, data in everything(tmp_path).items() if "__pycache__" not in path.parts}
    assert after == before
