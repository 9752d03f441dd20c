import os
import signal
import sys
from pathlib import Path

import pytest

from toughen.storage import files
from toughen.studies import executors
from toughen.studies.create import create_folder
from toughen.studies.folder import StudyFolder
from toughen.studies.text import StudyError, load


@pytest.fixture
def folder(tmp_path: Path, tiny_study: Path) -> StudyFolder:
    return create_folder(load(str(tiny_study)), "toy", tmp_path / "out")


WORKER = """
import os, sys
from pathlib import Path

def claimed(path):
    # Of two workers that start at once one is the first.
    try:
        path.open("x").close()
    except FileExistsError:
        return False
    return True

path = Path(sys.argv[-3])
with open(path / "started", "a") as log:
    log.write(os.environ["OMP_NUM_THREADS"] + os.environ.get("CUDA_VISIBLE_DEVICES", "") + "\\n")
number = 1
while not claimed(path / f"worker-{{number}}"):
    number += 1
if number in {dying}:
    os.kill(os.getpid(), {signal})
"""


# Notes a failure, which counts as well as a task done, and dies; the last task first, which no other waits for.
ONE_FURTHER = """
import signal
from toughen.studies.folder import StudyFolder
folder = StudyFolder(path)
left = [task for task in folder.tasks() if not folder.failure(task)]
if left:
    folder.fail(left[-1], "x", "y")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dying: set[int], does: str = "") -> None:
    """Workers that run a script of ours."""
    text = WORKER.format(dying=dying, signal=int(signal.SIGKILL)) + does
    (tmp_path / "worker.py").write_text(text)
    original = executors._Worker.__init__

    def init(self: executors._Worker, path: Path, shard: tuple[int, int], environment: dict[str, str]) -> None:
        monkeypatch.setattr(executors.subprocess, "Popen", popen)
        original(self, path, shard, environment)

    real = executors.subprocess.Popen

    def popen(command: list[str], **keywords: object) -> object:
        return real([sys.executable, str(tmp_path / "worker.py"), *command[4:]], **keywords)  # pyright: ignore[reportCallIssue, reportArgumentType]

    monkeypatch.setattr(executors._Worker, "__init__", init)


def test_dead_workers_are_started_anew_and_each_has_its_share_of_the_cores(
    folder: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(executors, "visible_gpus", lambda: ("", []))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    scripted(monkeypatch, tmp_path, {1, 3})
    looks: list[int] = []
    executors.run_here(folder, jobs=2, watch=lambda: looks.append(1), poll=0.05)
    assert (folder.path / "started").read_text().split() == ["4"] * 4
    assert looks


def test_each_worker_has_a_gpu_in_turn(folder: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert executors.visible_gpus() == ("CUDA_VISIBLE_DEVICES", ["5", "7"])
    scripted(monkeypatch, tmp_path, set())
    executors.run_here(folder, jobs=3, poll=0.05)
    assert sorted((folder.path / "started").read_text().split()) == ["15", "15", "17"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert executors.visible_gpus() == ("CUDA_VISIBLE_DEVICES", [])


def test_workers_that_die_again_and_again_end_the_study_in_a_sentence(
    folder: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    scripted(monkeypatch, tmp_path, set(range(100)))
    with pytest.raises(StudyError, match=r"Workers died 3 times in a row without finishing a task .*workers.log"):
        executors.run_here(folder, jobs=1, poll=0.02)
    assert len((folder.path / "started").read_text().split()) == 3


def test_a_finished_task_makes_up_for_a_death(folder: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    scripted(monkeypatch, tmp_path, set(), ONE_FURTHER)
    executors.run_here(folder, jobs=1, poll=0.02)
    assert len(list((folder.path / "failed").glob("*.json"))) == len(folder.tasks()) == 4
    # The last one leaves nothing to do, so that none is started after it.
    assert len((folder.path / "started").read_text().split()) == 4


def test_what_is_not_installed_is_said(folder: StudyFolder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'toughen\[slurm\]'"):
        executors.run_on_slurm(folder, jobs=1, parameters={})
    with pytest.raises(ValueError, match=r"pip install 'toughen\[ray\]'"):
        executors.run_on_ray(folder, jobs=1, address=None, watch=lambda: None)


def test_on_slurms_local_executor(folder: StudyFolder):
    submitit = pytest.importorskip("submitit")
    (number,) = executors.run_on_slurm(folder, jobs=1, parameters={"cluster": "local", "timeout_min": 5})
    submitit.local.local.LocalJob(folder.path / "slurm", number).result()
    assert all(folder.done(task) for task in folder.tasks())


def test_on_a_local_ray(folder: StudyFolder):
    pytest.importorskip("ray")
    executors.run_on_ray(folder, jobs=2, address=None, watch=lambda: None)
    assert all(folder.done(task) for task in folder.tasks())


def test_two_local_workers_do_the_whole_study(folder: StudyFolder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    executors.run_here(folder, jobs=2, poll=0.1)
    assert all(folder.done(task) for task in folder.tasks())
    log = (folder.path / "workers.log").read_text().splitlines()
    # Each task is told once: trained once, measured once.
    tasks = [line for line in log if line.startswith(("train ", "measure "))]
    assert sorted(tasks) == sorted(map(str, folder.tasks()))
    assert files.read_json(folder.path / "study.json") == folder.asked
