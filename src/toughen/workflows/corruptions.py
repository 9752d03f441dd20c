"""Accuracy of a run, or of a model of one's own, under common corruptions of its test images.

Example:
    found, error, folder = measure_corruptions("runs/free", limit=1000)
    found.mean(MAIN), error.value
"""

from pathlib import Path

from toughen.corruptions import CORRUPTIONS
from toughen.corruptions.published import open_published
from toughen.errors import naming
from toughen.evaluation.corruption.evaluate import corruption_accuracy
from toughen.evaluation.corruption.result import (
    ALEXNET,
    CorruptionResult,
    MeanCorruptionError,
    mean_corruption_error,
    open_baseline,
)
from toughen.evaluation.time_left import StatusCallback
from toughen.parallel import ranks
from toughen.workflows.evaluated_images import limited
from toughen.workflows.model_sources import ModelSource, folder_of, open

SUITE = "corruptions"


@naming(size="size")
def measure_corruptions(
    source: ModelSource | Path | str,
    *,
    limit: int | None = None,
    published: Path | None = None,
    baseline: str | None = None,
    batch_size: int = 250,
    seed: int = 0,
    out: Path | None = None,
    progress: StatusCallback | None = None,
) -> tuple[CorruptionResult, MeanCorruptionError, Path]:
    """Measure a run or a model on the corrupted test split, into a folder from which the same call goes on.

    Under torchrun the ranks share the corruptions. Of a published set, the corruptions that are there are measured.

    Args:
        source: the model and how it is fed; a text or path alone says what it is.
        limit: only so many test images, see `limited`.
        published: folder of CIFAR-10-C, CIFAR-100-C or ImageNet-C; by default the corrupted images are made.
        baseline: of the mCE, see `mean_corruption_error`.
        batch_size: images at a time.
        seed: of the corruptions' random draws.
        out: the folder; by default `evaluation/corruptions` in a run's folder, with what is unusual in its name.
        progress: see `corruption_accuracy`.

    Returns:
        The result, the mean corruption error and the folder the result lies in.

    Raises:
        ValueError: as for `open`, `corruption_accuracy` and `mean_corruption_error`.
    """
    if baseline not in (None, ALEXNET):
        # Before the work, which may take hours.
        open_baseline(baseline)
    opened = open(source)
    test, index, notes = limited(opened.test, limit)
    labels = test.labels if index is None else None
    names = CORRUPTIONS if published is None else open_published(published, labels).names
    kind = "published" if published is not None else ""
    into = out or folder_of(opened, SUITE, kind, images=len(test), seed=seed)
    with opened.joined():
        found = corruption_accuracy(
            opened.model,
            test,
            test.labels,
            corruptions=names,
            published=published,
            seed=seed,
            batch_size=batch_size,
            folder=into,
            shared=ranks.world() > 1,
            progress=progress,
            index=index,
            notes=[*opened.facts, *(f"{said}; i is its index in examples.parquet" for said in notes)],
        )
    return found, mean_corruption_error(found, baseline), into
