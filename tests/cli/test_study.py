import csv
import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.test_app import done, everything, failed, toughen
from toughen.studies import executors
from toughen.studies.folder import StudyFolder
from toughen.studies.worker import work

STUDY = """
title: Two ways
base: mnist-free
columns: {clean: {what: clean}, pgd-20: pgd-20, minutes: {what: minutes}}
rows:
  m2: {label: "[b]m = 2[/b]", set: {method.replays: 2}}
  m4: {set: {method.replays: 4}}
  bad: {set: {method.nothing: 1}}
note: only a test
"""


def run_here(folder: StudyFolder, *, jobs: int, shard: tuple[int, int], watch: Callable[[], None]) -> None:
    """A worker in this process; `studies/test_executors.py` has two that do a whole study in their own."""
    assert jobs == 1
    work(folder.path, shard=shard)
    watch()


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(executors, "run_here", run_here)
    Path("mine.yaml").write_text(STUDY)
    return "mine.yaml"


def unmeasured(*arguments: object) -> str:
    """What is printed by a command that could not measure a row."""
    result = toughen(*arguments)
    assert (result.exit_code, result.stderr) == (1, "")
    return result.stdout


def test_a_study_from_its_text_to_its_table(mine: str):
    text = done("study", "run", mine, "--scale", "toy", "--dry-run")
    assert "Two ways: 2 rows, 2 trainings, 32 natural steps\nleft out: bad: method." in text
    assert not Path("runs").exists()
    text = unmeasured("study", "run", mine, "--scale", "toy", "--jobs", 1)
    assert "to train: 2, 32 natural steps, about " in text
    assert "4 of 4 tasks done; rows with a fault: bad" in text
    assert "[b]m = 2[/b]" in text
    assert "bad faulty: method." in text
    assert "pgd-20: pgd-2 stands in for pgd-20" in text
    assert "only a test" in text
    folder = "runs/studies/mine-toy"
    assert "4 of 4 tasks done" in unmeasured("study", "status", folder)
    rows = list(csv.DictReader(io.StringIO(unmeasured("study", "table", folder, "--csv"))))
    assert [(row["row"], row["column"]) for row in rows] == [
        (row, column) for row in ("m2", "m4") for column in ("clean", "pgd-20", "minutes")
    ]
    assert {(row["state"], row["steps"], row["forwards"], row["backwards"]) for row in rows} == {
        ("done", "16", "16", "16")
    }
    text = unmeasured("study", "run", mine, "--scale", "toy", "--jobs", 1)
    assert "done already: 2 trainings" in text
    assert "to train" not in text


def test_a_table_can_be_printed_before_anything_is_done(mine: str):
    from toughen.studies.create import create_folder
    from toughen.studies.text import load

    Path(mine).write_text(STUDY.replace("  bad: {set: {method.nothing: 1}}\n", ""))
    create_folder(load(mine), "toy", Path("study"))
    assert "waiting" in done("study", "table", "study")
    assert "0 of 4 tasks done" in done("study", "status", "study")


def test_a_row_that_cannot_be_measured_ends_each_command_with_exit_code_1(mine: str):
    from toughen.studies.create import create_folder
    from toughen.studies.folder import TRAIN
    from toughen.studies.text import load

    Path(mine).write_text(STUDY.replace("bad: {set: {method.nothing: 1}}", "bad: {set: {seed: 0}}"))
    folder = create_folder(load(mine), "toy", Path("runs/studies/mine-toy"), name="mine")
    for task in folder.tasks():
        if task.kind == TRAIN:
            folder.fail(task, "it broke", "")
    for command in (("table", folder.path), ("status", folder.path), ("work", folder.path)):
        unmeasured("study", *command)
    text = unmeasured("study", "run", mine, "--scale", "toy")
    assert "failed: it broke" in text


def test_a_dry_run_leaves_nothing_behind_and_forgets_nothing(mine: str):
    from toughen.studies.folder import StudyFolder

    before = everything(Path())
    assert "2 trainings" in done("study", "run", mine, "--scale", "toy", "--dry-run", "--out", "else/where")
    assert everything(Path()) == before
    assert "2 trainings" in done("study", "run", mine, "--scale", "toy", "--dry-run", "--checkpoint", "last")
    assert everything(Path()) == before
    # What was asked for in a dry run refuses nothing afterwards.
    unmeasured("study", "run", mine, "--scale", "toy")
    folder = StudyFolder(Path("runs/studies/mine-toy"))
    folder.fail(folder.tasks()[0], "it broke", "")
    before = everything(Path())
    assert f"again: {folder.tasks()[0]}" in done("study", "run", mine, "--scale", "toy", "--retry", "--dry-run")
    assert everything(Path()) == before


def test_a_study_is_not_gone_on_with_for_other_weights(mine: str):
    unmeasured("study", "run", mine, "--scale", "toy", "--checkpoint", "last")
    folder = "runs/studies/mine-toy"
    rows = list(csv.DictReader(io.StringIO(unmeasured("study", "table", folder, "--csv"))))
    assert {row["checkpoint"] for row in rows} == {"last", ""}
    before = everything(Path())
    said = failed("study", "run", mine, "--scale", "toy")
    assert f"{folder} was begun with --checkpoint last, and its figures are not mixed with those of other" in said
    assert "give the same, or another --out" in said
    assert everything(Path()) == before
    assert "'newest' is not a known checkpoint; allowed: best, last" in failed(
        "study", "run", mine, "--scale", "toy", "--checkpoint", "newest"
    )


def test_what_is_wrong_is_one_sentence(mine: str):
    assert failed("study", "run", "free-tabel-1").startswith(
        "error: 'free-tabel-1' is no shipped study; did you mean 'free-table-1"
    )
    assert "'medium' is not a known scale" in failed("study", "run", mine, "--scale", "medium")
    assert "write I/N with I from 1 to N, like 2/8" in failed("study", "run", mine, "--shard", "3/2")
    assert "'moon' is not a known executor" in failed("study", "run", mine, "--executor", "moon")
    sharded = failed("study", "run", mine, "--executor", "ray", "--shard", "1/2")
    assert "--shard is for workers of this machine; leave it out with --executor ray" in sharded
    assert "--executor-set is for --executor slurm or ray" in failed("study", "run", mine, "--executor-set", "a=b")
    assert "holds no study; give the folder of a toughen study run" in failed("study", "table", os.curdir)
    assert "is not a change; write key=value" in failed("study", "run", mine, "steps")


def test_the_list_names_every_study():
    text = done("study", "list")
    assert "free-table-1: Free adversarial training on CIFAR-10 (Shafahi et al. 2019, table 1) (6 rows)" in text
