"""How each kind of figure is measured on a training's chosen weights, into a folder of its run folder.

Each writes `result.json` last, from which `results` reads the figure.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from toughen.attacks import AttackSpec
from toughen.evaluation import gradient_magnitude, transfer
from toughen.evaluation.suites import find
from toughen.studies.folder import StudyFolder
from toughen.threat import parse
from toughen.workflows import EvaluationSettings, ModelSource, OpenedRun, evaluate, measure_corruptions, open_run
from toughen.workflows.evaluated_images import limited

Measure = Callable[[StudyFolder, str, str, Mapping[str, Any], Path], object]
"""(folder, row, training, the measure as in study.json, where it goes)"""


def measure_attacked(folder: StudyFolder, row: str, training: str, asked: Mapping[str, Any], out: Path) -> None:
    """Accuracy under a suite, or under a single one of its attacks."""
    chosen = {key: asked["column"][key] for key in ("suite", "attack", "threat", "step_size")}
    evaluate(_source(folder, row, training, asked), EvaluationSettings(**chosen, limit=asked["limit"]), out=out)


def measure_corrupted(folder: StudyFolder, row: str, training: str, asked: Mapping[str, Any], out: Path) -> None:
    """Accuracy under the 19 corruptions."""
    measure_corruptions(_source(folder, row, training, asked), limit=asked["limit"], out=out)


def measure_gradients(folder: StudyFolder, row: str, training: str, asked: Mapping[str, Any], out: Path) -> None:
    """The input gradient's magnitude on the test images (Bilateral, supplement, table 4)."""
    run = _opened(folder, row, training, asked)
    test, index, _ = limited(run.data.test, asked["limit"])
    found = gradient_magnitude(run.model, test.images, test.labels, index=index)
    out.mkdir(parents=True, exist_ok=True)
    found.write(out / "result.json")


def measure_transfer(folder: StudyFolder, row: str, training: str, asked: Mapping[str, Any], out: Path) -> None:
    """Accuracy on adversarial examples made on another training (IAAT, tables 1 and 2, "Transfer").

    Raises:
        ValueError: the suite is not one attack, or an earlier version began the study.
    """
    column = asked["column"]
    run = _opened(folder, row, training, asked)
    surrogate = _opened(folder, *_surrogate(folder, row, asked), asked)
    test, index, _ = limited(run.data.test, asked["limit"])
    threat = parse(column["threat"]) if column["threat"] else run.recipe.threat
    suite = find(column["suite"], threat, side=max(test.shape[-2:]))
    if not isinstance(suite, Mapping) or len(suite) != 1:
        raise ValueError(
            f"suite {column['suite']} is not one attack, and one makes the examples; give one, like pgd-20"
        )
    (attack,) = suite.values()
    assert isinstance(attack, AttackSpec)
    models = run.model, surrogate.model
    found = transfer(*models, test.images, test.labels, threat=threat, attack=attack, index=index)
    out.mkdir(parents=True, exist_ok=True)
    found.write(out / "result.json")


def _surrogate(folder: StudyFolder, row: str, asked: Mapping[str, Any]) -> tuple[str, str]:
    """Row and training that the examples are made on."""
    if asked.get("surrogate"):
        return row, asked["surrogate"]
    source = asked["column"].get("transfer_from")
    if not isinstance(source, str):
        raise ValueError("an earlier version began this study, and made its examples otherwise; run it in a new folder")
    return source, (folder.counted(source) or folder.rows[source]["trainings"])[0]


def _source(folder: StudyFolder, row: str, training: str, asked: Mapping[str, Any]) -> ModelSource:
    chosen = {"checkpoint": asked.get("checkpoint", "best"), "weights": folder.rows[row]["weights"]}
    return ModelSource(str(folder.run(training)), **chosen)


def _opened(folder: StudyFolder, row: str, training: str, asked: Mapping[str, Any]) -> OpenedRun:
    source = _source(folder, row, training, asked)
    return open_run(folder.run(training), checkpoint=source.checkpoint, weights=source.weights)


MEASURES: dict[str, Measure] = {
    "robust": measure_attacked,
    "transfer": measure_transfer,
    "corruptions": measure_corrupted,
    "mce": measure_corrupted,
    "gradient_mean": measure_gradients,
    "gradient_max": measure_gradients,
}
