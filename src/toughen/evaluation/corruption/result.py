"""The result of a measurement under common corruptions: every prediction, and the numbers recomputed from them.

    found = CorruptionResult.read(Path("runs/mine/evaluation/corruptions"))
    found.mean(MAIN), found.mean(CORRUPTIONS)                # over the 15 that most papers report, and over all 19
    found.accuracy("fog", 3), found.clean_accuracy
    mean_corruption_error(found, baseline=Path("runs/natural/evaluation/corruptions/result.json"))

Source: Hendrycks & Dietterich 2019, "Benchmarking neural network robustness to common corruptions and perturbations".
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from toughen.corruptions import CORRUPTIONS, MAIN, SEVERITIES
from toughen.evaluation.result import EXAMPLES, RESULT
from toughen.outcomes import CLEAN, interval
from toughen.settings import known
from toughen.storage import files

if TYPE_CHECKING:
    import pyarrow as pa

ALEXNET = "alexnet"

ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""AlexNet's error on ImageNet-C, mean over the five severities (the authors' code, ImageNet-C/test.py)."""

IMAGENET_CLASSES = 1000


@dataclass(frozen=True, eq=False)
class CorruptionResult:
    """What `corruption_accuracy` found.

    Args:
        corruptions: K names, in the papers' order.
        severities: S of 1 to 5, ascending.
        label: true classes (N,).
        clean: classes predicted on the images themselves, (N,).
        prediction: classes predicted on the corrupted images, (K, S, N).
        classes: number of the model's logits.
        origin: whether the corrupted images were made here or are the published ones.
        constants: strengths of the corruptions, "cifar" or "imagenet"; None for published images.
        seed: of the corruptions' random draws.
        seconds: wall-clock time.
        notes: what a reader should know.
        device: where it ran.
        torch: version of torch.
        identity: what this is a measurement of, for a folder that is asked for another one (see `resume`).
    """

    corruptions: tuple[str, ...]
    severities: tuple[int, ...]
    label: np.ndarray
    clean: np.ndarray
    prediction: np.ndarray
    classes: int
    origin: Literal["generated", "published"]
    constants: str | None
    seed: int
    seconds: float
    notes: tuple[str, ...]
    device: str
    torch: str
    identity: dict[str, Any]

    @property
    def n(self) -> int:
        """Images measured."""
        return len(self.label)

    @property
    def correct(self) -> np.ndarray:
        """Whether a corrupted image is classified correctly, (K, S, N)."""
        return self.prediction == self.label

    @property
    def clean_accuracy(self) -> float:
        """Share of the images themselves that are classified correctly."""
        return int((self.clean == self.label).sum()) / self.n

    def accuracy(self, corruption: str, severity: int | None = None) -> float:
        """Share of the images classified correctly under a corruption, at one severity or over those measured.

        Raises:
            ValueError: it was not measured.
        """
        known(corruption, self.corruptions, "corruption of this result")
        if severity is not None and severity not in self.severities:
            measured = ", ".join(map(str, self.severities))
            raise ValueError(f"severity {severity} was not measured, but {measured}")
        some = self.correct[self.corruptions.index(corruption)]
        if severity is not None:
            some = some[self.severities.index(severity)]
        return int(some.sum()) / some.size

    def missing(self, names: Sequence[str]) -> str | None:
        """What a mean over corruptions at all five severities lacks, as a clause; None where it lacks nothing."""
        lost = [name for name in names if name not in self.corruptions]
        levels = [str(severity) for severity in SEVERITIES if severity not in self.severities]
        parts = [f"{what} {', '.join(some)}" for what, some in (("no", lost), ("no severity", levels)) if some]
        return f"{' and '.join(parts)} was measured" if parts else None

    def mean(self, names: Sequence[str]) -> float | None:
        """Mean accuracy over corruptions at all five severities, such as `MAIN`; None where not all were measured."""
        if self.missing(names):
            return None
        some = self._correct_under(names)
        return int(some.sum()) / some.size

    def mean_interval(self, names: Sequence[str]) -> tuple[float, float] | None:
        """95 % interval of `mean`, over the draw of the images.

        The same images stand behind every cell, so N S K predictions are worth fewer independent ones: as many as have
        the variance that the mean over images of each image's own share has. Wilson's interval of those; N of them
        where all images have one share.
        """
        mean = self.mean(names)
        if mean is None:
            return None
        some = self._correct_under(names)
        variance = float(some.mean((0, 1)).var())
        worth = self.n * (mean * (1 - mean) / variance if variance > 0 else 1.0)
        count = max(self.n, min(some.size, math.floor(worth)))
        return interval(round(mean * count), count)

    def _correct_under(self, names: Sequence[str]) -> np.ndarray:
        return self.correct[[self.corruptions.index(name) for name in names]]

    def errors(self, name: str) -> int:
        """Misclassified images under a corruption, over the severities measured."""
        return int((~self.correct[self.corruptions.index(name)]).sum())

    def summary(self) -> dict[str, Any]:
        """Everything but the predictions, in JSON's types; accuracies are fractions, `mce` is in per cent."""
        hits = int((self.clean == self.label).sum())
        return {
            "suite": "corruptions",
            "n": self.n,
            "classes": self.classes,
            "origin": self.origin,
            "constants": self.constants,
            "seed": self.seed,
            "clean_accuracy": hits / self.n,
            "clean_interval": list(interval(hits, self.n)),
            "severities": list(self.severities),
            "corruptions": [self._row(name, hits) for name, hits in zip(self.corruptions, self.correct, strict=True)],
            "mean_15": self._mean(MAIN),
            "mean_19": self._mean(CORRUPTIONS),
            "mce": asdict(mean_corruption_error(self)),
            "notes": list(self.notes),
            "seconds": self.seconds,
            "device": self.device,
            "torch": self.torch,
            "identity": self.identity,
        }

    def _row(self, name: str, correct: np.ndarray) -> dict[str, Any]:
        counts = correct.sum(1).tolist()
        return {
            "corruption": name,
            "accuracy": sum(counts) / correct.size,
            "cells": [
                {"severity": severity, "correct": k, "accuracy": k / self.n, "interval": list(interval(k, self.n))}
                for severity, k in zip(self.severities, counts, strict=True)
            ],
        }

    def _mean(self, names: Sequence[str]) -> dict[str, Any]:
        ends = self.mean_interval(names)
        return {"accuracy": self.mean(names), "interval": ends and list(ends), "missing": self.missing(names)}

    def write(self, folder: Path) -> None:
        """Write `examples.parquet`, a row for each cell and image, and, last, `result.json`: whole or not at all.

        Raises:
            OSError: the folder cannot be made or written.
        """
        import pyarrow.parquet as pq

        folder.mkdir(parents=True, exist_ok=True)
        files.replace_by(folder / EXAMPLES, lambda path: pq.write_table(self._table(), path, compression="zstd"))
        files.write_json(folder / RESULT, self.summary())

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The result in a folder.

        Raises:
            OSError: a file cannot be read.
            ValueError: one of the two files is not what `write` wrote, or they do not belong together.
        """
        import pyarrow.parquet as pq

        stored = files.read_json(folder / RESULT)
        if not isinstance(stored, dict) or stored.get("suite") != "corruptions":
            raise ValueError(f"{folder / RESULT} is no result of the suite corruptions")
        # Not pq.read_table, which reads further columns out of folder names such as seed=0.
        with pq.ParquetFile(folder / EXAMPLES) as file:
            table = file.read()
        try:
            same = ("classes", "origin", "constants", "seed", "seconds", "device", "torch", "identity")
            names = tuple(row["corruption"] for row in stored["corruptions"])
            shape = (1 + len(names) * len(stored["severities"]), stored["n"])
            label, prediction = (table[name].to_numpy().reshape(shape) for name in ("label", "prediction"))
            found = cls(
                corruptions=names,
                severities=tuple(stored["severities"]),
                label=label[0],
                clean=prediction[0],
                prediction=prediction[1:].reshape(len(names), len(stored["severities"]), -1),
                notes=tuple(stored["notes"]),
                **{name: stored[name] for name in same},
            )
            recomputed = json.loads(json.dumps(found.summary()))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder} holds no result of the suite corruptions: {error!r}") from None
        if recomputed != stored or not found._table().equals(table):
            raise ValueError(f"{folder / RESULT} does not follow from {EXAMPLES} beside it; measure again elsewhere")
        return found

    def _table(self) -> "pa.Table":
        import pyarrow as pa

        cells = [(CLEAN, 0), *product(self.corruptions, self.severities)]
        words = [CLEAN, *self.corruptions]
        code = np.repeat([words.index(name) for name, _ in cells], self.n).astype(np.int8)
        prediction = np.concatenate([self.clean[None], self.prediction.reshape(-1, self.n)])
        columns = {
            "corruption": pa.DictionaryArray.from_arrays(pa.array(code), words),
            "severity": np.repeat([severity for _, severity in cells], self.n).astype(np.int8),
            "index": np.tile(np.arange(self.n), len(cells)),
            "label": np.tile(self.label.astype(np.int64), len(cells)),
            "prediction": prediction.astype(np.int64).ravel(),
            "correct": (prediction == self.label).ravel(),
        }
        return pa.table({name: pa.array(column) for name, column in columns.items()})


@dataclass(frozen=True)
class MeanCorruptionError:
    """The mean corruption error, or why there is none.

    Args:
        value: mCE in per cent: 100 is as many errors as the baseline's. None where there is none.
        baseline: whose errors it is divided by.
        unnormalised: mean error over the 15 corruptions in per cent; None where not all were measured.
        why: why there is no mCE, or what to know about it.
    """

    value: float | None
    baseline: str | None
    unnormalised: float | None
    why: str | None


def mean_corruption_error(
    result: CorruptionResult, baseline: CorruptionResult | Path | str | None = None
) -> MeanCorruptionError:
    """mCE = 100 mean_c (sum_s E_s,c / sum_s E^baseline_s,c) over the 15 corruptions c and five severities s.

    Source: Hendrycks & Dietterich 2019, section 4.

    Args:
        result: of the model.
        baseline: "alexnet", whose errors are known for ImageNet alone; or the result of another model on the same
            images, or its folder or result.json. Default: AlexNet for 1,000 classes, else none.

    Raises:
        ValueError: AlexNet's errors do not fit, or the baseline was measured on other images, has no errors to divide
            by, or cannot be read.
    """
    missing, mean = result.missing(MAIN), result.mean(MAIN)
    unnormalised = None if mean is None else 100 * (1 - mean)
    imagenet = result.classes == IMAGENET_CLASSES
    if baseline == ALEXNET and not imagenet:
        raise ValueError(
            f"AlexNet's errors are those on ImageNet's 1,000 classes, and this model has {result.classes}; give the "
            "result.json of another model on the same images as baseline"
        )
    if missing:
        return MeanCorruptionError(None, None, None, f"mCE is over 15 corruptions at five severities, and {missing}")
    if baseline is None and not imagenet:
        return MeanCorruptionError(
            None,
            None,
            unnormalised,
            f"mCE divides by another model's errors; AlexNet's are those on ImageNet's 1,000 classes, and this model "
            f"has {result.classes}: name a baseline",
        )
    cells = result.n * len(SEVERITIES)
    if baseline is None or baseline == ALEXNET:
        errors, name = {key: value * cells for key, value in ALEXNET_ERRORS.items()}, "AlexNet on ImageNet-C"
        generated = "AlexNet's errors are those on the published images, and these were generated"
        why = generated if result.origin == "generated" else None
    else:
        other, name = open_baseline(baseline)
        _check_baseline(result, other, name)
        errors, why = {key: other.errors(key) for key in MAIN}, None
    ratios = [result.errors(key) / errors[key] for key in MAIN]
    return MeanCorruptionError(100 * sum(ratios) / len(ratios), name, unnormalised, why)


def open_baseline(baseline: CorruptionResult | Path | str) -> tuple[CorruptionResult, str]:
    """A result to compare with, or that of a folder or its result.json, and what it is called.

    Raises:
        ValueError: it is no result of the suite corruptions.
    """
    if isinstance(baseline, CorruptionResult):
        return baseline, f"model {baseline.identity['model'][:8]}"
    path = Path(baseline)
    folder = path.parent if path.name == RESULT else path
    if not (folder / RESULT).is_file():
        raise ValueError(f"baseline {path} is no result.json of the suite corruptions; give {ALEXNET} or such a file")
    other = CorruptionResult.read(folder)
    return other, f"{path} (model {other.identity['model'][:8]})"


def _check_baseline(result: CorruptionResult, other: CorruptionResult, name: str) -> None:
    if missing := other.missing(MAIN):
        raise ValueError(f"baseline {name} is no baseline of an mCE: {missing}")
    if _images(other) != _images(result):
        raise ValueError(f"baseline {name} was measured on other images, or others corrupted; measure both on the same")
    perfect = [key for key in MAIN if not other.errors(key)]
    if perfect:
        raise ValueError(f"baseline {name} makes no error under {', '.join(perfect)}, and no ratio to it can be formed")


def _images(result: CorruptionResult) -> tuple[Any, ...]:
    """What tells the images of a result, clean and under the 15 corruptions, from all others."""
    made = result.identity["settings"]["images"]
    some = [made[name] for name in MAIN] if result.origin == "published" else (result.constants, result.seed)
    return result.identity["data"], result.origin, some
