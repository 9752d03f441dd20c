"""The suite `exhaustive`: the last word on a few images, at several times the passes of AutoAttack.

    evaluate(model, x[:20], y[:20], threat=Linf(8 / 255), suite="exhaustive")

Each of its attacks goes to all that is not yet broken. It begins as `adaptive` does, so that what breaks easily costs
little. Then come more losses (the margin between probabilities too, Xie et al. 2024), targets, restarts and queries
than AutoAttack has; and last `neighbour_pgd`, which starts from how all other examples of the evaluation were broken.
"""

from collections.abc import Mapping
from dataclasses import replace

from toughen.attacks import AttackSpec
from toughen.evaluation.adaptive import ROUNDS, Round

EXHAUSTIVE: Mapping[str, Round] = {
    **{
        label.replace("adaptive", "exhaustive"): replace(item, share=1)
        for label, item in ROUNDS.items()
        if item.attack.name == "diversified_pgd" and item.after is None
    },
    "apgd-ce": Round(1, AttackSpec(name="apgd", steps=100, restarts=3)),
    "apgd-margin": Round(1, AttackSpec(name="apgd", steps=100, restarts=3, loss="margin")),
    "apgd-probability": Round(1, AttackSpec(name="apgd", steps=100, restarts=3, loss="probability_margin")),
    "apgd-t": Round(1, AttackSpec(name="apgd_targeted", steps=100, targets=20, loss="margin")),
    "directed": Round(
        1, AttackSpec(name="diversified_pgd", steps=100, rank=1, ranks=9, order="distance", last_step=0.001, restarts=2)
    ),
    "fab-t": Round(1, AttackSpec(name="fab", steps=100, targets=9, restarts=2, stop_inside=True)),
    "square": Round(1, AttackSpec(name="square", queries=10_000)),
    "neighbours": Round(1, AttackSpec(name="neighbour_pgd", neighbours=20, steps=50), donors=True),
}
