"""Watches a run for catastrophic overfitting: training that withstands its own one-step attack and nothing else.

    watch = Watch.over(recipe, job.method, train_split, device)
    watch.check(job, best)      # {"one_step_accuracy": 0.63, "pgd_accuracy": 0.04, "alarm": "AT101 ..."}

Trained on one-step attacks, a network may learn within a few steps to bend its surface so that one step misleads itself
(Wong et al. 2020, section 5.4; Andriushchenko and Flammarion 2020). The loss and the accuracy on the batch then look
better than ever, while ten steps of the same length break nearly every image. So every so often both attacks meet the
same 256 training images, and the user is told when the two part.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from toughen.attacks import fgsm, pgd
from toughen.data import subset
from toughen.data.base import Examples, to_float
from toughen.methods import Method
from toughen.methods.base import Robust
from toughen.methods.wrapper import nested
from toughen.models.batched import Batched, predict
from toughen.models.cost import count_on_toy
from toughen.modes import evaluating
from toughen.noise import Stream, fixed
from toughen.parallel import ranks, sharding
from toughen.recipes import Recipe
from toughen.threat import Linf, Threat
from toughen.training.loop import Job

EXAMPLES = 256
STEPS = 10
COST = 0.02
"""Largest share of a run's natural steps that the checks may add where the recipe does not say how often. On the clock
that is up to 3 % (`benchmarks/results/overfitting.md`): the count takes all passes as equal, but the gradient of the
input, of which a check has so many, is the dearest part of a small network."""
GAP = 0.30
"""More accuracy than this between the two attacks is an alarm; half of it or less is sound again."""
ERRORS = 3.0
"""Standard errors that a difference must exceed to count; less may be chance."""

Best = dict[str, dict[str, Any]]


@dataclass
class OverfittingState:
    """What a watch must remember of earlier checks; numbers of examples, so that it is exact.

    Attributes:
        previous: right under PGD at the last check; None before the first.
        before: while a collapse lasts, what was right under PGD at the check before it (0 where there was none).
        alarms: all so far: step, accuracies and sentence.
    """

    previous: int | None = None
    before: int | None = None
    alarms: list[dict[str, Any]] = field(default_factory=list)


def collapsed(
    one_step: int, under_pgd: int, previous: int | None, *, constant: int, n: int
) -> Literal["gap", "drop"] | None:
    """The rule by which a check calls for an alarm, if any.

    "gap": the accuracy under the one-step attack exceeds that under PGD by more than 0.30. "drop": the accuracy under
    PGD is at most half of that at the previous check, which was above a constant answer's; and at most half of that
    under the one-step attack, for where both fall alike a high learning rate shakes the training.
    Each of these differences must also exceed three standard errors of a difference of two shares of n examples,
    sqrt((p (1 - p) + q (1 - q)) / n). For the gap that matters below 50 examples alone. With 256 examples of ten
    classes a drop must start from 20 % or more.

    Args:
        one_step: how many examples are right under the one-step attack.
        under_pgd: how many under PGD.
        previous: the same at the check before; None at the first.
        constant: how many are of the largest class: right by a constant answer, which withstands every attack.
        n: how many examples there are.
    """
    if one_step - under_pgd > GAP * n and _beyond_chance(one_step, under_pgd, n):
        return "gap"
    if previous is None or not _beyond_chance(previous, constant, n):
        return None
    return "drop" if _halved(previous, under_pgd, n) and _halved(one_step, under_pgd, n) else None


def recovered(one_step: int, under_pgd: int, before: int, n: int) -> bool:
    """Whether a collapse is over: the gap at most 0.15, and PGD accuracy above half of what it was `before`.

    Stricter than no alarm, lest accuracies that hover at a threshold raise one after another.
    """
    return one_step - under_pgd <= GAP / 2 * n and 2 * under_pgd > before


def _halved(higher: int, lower: int, n: int) -> bool:
    return 2 * lower <= higher and _beyond_chance(higher, lower, n)


def _beyond_chance(higher: int, lower: int, n: int) -> bool:
    return higher - lower > ERRORS * math.sqrt((higher * (n - higher) + lower * (n - lower)) / n)


def ball_of(method: Method) -> Threat | None:
    """The ball that a method, or the one that it wraps, trains in; None where there is none."""
    return next((inner.ball for inner in nested(method) if isinstance(inner, Robust)), None)


def interval(recipe: Recipe, examples: int = EXAMPLES) -> int:
    """Optimiser steps between the checks of a run that trains in a ball; 0 for no check.

    Where the recipe does not say: the smallest interval at which all checks, the one after the last step included, cost
    at most 2 % of the run's natural steps (see `counting`); 0 in a run too short for one check. For 256 examples in
    batches of 128 that is about every 480 steps for FGSM training, 105 for PGD-10 and 800 for Free.
    """
    if recipe.overfitting_every is not None:
        return recipe.overfitting_every
    affordable = math.floor(COST * recipe.natural_steps / check_cost(recipe.batch_size, examples))
    return math.ceil(recipe.total_steps / affordable) if affordable else 0


def check_cost(batch_size: int, examples: int = EXAMPLES) -> float:
    """What a check costs in natural steps of a batch: 8 for every batch that the examples fill or begin.

    A short batch counts as a full one, for on a GPU it takes hardly less time.
    """

    def check(model: nn.Module, x: Tensor, y: Tensor) -> None:
        withstood(model, x, y, Linf(0.1), fixed(len(x)))

    return count_on_toy(check, channels=1, classes=10).natural_steps * math.ceil(examples / batch_size)


def withstood(model: nn.Module, x: Tensor, y: Tensor, ball: Threat, noise: Stream) -> Tensor:
    """How many examples are right under FGSM and how many under PGD-10 from a random start: (2,) int64.

    Args:
        model: the classifier; left as it was found.
        x: images (N, C, H, W) in [0, 1].
        y: classes (N,).
        ball: of both attacks.
        noise: of PGD's starts.
    """
    with evaluating(model):
        attacked = fgsm(model, x, y, threat=ball), pgd(model, x, y, threat=ball, steps=STEPS, noise=noise)
        return torch.stack([(predict(model, x_adv).argmax(1) == y).sum() for x_adv in attacked])


@dataclass
class OverfittingMonitor:
    """This rank's part of the examples, how often they are looked at, and what is remembered.

    Attributes:
        every: optimiser steps between checks; 0 for none.
        ball: of training; None where there is none.
        images: (N, C, H, W) uint8, not augmented.
        labels: (N,).
        noise: of PGD's starts, the same at every check and on any number of ranks.
        n: examples of all ranks together.
        constant: of these, how many are of the largest class.
        size: examples in a pass: no more than in training, so that memory suffices.
        memory: saved with the run.
    """

    every: int
    ball: Threat | None
    images: Tensor
    labels: Tensor
    noise: Stream
    n: int
    constant: int
    size: int
    memory: OverfittingState = field(default_factory=OverfittingState)

    @classmethod
    def over(cls, recipe: Recipe, method: Method, split: Examples, device: torch.device) -> Self:
        """The watch of a run.

        Args:
            recipe: says how often; its seed chooses the examples, as evenly over the classes as the images allow.
            method: the recipe's, its ball resolved.
            split: the training images.
            device: of the model.
        """
        ball, n = ball_of(method), min(EXAMPLES, len(split))
        chosen, numbers = subset(split, n, seed=recipe.seed)
        images, labels, numbers = map(ranks.shard, (chosen.images, chosen.labels, numbers))
        return cls(
            every=interval(recipe, n) if ball else 0,
            ball=ball,
            images=images.to(device),
            labels=labels.to(device),
            noise=Stream((recipe.seed, "overfitting"), numbers, device=device),
            n=n,
            constant=int(chosen.labels.bincount().max()),
            size=max(1, ranks.slots(recipe.batch_size)),
        )

    def check(self, job: Job, best: Best) -> dict[str, Any]:
        """Attack the examples on the run's weights (not their averages), in its precision.

        Args:
            job: between two batches; nothing of it changes.
            best: what validation has found so far.

        Returns:
            Both accuracies, and `alarm`, a sentence, where this check raises one.
        """
        assert self.ball is not None
        counts = torch.zeros(2, dtype=torch.int64, device=self.labels.device)
        whole = sharding.whole(job.model)
        if len(self.labels):
            model = Batched(whole, self.size)
            with torch.autocast(counts.device.type, torch.bfloat16, enabled=job.ways.bf16):
                counts += withstood(model, to_float(self.images), self.labels, self.ball, self.noise)
        one_step, under_pgd = ranks.total(counts).tolist()
        return self.judge(job.step, one_step, under_pgd, best)

    def judge(self, step: int, one_step: int, under_pgd: int, best: Best) -> dict[str, Any]:
        """Take in what a check has counted; see `check`. While a collapse lasts there is no second alarm."""
        memory, n = self.memory, self.n
        found: dict[str, Any] = {"one_step_accuracy": one_step / n, "pgd_accuracy": under_pgd / n}
        previous, memory.previous = memory.previous, under_pgd
        if memory.before is not None and recovered(one_step, under_pgd, memory.before, n):
            memory.before = None
        rule = collapsed(one_step, under_pgd, previous, constant=self.constant, n=n)
        if rule and memory.before is None:
            memory.before = previous or 0
            found["alarm"] = _sentence(rule, step, found, memory.before / n, best)
            memory.alarms.append({"step": step, **found})
        return found


def _sentence(rule: str, step: int, found: dict[str, Any], before: float, best: Best) -> str:
    one_step, under_pgd = _percent(found["one_step_accuracy"]), _percent(found["pgd_accuracy"])
    if rule == "gap":
        what = f"accuracy {one_step} under the one-step attack but {under_pgd} under PGD-10. The model is not robust."
    else:
        what = (
            f"accuracy under PGD-10 fell from {_percent(before)} to {under_pgd} since the last check ({one_step} under "
            "the one-step attack). The model is losing its robustness."
        )
    kept = "There is no validated checkpoint yet."
    if validated := best.get("weights"):
        kept = (
            f"Best checkpoint so far: step {validated['step']} (robust accuracy "
            f"{_percent(validated['robust_accuracy'])} in validation)."
        )
    advice = "Use a smaller step size, N-FGSM (method.noise_scale: 2) or PGD."
    return f"AT101 Catastrophic overfitting at step {step}: {what} {kept} {advice}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
