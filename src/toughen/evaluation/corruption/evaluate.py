"""Accuracy under common corruptions: noise, blur, weather and digital faults at five severities.

    found = corruption_accuracy(model, test.images, test.labels, folder=Path("corruptions"))
    found.mean(MAIN), found.mean(CORRUPTIONS), found.accuracy("fog", 3)
    mean_corruption_error(found, baseline=Path("natural/corruptions/result.json"))

Source: Hendrycks & Dietterich 2019, "Benchmarking neural network robustness to common corruptions and perturbations".
The corrupted images are made here (`toughen.corruptions`) or read from the sets that the authors published. With a
folder, a measurement that was killed goes on where it was: a corruption at a severity is the unit of work.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toughen.corruptions import CORRUPTIONS, SEVERITIES, constants_for, corrupt
from toughen.corruptions.constants import SETS
from toughen.corruptions.published import Published, open_published
from toughen.data.base import Examples, Split, fingerprint
from toughen.evaluation.corruption.result import CorruptionResult, MeanCorruptionError, mean_corruption_error
from toughen.evaluation.result import RESULT
from toughen.evaluation.resume import UNITS, Ledger, check_folder
from toughen.evaluation.time_left import Progress, Status
from toughen.models.batched import out_of_memory
from toughen.models.identity import hash_model, hash_tensor, identity_of, refuse_other
from toughen.models.inputs import check_examples, check_labels
from toughen.models.prepared import PreparedModel, chunks, prepared
from toughen.modes import plain
from toughen.outcomes import CLEAN
from toughen.parallel import ranks
from toughen.settings import known
from toughen.storage import files

__all__ = ["CorruptionResult", "MeanCorruptionError", "corruption_accuracy", "mean_corruption_error"]

Cell = tuple[str, int]
"""A corruption and a severity; (CLEAN, 0) are the images themselves."""

Maker = Callable[[str, int, Tensor], Tensor]
"""(corruption, severity, rows (M,)) -> images (M, C, H, W) uint8"""

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
    progress: Progress | None = None,
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
        folder: where finished cells and the result are kept. A folder with the same measurement, begun or done, is gone
            on with; one with another, or with other files, is refused.
        shared: the ranks of the process group share the cells; all of them call with the same arguments and get the
            whole result.
        progress: called after every pass with a `Status`.
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
    started, model = time.perf_counter(), plain(model)
    names, levels = _chosen(corruptions, severities)
    if folder is not None:
        check_folder(folder, shared=shared)
    data = Split(images, labels.cpu().long()) if isinstance(images, Tensor) else images
    if not len(data):
        raise ValueError("there are no images to evaluate; give at least one")
    first = data.take(torch.arange(1)).images
    y, ids = check_examples(first.expand(len(data), -1, -1, -1), labels, index, batch_size)
    source = _opened(published, y, None if index is None else ids) if published is not None else None
    if source is not None:
        _check_published(source, names, constants)
        made: Any = {name: _sampled(source, name, levels, first, ids) for name in names}
    else:
        made = constants = known(constants or constants_for(first.shape[-2:]), SETS, "set of constants")
    identity = identity_of(
        model=hash_model(model),
        data=f"{fingerprint({'test': data})} {hash_tensor(*([y] if index is None else [y, ids]))}",
        settings={"corruptions": names, "severities": levels, "images": made},
        seed=seed,
    )
    if folder is not None and _is_done(folder, shared):
        refuse_other(folder, files.read_json(folder / RESULT).get("identity", {}), identity)
        files.delete(folder / UNITS)
        return CorruptionResult.read(folder)

    def make(name: str, severity: int, some: Tensor) -> Tensor:
        if name == CLEAN:
            return data.take(some).images
        if source is not None:
            return source.take(name, severity, ids[some]).images
        return corrupt(data.take(some).images, name, severity, constants=constants, seed=seed, ids=ids[some])

    with ExitStack() as stack:
        subject = stack.enter_context(prepared(model, first, y[:1], batch_size))
        check_labels(y, len(y), subject.classes)
        ledger = stack.enter_context(Ledger.open(folder, identity, keep=None, shared=shared))
        worker = Worker(subject, make, y, ledger, progress)
        cells: list[Cell] = [(CLEAN, 0), *product(names, levels)]
        predictions = worker.run(cells, shared)
        found = CorruptionResult(
            corruptions=names,
            severities=levels,
            label=y.numpy(),
            clean=predictions[0],
            prediction=predictions[1:].reshape(len(names), len(levels), len(y)),
            classes=subject.classes,
            origin="generated" if source is None else "published",
            constants=constants,
            seed=seed,
            seconds=time.perf_counter() - started + worker.earlier,
            notes=(*notes, *worker.notes),
            device=str(subject.device),
            torch=torch.__version__,
            identity=identity,
        )
        if folder is not None and (not shared or ranks.is_main()):
            found.write(folder)
            ledger.finish()
    return found


@dataclass
class Worker:
    """Predicts cell by cell.

    Attributes:
        earlier: seconds that cells took which an earlier process finished.
        notes: what a reader of the result should know.
    """

    subject: PreparedModel
    make: Maker
    label: Tensor
    ledger: Ledger
    progress: Progress | None
    earlier: float = 0.0

    def __post_init__(self) -> None:
        self.notes: list[str] = []

    def run(self, cells: Sequence[Cell], shared: bool) -> np.ndarray:
        """Predicted classes of all cells, (cells, N), each cell once by one of the ranks."""
        rank, world = (ranks.rank(), ranks.world()) if shared else (0, 1)
        parts = {number: self._cell(cells[number], number, len(cells)) for number in range(rank, len(cells), world)}
        if world > 1:
            for others, notes in ranks.from_every((parts, self.notes)):
                parts |= others
                self._note(notes)
        return np.stack([parts[number] for number in range(len(cells))])

    def _cell(self, cell: Cell, number: int, total: int) -> np.ndarray:
        key = "-".join(map(str, cell))
        stored = self._get(key)
        if stored is not None:
            self.earlier += stored["seconds"]
            self._note(stored["notes"])
            return np.array(stored["prediction"])
        started, size = time.perf_counter(), self.subject.model.size
        try:
            prediction = self._predicted(cell, key, f"{key} ({number + 1} of {total})")
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise ValueError(
                "EV242 Out of memory, and passes of fewer images do not help: give a smaller batch_size, a smaller "
                "model or more memory; finished corruptions are kept where there is a folder"
            ) from error
        notes = []
        if self.subject.model.size < size:
            notes.append(
                f"EV241 Out of memory with {size} images in a pass; continued with {self.subject.model.size}. "
                "Logits may differ by 1e-6 from those of an undisturbed measurement."
            )
            self._note(notes)
        self._put(key, {"prediction": prediction.tolist(), "seconds": time.perf_counter() - started, "notes": notes})
        return prediction

    def _predicted(self, cell: Cell, key: str, shown: str) -> np.ndarray:
        """Classes (N,) by one pass of each image."""
        parts: list[Tensor] = []
        right, n = 0, len(self.label)
        for rows in chunks(n, self.subject.model.size):
            x = self.subject.images(self.make(*cell, rows))
            parts.append(self.subject.predict(x, ids=rows, under=CLEAN if cell[0] == CLEAN else key).argmax(1).cpu())
            right += int((parts[-1] == self.label[rows]).sum())
            if self.progress is not None:
                done = int(rows[-1]) + 1
                # No time left: what a cell costs differs between corruptions more than a forecast could hide.
                self.progress(Status(shown, done, n, right / done, None))
        return torch.cat(parts).numpy()

    def _note(self, notes: Sequence[str]) -> None:
        self.notes += [note for note in notes if note not in self.notes]

    def _get(self, key: str) -> dict[str, Any] | None:
        """A finished cell; None where it is not done, or its file is not what was written."""
        if self.ledger.folder is None:
            return None
        # A file that rotted is worth its cell's work, no more.
        with suppress(OSError, ValueError, LookupError, TypeError):
            stored = files.read_json(self.ledger.folder / UNITS / f"{key}.json")
            if stored["seal"] == _seal(stored["cell"]) and len(stored["cell"]["prediction"]) == len(self.label):
                return stored["cell"]
        return None

    def _put(self, key: str, cell: dict[str, Any]) -> None:
        if self.ledger.folder is not None:
            files.write_json(self.ledger.folder / UNITS / f"{key}.json", {"cell": cell, "seal": _seal(cell)})


def _seal(cell: dict[str, Any]) -> str:
    return hashlib.sha256(files.encode(cell)).hexdigest()


def _is_done(folder: Path, shared: bool) -> bool:
    """Whether a folder holds a result; what the first rank sees where they share the work."""
    done = (folder / RESULT).exists()
    return ranks.from_main(done) if shared else done


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
