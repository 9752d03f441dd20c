"""What a worker does: takes tasks of a study's folder, one after the other, until none is left.

    work(Path("runs/studies/free-table-1-small"))            # as many processes as one likes may do so at once

A task is claimed by a lock that the system releases when its holder dies. So a killed worker leaves nothing behind but
checkpoints, and whoever claims the task next goes on from there.
"""

import time
import traceback
from collections.abc import Callable
from pathlib import Path

from toughen.errors import in_shell
from toughen.recipes.text import build, parse_yaml
from toughen.storage.files import Locked
from toughen.studies.folder import TRAIN, StudyFolder, StudyTask

POLL = 1.0
"""Seconds between looks at tasks that others hold."""


def work(
    path: Path,
    *,
    shard: tuple[int, int] = (0, 1),
    note: Callable[[str], None] = lambda text: None,
) -> None:
    """Do tasks until all are done, have failed or wait for ones that failed.

    Args:
        path: the study's folder.
        shard: (I, N): of the trainings only every N-th, from the I-th on. A row whose trainings lie in several shards
            is measured by the last of them to end; where shards share no folder, by a call without shards on all of it.
        note: is told of each task.
    """
    folder = StudyFolder(path)
    while left := tasks_left(folder, shard):
        if not any(_attempt(folder, task, note) for task in left):
            time.sleep(POLL)


def tasks_left(folder: StudyFolder, shard: tuple[int, int]) -> list[StudyTask]:
    """What a worker with this shard, see `work`, has still to do or to wait for."""
    trainings = [task for task in folder.tasks() if task.kind == TRAIN]
    mine = {task.name for number, task in enumerate(trainings) if number % shard[1] == shard[0]}
    return [task for task in folder.tasks() if _belongs(folder, task, mine) and not _settled(folder, task)]


def _belongs(folder: StudyFolder, task: StudyTask, mine: set[str]) -> bool:
    return task.name in mine if task.kind == TRAIN else folder.needed(task) <= mine or folder.ready(task)


def _settled(folder: StudyFolder, task: StudyTask) -> bool:
    return folder.done(task) or folder.failure(task) is not None or folder.is_blocked(task)


def _attempt(folder: StudyFolder, task: StudyTask, note: Callable[[str], None]) -> bool:
    """Do a task if it can be done now; whether it was this process that did."""
    if not folder.ready(task):
        return False
    with folder.claimed(task) as claimed:
        # Another worker may have done it since the look.
        if not claimed or _settled(folder, task):
            return False
        note(str(task))
        try:
            perform(folder, task)
        except Locked:
            # A row that shares an evaluation with this one is being measured, or a training runs there.
            return False
        except Exception as error:  # noqa: BLE001  # one bad row must not stop the others; it is listed with its reason
            folder.fail(task, f"{type(error).__name__}: {in_shell(error)}", traceback.format_exc())
            note(f"{task} failed: {in_shell(error)}")
        return True


def perform(folder: StudyFolder, task: StudyTask) -> None:
    """Do a task, from wherever an earlier process left it."""
    from toughen.training import train

    if task.kind == TRAIN:
        text = folder.asked["trainings"][task.name]["recipe"]
        train(build(parse_yaml(text, task.name)), folder.run(task.name))
        return
    row = folder.rows[task.name]
    for training in folder.counted(task.name) or ():
        for key in row["measures"]:
            measure_figure(folder, task.name, training, key)


def measure_figure(folder: StudyFolder, row: str, training: str, key: str) -> None:
    """One figure of a training, unless it is there, or comes with the run or with another figure."""
    from toughen.studies import measures

    asked = folder.rows[row]["measures"][key]
    what = asked["column"]["what"]
    if what not in measures.MEASURES:
        return
    out = folder.run(training) / "evaluation" / asked["folder"]
    if not (out / "result.json").is_file():
        measures.MEASURES[what](folder, row, training, asked, out)
