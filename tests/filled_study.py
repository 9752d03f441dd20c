"""A study's folder as a finished study leaves it, with figures that the test chooses: nothing is trained."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from toughen.outcomes import interval
from toughen.studies.create import create_folder
from toughen.studies.folder import StudyFolder
from toughen.studies.schema import Study

Value = Callable[[str, str, int], float | None]
"""Of a row, a column and the number of a training of that row: a share, or for other figures the figure; None for
what is not measured."""

Line = Mapping[str, Any]


def fill_study(
    study: Study,
    out: Path,
    value: Value,
    *,
    scale: str = "paper",
    logs: Mapping[str, Sequence[Line]] | None = None,
    unreliable: Sequence[tuple[str, str]] = (),
    n: int = 1000,
) -> StudyFolder:
    """Make a folder and write what its trainings and evaluations would leave.

    Args:
        logs: row -> lines of the log of each of its trainings.
        unreliable: rows and columns whose audit found something.
        n: images of each evaluation.
    """
    folder = create_folder(study, scale, out)
    weights = {"weights", *(row["weights"] for row in folder.rows.values() if row["weights"])}
    for name, row in folder.rows.items():
        for number, training in enumerate(row["trainings"]):
            run = folder.run(training)
            run.mkdir(parents=True, exist_ok=True)
            _write(run / "summary.json", _summary(number, weights))
            lines = (logs or {}).get(name, ())
            if lines:
                (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
            _measured(run, name, row, number, value, unreliable, n)
    return folder


def _measured(run: Path, name: str, row: Any, number: int, value: Value, unreliable: Any, n: int) -> None:
    for column, measure in row["measures"].items():
        if not measure["folder"] or measure["column"]["what"] == "clean":
            continue
        robust, beside = value(name, column, number), None
        for other, its in row["measures"].items():
            if its["folder"] == measure["folder"] and its["column"]["what"] == "clean":
                beside = value(name, other, number)
        if robust is None:
            continue
        clean = 1.0 if beside is None else beside
        result = {
            "n": n,
            "robust_accuracy": robust,
            "robust_interval": interval(round(robust * n), n),
            "clean_accuracy": clean,
            "clean_interval": interval(round(clean * n), n),
            "unreliable": (name, column) in unreliable,
            "audit": {"findings": []},
            "attacks": [{"attack": measure["column"]["attack"], "alone": robust}],
        }
        _write(run / "evaluation" / measure["folder"] / "result.json", result)


def _summary(number: int, weights: Collection[str]) -> dict[str, Any]:
    named = {
        name: {"robust_accuracy": 0.5 - number / 100, "clean_accuracy": 0.8, "step": 100} for name in sorted(weights)
    }
    cost = {"steps": 100, "forwards": 200, "backwards": 200, "natural_steps": 100.0 + number, "device": "cpu"}
    return {"headline": "weights", "best": named, "seconds": 60.0, "alarms": None, **cost}


def _write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
