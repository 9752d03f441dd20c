"""Runs of attacks long enough that broken examples leave one after another, for the tests of when they do."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from toughen.attacks import AttackSpec
from toughen.attacks.contract import GIVEN
from toughen.attacks.neighbours import Donors
from toughen.attacks.registry import ATTACKS
from toughen.noise import Stream
from toughen.settings import settings_of
from toughen.testing import toys
from toughen.threat import L2, Linf, Threat

BALLS: dict[str, Threat] = {"linf": Linf(0.025), "l2": L2(0.22)}


@dataclass(frozen=True)
class LongRun:
    """An attack with settings of its own.

    Attributes:
        name: of the attack.
        steps: of all its runs together, after every tenth of which a device may be waited for.
        settings: its settings.
        norms: in whose balls.
    """

    name: str
    steps: int
    settings: dict[str, Any]
    norms: tuple[str, ...] = ("linf", "l2")

    @property
    def spec(self) -> AttackSpec:
        """The attack."""
        return AttackSpec.model_validate({"name": self.name, **self.settings})


RUNS: dict[str, LongRun] = {
    "apgd": LongRun("apgd", 60, {"steps": 30, "restarts": 2}),
    "apgd-one-step": LongRun("apgd", 2, {"steps": 1, "restarts": 2}),
    "apgd_targeted": LongRun("apgd_targeted", 50, {"steps": 25, "targets": 2}),
    "multi_targeted": LongRun("multi_targeted", 50, {"steps": 25, "restarts": 2}),
    "diversified_pgd": LongRun("diversified_pgd", 64, {"steps": 25, "restarts": 2}),
    "diversified-distance": LongRun("diversified_pgd", 64, {"steps": 25, "rank": 1, "ranks": 2, "order": "distance"}),
    "neighbour_pgd": LongRun("neighbour_pgd", 50, {"steps": 25, "neighbours": 2}),
    "pgd-restarts": LongRun("pgd", 0, {"steps": 12, "restarts": 3}),
    "targeted-restarts": LongRun("targeted_pgd", 0, {"steps": 12, "restarts": 3}),
    "fab": LongRun("fab", 0, {"steps": 15}),
    "fab-inside": LongRun("fab", 50, {"steps": 25, "targets": 2, "stop_inside": True}),
    "deepfool": LongRun("deepfool", 60, {"steps": 30}),
    "carlini_wagner": LongRun(
        "carlini_wagner", 80, {"steps": 40, "binary_search_steps": 2, "learning_rate": 0.1}, ("l2",)
    ),
    "carlini_wagner-inside": LongRun(
        "carlini_wagner",
        80,
        {"steps": 40, "binary_search_steps": 2, "learning_rate": 0.1, "initial_const": 10, "stop_inside": True},
        ("l2",),
    ),
    "square": LongRun("square", 80, {"queries": 41, "restarts": 2}),
    # Its examples leave after every step, each of which is many passes.
    "spsa": LongRun("spsa", 120, {"steps": 12, "samples": 8}),
}
"""Attacks out of which broken examples leave. (That by line searches, `carlini_wagner_linf`, waits at every try.)"""


def leaves_examples() -> set[str]:
    """The attacks that a run is wanted of: all that have several steps, and do not go on with what they broke."""
    several = {"steps", "queries"}
    goes_on = {"bim", "mi_fgsm", "ni_fgsm", "adam_pgd", "carlini_wagner_linf"}
    found = {name for name, attack in ATTACKS.items() if several & settings_of(attack, GIVEN).model_fields.keys()}
    return found - goes_on


def examples(model: nn.Module, n: int = 16, shape: tuple[int, int, int] = toys.ODD_SHAPE) -> tuple[Tensor, Tensor]:
    """Images in float64 and what the model says of them, but of the first."""
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    with torch.no_grad():
        y = model(x).argmax(1)
    y[0] = (y[0] + 1) % toys.CLASSES
    return x, y


def given_to(run: LongRun, x: Tensor, y: Tensor) -> dict[str, Any]:
    """What the attack is given beside images, labels and ball."""
    donors = Donors(x[:4], (x[:4] + 0.02).clamp(0, 1), y[:4])
    given = {"noise": Stream(("late",), torch.arange(len(x)), device=x.device), "donors": donors}
    takes = inspect.signature(ATTACKS[run.name]).parameters
    return {name: value for name, value in given.items() if name in takes}
