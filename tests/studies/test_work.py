import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from toughen import store
from toughen.studies import work as working
from toughen.studies.begin import begin
from toughen.studies.folder import MEASURE, TRAIN, StudyFolder, Task
from toughen.studies.results import collect
from toughen.studies.text import load
from toughen.studies.work import work


def begun(tiny_study: Path, out: Path, extra: str = "") -> StudyFolder:
    tiny_study.write_text(tiny_study.read_text() + extra)
    return begin(load(str(tiny_study)), "toy", out)


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
        summary = store.read_json(folder.path / run / "summary.json")
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
    tiny_study.write_text(text.replace("free: {", "free: {pick: each, "))
    folder = begun(tiny_study, tmp_path / "out", extra)
    work(folder.path)
    finished(folder)
    table = collect(folder)["rows"]

    def accuracies(training: str) -> tuple[float, float]:
        best = store.read_json(folder.run(training) / "summary.json")["best"]["weights"]
        return best["robust_accuracy"], best["clean_accuracy"]

    both = folder.rows["natural"]["trainings"]
    better = max(both, key=accuracies)
    assert table["natural"]["counted"] == [f"runs/{better}"]
    (other,) = set(both) - {better}
    assert (folder.run(better) / "evaluation" / "pgd-2_n12" / "result.json").is_file()
    assert not (folder.run(other) / "evaluation").exists()
    results = [
        store.read_json(folder.run(t) / "evaluation" / "pgd-2_n12" / "result.json")
        for t in folder.rows["free"]["trainings"]
    ]
    a, b = (100 * result["robust_accuracy"] for result in results)
    figure = table["free"]["figures"]["pgd-2"]
    assert (figure["measured"], figure["n"], figure["interval"]) == (pytest.approx((a + b) / 2), 2, None)
    assert figure["std"] == pytest.approx(abs(a - b) / 2**0.5)


def test_a_bad_row_and_a_failing_training_stop_nothing_and_are_listed(tmp_path: Path, tiny_study: Path):
    text = tiny_study.read_text().replace("scales:", "  bad: {set: {method.nothing: 1}}\n  broken: {}\nscales:")
    tiny_study.write_text(text.replace("toy: {", "toy: {rows: {broken: {data.source: nowhere}}, "))
    folder = begin(load(str(tiny_study)), "toy", tmp_path / "out")
    work(folder.path)
    table = collect(folder)["rows"]
    assert [row["state"] for row in table.values()] == ["done", "done", "faulty", "failed"]
    assert "nothing: unknown" in table["bad"]["reason"]
    assert "There is no data set 'nowhere'" in table["broken"]["reason"]
    (task,) = [task for task in folder.tasks() if folder.failure(task)]
    assert "Traceback" in folder.failure(task)["trace"]  # pyright: ignore[reportOptionalSubscript]
    assert folder.hopeless(Task(MEASURE, "broken"))
    assert folder.forgive() == [str(task)]
    assert not folder.hopeless(Task(MEASURE, "broken"))


def test_a_task_is_done_by_one_process_at_a_time(tmp_path: Path, tiny_study: Path, monkeypatch: pytest.MonkeyPatch):
    folder = begun(tiny_study, tmp_path / "out")
    performed: list[str] = []
    original = working.perform

    def slowly(folder: StudyFolder, task: Task) -> None:
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


def test_killed_workers_leave_what_others_go_on_from(tmp_path: Path, tiny_study: Path):
    folder = begun(tiny_study, tmp_path / "out", "seeds: [0, 1]\n")
    undisturbed = begin(load(str(tiny_study)), "toy", tmp_path / "undisturbed")
    work(undisturbed.path)
    draw = random.Random(0)
    command = [sys.executable, "-m", "toughen", "study", "work", str(folder.path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for _ in range(3):
        worker = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert worker.stdout is not None
        worker.stdout.readline()
        time.sleep(draw.uniform(0, 0.6))
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    finished(folder)
    assert not list((folder.path / "failed").glob("*"))
    for row in folder.rows:
        for training in folder.rows[row]["trainings"]:
            metrics = (folder.run(training) / "metrics.jsonl").read_bytes()
            assert metrics == (undisturbed.run(training) / "metrics.jsonl").read_bytes()
            assert json.loads(metrics.splitlines()[-1])["step"] == 16
    one, other = (json.dumps(collect(f)["rows"]["free"]["figures"]["pgd-2"]) for f in (folder, undisturbed))
    assert one == other
