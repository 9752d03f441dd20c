"""Robust accuracy over the radius of the ball, and over the number of PGD steps.

    eps_sweep(model, x, y, radii=[2 / 255, 4 / 255, 8 / 255, 16 / 255], suite="pgd-100").accuracies
    step_sweep(model, x, y, threat=Linf(16 / 255), steps=(10, 100, 500, 2000), target="random").accuracies

Source: Instance Adaptive Adversarial Training (IAAT; Balaji, Goldstein & Hoffman 2019), figures 4 and 9.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from toughen.attacks.ascent import ascend, start_in
from toughen.evaluation.analyses.analysis import Analysis, accuracy, accuracy_with_interval
from toughen.evaluation.evaluate import evaluate
from toughen.evaluation.referee import MARGINAL, gap, measure
from toughen.evaluation.suites import Suite
from toughen.evaluation.suites import step_size as customary
from toughen.evaluation.time_left import Status
from toughen.losses import LOSSES, Loss
from toughen.models.batched import Objective
from toughen.models.inputs import as_labels, check_examples
from toughen.models.prepared import CHUNK, PreparedModel, ProgressFunction, ball_of, chunks, prepared
from toughen.noise import Stream
from toughen.outcomes import CLEAN, Outcomes
from toughen.settings import known
from toughen.threat import THREATS, Threat, as_threat


@dataclass(frozen=True, eq=False)
class EpsSweep(Analysis):
    """Robust accuracy over the radius of the ball (see `eps_sweep`).

    Args (all else as for `Analysis`):
        norm: of the ball, such as "linf".
        suite: name of the suite, or "custom".
        settings: for each radius, every attack of the suite by label with its settings.
        radii: (R,), ascending, in pixel units.
        clean_correct: whether the image itself is classified correctly, (N,).
        survived: whether an example is robust at a radius, (R, N); False where the image itself is misclassified.
        marginal: whether rounding may turn a verdict on the example at a radius, (R, N).
    """

    norm: str
    suite: str
    settings: list[dict[str, Any]]
    seed: int
    radii: Annotated[np.ndarray, "float64", "R"]
    index: Annotated[np.ndarray, "int64", "N"]
    clean_correct: Annotated[np.ndarray, "bool", "N"]
    survived: Annotated[np.ndarray, "bool", "RN"]
    marginal: Annotated[np.ndarray, "bool", "RN"]

    @property
    def accuracies(self) -> list[float]:
        """Robust accuracy at each radius, as the suite found it there."""
        return list(map(accuracy, self.survived))

    @property
    def nested_accuracies(self) -> list[float]:
        """Robust accuracy when what broke at a radius counts as broken at all larger ones, whose balls hold it too."""
        return list(map(accuracy, np.logical_and.accumulate(self.survived, axis=0)))

    @property
    def rises(self) -> list[dict[str, Any]]:
        """Where accuracy rises with the radius by more examples than are marginal: the attack is too weak there.

        The set of allowed perturbations only grows, so the true robust accuracy never rises. `examples` is by how many
        it did from radius `lower` to radius `upper`, `marginal` how many of those gained rounding may explain.
        """
        found = []
        for at in range(len(self.radii) - 1):
            below, above = self.survived[at], self.survived[at + 1]
            doubtful = int((above & ~below & (self.marginal[at] | self.marginal[at + 1])).sum())
            rise = int(above.sum()) - int(below.sum())
            if rise > doubtful:
                lower, upper = float(self.radii[at]), float(self.radii[at + 1])
                found.append({"lower": lower, "upper": upper, "examples": rise, "marginal": doubtful})
        return found

    @property
    def warning(self) -> str | None:
        """What to do where accuracy rises with the radius, in one sentence; None where it does not."""
        if not self.rises:
            return None
        worst = max(self.rises, key=lambda rise: rise["examples"])
        return (
            f"Robust accuracy rises by {worst['examples']} of {len(self.index)} examples from radius "
            f"{worst['lower']:.6g} to {worst['upper']:.6g}, which no sound attack shows: use more steps or a stronger "
            "suite, and look for masked gradients."
        )

    def summary(self) -> dict[str, Any]:
        """Clean accuracy, and for each radius accuracy, interval and nested accuracy; the monotone check."""
        rows = zip(self.radii.tolist(), self.survived, self.nested_accuracies, strict=True)
        return {
            "n": len(self.index),
            "clean": accuracy_with_interval(self.clean_correct),
            "radii": [
                {"radius": radius, **accuracy_with_interval(row), "nested_accuracy": nested}
                for radius, row, nested in rows
            ],
            "rises": self.rises,
            "warning": self.warning,
        }


def eps_sweep(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    radii: Sequence[float],
    norm: str | type[Threat] = "linf",
    suite: str | Suite = "pgd-20",
    seed: int = 0,
    batch_size: int = 256,
    index: Tensor | None = None,
    progress: ProgressFunction | None = None,
) -> EpsSweep:
    """Robust accuracy at several test radii (IAAT, figure 4).

    The paper states PGD and a sweep of test eps on CIFAR-10 and CIFAR-100; neither its radii nor its steps. The suite
    is therefore a setting; PGD-20 is our choice. Every radius is evaluated by itself, so that an accuracy that rises
    with the radius, which shows an attack that is too weak, can be seen; `EpsSweep.warning` says so.

    Args (all else as for `evaluate`):
        radii: radii in pixel units, at least 0 and each once; they are sorted.
        norm: "linf", "l2" or the class of a threat model.
        suite: see `evaluate`; a suite's name may stand for other step sizes at other radii, which are recorded.
        progress: called with ("pgd-20 at linf:8/255", examples done, examples attempted).

    Raises:
        ValueError: no radius, one given twice, and what `evaluate` refuses.
        Unsound: see `evaluate`.
    """
    _, ids = check_examples(x, y, index, batch_size)
    kind = THREATS[known(norm, THREATS, "norm")] if isinstance(norm, str) else norm
    balls = [kind(radius) for radius in sorted(radii)]
    if not balls or len(set(radii)) < len(balls):
        raise ValueError(f"radii are {list(radii)}; give at least one, each once")
    run = partial(evaluate, model, x, y, suite=suite, seed=seed, batch_size=batch_size, index=index, audit=False)
    found = [run(threat=ball, progress=progress and _at(progress, ball)) for ball in balls]
    tables = [evaluation.outcomes for evaluation in found]
    clean = tables[0]
    return EpsSweep(
        norm=balls[0].norm,
        suite=found[0].suite,
        settings=[evaluation.settings for evaluation in found],
        seed=seed,
        radii=np.array(sorted(radii)),
        index=ids.numpy(),
        clean_correct=_holds(clean, ids, (clean.attack == CLEAN) & clean.survived),
        survived=np.stack([~_holds(table, ids, ~table.survived & ~table.aside) for table in tables]),
        marginal=np.stack([_holds(table, ids, table.marginal & ~table.aside) for table in tables]),
    )


def _at(progress: ProgressFunction, ball: Threat) -> Callable[[Status], None]:
    return lambda status: progress(f"{status.attack} at {ball}", status.done, status.attempted)


def _holds(table: Outcomes, ids: Tensor, rows: np.ndarray) -> np.ndarray:
    """Whether an example has any of these rows of a table, (N,) in the order of `ids`."""
    return np.isin(ids.numpy(), table.index[rows])


@dataclass(frozen=True, eq=False)
class StepSweep(Analysis):
    """Robust accuracy over the number of PGD steps (see `step_sweep`).

    Args (all else as for `Analysis`):
        loss: name of what was ascended.
        step_size: in pixel units.
        random_start: whether the run started from a random point of the ball.
        steps: (K,), ascending.
        clean_correct: whether the image itself is classified correctly, (N,).
        target: the class that the attack aimed at, (N,); -1 where it aimed at none.
        survived: whether image and end point of k steps are classified correctly, (K, N).
        marginal: whether rounding may turn the verdict on an end point, (K, N).
    """

    threat: str
    loss: str
    step_size: float
    random_start: bool
    seed: int
    steps: Annotated[np.ndarray, "int64", "K"]
    index: Annotated[np.ndarray, "int64", "N"]
    clean_correct: Annotated[np.ndarray, "bool", "N"]
    target: Annotated[np.ndarray, "int64", "N"]
    survived: Annotated[np.ndarray, "bool", "KN"]
    marginal: Annotated[np.ndarray, "bool", "KN"]

    @property
    def accuracies(self) -> list[float]:
        """Robust accuracy of an attack of exactly k steps, which is judged by its end point, for each k."""
        return list(map(accuracy, self.survived))

    @property
    def worst_accuracies(self) -> list[float]:
        """Robust accuracy when a break after any of the asked step counts up to k counts: it never rises."""
        return list(map(accuracy, np.logical_and.accumulate(self.survived, axis=0)))

    def summary(self) -> dict[str, Any]:
        """Clean accuracy, and for each number of steps accuracy, interval and accuracy at the worst so far."""
        rows = zip(self.steps.tolist(), self.survived, self.worst_accuracies, strict=True)
        return {
            "n": len(self.index),
            "clean": accuracy_with_interval(self.clean_correct),
            "steps": [
                {"steps": steps, **accuracy_with_interval(row), "worst_accuracy": worst} for steps, row, worst in rows
            ],
        }


def step_sweep(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat | str,
    steps: Sequence[int] = (10, 20, 50, 100, 200, 500, 1000, 2000),
    step_size: float | None = None,
    random_start: bool = True,
    loss: str | Loss = "cross_entropy",
    target: Literal["random"] | Tensor | None = None,
    seed: int = 0,
    batch_size: int = 256,
    index: Tensor | None = None,
    progress: ProgressFunction | None = None,
) -> StepSweep:
    """Robust accuracy after k steps of PGD, for several k, from one run of the longest (IAAT, appendix C, figure 9).

    With one step size for all of them, the run of k steps is the beginning of that of 2000, so all together cost 2000
    passes of the correctly classified examples and one verification for each k; an accuracy equals that of a run of
    its own. No example leaves early, since a run of k steps is judged by its end point. An image that is misclassified
    without an attack counts as broken and is not attacked, as in an evaluation.

    The paper states ImageNet, eps 16/255, up to 2000 steps and, for its ImageNet evaluations, random targets; neither
    the step size, nor the counts between, nor whether there is a random start. Those are settings, and their defaults
    our choice.

    Args (all else as for `evaluate`):
        steps: numbers of steps, at least 1 and each once; they are sorted.
        step_size: in pixel units. Default: that of the suites for the largest number of steps (`suites.step_size`).
        random_start: start uniformly in the ball, with the draws of `pgd` (`targeted_pgd` when there is a target).
        loss: any in `LOSSES` but "kl", or (logits, y) -> (N,) on any rows of the examples; ascended, or towards a
            target descended.
        target: None; "random", uniform over the classes other than `y`; or classes (N,).
        index: example ids (N,), each once, to which the random draws belong. Default: 0 to N - 1.
        progress: called with ("pgd", steps times examples done, all of them).

    Raises:
        ValueError: for arguments outside these ranges, and for NaN or infinite logits (EV203).
    """
    threat = as_threat(threat)
    y, ids = check_examples(x, y, index, batch_size, threat)
    counts = sorted(steps)
    if not counts or counts[0] < 1 or len(set(counts)) < len(counts):
        raise ValueError(f"steps are {list(steps)}; give at least one number of at least 1, each once")
    length = customary(threat, counts[-1], side=max(x.shape[2:])) if step_size is None else step_size
    if length is None or not 0 < length < float("inf"):
        raise ValueError(f"step_size is {step_size}; give a positive number in pixel units, like 2/255")
    if loss == "kl":
        raise ValueError("loss kl needs the clean probabilities, which a step sweep does not keep; use cross_entropy")
    function = LOSSES[known(loss, LOSSES, "loss")] if isinstance(loss, str) else loss
    n, columns = len(x), []
    with prepared(model, x, y, batch_size) as classifier:
        noise = Stream(("step-sweep", seed), rows=ids)
        aims = _aims(target, y, noise, classifier.classes)
        for rows in chunks(n, CHUNK * batch_size):
            clean = classifier.predict(classifier.images(x[rows]), ids=ids[rows], under=CLEAN)
            correct = clean.argmax(1).cpu() == y[rows]
            survived, marginal = torch.zeros(2, len(counts), len(rows), dtype=torch.bool)
            those = rows[correct]
            images, ball = classifier.images(x[those]), ball_of(threat, those, classifier.device)
            start = images
            if random_start:
                drawn = noise.child("pgd", 0) if aims is None else noise.child("targeted_pgd", 0, "start")
                start = start_in(images, ball, drawn[those])
            objective = _objective(function, y[those], None if aims is None else aims[those], classifier.device)
            points = _points(classifier, images, objective, ball, counts, length, start, ids[those])
            for at, logits in enumerate(points) if len(those) else ():
                survived[at, correct] = logits.argmax(1).cpu() == y[those]
                marginal[at, correct] = (gap(logits) < MARGINAL).cpu()
                if progress is not None:
                    progress("pgd", counts[-1] * int(rows[0]) + counts[at] * len(rows), counts[-1] * n)
            columns.append((correct, survived, marginal))
    correct, survived, marginal = (torch.cat(parts, -1).numpy() for parts in zip(*columns, strict=True))
    return StepSweep(
        threat=str(threat),
        loss=loss if isinstance(loss, str) else getattr(loss, "__qualname__", type(loss).__qualname__),
        step_size=float(length),
        random_start=random_start,
        seed=seed,
        steps=np.array(counts),
        index=ids.numpy(),
        clean_correct=correct,
        target=np.full(n, -1) if aims is None else aims.numpy(),
        survived=survived,
        marginal=marginal,
    )


def _aims(target: Literal["random"] | Tensor | None, y: Tensor, noise: Stream, classes: int) -> Tensor | None:
    """The class that each example is driven to, (N,) on the CPU."""
    if target is None:
        return None
    if isinstance(target, str):
        known(target, ["random"], "target")
        other = noise.child("targeted_pgd", 0, "target").integers(classes - 1)
        return other + (other >= y)
    aims = as_labels(target, len(y), classes=classes).cpu()
    if (aims == y).any():
        raise ValueError("a target is given for each image, and must not be its label; give other classes (N,)")
    return aims


def _objective(loss: Loss, y: Tensor, aims: Tensor | None, device: torch.device) -> Objective:
    to = (y if aims is None else aims).to(device)
    sign = 1 if aims is None else -1
    return lambda logits, rows: sign * loss(logits, to[rows])


def _points(
    classifier: PreparedModel,
    images: Tensor,
    objective: Objective,
    ball: Threat,
    counts: list[int],
    length: float,
    start: Tensor,
    ids: Tensor,
) -> Iterator[Tensor]:
    """The logits of the end point of each number of steps, measured and classified like any attack's."""
    x_adv = start
    for done, steps in zip([0, *counts], counts, strict=False):
        x_adv = ascend(
            classifier.model, images, objective, threat=ball, steps=steps - done, step_size=length, start=x_adv
        )
        measure(x_adv, images, ball, attack="pgd", ids=ids)
        yield classifier.predict(x_adv, ids=ids, under="pgd")
