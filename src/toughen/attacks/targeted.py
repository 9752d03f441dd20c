"""PGD towards a class that is not the label: a random one, the least likely, the most confusing, or one given.

    x_adv = targeted_pgd(model, x, y, threat=Linf(16 / 255), target="random", steps=1000, step_size=1 / 255)

Sources: least likely class, Kurakin et al. 2017 (section 2.3); random target, as IAAT evaluates ImageNet (table 4);
most confusing target, Bilateral adversarial training (Wang & Zhang 2019, its R-MC variants).
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from toughen.attacks.ascent import Start, ascend, best_of, default_step, of_rows, start_in
from toughen.attacks.contract import LossName, StepSize, attack, lengths
from toughen.devices import sent
from toughen.losses import LOSSES, hard, margin
from toughen.models.batched import Objective, predict
from toughen.modes import AttackBN, attacking
from toughen.noise import Stream, fixed
from toughen.settings import Count
from toughen.threat import Threat

Aims = Callable[[int], Tensor]
"""number of the model's classes -> target of each row (n,)"""


def _random(label: Tensor, noise: Stream) -> Aims:
    """Uniform over the classes other than the label; how many there are is known when the first logits come."""
    # On the host where the device has no float64.
    share = (noise.uniform((), dtype=torch.float64) + 1) / 2

    def aims(classes: int) -> Tensor:
        other = sent((share * (classes - 1)).long(), label.device)
        return other + (other >= label)

    return aims


def _by_logits(model: nn.Module, x: Tensor, label: Tensor, kind: str) -> Tensor:
    """The least likely or the most confusing class other than the label, (N,)."""
    logits = predict(model, x)
    worst = torch.inf if kind == "least_likely" else -torch.inf
    others = logits.scatter(1, label.unsqueeze(1), worst)
    return others.argmin(1) if kind == "least_likely" else others.argmax(1)


def _given(target: Tensor, label: Tensor) -> Tensor:
    if target.shape != label.shape or target.is_floating_point() or target.dtype == torch.bool:
        raise ValueError(
            f"target is {target.dtype} of shape {tuple(target.shape)} for {len(label)} images; give class numbers (N,)"
        )
    target = target.to(label)
    same = (target == label).nonzero().flatten().tolist()
    if same:
        raise ValueError(f"the target of example {same[0]} is its label, {int(label[same[0]])}; give another class")
    return target


@attack
def targeted_pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    target: Literal["random", "least_likely", "most_confusing"] | Tensor = "random",
    steps: Count = 20,
    step_size: StepSize = None,
    random_start: Start = True,
    restarts: Count = 1,
    loss: LossName = "cross_entropy",
    attack_bn: AttackBN = "eval",
    noise: Stream | None = None,
) -> Tensor:
    """PGD that descends loss(model(x + delta), target) over the ball.

    Any misclassification counts as success, be it the target or not.

    Args (all else as for `pgd`):
        y: classes (N,) or probabilities (N, K), of which the most probable class counts.
        target: "random": uniform over the classes other than `y`, drawn afresh at each restart; "least_likely" or
            "most_confusing": the other class with the lowest or highest logit at `x`, for which the clean images are
            run forward once (under attack_bn "train" this moves the running statistics too); or classes (N,).
        steps: steps of each restart, at least 1.
        restarts: starts, of which the first that is misclassified is kept, after which the example is attacked no
            further; where none is, the end point of the highest margin.
        loss: "cross_entropy", "margin", "dlr" or (logits, target) -> (N,), to be descended.
        attack_bn: BatchNorm during the attack, "eval", "train" or "batch".
        noise: stream of the random targets and starts. Default: one keyed by the examples' positions.

    Returns:
        x_adv (N, C, H, W), in the ball and in [0, 1].

    Raises:
        ValueError: for settings outside these ranges, a model with a single class, targets that equal the label or are
            no classes of the model, and losses that say nothing about a target.
    """
    if isinstance(loss, str) and loss not in ("cross_entropy", "margin", "dlr"):
        raise ValueError(f"loss {loss} has no targeted form; use loss: cross_entropy, margin or dlr")
    if restarts > 1 and not random_start and not (isinstance(target, str) and target == "random"):
        raise ValueError(f"{restarts} restarts without a random start would be equal; use random_start: true")
    function = LOSSES[loss] if isinstance(loss, str) else loss
    length = lengths(default_step(threat.eps, steps) if step_size is None else step_size, steps, x)
    noise = (fixed(len(x), device=x.device) if noise is None else noise).child("targeted_pgd")
    label = hard(y)
    given = _given(target, label) if isinstance(target, Tensor) else None
    low, high = (int(given.min()), int(given.max())) if given is not None and len(given) else (0, 0)

    with attacking(model, attack_bn):
        chosen = given if isinstance(target, Tensor) or target == "random" else _by_logits(model, x, label, target)

        def run(rows: Tensor | None, restart: int) -> tuple[Tensor, Objective]:
            every = slice(None) if rows is None else rows
            images, labels, ball, draws = x[every], label[every], threat[every], noise[every].child(restart)
            same = None if chosen is None else chosen[every]
            aims = _random(labels, draws.child("target")) if same is None else lambda _: same

            def towards(logits: Tensor, piece: slice) -> Tensor:
                classes = logits.shape[1]
                if not 0 <= low <= high < classes:
                    raise ValueError(f"targets run from {low} to {high} but the model has classes 0 to {classes - 1}")
                return -function(logits, aims(classes)[piece])

            start = start_in(images, ball, draws.child("start"), random_start)
            step = of_rows(length, every)
            found = ascend(model, images, towards, threat=ball, steps=steps, step_size=step, start=start)
            # Targets differ from restart to restart, so end points are compared by what they are all after.
            return found, lambda logits, piece: margin(logits, labels[piece])

        return best_of(model, x, y, run, restarts=restarts, leave=attack_bn == "eval")
