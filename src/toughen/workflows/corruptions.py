"""Accuracy of a run, or of a model of one's own, under common corruptions of its test images.

Example:
    found, error, folder = evaluate_corruptions("runs/free", limit=1000)
    found.mean(MAIN), error.value
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from toughen.corruptions import CORRUPTIONS
from toughen.corruptions.published import open_published
from toughen.evaluation.corruption.evaluate import corruption_accuracy
from toughen.evaluation.corruption.result import (
    ALEXNET,
    CorruptionResult,
    MeanCorruptionError,
    mean_corruption_error,
    open_baseline,
)
from toughen.evaluation.time_left import Progress
from toughen.parallel import ranks
from toughen.workflows.model_sources import limited, open_subject

SUITE = "corruptions"


def evaluate_corruptions(
    what: Path | str,
    *,
    limit: int | None = None,
    data: str | None = None,
    size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    checkpoint: str = "best",
    weights: str | None = None,
    published: Path | None = None,
    baseline: str | None = None,
    batch_size: int = 250,
    seed: int = 0,
    out: Path | None = None,
    progress: Progress | None = None,
) -> tuple[CorruptionResult, MeanCorruptionError, Path]:
    """Measure a run or a model on the corrupted test split, into a folder from which the same call goes on.

    Under torchrun the ranks share the corruptions. Of a published set, the corruptions that are there are measured.

    Args:
        what: see `open_subject`.
        limit: only so many test images, see `limited`.
        data: see `open_subject`.
        size: see `open_subject`.
        mean: see `open_subject`.
        std: see `open_subject`.
        checkpoint: see `open_run`.
        weights: see `open_run`.
        published: folder of CIFAR-10-C, CIFAR-100-C or ImageNet-C; by default the corrupted images are made.
        baseline: of the mCE, see `mean_corruption_error`.
        batch_size: images at a time.
        seed: of the corruptions' random draws.
        out: the folder; by default `evaluation/corruptions` in a run's folder, with what is unusual in its name.
        progress: see `corruption_accuracy`.

    Returns:
        The result, the mean corruption error and the folder the result lies in.

    Raises:
        ValueError: as for `open_subject`, `corruption_accuracy` and `mean_corruption_error`.
    """
    if baseline not in (None, ALEXNET):
        # Before the work, which may take hours.
        open_baseline(baseline)
    subject = open_subject(str(what), data=data, size=size, mean=mean, std=std, checkpoint=checkpoint, weights=weights)
    test, index, notes = limited(subject.test, limit)
    labels = test.labels if index is None else None
    names = CORRUPTIONS if published is None else open_published(published, labels).names
    parts = [
        SUITE,
        "published" if published is not None else "",
        f"n{len(test)}" if len(test) < len(subject.test) else "",
    ]
    parts += [subject.variant, f"seed{seed}" if seed else ""]
    into = out or subject.folder / "_".join(part for part in parts if part)
    with ranks.group(torch.device(next(subject.model.parameters(), torch.zeros(())).device)):
        found = corruption_accuracy(
            subject.model,
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
            notes=[f"{said}; i is its index in examples.parquet" for said in notes],
        )
    return found, mean_corruption_error(found, baseline), into


def refuse_attack_options(*, threat: str | None, step_size: str | None, independent: bool, keep: str | None) -> None:
    """Refuse what only attacks understand.

    Raises:
        ValueError: names the options.
    """
    given = {"--threat": threat, "--step-size": step_size, "--independent": independent, "--keep": keep}
    named = [option for option, value in given.items() if value]
    if named:
        raise ValueError(f"suite {SUITE} runs no attack, so {', '.join(named)} has no meaning there; leave it out")
