"""Accuracy under common corruptions: noise, blur, weather and digital faults at five severities.

    found = corruption_accuracy(model, test.images, test.labels, folder=Path("corruptions"))
    found.mean(MAIN), found.mean(CORRUPTIONS), found.accuracy("fog", 3)
    mean_corruption_error(found, baseline=Path("natural/corruptions/result.json"))

Source: Hendrycks & Dietterich 2019, "Benchmarking neural network robustness to common corruptions and perturbations".
The corrupted images are made here (`toughen.corruptions`) or read from the sets that the authors published. With a
folder, a measurement that was killed goes on where it was, by the runner of the attack evaluation: a corruption at a
severity is a stage of it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toughen.corruptions import CORRUPTIONS, SEVERITIES, check_corruptible, constants_for, corrupt
from toughen.corruptions.constants import SETS
from toughen.corruptions.published import Published, open_published
from toughen.data.base import Examples, Split, fingerprint
from toughen.evaluation.corruption.result import CorruptionResult, MeanCorruptionError, mean_corruption_error
from toughen.evaluation.plan import Stage
from toughen.evaluation.resume import FinishedUnits, check_folder, is_finished, recognised
from toughen.evaluation.runner import Runner, default_chunk_size, memory_explained
from toughen.evaluation.time_left import Cost, StatusCallback, watching
from toughen.evaluation.work_unit import UnitResult, classified
from toughen.models.adapted import as_module
from toughen.models.batched import Batched
from toughen.models.cost import counted
from toughen.models.hashes import hash_model, hash_tensor
from toughen.models.identity import answers_of, identity_of
from toughen.models.inputs import as_labels, check_classes, check_examples
from toughen.models.prepared import PreparedModel, prepared
from toughen.outcomes import CLEAN
from toughen.parallel import ranks
from toughen.settings import known

__all__ = ["CorruptionResult", "MeanCorruptionError", "corruption_accuracy", "mean_corruption_error"]

ImageMaker = Callable[[str, int, Tensor], Tensor]
"""(corruption or CLEAN, severity, positions (M,)) -> images (M, C, H, W) uint8"""

SAMPLED = 8
"""Images of every published cell by which a folder knows the set again: to read all takes as long as the work."""


def corruption_accuracy(
    model: nn.Module,
    images: Tensor | Examples,
    labels: Tensor,
    *,
    corruptions: Sequence[str] = CORRUPTIONS,
    severities: Sequence[int] = SEVERITIES,
    constants: str | None = None,
    published: Path | None = None,
    seed: int = 0,
    batch_size: int = 250,
    folder: Path | None = None,
    shared: bool = False,
    progress: StatusCallback | None = None,
    index: Tensor | None = None,
    notes: Sequence[str] = (),
) -> CorruptionResult:
    """Accuracy on the images and on every corruption of them at every severity.

    Each image is run forward once as it is and once in each cell. Parameters are frozen and the model is in inference
    mode throughout; both are restored, and the global random state is not touched. Computation is in float32 (float64
    for a float64 model) without autocast.

    Args:
        model: classifier of images in [0, 1], (N, C, H, W) -> logits (N, K), on the device of its parameters.
        images: (N, C, H, W) uint8, or a split, of which some at a time are decoded.
        labels: classes (N,).
        corruptions: names from `CORRUPTIONS`; the means need the 15 or the 19.
        severities: of 1 to 5; the means need all five.
        constants: strengths, "cifar" or "imagenet"; by the size of the images by default (see `corrupt`).
        published: folder of CIFAR-10-C, CIFAR-100-C or ImageNet-C, whose images are read in place of corrupting
            `images`; these are then the test images that they were made from, in the same order.
        seed: of the corruptions' random draws, which belong to an image's position.
        batch_size: images per pass, at least 1. Halved, and said so, where memory runs out.
        folder: where finished work and the result are kept. A folder with the same measurement, begun or done, is gone
            on with; one with another, or with other files, is refused.
        shared: the ranks of the process group share the images; all of them call with the same arguments and get the
            whole result.
        progress: called about once a second and after every unit of work with a `Status`.
        index: positions of the images in the whole test set (N,), where they are some of it: then they are corrupted,
            or found in a published set, as they are there. Default: 0 to N - 1.
        notes: what a reader of the result should know besides.

    Returns:
        The predictions and what was measured.

    Raises:
        ValueError: for arguments that do not fit each other or the model; for a published set that is damaged, in
            another order, or lacks a corruption; for NaN or infinite logits (EV203); where memory runs out with a
            single image in a pass (EV242); for a folder of another measurement (EV271).
        Locked: another process writes the folder.
    """
    started = time.perf_counter()
    model = as_module(model, kept="give a torch.nn.Module, or leave folder out" if folder is not None else "")
    names, levels = _chosen(corruptions, severities)
    if folder is not None:
        check_folder(folder, shared=shared)
    data = Split(images, as_labels(labels, len(images)).cpu()) if isinstance(images, Tensor) else images
    if not len(data):
        raise ValueError("there are no images to evaluate; give at least one")
    first = data.take(torch.arange(1)).images
    y, ids = check_examples(first.expand(len(data), -1, -1, -1), labels, index, batch_size)
    source = _opened(published, y, None if index is None else ids) if published is not None else None
    if source is not None:
        _check_published(source, names, constants)
        made: Any = {name: _sampled(source, name, levels, first, ids) for name in names}
    else:
        check_corruptible(first)
        made = constants = known(constants or constants_for(first.shape[-2:]), SETS, "set of constants")
    identity = identity_of(
        model=hash_model(model),
        data=f"{fingerprint({'test': data})} {hash_tensor(*([y] if index is None else [y, ids]))}",
        settings={"corruptions": names, "severities": levels, "images": made},
        seed=seed,
    )
    chunk_size = default_chunk_size(batch_size, first.numel())
    chunk = data.take(torch.arange(min(len(y), chunk_size))).images if folder is not None else first
    look = partial(answers_of, {"model": (model, chunk)}, batch_size=batch_size)
    claimed = recognised(folder, identity, look, shared=shared)
    if folder is not None and is_finished(folder, shared=shared):
        return CorruptionResult.read(folder)

    def make(name: str, severity: int, some: Tensor) -> Tensor:
        if name == CLEAN:
            return data.take(some).images
        if source is not None:
            return source.take(name, severity, ids[some]).images
        return corrupt(data.take(some).images, name, severity, constants=constants, seed=seed, ids=ids[some])

    with memory_explained("give a smaller model or more memory"), prepared(model, first, y[:1], batch_size) as subject:
        check_classes(y, subject.classes)
        everyone = torch.arange(len(y))
        stages = [CorruptionStage(f"{name}-{level}", everyone, name, level) for name, level in product(names, levels)]
        forecast = {stage.label: Cost(1, 1.0, alone=True) for stage in stages}
        with (
            FinishedUnits.open(folder, claimed, keep=None, shared=shared) as finished,
            counted(subject.model.model) as passes,
            watching({subject.model.model}, progress, lambda: forecast, len(y), passes) as watch,
        ):
            # Each rank gets some of every cell.
            chunk_size = min(chunk_size, -(-len(y) // (ranks.world() if shared else 1)))
            runner = Runner(CorruptionTask(subject, make, y, ids, seed), finished, chunk_size, shared, watch)
            clean, *cells = (part.prediction for part in runner.run(lambda _: iter(stages)).parts)
            found = CorruptionResult(
                corruptions=names,
                severities=levels,
                label=y.numpy(),
                clean=clean,
                prediction=np.stack(cells).reshape(len(names), len(levels), len(y)),
                classes=subject.classes,
                origin="generated" if source is None else "published",
                constants=constants,
                seed=seed,
                seconds=time.perf_counter() - started + runner.earlier,
                notes=(*claimed.said, *notes, *subject.said, *runner.notes),
                device=str(subject.device),
                torch=torch.__version__,
                identity=finished.identity,
            )
            if folder is not None and (not shared or ranks.is_main()):
                found.write(folder)
                finished.finish()
    return found


@dataclass(frozen=True, eq=False)
class CorruptionStage(Stage):
    """Some of the images under a corruption at a severity.

    Args:
        label: see `Stage`.
        rows: see `Stage`.
        corruption: its name.
        severity: 1 to 5.
    """

    corruption: str
    severity: int


@dataclass(frozen=True, eq=False)
class CorruptionTask:
    """What is measured (see `runner.Task`).

    Args:
        subject: the classifier, ready to run.
        make: gives the images of some positions, as they are or corrupted.
        y: classes (N,) on the CPU.
        index: ids (N,) on the CPU.
        seed: of the corruptions' random draws.
    """

    subject: PreparedModel
    make: ImageMaker
    y: Tensor
    index: Tensor
    seed: int

    @property
    def models(self) -> tuple[Batched]:
        """The classifier, in pieces."""
        return (self.subject.model,)

    def clean(self, rows: Tensor) -> UnitResult:
        """The images at positions (M,) as they are."""
        return self._classified(CLEAN, 0, rows, CLEAN)

    def run(self, stage: CorruptionStage, rows: Tensor) -> UnitResult:
        """The images at positions (M,) under a stage's corruption."""
        return self._classified(stage.corruption, stage.severity, rows, stage.label)

    def _classified(self, corruption: str, severity: int, rows: Tensor, label: str) -> UnitResult:
        x = self.subject.images(self.make(corruption, severity, rows))
        aside = label != CLEAN
        return UnitResult(classified(self.subject, x, label, self.y[rows], self.index[rows], self.seed, aside=aside))


def _check_published(source: Published, names: Sequence[str], constants: str | None) -> None:
    """Refuse a published set that lacks what is asked for."""
    if constants is not None:
        raise ValueError(f"constants is {constants!r}, but published images are as they are; leave one of the two out")
    lost = [name for name in names if name not in source.names]
    if lost:
        raise ValueError(f"{source.folder} has no {', '.join(lost)}; give corruptions of {', '.join(source.names)}")


def _opened(folder: Path, labels: Tensor, index: Tensor | None) -> Published:
    """A published set whose labels are those of the images, the first ones or those at some positions."""
    if index is None:
        return open_published(folder, labels)
    source = open_published(folder)
    if len(source.labels) <= int(index.max()) or not torch.equal(source.labels[index], labels):
        raise ValueError(
            f"{folder} has other labels, or none, at the {len(index)} positions that are taken of the test images; "
            "give the corrupted set of these test images, in their order"
        )
    return source


def _sampled(source: Published, name: str, severities: Sequence[int], first: Tensor, ids: Tensor) -> str:
    """SHA-256 over some of the images of a corruption at every severity, which also finds what is not there."""
    rows = ids[:: -(-len(ids) // SAMPLED)]
    some = [source.take(name, severity, rows).images for severity in severities]
    theirs, ours = tuple(some[0].shape[1:]), tuple(first.shape[1:])
    if theirs != ours:
        raise ValueError(
            f"the images of {name} in {source.folder} are {theirs} (C, H, W), but the test images are {ours}; "
            "published images are not resized: give the set of these test images, or bring these to its size"
        )
    return hash_tensor(*some)


def _chosen(corruptions: Sequence[str], severities: Sequence[int]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Corruptions and severities in their own order, whatever order they are given in."""
    for name in corruptions:
        known(name, CORRUPTIONS, "corruption")
    for severity in severities:
        if isinstance(severity, bool) or severity not in SEVERITIES:
            raise ValueError(f"severity is {severity!r}; it must be 1, 2, 3, 4 or 5")
    for what, given in (("corruptions", corruptions), ("severities", severities)):
        if not given or len(set(given)) < len(given):
            raise ValueError(f"{what} are {list(given)}; give at least one, and each once")
    return tuple(n for n in CORRUPTIONS if n in corruptions), tuple(s for s in SEVERITIES if s in severities)
