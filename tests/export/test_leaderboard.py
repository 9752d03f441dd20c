"""robustbench.json: figures of AutoAttack alone, and null for what a run folder does not say."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from toughen.attacks import AttackSpec
from toughen.evaluation import Evaluation
from toughen.evaluation.suites import SUITES
from toughen.export import export
from toughen.export.facts import collect_facts
from toughen.export.leaderboard import entry, other_images
from toughen.recipes.text import build
from toughen.workflows import EvaluationSettings, evaluate

FIELDS = [
    "link", "name", "authors", "venue", "dataset", "threat_model", "eps", "architecture", "additional_data",
    "number_forward_passes", "clean_acc", "reported", "autoattack_acc", "external", "unreliable", "footnote",
]  # fmt: skip


@pytest.fixture
def attacked(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run under a suite called autoattack, which is as short as can be, on 20 images and on all 40."""
    monkeypatch.setitem(SUITES, "autoattack", {"apgd-ce": AttackSpec(name="apgd", steps=20)})
    folder = tmp_path / "attacked"
    shutil.copytree(bare, folder)
    evaluate(folder, EvaluationSettings("autoattack", limit=20))
    evaluate(folder, "autoattack")
    evaluate(folder, EvaluationSettings("pgd-2", limit=10))
    return folder


def test_the_entry_holds_what_autoattack_found(attacked: Path, tmp_path: Path):
    made = export(attacked, tmp_path / "out", formats=("robustbench",))
    assert "robustbench.json" in made.files
    found = json.loads((tmp_path / "out" / "robustbench.json").read_text())
    assert list(found) == FIELDS
    result = json.loads((attacked / "evaluation" / "autoattack" / "result.json").read_text())
    assert result["n"] == 40
    assert found["clean_acc"] == f"{100 * result['clean_accuracy']:.2f}"
    assert found["autoattack_acc"] == f"{100 * result['robust_accuracy']:.2f}"
    assert [found[key] for key in ("link", "name", "authors", "venue", "reported", "external")] == [None] * 6
    assert (found["dataset"], found["threat_model"], found["eps"]) == ("named", "Linf", "24/255")
    assert (found["architecture"], found["additional_data"], found["number_forward_passes"]) == ("small_cnn", False, 1)
    assert found["unreliable"] is result["unreliable"]
    assert found["footnote"].endswith("Weights: best-average-0.9 at step 24.")
    assert "of the 40 test images" not in found["footnote"]


def test_part_of_the_test_split_is_said(attacked: Path):
    shutil.rmtree(attacked / "evaluation" / "autoattack")
    found = entry(collect_facts(attacked, checkpoint="best", weights=None))
    assert found["footnote"].startswith("Measured on 20 of the 40 test images.")


def test_a_lower_figure_of_another_strong_suite_is_external(attacked: Path, monkeypatch: pytest.MonkeyPatch):
    facts = collect_facts(attacked, checkpoint="best", weights=None)
    full = Evaluation.read(attacked / "evaluation" / "autoattack")
    strong = {
        "apgd": {"name": "apgd", "steps": 100},
        "mt": {"name": "multi_targeted", "steps": 200},
    }
    # Every image broken: strong, but on the same number of images.
    table = full.outcomes
    broken = dataclasses.replace(full, suite="aa+mt", settings=strong, outcomes=all_broken(table))
    assert broken.robust_accuracy < full.robust_accuracy
    weak = dataclasses.replace(broken, suite="mine", settings={"fgsm": {"name": "fgsm"}})
    with_strong = dataclasses.replace(facts, evaluations=(broken, *facts.evaluations))
    assert entry(with_strong)["external"] == f"{100 * broken.robust_accuracy:.2f}"
    assert entry(with_strong)["autoattack_acc"] == f"{100 * full.robust_accuracy:.2f}"
    assert entry(dataclasses.replace(facts, evaluations=(weak, *facts.evaluations)))["external"] is None


def all_broken(table):
    survived = table.survived.copy()
    survived[table.attack != "clean"] = False
    return dataclasses.replace(table, survived=survived)


def test_doubt_and_its_absence_are_told_apart(attacked: Path):
    facts = collect_facts(attacked, checkpoint="best", weights=None)
    full = next(found for found in facts.evaluations if found.suite == "autoattack" and found.n == 40)
    unaudited = dataclasses.replace(facts, evaluations=(dataclasses.replace(full, audit=None),))
    assert entry(unaudited)["unreliable"] is None


def test_without_autoattack_there_is_no_entry(run: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"toughen evaluate .* --suite autoattack"):
        export(run, tmp_path / "out", formats=("robustbench",))
    assert not (tmp_path / "out").exists()


def test_other_images_are_told(bare: Path, tmp_path: Path):
    facts = collect_facts(bare, checkpoint="best", weights=None)
    assert other_images(facts) == []
    recipe = facts.run.recipe.model_dump(mode="json")
    extra = {**recipe, "data": {**recipe["data"], "extra": {"source": str(tmp_path), "labelled": 0.25}}}
    changed = dataclasses.replace(facts, run=dataclasses.replace(facts.run, recipe=build(extra)))
    assert other_images(changed) == [f"Extra, pseudo-labelled training images: {tmp_path.name}, 75% of each batch."]
    assert str(tmp_path) not in changed.recipe
