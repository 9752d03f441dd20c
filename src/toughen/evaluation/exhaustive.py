"""The suite `exhaustive`: the last word on a few images, at several times the passes of AutoAttack.

    evaluate(model, x[:20], y[:20], threat=Linf(8 / 255), suite="exhaustive")

Each of its attacks goes to all that is not yet broken. It begins as `adaptive` does, so that what breaks easily costs
little. Then comes AutoAttack itself, under the labels by which its random draws are made: whatever that suite breaks,
this one does. Then more losses (the margin between probabilities too, Xie et al. 2024), targets, restarts and queries;
and last `neighbour_pgd`, which starts from how all other examples of the evaluation were broken.
"""

from collections.abc import Mapping
from dataclasses import replace

from toughen.attacks import AttackSpec
from toughen.evaluation.adaptive import ROUNDS, Round


def exhaustive_rounds(autoattack: Mapping[str, AttackSpec]) -> dict[str, Round]:
    """The rounds, AutoAttack's own among them."""
    return {
        **{
            label.replace("adaptive", "exhaustive"): replace(item, share=1)
            for label, item in ROUNDS.items()
            if item.attack.name == "diversified_pgd" and item.after is None
        },
        **{label: Round(1, attack) for label, attack in autoattack.items()},
        "apgd-margin": Round(1, AttackSpec(name="apgd", steps=100, restarts=3, loss="margin")),
        "apgd-probability": Round(1, AttackSpec(name="apgd", steps=100, restarts=3, loss="probability_margin")),
        "apgd-t-margin": Round(1, AttackSpec(name="apgd_targeted", steps=100, targets=20, loss="margin")),
        "directed": Round(
            1,
            AttackSpec(
                name="diversified_pgd", steps=100, rank=1, ranks=9, order="distance", last_step=0.001, restarts=2
            ),
        ),
        "square-stretched": Round(1, AttackSpec(name="square", queries=10_000)),
        "neighbours": Round(1, AttackSpec(name="neighbour_pgd", neighbours=20, steps=50), donors=True),
    }
