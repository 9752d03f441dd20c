import json
import os

import numpy as np
import pytest
import torch
from torch import nn

from toughen.attacks import AttackSpec
from toughen.evaluation import Evaluation, evaluate
from toughen.evaluation.result import describe
from toughen.losses import margin
from toughen.outcomes import COLUMNS, interval
from toughen.threat import Linf


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(27, 3))
        x = torch.rand(30, 3, 3, 3)
    y = model(x).argmax(1)
    y[:4] = (y[:4] + 1) % 3
    return evaluate(model, x, y, threat=Linf(8 / 255), suite="pgd-5-r2", seed=3)


def test_summary_says_all_and_is_json(evaluation):
    summary = json.loads(json.dumps(evaluation.summary(), allow_nan=False))
    assert summary == evaluation.summary()
    assert summary["n"] == 30
    assert summary["clean_accuracy"] == 26 / 30
    assert summary["clean_interval"] == list(interval(26, 30))
    assert summary["robust_interval"] == list(interval(evaluation.outcomes.robust_correct, 30))
    assert summary["robust_accuracy"] == evaluation.robust_accuracy <= 26 / 30
    assert (summary["suite"], summary["threat"], summary["seed"]) == ("pgd-5-r2", "linf:8/255", 3)
    assert (summary["device"], summary["torch"]) == ("cpu", torch.__version__)
    assert summary["seconds"] > 0
    assert {"marginal", "forwards", "backwards", "attacks"} <= summary.keys()
    clean, pgd = summary["attacks"]
    assert (clean["attack"], clean["attempted"], clean["broken"]) == ("clean", 30, 4)
    assert (pgd["attack"], pgd["attempted"], pgd["accuracy"]) == ("pgd-5-r2", 26, summary["robust_accuracy"])
    assert pgd["settings"]["name"] == "pgd"
    assert pgd["settings"]["step_size"] == 2 / 255
    assert (pgd["settings"]["steps"], pgd["settings"]["restarts"]) == (5, 2)


def test_a_folder_gives_the_evaluation_back(evaluation, tmp_path):
    folder = tmp_path / "new" / "evaluation"
    evaluation.write(folder)
    evaluation.write(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["examples.parquet", "result.json"]
    found = Evaluation.read(folder)
    assert found.summary() == evaluation.summary()
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(found.outcomes, name), getattr(evaluation.outcomes, name))


def test_a_failed_write_leaves_the_old_result_and_nothing_else(evaluation, tmp_path, monkeypatch):
    evaluation.write(tmp_path)
    before = (tmp_path / "result.json").read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        evaluation.write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["examples.parquet", "result.json"]
    assert (tmp_path / "result.json").read_bytes() == before


def test_numbers_that_the_table_does_not_bear_out_are_refused(evaluation, tmp_path):
    evaluation.write(tmp_path)
    path = tmp_path / "result.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"robust_accuracy": 0.99}))
    with pytest.raises(ValueError, match=r"says .*0\.99.*but examples\.parquet"):
        Evaluation.read(tmp_path)
    del stored["threat"]
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="is no result of an evaluation: KeyError"):
        Evaluation.read(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match="Expecting property name"):
        Evaluation.read(tmp_path)


def test_settings_of_every_kind_become_json():
    spec = AttackSpec.model_validate(
        {"name": "pgd", "steps": 2, "loss": margin, "step_size": torch.tensor([0.5, 0.25])}
    )
    described = describe(spec)
    assert json.loads(json.dumps(described)) == described
    assert (described["loss"], described["step_size"]) == ("margin", [0.5, 0.25])
