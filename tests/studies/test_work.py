import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from conftest import Faults
from toughen.evaluation import Audit, Evaluation, Finding
from toughen.evaluation.audit.messages import NOTES
from toughen.outcomes import COLUMNS, Outcomes
from toughen.storage import files
from toughen.studies import worker as working
from toughen.studies.create import create_folder
from toughen.studies.folder import MEASURE, TRAIN, StudyFolder, StudyTask
from toughen.studies.results import collect
from toughen.studies.text import load
from toughen.studies.worker import work
from toughen.training import catastrophic_overfitting


def begun(tiny_study: Path, out: Path, extra: str = "") -> StudyFolder:
    tiny_study.write_text(tiny_study.read_text() + extra)
    return create_folder(load(str(tiny_study)), "toy", out)


def finished(folder: StudyFolder) -> None:
    assert all(folder.done(task) for task in folder.tasks())


def test_every_row_is_trained_and_measured_and_the_table_says_what_the_files_say(tmp_path: Path, tiny_study: Path):
    folder = begun(tiny_study, tmp_path / "out")
    told: list[str] = []
    work(folder.path, note=told.append)
    finished(folder)
    assert [text.partition(" ")[0] for text in told] == [TRAIN, TRAIN, MEASURE, MEASURE]
    table = collect(folder)
    for row in table["rows"].values():
        assert (row["state"], row["reason"]) == ("done", None)
        (run,) = row["counted"]
        summary = files.read_json(folder.path / run / "summary.json")
        examples = pq.read_table(folder.path / run / "evaluation" / "pgd-2_n12" / "examples.parquet").to_pydict()
        survived: dict[int, bool] = {}
        clean = 0
        for attack, example, stood in zip(*(examples[key] for key in ("attack", "index", "survived")), strict=True):
            clean += attack == "clean" and stood
            survived[example] = survived.get(example, True) and stood
        figures = row["figures"]
        assert figures["clean"]["measured"] == pytest.approx(100 * clean / 12)
        assert figures["pgd-2"]["measured"] == pytest.approx(100 * sum(survived.values()) / 12)
        assert figures["minutes"]["measured"] == summary["seconds"] / 60
        assert (row["cost"]["steps"], row["cost"]["forwards"]) == (16, summary["forwards"]) == (16, 16)
    told.clear()
    work(folder.path, note=told.append)
    assert told == []


def test_of_two_trainings_the_better_on_validation_is_measured_and_of_each_the_mean(tmp_path: Path, tiny_study: Path):
    extra = "seeds: [0, 1]\n"
    text = tiny_study.read_text().replace("set: {seed: 0}, ", "")
    tiny_study.write_text(text.replace("natural: {", "natural: {pick: best, "))
    folder = begun(tiny_study, tmp_path / "out", extra)
    work(folder.path)
    finished(folder)
    table = collect(folder)["rows"]

    def clean(training: str) -> float:
        # What natural training is selected by.
        return files.read_json(folder.run(training) / "summary.json")["best"]["weights"]["clean_accuracy"]

    both = folder.rows["natural"]["trainings"]
    better = max(both, key=clean)
    assert table["natural"]["counted"] == [f"runs/{better}"]
    (other,) = set(both) - {better}
    assert (folder.run(better) / "evaluation" / "pgd-2_n12" / "result.json").is_file()
    assert not (folder.run(other) / "evaluation").exists()
    results = [
        files.read_json(folder.run(t) / "evaluation" / "pgd-2_n12" / "result.json")
        for t in folder.rows["free"]["trainings"]
    ]
    a, b = (100 * result["robust_accuracy"] for result in results)
    figure = table["free"]["figures"]["pgd-2"]
    assert (figure["measured"], figure["n"], figure["interval"]) == (pytest.approx((a + b) / 2), 2, None)
    assert figure["std"] == pytest.approx(abs(a - b) / 2**0.5)


def alarmed(row: Mapping[str, Any]) -> list[tuple[str, str, int, bool]]:
    return [(one["run"], one["code"], one["step"], one["alarm"].startswith("AT101 ")) for one in row["alarms"]]


def test_a_training_that_overfitted_is_seen_while_it_runs_and_after(
    tmp_path: Path, tiny_study: Path, monkeypatch: pytest.MonkeyPatch
):
    # Every example withstands the one-step attack; of PGD first all, then none: a collapse between two checks.
    counts = iter([(64, 64), (64, 0), (64, 0), (64, 0)])
    monkeypatch.setattr(catastrophic_overfitting, "withstood", lambda *given: torch.tensor(next(counts)))
    text = tiny_study.read_text().replace("toy: {", "toy: {rows: {free: {overfitting_every: 4}}, ")
    tiny_study.write_text(text)
    folder = begun(tiny_study, tmp_path / "out")
    work(folder.path)
    table = collect(folder)["rows"]
    assert table["natural"]["alarms"] == []
    (run,) = table["free"]["counted"]
    assert alarmed(table["free"]) == [(run, "AT101", 8, True)]
    (alarm,) = table["free"]["alarms"]
    assert (alarm["one_step_accuracy"], alarm["pgd_accuracy"]) == (1.0, 0.0)
    assert "at step 8: accuracy 100 %" in alarm["alarm"]
    # So far the log alone tells, and its last line may be half written.
    (folder.path / run / "summary.json").unlink()
    with (folder.path / run / "metrics.jsonl").open("a") as log:
        log.write('{"step": 20, "overfitting": {"alarm": "AT1')
    assert collect(folder)["rows"]["free"]["alarms"] == table["free"]["alarms"]
    # Before its first line, too.
    (folder.path / run / "metrics.jsonl").unlink()
    assert collect(folder)["rows"]["free"]["alarms"] == []


def evaluated(folder: StudyFolder, row: str, column: str, codes: Sequence[str], *, right: bool = True) -> None:
    """An evaluation of a row's first training on two examples, made by hand: in it an audit that found `codes`."""
    values: dict[str, Any] = dict.fromkeys(COLUMNS, 0) | {"attack": "clean", "survived": right}
    rows = [{**values, "index": index} for index in range(2)]
    Evaluation(
        outcomes=Outcomes(**{name: np.array([one[name] for one in rows]) for name in COLUMNS}),
        threat="linf:0.1",
        suite="custom",
        settings={"fgsm": {"name": "fgsm"}},
        seed=0,
        seconds=1.0,
        notes=(),
        device="cpu",
        torch="2",
        identity={},
        audit=Audit(tuple(_found(code) for code in codes), (), 2, 1, 1, (0,), (0,), (0,)),
    ).write(
        folder.run(folder.rows[row]["trainings"][0]) / "evaluation" / folder.rows[row]["measures"][column]["folder"]
    )


def _found(code: str) -> Finding:
    return Finding(code, "message", {}, severity="note" if code in NOTES else "unreliable")


def test_each_figure_carries_the_findings_of_its_evaluation(tmp_path: Path, tiny_study: Path):
    columns = "  one: {suite: bilateral, attack: fgsm}\n  steep: {what: gradient_mean}\nrows:"
    tiny_study.write_text(tiny_study.read_text().replace("rows:", columns))
    folder = begun(tiny_study, tmp_path / "out")
    evaluated(folder, "natural", "pgd-2", ["EV286", "EV281"])
    evaluated(folder, "natural", "one", ["EV225"])
    figures = collect(folder)["rows"]["natural"]["figures"]
    found = {key: (figure.get("findings"), figure.get("unreliable")) for key, figure in figures.items()}
    assert found == {
        "clean": (None, False),
        "pgd-2": (["EV286", "EV281"], True),
        "minutes": (None, None),
        "one": ([], False),
        "steep": (None, None),
    }
    assert [figure["what"] for figure in figures.values()] == ["clean", "robust", "minutes", "robust", "gradient_mean"]


def test_over_several_trainings_each_finding_stands_once(tmp_path: Path, tiny_study: Path):
    text = tiny_study.read_text().replace("set: {seed: 0}, ", "").replace("free: {", "free: {pick: each, ")
    tiny_study.write_text(text)
    folder = begun(tiny_study, tmp_path / "out", "seeds: [0, 1]\n")
    trainings = folder.rows["free"]["trainings"]
    for codes in (["EV286"], ["EV281", "EV286"]):
        evaluated(folder, "free", "pgd-2", codes)
        # By hand only the first training has an evaluation; it becomes that of the second.
        if codes == ["EV286"]:
            folder.run(trainings[0]).rename(folder.run(trainings[1]))
    figure = collect(folder)["rows"]["free"]["figures"]["pgd-2"]
    assert (figure["findings"], figure["n"]) == (["EV281", "EV286"], 2)


def test_a_model_that_is_right_about_nothing_withstands_no_attack(tmp_path: Path, tiny_study: Path):
    columns = "  one: {suite: bilateral, attack: fgsm}\nrows:"
    tiny_study.write_text(tiny_study.read_text().replace("rows:", columns))
    folder = begun(tiny_study, tmp_path / "out")
    evaluated(folder, "natural", "one", [], right=False)
    figure = collect(folder)["rows"]["natural"]["figures"]["one"]
    assert (figure["measured"], figure["interval"][0], figure["unreliable"]) == (0.0, 0.0, False)


def test_a_bad_row_and_a_failing_training_stop_nothing_and_are_listed(tmp_path: Path, tiny_study: Path):
    text = tiny_study.read_text().replace("scales:", "  bad: {set: {method.nothing: 1}}\n  broken: {}\nscales:")
    tiny_study.write_text(text.replace("toy: {", "toy: {rows: {broken: {data.source: nowhere}}, "))
    folder = create_folder(load(str(tiny_study)), "toy", tmp_path / "out")
    work(folder.path)
    table = collect(folder)["rows"]
    assert [row["state"] for row in table.values()] == ["done", "done", "faulty", "failed"]
    assert "nothing: unknown" in table["bad"]["reason"]
    assert "There is no data set 'nowhere'" in table["broken"]["reason"]
    (task,) = [task for task in folder.tasks() if folder.failure(task)]
    assert "Traceback" in folder.failure(task)["trace"]  # pyright: ignore[reportOptionalSubscript]
    assert folder.is_blocked(StudyTask(MEASURE, "broken"))
    assert folder.clear_failures() == [str(task)]
    assert not folder.is_blocked(StudyTask(MEASURE, "broken"))


def test_a_task_is_done_by_one_process_at_a_time(tmp_path: Path, tiny_study: Path, monkeypatch: pytest.MonkeyPatch):
    folder = begun(tiny_study, tmp_path / "out")
    performed: list[str] = []
    original = working.perform

    def slowly(folder: StudyFolder, task: StudyTask) -> None:
        performed.append(str(task))
        time.sleep(0.05)
        original(folder, task)

    monkeypatch.setattr(working, "perform", slowly)
    monkeypatch.setattr(working, "POLL", 0.02)
    first = folder.tasks()[0]
    with folder.claimed(first) as mine:
        assert mine
        with folder.claimed(first) as again:
            assert not again
        assert folder.is_claimed(first)
        other = threading.Thread(target=work, args=(folder.path,))
        other.start()
        while len(performed) < 2:
            time.sleep(0.01)
        assert str(first) not in performed
    other.join()
    finished(folder)
    assert sorted(performed) == sorted(map(str, folder.tasks()))


def test_shards_share_the_trainings(tmp_path: Path, tiny_study: Path):
    folder = begun(tiny_study, tmp_path / "out")
    work(folder.path, shard=(1, 2))
    assert [folder.done(task) for task in folder.tasks()] == [False, True, False, True]
    work(folder.path, shard=(0, 2))
    finished(folder)


def test_a_row_whose_trainings_lie_in_two_shards_is_measured_by_the_last(tmp_path: Path, tiny_study: Path):
    # The trainings in their order: natural 0 and 1, free 0 and 1; so each row has one in either shard.
    tiny_study.write_text(tiny_study.read_text().replace("set: {seed: 0}, ", ""))
    folder = begun(tiny_study, tmp_path / "out", "seeds: [0, 1]\n")
    work(folder.path, shard=(0, 2))
    assert [folder.done(task) for task in folder.tasks()] == [True, False, True, False, False, False]
    work(folder.path, shard=(1, 2))
    finished(folder)


@pytest.mark.faults
def test_killed_workers_leave_what_others_go_on_from(tmp_path: Path, tiny_study: Path, faults: Faults):
    folder = begun(tiny_study, tmp_path / "out", "seeds: [0, 1]\n")
    undisturbed = create_folder(load(str(tiny_study)), "toy", tmp_path / "undisturbed")
    work(undisturbed.path)
    draw = random.Random(0)
    command = [sys.executable, "-m", "toughen", "study", "work", str(folder.path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for _ in range(faults.trials(small=1, full=3)):
        worker = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert worker.stdout is not None
        worker.stdout.readline()
        time.sleep(draw.uniform(0, 0.6))
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
    work(folder.path)
    finished(folder)
    assert not list((folder.path / "failed").glob("*"))
    for row in folder.rows:
        for training in folder.rows[row]["trainings"]:
            metrics = (folder.run(training) / "metrics.jsonl").read_bytes()
            assert metrics == (undisturbed.run(training) / "metrics.jsonl").read_bytes()
            assert json.loads(metrics.splitlines()[-1])["step"] == 16
    one, other = (json.dumps(collect(f)["rows"]["free"]["figures"]["pgd-2"]) for f in (folder, undisturbed))
    assert one == other
