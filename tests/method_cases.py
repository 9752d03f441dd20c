"""Every training method in the forms that the contract tests run: one row for each way that its code can go.

A new method adds its rows here, and nothing else.
"""

from dataclasses import dataclass, field
from typing import Any

PGD = {"name": "pgd", "steps": 2, "step_size": 0.04}


@dataclass(frozen=True)
class Case:
    """A form of a method.

    Attributes:
        settings: of the method, its name among them: as little work as lets a promise be broken.
        tracked: forward passes of a batch that move the running statistics of BatchNorm.
        unlabelled: the setting by whose weight an example without a label counts, such as "beta" or "method.beta": its
            loss is that weight times something positive. None: it costs nothing.
        mixes: images are mixed with others of the batch, so that the labels of these count too.
        recipe: other settings of a recipe that the form needs.
    """

    settings: dict[str, Any]
    tracked: int = 1
    unlabelled: str | None = None
    mixes: bool = False
    recipe: dict[str, Any] = field(default_factory=dict)


def _adaptive(**settings: object) -> dict[str, object]:
    return {"name": "instance_adaptive", "attack": PGD, "warmup": 2, "gamma": 0.02, **settings}


CASES: dict[str, Case] = {
    "natural": Case({"name": "natural"}),
    "natural-replays": Case({"name": "natural", "replays": 2}, tracked=2),
    "adversarial": Case({"name": "adversarial", "attack": PGD, "radius_scale": 1.1}),
    "adversarial-train": Case({"name": "adversarial", "attack": {**PGD, "attack_bn": "train"}}, tracked=3),
    "adversarial-batch": Case({"name": "adversarial", "attack": {**PGD, "attack_bn": "batch"}}),
    "adversarial-kl": Case({"name": "adversarial", "attack": {**PGD, "loss": "kl"}}),
    "adversarial-margin": Case({"name": "adversarial", "attack": {**PGD, "loss": "margin"}}),
    "adversarial-random-target": Case(
        {"name": "adversarial", "attack": {"name": "targeted_pgd", "target": "random", "steps": 2}}
    ),
    "adversarial-mi": Case({"name": "adversarial", "attack": {"name": "mi_fgsm", "steps": 2}}),
    "adversarial-adam": Case({"name": "adversarial", "attack": {"name": "adam_pgd", "steps": 2}}),
    "fgsm": Case({"name": "adversarial", "attack": {"name": "fgsm"}}),
    "r-fgsm": Case({"name": "adversarial", "attack": {"name": "r_fgsm"}}),
    "rs-fgsm": Case({"name": "adversarial", "attack": {"name": "rs_fgsm"}}),
    "n-fgsm": Case({"name": "adversarial", "attack": {"name": "fgsm"}, "noise_scale": 2}),
    "gradalign": Case({"name": "adversarial", "attack": {"name": "rs_fgsm"}, "alignment": 0.2}),
    "free": Case({"name": "free", "replays": 3}, tracked=3),
    "free-batch": Case({"name": "free", "replays": 2, "memory": "batch"}, tracked=2),
    "free-image": Case({"name": "free", "replays": 2, "memory": "image", "clip_delta": True}, tracked=2),
    "trades": Case({"name": "trades", "attack": PGD}, tracked=2, unlabelled="beta"),
    "trades-xent": Case({"name": "trades", "attack": PGD, "inner": "cross_entropy"}, tracked=2, unlabelled="beta"),
    "trades-margin": Case({"name": "trades", "attack": PGD, "inner": "margin"}, tracked=2, unlabelled="beta"),
    "trades-fused": Case({"name": "trades", "attack": PGD, "forward": "fused"}, unlabelled="beta"),
    "trades-clean": Case({"name": "trades", "beta": 0}),
    "mart": Case({"name": "mart", "attack": PGD}, tracked=2, unlabelled="beta"),
    "mart-boosted": Case({"name": "mart", "attack": PGD, "beta": 0}),
    "instance-adaptive": Case(_adaptive()),
    "instance-adaptive-code": Case(
        _adaptive(misclassified="decay", step_rule="scaled", attack={**PGD, "random_start": "unclipped"})
    ),
    "instance-adaptive-attack": Case(_adaptive(misclassified="attack", lower=0.02)),
    "instance-adaptive-reuse": Case(_adaptive(selection="reuse")),
    "instance-adaptive-line-search": Case(_adaptive(selection="line_search", grid=0.05, largest=0.15)),
    "bilateral": Case({"name": "bilateral"}),
    "bilateral-supplement": Case({"name": "bilateral", "labels": "supplement", "target": "random", "largest": 2}),
    "bilateral-image-only": Case({"name": "bilateral", "labels": "none", "target": "mosa", "attack_bn": "batch"}),
    "bilateral-train": Case({"name": "bilateral", "target": "mix", "attack_bn": "train"}, tracked=3),
    "mixup": Case({"name": "mixup", "method": {"name": "adversarial", "attack": PGD}}, mixes=True),
    "mixup-free": Case({"name": "mixup", "method": {"name": "free", "replays": 2}}, tracked=2, mixes=True),
    "interpolated": Case({"name": "interpolated", "attack": PGD}, tracked=2, mixes=True),
    "label-smoothing": Case(
        {"name": "label_smoothing", "method": {"name": "trades", "attack": PGD}}, tracked=2, unlabelled="method.beta"
    ),
    "weight-perturbation": Case(
        {"name": "trades", "attack": PGD}, tracked=2, unlabelled="beta", recipe={"weight_perturbation": {}}
    ),
}

FIRST = {
    *{case.settings["name"]: label for label, case in reversed(CASES.items())}.values(),
    *(label for label, case in CASES.items() if case.recipe),
}
"""One form of each method, and what a recipe adds: of these the tests ask everything, `make faults` of all forms."""
