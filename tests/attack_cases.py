"""Every attack in the forms that the contract tests run: one row for each way that its code can go.

A new attack adds its rows here, and nothing else.
"""

from dataclasses import dataclass
from typing import Any, Literal

from toughen.testing.attack_under_test import Strength

CARLINI_WAGNER = {
    "name": "carlini_wagner",
    "steps": 12,
    "learning_rate": 0.1,
    "initial_const": 10,
    "binary_search_steps": 2,
}


@dataclass(frozen=True)
class Case:
    """A form of an attack.

    Attributes:
        settings: of the attack, its name among them: as little work as lets a promise be broken.
        norms: in whose balls it runs.
        strength: what it has to break on a linear model, as `toughen.testing.check_attack` says: "gradient", two thirds
            of what FGSM breaks; "search", more than a random point, for random targets and for attacks without
            gradients; "none", for a loss that does not look at the label.
        fills: which examples end far from their image, at 0.4 of the radius or more (nothing to a `@minimal_norm`
            attack). "all": it looks for the worst point of the ball and goes on where an example is broken. "unbroken":
            an example that is broken is returned where it broke. "none": its steps have a length of their own.
    """

    settings: dict[str, Any]
    norms: tuple[str, ...] = ("linf", "l2")
    strength: Strength = "gradient"
    fills: Literal["all", "unbroken", "none"] = "unbroken"


CASES: dict[str, Case] = {
    "fgsm": Case({"name": "fgsm"}, fills="all"),
    "r_fgsm": Case({"name": "r_fgsm"}, fills="all", strength="search"),
    "rs_fgsm": Case({"name": "rs_fgsm"}, fills="all"),
    "bim": Case({"name": "bim"}, fills="all"),
    "mi_fgsm": Case({"name": "mi_fgsm"}, fills="all"),
    "ni_fgsm": Case({"name": "ni_fgsm"}, fills="all"),
    "pgd": Case({"name": "pgd"}, fills="all"),
    "adam_pgd": Case({"name": "adam_pgd"}, fills="all"),
    "targeted_pgd": Case({"name": "targeted_pgd"}, fills="all", strength="search"),
    "multi_targeted": Case({"name": "multi_targeted", "steps": 5, "restarts": 4}),
    "diversified_pgd": Case({"name": "diversified_pgd"}),
    "neighbour_pgd": Case({"name": "neighbour_pgd", "neighbours": 2, "steps": 8}),
    "apgd": Case({"name": "apgd", "steps": 8, "restarts": 2}),
    "apgd_targeted": Case({"name": "apgd_targeted", "steps": 5, "targets": 3}),
    "fab": Case({"name": "fab", "steps": 4, "restarts": 2}),
    "deepfool": Case({"name": "deepfool", "steps": 10}),
    "carlini_wagner": Case(CARLINI_WAGNER, norms=("l2",)),
    "carlini_wagner_linf": Case({"name": "carlini_wagner_linf", "steps": 5}, norms=("linf",), fills="none"),
    "square": Case({"name": "square", "queries": 30}, strength="search"),
    "spsa": Case({"name": "spsa", "steps": 4, "samples": 8}, strength="search", fills="none"),
    "pgd-restarts": Case({"name": "pgd", "steps": 3, "restarts": 3}, fills="all"),
    "pgd-highest": Case(
        {"name": "pgd", "steps": 3, "restarts": 2, "keep": "highest_loss", "loss": "margin-50"}, fills="all"
    ),
    "pgd-kl": Case({"name": "pgd", "loss": "kl"}, fills="all", strength="none"),
    "pgd-dlr": Case({"name": "pgd", "steps": 3, "loss": "dlr"}, fills="all"),
    "rs_fgsm-kl": Case({"name": "rs_fgsm", "loss": "kl", "random_start": "gaussian"}, fills="all", strength="none"),
    "adam_pgd-restarts": Case(
        {"name": "adam_pgd", "steps": 4, "restarts": 3, "loss": "margin", "drops": (0.5, 0.75)}, fills="all"
    ),
    "targeted-restarts": Case({"name": "targeted_pgd", "steps": 3, "restarts": 3}, fills="all", strength="search"),
    "targeted-confusing": Case(
        {"name": "targeted_pgd", "steps": 3, "target": "most_confusing", "loss": "margin"},
        fills="all",
        strength="search",
    ),
    "diversified-distance": Case({"name": "diversified_pgd", "rank": 1, "ranks": 2, "order": "distance", "steps": 8}),
    "multi_targeted-all": Case({"name": "multi_targeted", "steps": 3, "restarts": 2, "targets": "all"}),
    "apgd-dlr": Case({"name": "apgd", "steps": 8, "loss": "dlr"}),
    "fab-targeted": Case({"name": "fab", "steps": 4, "targets": 3}),
    "fab-inside": Case({"name": "fab", "steps": 4, "stop_inside": True}),
    "deepfool-inside": Case({"name": "deepfool", "steps": 10, "stop_inside": True}),
    "carlini_wagner-inside": Case({**CARLINI_WAGNER, "stop_inside": True}, norms=("l2",)),
}
"""Labels are those of the tests' ids; a row that is called like its attack is the one that most tests take."""
