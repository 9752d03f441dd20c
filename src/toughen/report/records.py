"""A run folder as a report needs it: what was asked for, what was logged, and what became of every example. No torch.

    run = read_run(Path("runs/mine"))
    run.evaluations[0].outcomes.robust_accuracy
    run.analyses["eps-sweep"]["radii"]

Accuracies are never taken from a result's text: they are computed from the tables of outcomes beside it. What cannot be
read is left out and named in `problems`, by its path in the folder, so that a page can be made of a run at any time.
"""

import os
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from toughen.errors import Command, Option, UsageError
from toughen.outcomes import Outcomes, interval
from toughen.report.blocks import JsonObject
from toughen.storage import files
from toughen.storage.limits import check_zip

DEEPEST = 32
CORRUPTED_MAIN = "jpeg_compression"
"""The last of the 15 main corruptions in the papers' order."""

ANALYSES: dict[str, dict[str, tuple[str, str]]] = {
    "eps-sweep": {"radii": ("f", "R"), "clean_correct": ("b", "N"), "survived": ("b", "RN")},
    "step-sweep": {"steps": ("i", "K"), "clean_correct": ("b", "N"), "survived": ("b", "KN")},
    "gradients": {"index": ("i", "N"), "norm": ("f", "N")},
    "surface": {"index": ("i", "N"), "label": ("i", "N"), "offsets": ("f", "P"), "loss": ("f", "NPP")},
    "turns-into": {
        "index": ("i", "N"),
        "label": ("i", "N"),
        "clean": ("f", "NCHW"),
        "images_uint8": ("u", "NCHW"),
        "clean_prediction": ("i", "N"),
        "prediction_uint8": ("i", "N"),
    },
    "pictures": {
        "index": ("i", "N"),
        "label": ("i", "N"),
        "radius": ("f", "N"),
        "image": ("u", "NCHW"),
        "clean_prediction": ("i", "N"),
        "adversarial": ("u", "VNCHW"),
        "prediction": ("i", "VN"),
    },
}
"""Kind and dimensions of the arrays that a report draws; a letter is one size throughout a file."""


@dataclass(frozen=True)
class StoredEvaluation:
    """An evaluation: its table of outcomes, and what `result.json` says besides numbers.

    Attributes:
        folder: its name under `evaluation/`.
        result: threat, suite, attacks with settings, seed, notes, audit, seconds, device, torch.
        outcomes: of every attack and example.
    """

    folder: str
    result: JsonObject
    outcomes: Outcomes

    @property
    def codes(self) -> list[str]:
        """Of the audit's findings by which the figures are not to be believed."""
        audit = self.result.get("audit")
        return [str(found["code"]) for found in reasons(audit["findings"])] if audit else []

    @property
    def verdict(self) -> tuple[str, str]:
        """The audit's verdict with its codes, and its tone."""
        if self.result.get("audit") is None:
            return "not audited", "dim"
        return (f"unreliable: {', '.join(self.codes)}", "bad") if self.codes else ("nothing found", "good")


def reasons(findings: Iterable[JsonObject]) -> list[JsonObject]:
    """Those of an audit's findings by which figures are not to be believed; of earlier versions, all."""
    return [found for found in findings if found.get("severity") != "note"]


@dataclass(frozen=True)
class StoredCorruptions:
    """A measurement under common corruptions.

    Attributes:
        folder: its name under `evaluation/`.
        result: origin, constants, seed, notes, seconds, and the mean corruption error with its baseline.
        names: K corruptions in the papers' order.
        severities: S of 1 to 5.
        clean: whether each image itself was classified correctly, (N,).
        correct: whether it was under a corruption and a severity, (K, S, N).
    """

    folder: str
    result: JsonObject
    names: tuple[str, ...]
    severities: tuple[int, ...]
    clean: np.ndarray
    correct: np.ndarray

    def mean(self, count: int) -> tuple[float, tuple[float, float]] | None:
        """Mean accuracy over the first 15 or all 19, with its interval over the draw of images; None if not measured.

        Every cell is of the same images, so the predictions are worth fewer independent ones: as many as have
        the variance that the mean over images of each image's own share has (as `CorruptionResult.mean_interval`).
        """
        if len(self.severities) < 5 or len(self.names) < count:
            return None
        if count == 15 and self.names[14] != CORRUPTED_MAIN:
            return None
        some = self.correct[:count]
        mean, n = int(some.sum()) / some.size, some.shape[2]
        variance = float(some.mean((0, 1)).var())
        worth = n * (mean * (1 - mean) / variance if variance > 0 else 1.0)
        trials = max(n, min(some.size, int(worth)))
        return mean, interval(round(mean * trials), trials)


@dataclass
class RunRecord:
    """All that a report knows of a run.

    Attributes:
        path: the folder.
        name: of the folder.
        recipe_text: `recipe.yaml` as it is; empty where there is none.
        recipe: the same as a mapping.
        summary: `summary.json`; None while the run is not finished.
        metrics: the lines of `metrics.jsonl`.
        timing: the lines of `timing.jsonl`.
        evaluations: the one of the headline first.
        corruptions: likewise.
        analyses: by the file's name without its ending; arrays, and everything else of the record.
        classes: names, where the run knows them.
        problems: files that could not be read, a sentence each.
    """

    path: Path
    name: str
    recipe_text: str = ""
    recipe: JsonObject = field(default_factory=dict)
    summary: JsonObject | None = None
    metrics: list[JsonObject] = field(default_factory=list)
    timing: list[JsonObject] = field(default_factory=list)
    evaluations: list[StoredEvaluation] = field(default_factory=list)
    corruptions: list[StoredCorruptions] = field(default_factory=list)
    analyses: dict[str, dict[str, Any]] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def class_name(self, number: int) -> str:
        """What a class is called: its name, or its number."""
        return self.classes[number] if 0 <= number < len(self.classes) else str(number)

    @property
    def threat(self) -> str:
        """The ball of training as text; empty where it is not known."""
        return str((self.summary or {}).get("threat") or self.recipe.get("threat") or "")


def read_run(path: Path) -> RunRecord:
    """Everything in a run folder that a report shows.

    Raises:
        ValueError: the folder holds neither a recipe nor an evaluation.
    """
    if not path.is_dir():
        raise UsageError(
            f"there is no folder {path}; give a run folder, the ",
            Option("out"),
            " of a ",
            Command("train"),
            ", or a study",
        )
    found = sorted(path.glob("evaluation/*/result.json"))
    results = [result for result in found if not files.is_set_aside(result.parent)]
    if not (path / "recipe.yaml").is_file() and not results:
        raise ValueError(f"{path} is no run folder: it has no recipe.yaml and no evaluation; give a run or a study")
    run = RunRecord(path, os.path.basename(os.path.realpath(path)))
    run.recipe_text = _read(run, path / "recipe.yaml", lambda file: files.read_limited(file).decode()) or ""
    run.recipe = _read(run, path / "recipe.yaml", _yaml) or {}
    run.summary = _read(run, path / "summary.json", _mapping)
    run.metrics = _read(run, path / "metrics.jsonl", files.read_lines) or []
    run.timing = _read(run, path / "timing.jsonl", files.read_lines) or []
    run.classes = _read(run, _newest_state(path), _classes) or []
    for result in results:
        found = _read(run, result, _evaluation)
        if isinstance(found, StoredEvaluation):
            run.evaluations.append(found)
        elif found is not None:
            run.corruptions.append(found)
    run.evaluations.sort(key=lambda found: _strength(found, run.threat))
    run.corruptions.sort(key=lambda found: (-found.correct.size, found.folder))
    for file in sorted(path.glob("analysis/*")):
        if file.suffix in (".json", ".npz") and (kind := _kind(file.stem)):
            analysis = _read(run, file, lambda file, kind=kind: _analysis(file, ANALYSES[kind]))
            if analysis is not None:
                run.analyses[file.stem] = analysis
    return run


def _read(run: RunRecord, path: Path, reader: Callable[[Path], Any]) -> Any:
    """What `reader` makes of a file; None where there is none, or it is not what it should be."""
    if not path.is_file():
        return None
    try:
        return reader(path)
    except Exception as error:  # noqa: BLE001  # damaged and hostile files make their readers raise anything
        where = path.relative_to(run.path).as_posix()
        # The same folder elsewhere must give the same page, so no path above it is named.
        why = str(error).replace(str(path), path.name).replace(str(run.path), run.name)
        run.problems.append(f"{where} could not be read ({type(error).__name__}: {why}) and is left out.")
        return None


def _mapping(path: Path) -> JsonObject:
    value = files.read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object")
    return value


def _yaml(path: Path) -> JsonObject:
    import yaml

    try:
        text = files.read_limited(path).decode()
        # A few lines of aliases may unfold into a text without end.
        depth = 0
        for token in yaml.scan(text):
            depth += type(token).__name__.endswith("StartToken") - type(token).__name__.endswith("EndToken")
            if isinstance(token, yaml.AliasToken) or depth > DEEPEST:
                raise ValueError(f"{path} has aliases, or is nested more than {DEEPEST} deep")
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no mapping")
    return value


def _newest_state(path: Path) -> Path:
    states = sorted(path.glob("checkpoints/step-*/state.json"), key=lambda file: int(re.sub(r"\D", "", file.parts[-2])))
    return states[-1] if states else path / "checkpoints"


def _classes(path: Path) -> list[str]:
    return [str(name) for name in files.read_json(path)["data"]["classes"]]


def _evaluation(path: Path) -> StoredEvaluation | StoredCorruptions:
    about = files.read_json(path)
    if about["suite"] == "corruptions":
        return _corrupted(path, about)
    outcomes = Outcomes.read(path.with_name("examples.parquet"))
    numbers = {name: getattr(outcomes, name) for name in ("n", "clean_accuracy", "robust_accuracy")}
    stated = {name: about[name] for name in numbers}
    if min(outcomes.label.min(), outcomes.prediction.min()) < 0:
        raise ValueError("examples.parquet beside it holds a class below 0")
    if stated != numbers:
        raise ValueError(f"it says {stated}, but examples.parquet beside it says {numbers}")
    return StoredEvaluation(path.parent.name, about, outcomes)


def _corrupted(path: Path, about: JsonObject) -> StoredCorruptions:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path.with_name("examples.parquet")) as file:
        table = file.read(columns=["corruption", "severity", "label", "prediction"])
    names = list(dict.fromkeys(str(name) for name in table["corruption"].to_pylist()))
    severities = sorted(set(table["severity"].to_pylist()) - {0})
    right = np.asarray(table["label"].to_pylist()) == np.asarray(table["prediction"].to_pylist())
    names.remove("clean")
    cells = right.reshape(1 + len(names) * len(severities), -1)
    # A row for each cell and image, cell after cell, the clean images first: as CorruptionResult writes them.
    correct = cells[1:].reshape(len(names), len(severities), -1)
    return StoredCorruptions(path.parent.name, about, tuple(names), tuple(severities), cells[0], correct)


def _strength(found: StoredEvaluation, threat: str) -> tuple[Any, ...]:
    """Sorts the evaluation that a headline quotes to the front: in the ball of training, the strongest, the largest."""
    attacks = found.outcomes.attacks
    worst = [attack for attack in attacks if not found.outcomes.aside[found.outcomes.attack == attack].any()]
    strong = sum(attack.startswith(("apgd", "fab", "square", "multi")) for attack in worst)
    same = str(found.result.get("threat")) == threat
    return not same, -strong, -found.outcomes.n, -len(worst), found.folder


def _kind(stem: str) -> str | None:
    """Which of `ANALYSES` a file is, by its name."""
    if stem.startswith("radii-"):
        return "pictures"
    return next((kind for kind in ANALYSES if stem == kind or stem.startswith(f"{kind}-")), None)


def _analysis(path: Path, wanted: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """Record and arrays of a .json or .npz file of `evaluation.records`, the arrays that are drawn checked."""
    if path.suffix == ".json":
        found = dict(files.read_json(path))
    else:
        try:
            check_zip(path)
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                stored = dict(arrays)
            record = files.decode(stored.pop("record").tobytes(), path)
        except (zipfile.BadZipFile, EOFError) as error:
            raise ValueError(f"not an .npz file of toughen's ({error})") from None
        found = {**record, **stored}
    sizes: dict[str, int] = {}
    for name, (kind, dimensions) in wanted.items():
        array = np.asarray(found[name])
        if array.ndim != len(dimensions) or array.dtype.kind not in (kind, "i" if kind == "f" else kind):
            raise ValueError(f"{name} is {array.dtype} {array.shape}; it must be {kind} ({', '.join(dimensions)})")
        for letter, size in zip(dimensions, array.shape, strict=True):
            if sizes.setdefault(letter, size) != size or not size:
                raise ValueError(f"{name} has shape {array.shape}, which does not fit the other arrays")
        if kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} holds numbers that are not finite")
        found[name] = array
    return found
