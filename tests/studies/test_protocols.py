"""Each paper's own protocol: which weights and which trainings a study measures, and how its page says so."""

import inspect
import json
import re
import statistics
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from studies.test_work import begun, finished
from toughen.attacks import AttackSpec
from toughen.evaluation.suites import find
from toughen.methods import Bilateral
from toughen.recipes import Recipe
from toughen.recipes import load as load_recipe
from toughen.recipes import shipped as texts
from toughen.report.tables.study import describe_study, study_csv, study_table
from toughen.storage import files
from toughen.studies import measures
from toughen.studies.create import create_folder
from toughen.studies.folder import StudyFolder
from toughen.studies.grid import PlannedRow, expand
from toughen.studies.published import cells
from toughen.studies.results import collect
from toughen.studies.schema import Study
from toughen.studies.text import StudyError, load, shipped
from toughen.studies.worker import work
from toughen.threat import Linf
from toughen.training import run as run_module
from toughen.training import train
from toughen.workflows import ModelSource
from toughen.workflows.run_folder import open_run

IMAGENET = [f"free-table-{k}" for k in range(3, 11)] + ["free-figure-4"]


def kept(name: str) -> dict[str, set[str]]:
    """Which weights each row of a shipped study measures, by its text."""
    study = load(name)
    columns = {
        key: [study.columns[column] for column in row.columns or study.columns] for key, row in study.all_rows().items()
    }
    return {
        key: {column.checkpoint or row.checkpoint or study.checkpoint for column in columns[key]}
        for key, row in study.all_rows().items()
    }


def test_shipped_studies_measure_the_weights_that_their_papers_measured():
    for name in shipped():
        found = set().union(*kept(name).values())
        if name.startswith(("iaat-", "bilateral-")) or (name.startswith("free-") and name not in IMAGENET):
            assert found == {"last"}, name
        elif name != "limits-figure-1":
            assert found == {"best"}, name
        # The authors' ImageNet code keeps the best by clean accuracy, of adversarial training too.
        assert (load(name).set.get("selection.by") == "clean_accuracy") == (name in IMAGENET)
    plan = expand(load("free-table-4"))
    assert {recipe.selected_by for recipe in plan.trainings.values()} == {"clean_accuracy"}


def test_a_shipped_study_opens_the_weights_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    opened: list[ModelSource] = []
    monkeypatch.setattr(measures, "evaluate", lambda source, *given, **more: opened.append(source))
    for name, row in (("free-table-1", "natural"), ("limits-figure-2", "ratio-3-7")):
        folder = create_folder(load(name), "toy", tmp_path / name)
        asked = next(m for m in folder.rows[row]["measures"].values() if m["column"]["what"] == "robust")
        measures.measure_attacked(folder, row, folder.rows[row]["trainings"][0], asked, tmp_path)
    assert [source.checkpoint for source in opened] == ["last", "best"]


def test_what_the_plus_of_bilateral_training_means_is_one_thing_everywhere():
    modes = {"train": "R-MC-LA", "eval": "R-MC-LA+"}

    def called(text: str) -> set[str]:
        return {name.replace("9", "") for name in re.findall(r"R-MC-LA9?\+?", text)}

    for name in (name for name in shipped() if name.startswith("bilateral-")):
        plan = expand(load(name))
        for row in plan.rows.values():
            method = plan.trainings[row.trainings[0]].method
            published = {cell.record["method"] for measure in row.measures.values() for cell in measure.cells}
            for said in (called(row.label), *map(called, published)):
                assert said <= {modes.get(getattr(method, "attack_bn", ""), "")}, (name, row.name)
    for name, text in texts().items():
        if "-bilateral" in name and not name.endswith("-small"):
            said = called(text.partition("\n")[0])
            assert said <= {modes[getattr(load_recipe(name).method, "attack_bn", "")]}, name
    assert inspect.getdoc(sys.modules[Bilateral.__module__]).splitlines()[2:4] == [  # pyright: ignore[reportOptionalMemberAccess]
        '    Bilateral(threat=Linf(8 / 255), attack_bn="train")                  # R-MC-LA',
        "    Bilateral(threat=Linf(8 / 255))                                     # R-MC-LA+, as the released code",
    ]


def test_the_network_that_iaat_calls_wrn_32_10_is_labelled_as_madrys():
    named = set()
    for name in (name for name in shipped() if name.startswith("iaat-table-")):
        plan = expand(load(name))
        for row in plan.rows.values():
            models = {cell.record["model"] for measure in row.measures.values() for cell in measure.cells}
            if "WRN-32-10" in models:
                assert "WRN-32-10 (Madry et al.'s)" in f"{row.label} {plan.study.title}", (name, row.name)
                assert plan.trainings[row.trainings[0]].model.name == "madry-w32-10"
                named.add(name)
    assert named == {f"iaat-table-{k}" for k in (1, 2, 3, 5, 6, 8, 9)}


def test_in_limits_figure_1_a_model_counts_as_its_authors_kept_it():
    found = kept("limits-figure-1")
    last = {key for key, kinds in found.items() if kinds == {"last"}}
    assert last == {"madry", "trades", "free", "carmon", "bilateral", "fast"}
    assert {key for key, kinds in found.items() if kinds == {"best"}} == found.keys() - last


def validations(recipe: Recipe) -> int:
    """How often a run of a recipe is validated."""
    every, each = recipe.selection.every or max(1, recipe.total_steps // 10), recipe.method.steps_per_batch
    steps = [each * batch for batch in range(recipe.batches + 1)]
    return sum(after == recipe.total_steps or after // every > before // every for before, after in pairwise(steps))


NATURAL = [("free-figure-1", "m1"), ("free-table-1", "natural"), ("iaat-table-1", "resnet18-natural")]


@pytest.mark.parametrize(("name", "key"), NATURAL)
def test_natural_rows_take_the_step_of_the_highest_clean_accuracy_the_later_of_equals(
    name: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plan = expand(load(name), "small")
    for row in (row for row in plan.rows if row.startswith("m") or "natural" in row):
        assert validations(plan.trainings[plan.rows[row].trainings[0]]) >= 4
    plan = expand(load(name), "toy")
    recipe = plan.trainings[plan.rows[key].trainings[0]]
    assert (recipe.method.name, recipe.selected_by, validations(recipe)) == ("natural", "clean_accuracy", 4)
    scores = iter([0.5, 0.9, 0.9, 0.8])
    monkeypatch.setattr(
        run_module,
        "validate",
        lambda *given, **more: {recipe.headline: {"clean_accuracy": next(scores), "robust_accuracy": 0.0}},
    )
    summary = train(recipe, tmp_path / "run")
    assert summary["best"][recipe.headline]["step"] == 12
    assert open_run(tmp_path / "run").step == 12


def planned(tiny_study: Path, checkpoint: str | None = None, **text: str) -> dict[str, PlannedRow]:
    changed = tiny_study.read_text()
    for before, after in text.items():
        changed = changed.replace(f"{before}:", after)
    tiny_study.write_text(changed)
    return expand(load(str(tiny_study)), "toy", checkpoint=checkpoint).rows


def test_a_column_comes_before_its_row_and_that_before_the_study(tiny_study: Path):
    rows = planned(
        tiny_study,
        rows="  late: {suite: pgd-1, checkpoint: last}\n  early: {suite: pgd-1, checkpoint: best}\nrows:",
        free="free: {checkpoint: last, recipe: X}\n  other:",
    )
    tiny_study.write_text(tiny_study.read_text().replace("recipe: X", ""))
    found = {
        name: {key: measure.checkpoint for key, measure in row.measures.items()}
        for name, row in planned(tiny_study).items()
    }
    assert found["natural"] == {"clean": "best", "pgd-2": "best", "minutes": "best", "late": "last", "early": "best"}
    assert found["free"] == {"clean": "last", "pgd-2": "last", "minutes": "last", "late": "last", "early": "best"}
    tiny_study.write_text(tiny_study.read_text() + "checkpoint: last\n")
    assert planned(tiny_study)["natural"].measures["pgd-2"].checkpoint == "last"
    assert planned(tiny_study)["natural"].measures["early"].checkpoint == "best"
    for asked in ("best", "last"):
        rows = planned(tiny_study, asked)
        assert {m.checkpoint for row in rows.values() for m in row.measures.values()} == {asked}
        assert {row.checkpoint for row in rows.values()} == {asked}
    # Clean accuracy is that of the weights it is asked of, and lies where these are attacked.
    measures = planned(tiny_study)["free"].measures
    assert measures["clean"].folder == measures["pgd-2"].folder == "pgd-2_n12_last"
    assert measures["early"].folder == "pgd-1_n12"


def test_a_begun_study_takes_what_it_measures_anyway_and_nothing_else(tmp_path: Path, tiny_study: Path):
    study = load(str(tiny_study))
    create_folder(study, "toy", tmp_path / "out")
    create_folder(study, "toy", tmp_path / "out", checkpoint="best")
    before = (tmp_path / "out" / "study.json").read_bytes()
    with pytest.raises(StudyError, match="out was begun without checkpoint, and its figures are not mixed"):
        create_folder(study, "toy", tmp_path / "out", checkpoint="last")
    assert (tmp_path / "out" / "study.json").read_bytes() == before


def test_clean_accuracy_of_weights_that_nothing_attacks_is_a_fault_of_the_row(tiny_study: Path):
    rows = planned(tiny_study, clean="clean: {what: clean, checkpoint: last}\n  more:")
    tiny_study.write_text(tiny_study.read_text().replace("  more: {what: clean}\n", ""))
    rows = planned(tiny_study)
    assert "give such a column with checkpoint: last too" in str(rows["natural"].error)


def set_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the validation at step 8 find the best weights."""

    def scripted(job: Any, split: object, **given: object) -> Mapping[str, Mapping[str, float]]:
        accuracy = 0.9 if job.step == 8 else 0.1
        return {"weights": {"clean_accuracy": accuracy, "robust_accuracy": accuracy}}

    monkeypatch.setattr(run_module, "validate", scripted)


def test_each_figure_is_of_the_weights_that_it_says(tmp_path: Path, tiny_study: Path, monkeypatch: pytest.MonkeyPatch):
    set_scores(monkeypatch)
    columns = "  last: {suite: pgd-1, checkpoint: last}\n  slope: {what: gradient_mean, checkpoint: last}\nrows:"
    tiny_study.write_text(tiny_study.read_text().replace("rows:", columns, 1))
    folder = begun(tiny_study, tmp_path / "out")
    work(folder.path)
    finished(folder)
    table = collect(folder)
    row = table["rows"]["natural"]
    (run,) = (folder.path / name for name in row["counted"])
    steps = {"pgd-2_n12": 8, "pgd-1_n12_last": 16}
    for name, step in steps.items():
        checkpoint = "last" if step == 16 else "best"
        opened = open_run(run, checkpoint=checkpoint)
        assert opened.step == step
        examples = pq.read_table(run / "evaluation" / name / "examples.parquet").to_pylist()
        predictions = {one["index"]: one["prediction"] for one in examples if one["attack"] == "clean"}
        images = opened.data.test.images[torch.tensor(list(predictions))] / 255
        assert opened.model(images).argmax(1).tolist() == list(predictions.values())
    assert (run / "evaluation" / "gradients_n12_last").is_dir()
    assert [(one["checkpoint"], one["columns"], one["selected_by"], one["steps"]) for one in row["weights"]] == [
        ("best", ["clean", "pgd-2"], "clean accuracy", [8]),
        ("last", ["last", "slope"], None, [16]),
    ]
    shown = {key: figure["checkpoint"] for key, figure in row["figures"].items()}
    assert shown == {"clean": "best", "pgd-2": "best", "minutes": None, "last": "last", "slope": "last"}
    page = study_table("x", table, {})
    weights = page.rows[0][list(page.columns).index("weights")]
    assert weights.text == "best by clean accuracy, step 8 (clean, pgd-2)\nlast, step 16 (last, slope)"
    text = "\n".join(str(block) for block in describe_study(table))
    assert "weights measured: natural: best by clean accuracy, step 8 (clean, pgd-2); natural: last, step 16" in text


def natural_alone(tiny_study: Path) -> str:
    """The study's text with one of its rows."""
    lines = tiny_study.read_text().replace("set: {seed: 0}, ", "").splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("  free:"))


def test_of_two_trainings_the_better_by_what_is_measured_is_picked(
    tmp_path: Path, tiny_study: Path, monkeypatch: pytest.MonkeyPatch
):
    def scripted(job: Any, split: object, **given: Any) -> Mapping[str, Mapping[str, float]]:
        # Seed 0 has the better best weights, seed 1 the better last ones; natural training is never robust.
        clean = {(0, 8): 0.9, (0, 16): 0.2, (1, 8): 0.5, (1, 16): 0.4}.get((given["seed"], job.step), 0.1)
        return {"weights": {"clean_accuracy": clean, "robust_accuracy": 0.5 - clean / 2}}

    monkeypatch.setattr(run_module, "validate", scripted)
    text = natural_alone(tiny_study) + "seeds: [0, 1]\npick: best\n"
    for checkpoint, seed in (("best", 0), ("last", 1)):
        tiny_study.write_text(text + f"checkpoint: {checkpoint}\n")
        folder = begun(tiny_study, tmp_path / checkpoint)
        work(folder.path)
        assert folder.counted("natural") == [folder.rows["natural"]["trainings"][seed]]


def test_a_study_that_an_earlier_version_measured_is_shown_as_before(tmp_path: Path, tiny_study: Path):
    tiny_study.write_text(natural_alone(tiny_study))
    folder = begun(tiny_study, tmp_path / "out")
    work(folder.path)
    now = collect(folder)["rows"]["natural"]
    asked, row = folder.asked, folder.asked["rows"]["natural"]
    del asked["checkpoint"], row["checkpoint"]
    for measure in row["measures"].values():
        del measure["checkpoint"], measure["surrogate"]
    for training in asked["trainings"]:
        del asked["trainings"][training]["seed"]
        summary = files.read_json(folder.run(training) / "summary.json")
        del summary["selected_by"]
        files.write_json(folder.run(training) / "summary.json", summary)
    files.write_json(folder.path / "study.json", asked)
    row = collect(StudyFolder(folder.path))["rows"]["natural"]
    assert [one.pop("selected_by") for one in row["weights"]] == ["robust accuracy, the earliest of equals"]
    assert [one.pop("selected_by") for one in now["weights"]] == ["clean accuracy"]
    for found in (row, now):
        for figure in found["figures"].values():
            figure["each"] = [one.pop("seed") for one in figure["each"]]
    assert {figure["each"][0] for figure in now["figures"].values()} == {0}
    for figure in now["figures"].values():
        figure["each"] = [None]
    assert row == now


def test_of_trainings_that_are_equally_good_in_validation_that_is_said(
    tmp_path: Path, tiny_study: Path, monkeypatch: pytest.MonkeyPatch
):
    set_scores(monkeypatch)
    tiny_study.write_text(natural_alone(tiny_study) + "seeds: [0, 1]\npick: best\n")
    folder = begun(tiny_study, tmp_path / "out")
    assert collect(folder)["rows"]["natural"]["notes"] == []
    work(folder.path)
    row = collect(folder)["rows"]["natural"]
    assert row["notes"] == ["2 of 2 trainings are equally good in validation; the first of them is measured"]
    assert row["counted"] == [f"runs/{folder.rows['natural']['trainings'][0]}"]


def test_every_seed_is_tested_and_the_row_is_their_mean_and_sample_deviation(tmp_path: Path, tiny_study: Path):
    tiny_study.write_text(natural_alone(tiny_study) + "seeds: [3, 1, 4]\n")
    folder = begun(tiny_study, tmp_path / "out")
    work(folder.path)
    finished(folder)
    table = collect(folder)
    for name, row in table["rows"].items():
        assert len(row["counted"]) == 3
        trainings = folder.rows[name]["trainings"]
        results = [files.read_json(folder.run(one) / "evaluation/pgd-2_n12/result.json") for one in trainings]
        values = [100 * result["robust_accuracy"] for result in results]
        figure = row["figures"]["pgd-2"]
        assert figure["measured"] == pytest.approx(statistics.fmean(values))
        assert figure["std"] == pytest.approx(statistics.stdev(values))
        assert [(one["seed"], one["value"]) for one in figure["each"]] == list(zip((3, 1, 4), values, strict=True))
    lines = [line.split(",") for line in study_csv(table).splitlines() if line.startswith("natural,pgd-2")]
    assert [line[2] for line in lines] == ["mean", "3", "1", "4"]
    text = "\n".join(str(block) for block in describe_study(table))
    assert "± sample standard deviation over n trainings" in text


def test_transfer_examples_are_made_on_a_training_that_is_not_measured(tmp_path: Path, tiny_study: Path):
    column = "  shown: {what: transfer, suite: pgd-2, transfer_from: {seed: 7}}\nrows:"
    tiny_study.write_text(tiny_study.read_text().replace("rows:", column, 1))
    folder = begun(tiny_study, tmp_path / "out")
    work(folder.path)
    finished(folder)
    row = folder.rows["natural"]
    (mine,), other = row["trainings"], row["measures"]["shown"]["surrogate"]
    assert "seed: 7" in (folder.run(other) / "recipe.yaml").read_text()
    assert not (folder.run(other) / "evaluation").exists()
    figure = collect(folder)["rows"]["natural"]["figures"]["shown"]
    result = files.read_json(folder.run(mine) / "evaluation" / "transfer_pgd-2_from-seed-7_n12" / "result.json")
    ((survived,),), clean = result["survived"], result["clean_correct"][0]
    assert figure["measured"] == pytest.approx(100 * sum(a and b for a, b in zip(survived, clean, strict=True)) / 12)
    # Its own training is no other one.
    tiny_study.write_text(tiny_study.read_text().replace("{seed: 7}", "{seed: 0}"))
    rows = expand(load(str(tiny_study)), "toy").rows
    assert "transfer_from: seed 0 is one of the row's own seeds; give another" in str(rows["natural"].error)


def test_a_row_waits_for_what_its_examples_are_made_on_and_fails_with_it(tmp_path: Path, tiny_study: Path):
    column = "  shown: {what: transfer, suite: pgd-2, transfer_from: natural}\nrows:"
    tiny_study.write_text(tiny_study.read_text().replace("rows:", column, 1))
    folder = begun(tiny_study, tmp_path / "out")
    natural = folder.tasks()[0]
    folder.fail(natural, "it broke", "")
    assert folder.state("free") == ("failed", "it broke")


def test_frees_table_counts_restarts_and_its_loss_as_its_code_does():
    study: Study = load("free-table-1")
    plan = expand(study)
    assert {key: (c.suite, c.attack) for key, c in study.columns.items() if c.what == "robust"} == {
        "pgd-20": ("pgd-20", None),
        "pgd-100": ("pgd-100", None),
        "cw-100": ("free", "cw-100"),
        "pgd-20-r10": ("free", "pgd-20-r10"),
    }
    suite = find("free", Linf(8 / 255))
    assert isinstance(suite, dict)
    attacks = {name: spec.settings for name, spec in suite.items() if isinstance(spec, AttackSpec)}
    assert (attacks["cw-100"]["loss"], attacks["cw-100"]["steps"]) == ("margin-0", 100)
    assert (attacks["pgd-20-r10"]["keep"], attacks["pgd-20-r10"]["restarts"]) == ("highest_loss", 10)
    notes = json.dumps([column.note for column in plan.study.columns.values()])
    assert "the point of the highest loss counts" in notes
    assert "where the margin reaches 0" in notes


def test_published_numbers_are_shown_with_the_digits_that_the_paper_printed():
    shown = {}
    for cell in cells():
        if cell.value is None:
            continue
        published = {key: getattr(cell, key) for key in ("id", "value", "unit", "std", "raw")}
        figure = {"what": "robust", "checkpoint": "last", "published": published, "measured": None, "n": 0}
        row = {"label": "a", "state": "waiting", "reason": None, "counted": [], "cost": None, "alarms": [], "notes": []}
        found = {"title": "t", "scale": "paper", "columns": ["c"], "notes": []}
        found["rows"] = {"a": {**row, "weights": [], "figures": {"c": figure}}}
        shown[cell.id] = study_table("x", found, {}).rows[0][1].below.removeprefix("paper ").partition(" ")[0]
    misread = {"003-T3-547": "86.85", "003-T7-655": "88.67", "003-T9-681": "92.10", "001-T4-097": "10435"}
    for cell in cells():
        if cell.value is not None:
            assert shown[cell.id] == misread.get(cell.id, shown[cell.id])
            assert cell.id in misread or shown[cell.id] in cell.raw
    # IAAT, table 1: 87.25 and not 87.2; Free, table 1: 0.00.
    assert {"87.25", "0.00", "46.82"} <= set(shown.values())
