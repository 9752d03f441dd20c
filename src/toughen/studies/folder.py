"""A study's folder: what it asks for, what is done, what failed. Nothing here imports torch.

    out/study.json                what is asked for: rows, columns, run folders, published numbers; never changes
    out/runs/NAME/                run folders, one for each training that differs, with their evaluations
    out/failed/TASK.json          why a task failed; `--retry` takes these away
    out/claims/TASK.lock          held by the process that works on a task, by the system's own locks

The state of a study is what lies on the disk, so that any number of processes can work on it, die, and go on.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from toughen.errors import Command, UsageError
from toughen.storage import files

STUDY = "study.json"
TRAIN, MEASURE = "train", "measure"


@dataclass(frozen=True)
class StudyTask:
    """A piece of work that one process does.

    Attributes:
        kind: "train" one run, or "measure" one row.
        name: of the run folder, or of the row.
    """

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"

    @property
    def file(self) -> str:
        """A file's name for it."""
        return re.sub(r"[^\w.-]+", "-", f"{self.kind}-{self.name}")


Name = Annotated[str, StringConstraints(pattern=r"^[\w+-][\w.+-]*$", max_length=255)]
"""A folder's name, and nothing that leads elsewhere."""

SuiteName = Annotated[str, StringConstraints(pattern=r"^[\w+-]+$")]
"""A name in the list of suites. A user may name a file with a suite of their own; a study's file may not."""


class _StrictRecord(BaseModel):
    model_config = ConfigDict(strict=True)


class _Column(_StrictRecord):
    what: str
    suite: SuiteName | None = None
    attack: str | None = None


class _Measure(_StrictRecord):
    column: _Column
    limit: int | None
    folder: Name | Literal[""]
    checkpoint: Literal["best", "last"] = "best"
    surrogate: Name | None = None
    published: list[dict[str, Any]]


class _Row(_StrictRecord):
    label: str
    error: str | None
    trainings: list[Name]
    pick: str
    checkpoint: Literal["best", "last"] = "best"
    weights: Name | None
    sources: list[str]
    notes: list[str]
    measures: dict[str, _Measure]


class _Training(_StrictRecord):
    recipe: str
    steps: int
    seed: int | None = None


class _Asked(_StrictRecord):
    name: str
    title: str
    scale: str
    notes: list[str]
    columns: dict[str, dict[str, Any]]
    rows: dict[str, _Row]
    trainings: dict[Name, _Training]


def surrogates(row: Mapping[str, Any]) -> dict[str, None]:
    """The trainings that a row's adversarial examples are made on, in their order."""
    return dict.fromkeys(m["surrogate"] for m in row["measures"].values() if m.get("surrogate"))


def check_study(asked: object, path: Path) -> None:
    """Refuse what `begin` does not write: its names become folders, and its suites are run.

    Args:
        asked: what `study.json` holds.
        path: of the file.

    Raises:
        ValueError: names the first fault.
    """
    try:
        found = _Asked.model_validate(asked)
    except ValidationError as error:
        first = error.errors()[0]
        place = ascii(".".join(map(str, first["loc"])))[1:-1][:200]
        raise ValueError(f"{path} is no study of toughen's ({place}: {first['msg']}); run the study again") from None
    for key, row in found.rows.items():
        trained = {*row.trainings, *(m.surrogate for m in row.measures.values() if m.surrogate)}
        unknown = [*(trained - found.trainings.keys()), *(set(row.sources) - found.rows.keys())]
        if unknown:
            raise ValueError(f"{path} is no study of toughen's ({key!a} needs {unknown[0]!a}, which is not there)")


def _read_study(path: Path) -> dict[str, Any]:
    if not (path / STUDY).is_file():
        raise UsageError(f"{path} holds no study; give the folder of a ", Command("study", "run"))
    asked = files.read_json(path / STUDY)
    check_study(asked, path / STUDY)
    return asked


class StudyFolder:
    """A folder with a study in it.

    Args:
        path: the folder.
        asked: what `study.json` would hold, where nothing is written yet.

    Raises:
        ValueError: there is none.
    """

    def __init__(self, path: Path, asked: dict[str, Any] | None = None) -> None:
        self.path = path
        self.asked: dict[str, Any] = _read_study(path) if asked is None else asked

    @property
    def rows(self) -> Mapping[str, Mapping[str, Any]]:
        """By key, as `study.json` has them."""
        return self.asked["rows"]

    def run(self, training: str) -> Path:
        """A training's run folder."""
        return self.path / "runs" / training

    def tasks(self) -> list[StudyTask]:
        """All that is to be done, trainings first, in the table's order."""
        wanted = [name for row in self.rows.values() for name in (*row["trainings"], *surrogates(row))]
        return [
            *(StudyTask(TRAIN, name) for name in dict.fromkeys(wanted)),
            *(StudyTask(MEASURE, name) for name, row in self.rows.items() if row["trainings"]),
        ]

    def state(self, name: str) -> tuple[str, str | None]:
        """How far a row is: faulty or failed and why, done, running and on which kind of task, or waiting."""
        row = self.rows[name]
        if row["error"] is not None:
            return "faulty", row["error"]
        measure = StudyTask(MEASURE, name)
        tasks = [*(StudyTask(TRAIN, training) for training in sorted(self.needed(measure))), measure]
        if failure := next(filter(None, map(self.failure, tasks)), None):
            return "failed", failure["reason"]
        if all(map(self.done, tasks)):
            return "done", None
        busy = next(filter(self.is_claimed, tasks), None)
        return ("running", busy.kind) if busy else ("waiting", None)

    def done(self, task: StudyTask) -> bool:
        """Whether nothing is left to do for a task."""
        if task.kind == TRAIN:
            return (self.run(task.name) / "summary.json").is_file()
        return all(path.is_file() for path in self._results(task.name))

    def _results(self, name: str) -> Iterator[Path]:
        """Files that a measured row has, as far as they can be known by now."""
        row = self.rows[name]
        counted = self.counted(name)
        if counted is None:
            yield self.path / "runs" / "nothing is chosen yet"
            return
        for training in counted:
            for measure in row["measures"].values():
                if measure["folder"]:
                    yield self.run(training) / "evaluation" / measure["folder"] / "result.json"

    def counted(self, name: str) -> list[str] | None:
        """The trainings of a row that are measured; None while that is open, for trainings are missing."""
        row = self.rows[name]
        if row["pick"] == "each" or len(row["trainings"]) <= 1:
            return list(row["trainings"])
        if not all(self.done(StudyTask(TRAIN, training)) for training in row["trainings"]):
            return None
        return [max(row["trainings"], key=lambda training: self.rank(training, row))]

    def rank(self, training: str, row: Mapping[str, Any]) -> tuple[float, float]:
        """What the best of a row's trainings is picked by: accuracies on the validation split, never the test split.

        The one by which its recipe selects, and the clean one.
        """
        summary = files.read_json(self.run(training) / "summary.json")
        found = summary["best"] if row.get("checkpoint", "best") == "best" else self._last_validation(training)
        accuracies = found[row["weights"] or summary["headline"]]
        return accuracies[summary.get("selected_by") or "robust_accuracy"], accuracies["clean_accuracy"]

    def _last_validation(self, training: str) -> dict[str, Any]:
        """Accuracies of a finished training's last weights."""
        path = self.run(training) / "metrics.jsonl"
        records = (files.decode(line, path) for line in reversed(files.read_limited(path).splitlines()))
        return next((record["validation"] for record in records if "validation" in record), {})

    def needed(self, task: StudyTask) -> set[str]:
        """The trainings that a task builds on: a row's own, and those that its examples come from."""
        if task.kind == TRAIN:
            return set()
        rows = [self.rows[name] for name in (task.name, *self.rows[task.name]["sources"])]
        return {training for row in rows for training in row["trainings"]} | surrogates(rows[0]).keys()

    def ready(self, task: StudyTask) -> bool:
        """Whether what a task builds on is there."""
        return all(self.done(StudyTask(TRAIN, training)) for training in self.needed(task))

    def is_blocked(self, task: StudyTask) -> bool:
        """Whether a task waits for one that failed."""
        return any(self.failure(StudyTask(TRAIN, training)) for training in self.needed(task))

    def failure(self, task: StudyTask) -> Mapping[str, Any] | None:
        """Why a task failed, if it did."""
        path = self.path / "failed" / f"{task.file}.json"
        return files.read_json(path) if path.is_file() else None

    def fail(self, task: StudyTask, reason: str, trace: str) -> None:
        """Note that a task failed."""
        (self.path / "failed").mkdir(exist_ok=True)
        files.write_json(
            self.path / "failed" / f"{task.file}.json", {"task": str(task), "reason": reason, "trace": trace}
        )

    def clear_failures(self, *, dry_run: bool = False) -> list[str]:
        """Forget all failures, so that their tasks are tried again; which they were, and in a dry run still are."""
        paths = sorted((self.path / "failed").glob("*.json"))
        names = [files.read_json(path)["task"] for path in paths]
        for path in () if dry_run else paths:
            path.unlink()
        return names

    @contextmanager
    def claimed(self, task: StudyTask) -> Iterator[bool]:
        """Hold a task; False if another process does. The system lets go of it however a process ends."""
        from filelock import FileLock, Timeout

        (self.path / "claims").mkdir(exist_ok=True)
        guard = FileLock(self.path / "claims" / f"{task.file}.lock", timeout=0)
        try:
            guard.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            guard.release()

    def is_claimed(self, task: StudyTask) -> bool:
        """Whether some process works on a task right now."""
        if not (self.path / "claims" / f"{task.file}.lock").exists():
            return False
        with self.claimed(task) as mine:
            return not mine
