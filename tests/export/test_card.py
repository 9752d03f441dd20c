"""The model card: what it says is what the files say, and what was not measured is said not to be."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from export.conftest import CLASSES
from toughen.evaluation import Evaluation
from toughen.evaluation.adaptive import Adaptive
from toughen.evaluation.audit.findings import finding
from toughen.evaluation.result import describe_suite
from toughen.evaluation.suites import SUITES, find
from toughen.export import export, facts
from toughen.export.card import escape
from toughen.export.facts import is_strong
from toughen.models.reached_code import Reached
from toughen.report.formatting import percent, with_interval
from toughen.storage import files
from toughen.threat import Linf
from toughen.workflows import EvaluationSettings, evaluate, measure_corruptions


def exported(run: Path, out: Path, **given: Any) -> tuple[dict[str, Any], str]:
    """Header and prose of a run's card."""
    export(run, out, **given)
    text = (out / "README.md").read_text(encoding="utf-8")
    _, header, prose = text.split("---\n", 2)
    return yaml.safe_load(header), prose


def results(run: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in (run / "evaluation").glob("*/result.json")}


def test_every_figure_is_that_of_its_evaluation(run: Path, tmp_path: Path):
    found = results(run)
    pgd_20, pgd_10 = found["pgd-20_n30"], found["pgd-10"]
    far, other = found["pgd-20_linf-0.3_n20"], found["pgd-10_weights"]
    assert other["identity"]["model"] != pgd_10["identity"]["model"]
    header, prose = exported(run, tmp_path / "out")
    index = header["model-index"][0]
    (result,) = index["results"]
    assert result["dataset"] == {"name": "named", "type": "named", "split": "test"}
    own = sorted([pgd_20, pgd_10], key=lambda item: (item["robust_accuracy"], -item["n"]))
    values = [(metric["type"], metric["value"]) for metric in result["metrics"]]
    expected = [pgd_10["clean_accuracy"], *(item["robust_accuracy"] for item in [*own, far])]
    assert values == [("accuracy", value) for value in expected]
    assert "robust accuracy (pgd-20, linf:24/255, 30 of 40 test images)" in [m["name"] for m in result["metrics"]]
    assert result["metrics"][0]["name"] == "clean accuracy (40 test images)"

    rows = [line for line in prose.splitlines() if line.startswith("| ") and "linf" in line]
    assert len(rows) == 3
    for row, item in zip(rows, [*own, far], strict=True):
        for share in ("clean", "robust"):
            shown = with_interval(item[f"{share}_accuracy"], item[f"{share}_interval"])
            assert shown in row
        assert f"| {item['suite']} | {item['threat']} |" in row
    worst = own[0]
    headline = next(line for line in prose.splitlines() if line.startswith("The worst case found in linf:24/255"))
    assert f"**{with_interval(worst['robust_accuracy'], worst['robust_interval'])}** ({worst['suite']}, " in headline

    summary = json.loads((run / "summary.json").read_text())
    best = summary["best"]["average-0.9"]
    assert f"clean {percent(best['clean_accuracy'])}, robust {percent(best['robust_accuracy'])}" in prose
    assert f"{summary['forwards']} forward and {summary['backwards']} backward passes of a batch in 24 steps" in prose
    assert "named: 135 images for training, 15 held out to choose the best weights, 40 test images" in prose


def test_other_weights_and_other_records_are_left_out_and_said(run: Path, tmp_path: Path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "evaluation" / "surface").mkdir()
    files.write_json(copy / "evaluation" / "surface" / "result.json", {"loss": [1, 2]})
    (copy / "evaluation" / "begun").mkdir()
    made = export(copy, tmp_path / "out")
    assert made.notes == (
        "evaluation/surface is of no known kind; it is not in the card",
        "1 evaluation of other weights or code of this run left out of the card",
    )
    made = export(copy, tmp_path / "raw", checkpoint="last", weights="weights")
    assert "3 evaluations of other weights or code of this run left out of the card" in made.notes
    header, _ = exported(copy, tmp_path / "raw", checkpoint="last", weights="weights")
    names = [metric["name"] for metric in header["model-index"][0]["results"][0]["metrics"]]
    assert names == ["clean accuracy (40 test images)", "robust accuracy (pgd-10, linf:24/255, 40 test images)"]


def test_results_of_other_code_and_those_set_aside_are_left_out(run: Path, tmp_path: Path, monkeypatch):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.copytree(copy / "evaluation", tmp_path / "before")
    for folder in (tmp_path / "before").iterdir():
        shutil.copytree(folder, copy / "evaluation" / f"{folder.name}.before-1")
    assert export(copy, tmp_path / "out").notes == export(run, tmp_path / "as-it-was").notes
    # As a network of one's own whose forward was corrected since.
    monkeypatch.setattr(facts, "reached", lambda **roots: Reached({"Net.forward": "0123456789abcdef"}, {}))
    many = len(list(run.glob("evaluation/*/result.json")))
    said = f"{many} evaluations of other weights or code of this run left out of the card"
    assert said in export(copy, tmp_path / "corrected").notes


def test_a_damaged_evaluation_stops_the_export(run: Path, tmp_path: Path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    path = copy / "evaluation" / "pgd-10" / "result.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, "robust_accuracy": 0.99}))
    with pytest.raises(ValueError, match=r"says .*0\.99.* but examples\.parquet beside it says"):
        export(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_measured_is_said_so(bare: Path, tmp_path: Path):
    header, prose = exported(bare, tmp_path / "out")
    assert "model-index" not in header
    assert "metrics" not in header
    assert "**Not evaluated:** no test accuracy of these weights, clean or robust, was measured." in prose
    assert "The worst case" not in prose


def test_by_what_the_weights_were_chosen_is_said(bare: Path, tmp_path: Path):
    _, card = exported(bare, tmp_path / "out")
    assert "- chosen on the held-out images by robust accuracy (pgd-2): clean " in card


def test_corrupted_images_are_counted_and_their_seeds_told_apart(bare: Path, tmp_path: Path):
    copy = tmp_path / "run"
    shutil.copytree(bare, copy)
    for seed, limit in ((0, 20), (3, None)):
        measure_corruptions(copy, seed=seed, limit=limit)
    _, prose = exported(copy, tmp_path / "out")
    first, second = (results(copy)[name] for name in ("corruptions_n20", "corruptions_seed3"))
    assert first["mean_15"]["accuracy"] != second["mean_15"]["accuracy"]
    lines = [line for line in prose.splitlines() if line.startswith("- ") and "constants of cifar" in line]
    starts = (
        "- 20 of 40 test images, corruptions generated with the constants of cifar, seed 0: on the images themselves ",
        "- 40 test images, corruptions generated with the constants of cifar, seed 3: on the images themselves ",
    )
    for line, start, found in zip(lines, starts, (first, second), strict=True):
        assert line.startswith(start + escape(with_interval(found["clean_accuracy"], found["clean_interval"])))
        assert escape(with_interval(found["mean_15"]["accuracy"], found["mean_15"]["interval"])) in line
    # What was measured is not said to be missing, and attacks are.
    assert (
        "**Not evaluated under attack:** no robust accuracy of these weights was measured; their accuracy on" in prose
    )
    assert "**Not evaluated:**" not in prose
    assert "no test accuracy" not in prose


def test_two_seeds_of_a_suite_are_told_apart_and_notes_are_kept(run: Path, tmp_path: Path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    found, folder = evaluate(copy, EvaluationSettings("pgd-10", seed=5))
    dataclasses.replace(found, notes=("Halved | twice.",)).write(folder)
    header, prose = exported(copy, tmp_path / "out")
    rows = [line.split(" | ")[0] for line in prose.splitlines() if line.startswith("| pgd-10")]
    assert sorted(rows) == ["| pgd-10", "| pgd-10, seed 5"]
    names = [metric["name"] for metric in header["model-index"][0]["results"][0]["metrics"]]
    assert sum(name.startswith("robust accuracy (pgd-10, seed 5, linf:24/255, 40 test") for name in names) == 1
    lines = prose.splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("- pgd-10, seed 5, linf:24/255"))
    assert lines[place + 1] == "  - Halved \\| twice."


def test_weak_suites_are_called_weak(run: Path, tmp_path: Path):
    _, prose = exported(run, tmp_path / "out")
    assert "**Only weak attacks were run in linf:24/255.**" in prose
    settings = {
        name: find(name, Linf(8 / 255))
        for name in ("autoattack", "autoattack-plus", "aa+mt", "quick", "iaat", "pgd-1000")
    }
    strong = {
        name
        for name, attacks in settings.items()
        if not isinstance(attacks, Adaptive) and is_strong(of_suite(name, describe_suite(attacks)))
    }
    assert strong == {"autoattack", "autoattack-plus", "aa+mt"}
    assert strong | {"quick", "iaat"} <= SUITES.keys()
    assert is_strong(of_suite("adaptive", Adaptive().settings))
    assert not is_strong(of_suite("custom", {"a": {"name": "apgd", "steps": 100}, "b": {"function": "mine"}}))


def of_suite(name: str, settings: dict[str, dict[str, Any]]) -> Any:
    return SimpleNamespace(suite=name, settings=settings)


def test_what_is_unreliable_is_said_wherever_the_figure_is(run: Path, tmp_path: Path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    folder = copy / "evaluation" / "pgd-20_n30"
    found = Evaluation.read(folder)
    assert found.audit is not None
    doubt = dataclasses.replace(finding("EV286", pgd_20=13, lost=7, examples=30), remedy="*Nothing* helped.")
    changed = dataclasses.replace(found, audit=dataclasses.replace(found.audit, findings=(doubt,)))
    changed.write(folder)
    made = export(copy, tmp_path / "out")
    assert "the card says: UNRELIABLE (pgd-20)" in made.notes
    header, prose = exported(copy, tmp_path / "out")
    assert "**UNRELIABLE**: EV286 |" in prose
    assert f"- {escape(doubt)}" in prose
    assert "\\*Nothing\\* helped." in prose
    names = [metric["name"] for metric in header["model-index"][0]["results"][0]["metrics"]]
    assert "robust accuracy (pgd-20, linf:24/255, 30 of 40 test images, UNRELIABLE)" in names
    assert sum("UNRELIABLE" in name for name in names) == 1
    left_out = dataclasses.replace(found, audit=None)
    left_out.write(folder)
    assert "| audit left out |" in exported(copy, tmp_path / "out")[1]


def test_a_note_is_said_and_is_no_verdict(run: Path, tmp_path: Path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    folder = copy / "evaluation" / "pgd-20_n30"
    found = Evaluation.read(folder)
    assert found.audit is not None
    note = finding("EV225", examples=30)
    dataclasses.replace(found, audit=dataclasses.replace(found.audit, findings=(note,))).write(folder)
    made = export(copy, tmp_path / "out")
    assert not any("UNRELIABLE" in said for said in made.notes)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "UNRELIABLE" not in text
    assert f"  - {escape(note)}" in text


def test_the_hub_reads_the_header(run: Path, tmp_path: Path):
    export(run, tmp_path / "out", licence="Apache-2.0")
    card: Any = ModelCard.load(tmp_path / "out" / "README.md")
    data = card.data.to_dict()
    assert (data["license"], data["library_name"], data["pipeline_tag"]) == (
        "apache-2.0",
        "toughen",
        "image-classification",
    )
    assert card.data.eval_results is not None
    assert len(card.data.eval_results) == 4
    assert "free" in data["tags"]
    assert "datasets" not in data


def test_licences(bare: Path, tmp_path: Path):
    header, prose = exported(bare, tmp_path / "out")
    assert not {"license", "license_name"} & header.keys()
    assert "## Licence\n\nNot stated.\n" in prose
    header, prose = exported(bare, tmp_path / "out", licence="EUPL-1.2")
    assert (header["license"], header["license_name"]) == ("other", "eupl-1.2")
    assert "## Licence\n\nEUPL-1.2\n" in prose


def test_names_are_shown_as_they_are(bare: Path, tmp_path: Path):
    _, prose = exported(bare, tmp_path / "out")
    assert "# small \\*one\\*\n" in prose
    assert "Classes, in the order of the logits: Ölkanne, 猫, a\\|b, \\<i\\>four\\</i\\>." in prose
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["classes"] == list(CLASSES)


def test_plain_text_stays_plain():
    assert escape("a|b\n# c <script>") == "a\\|b \\# c \\<script\\>"


def test_the_python_in_the_card_runs(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import torch

    import toughen
    from toughen.models.exported import load_model

    monkeypatch.setattr(toughen, "load_model", load_model, raising=False)
    _, prose = exported(bare, tmp_path / "out")
    code = prose.split("```python\n")[1].split("```")[0].replace("PATH/TO/THIS/FOLDER", str(tmp_path / "out"))
    assert len([line for line in code.splitlines() if line]) <= 5
    scope: dict[str, Any] = {"images": torch.rand(3, 1, 8, 8)}
    exec(code, scope)
    assert len(scope["names"]) == 3
    assert set(scope["names"]) <= set(CLASSES)
