"""Early stopping by accuracy on the validation split (Limits, section 3.1; Rice et al. 2020).

    record = validate(job, validation, suite="pgd-40", threat=threat, seed=0, stop=stop)
    record["weights"]       # {"clean_accuracy": 0.98, "robust_accuracy": 0.76}

Robust overfitting makes the last weights worse than earlier ones, so a run keeps the best besides the last, for the
weights and for each of their averages: by robust accuracy, or by clean accuracy where the method asks for no robustness
(`Recipe.selected_by`). The split is held out of the training set; test data is never seen here.
"""

import math
from contextlib import suppress

import torch
from torch import nn

from toughen.data.base import Examples
from toughen.evaluation import evaluate
from toughen.evaluation.time_left import Status
from toughen.parallel import ranks, sharding
from toughen.threat import Threat
from toughen.training.loop import Job
from toughen.training.signals import StopSignal

Accuracies = dict[str, dict[str, float]]


def candidates(job: Job) -> dict[str, nn.Module]:
    """What can be selected: the weights, and each of their averages."""
    return {"weights": job.model, **job.averages.models()}


class _Heard(BaseException):
    """Leaves an evaluation from within; not an `Exception`, which something on the way out may take for its own."""


def validate(
    job: Job, split: Examples, *, threat: Threat, suite: str, seed: int, stop: StopSignal
) -> Accuracies | None:
    """Clean and robust accuracy of every candidate; None where a signal came first.

    Args:
        job: the run between two batches.
        split: the whole validation split, on every rank; each rank takes its share.
        threat: the ball.
        suite: name of the attacks.
        seed: of the attacks.
        stop: is asked about once a second, for this may take many minutes and a scheduler gives a run but a few.
    """

    def listen(_: Status) -> None:
        if stop.heard:
            raise _Heard

    result: Accuracies = {}
    # An example's number in the split keys its noise, so its outcome is the same on any number of ranks.
    images, labels, numbers = map(ranks.shard, (split.images, split.labels, torch.arange(len(split))))
    for name, candidate in candidates(job).items():
        model = sharding.whole(candidate)
        counts = torch.zeros(2, dtype=torch.int64, device=next(model.parameters()).device)
        if len(labels):
            given = {"threat": threat, "suite": suite, "seed": seed, "index": numbers, "audit": False}
            with suppress(_Heard):
                found = evaluate(model, images, labels, **given, progress=listen)
                clean, robust = round(found.clean_accuracy * found.n), round(found.robust_accuracy * found.n)
                counts += torch.tensor([clean, robust], device=counts.device)
        # A rank that heard one comes here early, and waits for the others.
        if stop.asked():
            return None
        clean, robust = ranks.total(counts).tolist()
        result[name] = {"clean_accuracy": clean / len(split), "robust_accuracy": robust / len(split)}
    return result


def improved(accuracies: Accuracies, best: dict[str, dict[str, float]], by: str | None) -> list[str]:
    """The candidates that are at least as good as their best so far: of equals the latest is kept.

    Args:
        accuracies: what a validation found.
        best: by candidate, of the validations before.
        by: the accuracy that decides, "robust_accuracy" or "clean_accuracy"; where it is equal, the clean one does.
            None for a run of an earlier version: strictly above in robust accuracy, the earliest of equals.
    """

    def is_better(found: dict[str, float], than: dict[str, float]) -> bool:
        if by is None:
            return found["robust_accuracy"] > than["robust_accuracy"]
        return _rank(found, by) >= _rank(than, by)

    return [name for name, found in accuracies.items() if name not in best or is_better(found, best[name])]


def _rank(found: dict[str, float], by: str) -> tuple[float, float]:
    # NaN, which nothing is above nor below, comes last.
    first, second = (-1.0 if math.isnan(found[key]) else found[key] for key in (by, "clean_accuracy"))
    return first, second
