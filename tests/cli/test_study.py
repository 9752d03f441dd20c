import csv
import io
import os
from pathlib import Path

import pytest

from cli.test_app import done, failed

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


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    Path("mine.yaml").write_text(STUDY)
    return "mine.yaml"


def test_a_study_from_its_text_to_its_table(mine: str):
    text = done("study", "run", mine, "--scale", "toy", "--dry-run")
    assert "Two ways: 2 rows, 2 trainings, 32 natural steps\nleft out: bad: method." in text
    assert not (Path("runs/studies/mine-toy") / "runs").exists()
    text = done("study", "run", mine, "--scale", "toy", "--jobs", 1)
    assert "to train: 2, 32 natural steps, about " in text
    assert "4 of 4 tasks done; rows with a fault: bad" in text
    assert "[b]m = 2[/b]" in text
    assert "bad faulty: method." in text
    assert "pgd-20: pgd-2 stands in for pgd-20" in text
    assert "only a test" in text
    folder = "runs/studies/mine-toy"
    assert "4 of 4 tasks done" in done("study", "status", folder)
    rows = list(csv.DictReader(io.StringIO(done("study", "table", folder, "--csv"))))
    assert [(row["row"], row["column"]) for row in rows] == [
        (row, column) for row in ("m2", "m4") for column in ("clean", "pgd-20", "minutes")
    ]
    assert {(row["state"], row["steps"], row["forwards"], row["backwards"]) for row in rows} == {
        ("done", "16", "16", "16")
    }
    text = done("study", "run", mine, "--scale", "toy", "--jobs", 1)
    assert "done already: 2 trainings" in text
    assert "to train" not in text


def test_a_table_can_be_printed_before_anything_is_done(mine: str):
    from toughen.studies.create import create_folder
    from toughen.studies.text import load

    create_folder(load(mine), "toy", Path("study"))
    assert "waiting" in done("study", "table", "study")
    assert "0 of 4 tasks done" in done("study", "status", "study")


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
