"""The table of a study, from what lies in its folder at any time. No torch.

table = collect(StudyFolder(Path("runs/studies/free-table-1-small")))
table["rows"]["free-m8"]["figures"]["pgd-20"]    # measured, interval, published, difference, unreliable, findings, each
table["rows"]["free-m8"]["weights"]              # which weights were measured, and where they are from
table["rows"]["free-m8"]["alarms"]               # of its trainings: run, code, step, both accuracies, alarm
"""

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toughen.outcomes import interval
from toughen.progress import selection_text
from toughen.report.alarms import read_alarms
from toughen.report.blocks import JsonObject
from toughen.report.records import reasons
from toughen.storage import files
from toughen.studies.figures.points import collect_figure
from toughen.studies.folder import StudyFolder, surrogates


def collect(folder: StudyFolder) -> dict[str, Any]:
    """Every row with its state, its figures beside the published ones, and its cost.

    Raises:
        ValueError: a summary or a result in the folder is not as toughen writes it.
    """
    try:
        return _collected(folder)
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(
            f"{folder.path} holds a summary or a result that toughen did not write so ({type(error).__name__}: {error})"
        ) from None


def _collected(folder: StudyFolder) -> dict[str, Any]:
    asked = folder.asked
    rows = {name: _row(folder, name) for name in folder.rows}
    return {
        **{key: asked[key] for key in ("name", "title", "scale", "notes")},
        "columns": list(asked["columns"]),
        "rows": rows,
        "figure": collect_figure(folder, rows),
    }


def _row(folder: StudyFolder, name: str) -> dict[str, Any]:
    row = folder.rows[name]
    state, why = folder.state(name)
    counted = folder.counted(name) or []
    return {
        "label": row["label"],
        "state": state,
        "reason": why if state in ("faulty", "failed") else None,
        "trainings": len(row["trainings"]),
        "counted": [str(Path("runs") / training) for training in counted],
        "figures": {key: _figure(folder, counted, measure) for key, measure in row["measures"].items()},
        "weights": _weights(folder, row, counted),
        "cost": _cost(folder, counted),
        "alarms": _alarms(folder, [*row["trainings"], *surrogates(row)]),
        "notes": [*row["notes"], *_tie(folder, name, counted)],
    }


def _tie(folder: StudyFolder, name: str, counted: list[str]) -> list[str]:
    """What is to be said where the training that is measured is not the only best one."""
    row = folder.rows[name]
    if row["pick"] == "each" or len(row["trainings"]) < 2 or not counted:
        return []
    ranks = [folder.rank(training, row) for training in row["trainings"]]
    if (equal := ranks.count(max(ranks))) == 1:
        return []
    return [f"{equal} of {len(ranks)} trainings are equally good in validation; the first of them is measured"]


def _figure(folder: StudyFolder, counted: list[str], measure: Mapping[str, Any]) -> JsonObject:
    """One cell: the mean of its trainings with the sample deviation, and of a single one its interval."""
    each = {name: value for name in counted if (value := _measured(folder, name, measure))}
    found = list(each.values())
    published = next((cell for cell in measure["published"] if cell["value"] is not None), None)
    cell: dict[str, Any] = {"what": measure["column"]["what"], "published": published, "measured": None, "n": 0}
    cell["checkpoint"] = None if cell["what"] == "minutes" else measure.get("checkpoint", "best")
    if not found:
        return cell
    trainings = folder.asked["trainings"]
    cell["each"] = [{"seed": trainings[name].get("seed"), **value} for name, value in each.items()]
    values = [value["value"] for value in found]
    cell |= {"measured": statistics.fmean(values), "unit": found[0]["unit"], "n": len(values)}
    cell["std"] = statistics.stdev(values) if len(values) > 1 else None
    cell["interval"] = found[0].get("interval") if len(found) == 1 else None
    cell["unreliable"] = any(value.get("unreliable") for value in found)
    cell["findings"] = _joined([value.get("findings") for value in found])
    # Other networks, budgets or data are the paper's in no number, and another device is not in its minutes.
    if published and published["unit"] == cell["unit"] != "minutes" and folder.asked["scale"] == "paper":
        cell["difference"] = cell["measured"] - published["value"]
    return cell


def _weights(folder: StudyFolder, row: Mapping[str, Any], counted: list[str]) -> list[dict[str, Any]]:
    """Which weights of its trainings a row measures, in which columns; of the best by what they are chosen, and where.

    Of each: checkpoint, columns, selected_by (None for the last), steps (of each training that is done).
    """
    columns: dict[str, list[str]] = {}
    for key, measure in row["measures"].items():
        if measure["column"]["what"] != "minutes":
            columns.setdefault(measure.get("checkpoint", "best"), []).append(key)
    summaries = [found for training in counted if (found := _read(folder.run(training) / "summary.json"))]
    found = []
    for checkpoint, keys in columns.items():
        best = [summary["best"][row["weights"] or summary["headline"]] for summary in summaries]
        by = [selection_text(summary.get("selected_by")) for summary in summaries]
        last = checkpoint == "last"
        steps = [summary["steps"] if last else one["step"] for summary, one in zip(summaries, best, strict=True)]
        chosen = None if last else " or ".join(dict.fromkeys(by)) or None
        found.append({"checkpoint": checkpoint, "columns": keys, "selected_by": chosen, "steps": steps})
    return found


def _joined(findings: list[list[str] | None]) -> list[str] | None:
    """Each code once; None where no evaluation was audited, which is not the same as nothing found."""
    audited = [codes for codes in findings if codes is not None]
    return list(dict.fromkeys(code for codes in audited for code in codes)) if audited else None


def _measured(folder: StudyFolder, training: str, measure: Mapping[str, Any]) -> JsonObject | None:
    """What one training says."""
    run, column = folder.run(training), measure["column"]
    if column["what"] == "minutes":
        summary = _read(run / "summary.json")
        return summary and {"value": summary["seconds"] / 60, "unit": "minutes"}
    path = run / "evaluation" / measure["folder"] / "result.json"
    result = _read(path)
    return result and READERS[column["what"]](result, column)


def _read(path: Path) -> dict[str, Any] | None:
    return files.read_json(path) if path.is_file() else None


def _share(accuracy: float, bounds: Any, **more: Any) -> JsonObject:
    return {"value": 100 * accuracy, "unit": "%", "interval": [100 * bound for bound in bounds], **more}


def _robust(result: Mapping[str, Any], column: Mapping[str, Any]) -> JsonObject:
    audit = result["audit"]
    found = audit and [one["code"] for one in reasons(audit["findings"])]
    more = {"unreliable": result["unreliable"], "findings": found}
    if column["attack"] is None:
        return _share(result["robust_accuracy"], result["robust_interval"], **more)
    (attack,) = (row for row in result["attacks"] if row["attack"] == column["attack"])
    # An attack that ran by itself met every correctly classified example, unless there was none.
    alone = attack["alone"] or 0.0
    return _share(alone, interval(round(alone * result["n"]), result["n"]), **more)


def _clean(result: Mapping[str, Any], column: Mapping[str, Any]) -> JsonObject:
    return _share(result["clean_accuracy"], result["clean_interval"])


def _transfer(result: Mapping[str, Any], column: Mapping[str, Any]) -> JsonObject:
    (shown,) = result["summary"]["transfer"]
    return _share(shown["accuracy"], shown["interval"])


def _corruptions(result: Mapping[str, Any], column: Mapping[str, Any]) -> JsonObject:
    # All 19 at five severities are measured here, so that there is a mean and its interval.
    mean = result["mean_19"]
    return _share(mean["accuracy"], mean["interval"])


def _mce(result: Mapping[str, Any], column: Mapping[str, Any]) -> JsonObject | None:
    # Without 1,000 classes there is no baseline to divide by.
    value = result["mce"]["value"]
    return None if value is None else {"value": value, "unit": "%"}


def _gradient(which: str) -> Any:
    def read(result: Mapping[str, Any], column: Mapping[str, Any]) -> JsonObject:
        (row,) = (m for m in result["summary"]["magnitudes"] if m["pixel_range"] == 255 and not m["squared"])
        return {"value": row[which], "unit": ""}

    return read


READERS = {
    "robust": _robust,
    "clean": _clean,
    "transfer": _transfer,
    "corruptions": _corruptions,
    "mce": _mce,
    "gradient_mean": _gradient("mean"),
    "gradient_max": _gradient("max"),
}


def _cost(folder: StudyFolder, counted: list[str]) -> dict[str, Any] | None:
    """Of the first training that counts: passes of training, time and device."""
    summaries = [found for training in counted if (found := _read(folder.run(training) / "summary.json"))]
    if not summaries:
        return None
    kept = ("steps", "forwards", "backwards", "natural_steps", "device")
    seconds = math.fsum(summary["seconds"] for summary in summaries) / len(summaries)
    return {**{key: summaries[0][key] for key in kept}, "minutes": seconds / 60}


def _alarms(folder: StudyFolder, trainings: list[str]) -> list[dict[str, Any]]:
    """Of all trainings, those that do not count or have not ended among them: each alarm after its run's path."""
    return [
        {"run": str(Path("runs") / training), **alarm}
        for training in trainings
        for alarm in read_alarms(folder.run(training))
    ]
