"""The small twin of a recipe: the same training for a small network on few images, minutes on one CPU core.

    twin({"name": "mine", "data": "cifar10", "model": "wrn-28-10", "method": {"name": "free", "replays": 8}, ...})

A twin is for first tries, for tests and for studies at small scale. It keeps what a recipe does (the data set, the
method and its options, the ball, weight averages and perturbation, normalisation) and changes how long that takes: the
network, the images, the budget, the learning rate and its schedule, replays, and the attack's steps, each of which goes
further where there are fewer. What the rule makes of a recipe that it does not suit, the recipe's own `small:` section
puts right; that is laid over the rest, and recipes that build on this one have their own.

A recipe for `small_cnn` is small already, and is its own twin.
"""

import math
from collections.abc import Mapping
from typing import Any

from toughen.recipes.overlay import laid_over, section
from toughen.recipes.schema import Recipe
from toughen.settings import as_number
from toughen.threat import parse

ENDING = "-small"
"""What a twin's name ends with."""

SECTION = "small"
"""A recipe's lines for its twin alone."""

NETWORK = {"name": "small_cnn", "width": 16, "norm": "batch"}
BATCH_SIZE = 64
EVERYWHERE: dict[str, Any] = {
    "optimizer": {"lr": 0.1, "lr_batch_size": None, "warmup": 0},
    "schedule": {"name": "one_cycle", "peak": 0.3},  # short budgets: Wong et al. 2020, "cyclic"
    "selection": {"suite": "pgd-10", "every": 400},
    # What large networks need to fit.
    "micro_batch": None,
    "activation_checkpointing": False,
    "sharding": "none",
}
"""What is the same in every twin."""

LIMITS = {"limit": 4000, "validation": 512}
MANY = ("cifar10", "cifar100", "svhn", "svhn_extra", "mnist", "fashion_mnist")
"""Data sets that hold more images than that. Of another a twin takes what the recipe does, for there may be few."""
PER_CLASS, SIDE = 100, 64

# Pairs: for images as they are, and for photographs, which a recipe gives a size.
BUDGETS = {"natural": (1600, 400), "free": (1600, 400), "bilateral": (600, 160), "instance_adaptive": (160, 64)}
ONE_STEP, DEAREST, OTHERS = (1000, 250), (250, 100), (350, 160)
"""Optimiser steps by method, for a like cost: up to 2,000 natural steps, and 500."""
ATTACK_STEPS = {"attack": (5, 3), "selector": (5, 2)}
REPLAYS = 4
"""Few steps in all, so that fewer replays see more images."""


def is_small(recipe: Mapping[str, Any]) -> bool:
    """Whether a recipe is small as it is."""
    return section(recipe, "model").get("name") == NETWORK["name"]


def starts_from_weights(recipe: Mapping[str, Any]) -> bool:
    """Whether a recipe begins with trained weights, which fit their own network alone: then it has no twin."""
    model = section(recipe, "model")
    fetched = model.get("pretrained", str(model.get("name")).startswith("hub:"))
    return bool(model.get("weights")) or fetched in (True, "true") or recipe.get("normalize") == "pretrained"


def twin(recipe: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping of a recipe's small twin.

    Args:
        recipe: the recipe's mapping over those of its bases.
        own: its `small` section, laid over what the rule makes.
    """
    return laid_over(recipe if is_small(recipe) else _by_rule(recipe), own)


def _by_rule(recipe: Mapping[str, Any]) -> dict[str, Any]:
    data, network, method = (section(recipe, key) for key in ("data", "model", "method"))
    photographs = data.get("size") is not None
    budget = _budget(recipe)[photographs]
    small = EVERYWHERE | {
        "name": f"{recipe.get('name', Recipe.model_fields['name'].default)}{ENDING}",
        "data": _data(data, photographs),
        "model": NETWORK | ({"activation": network["activation"]} if "activation" in network else {}),
        "method": _method(method, recipe.get("threat"), photographs, budget),
        "batch_size": _at_most(recipe.get("batch_size"), BATCH_SIZE),
        "steps": _at_most(recipe.get("steps"), budget),
    }
    # The schedule is the twin's own, not the recipe's with another peak.
    return laid_over({**recipe, "schedule": None}, small)


def _budget(recipe: Mapping[str, Any]) -> tuple[int, int]:
    method = section(recipe, "method")
    while "method" in method:
        method = section(method, "method")
    # A gradient of gradients, and a step of the weights for each step.
    if _number(method.get("alignment")) or recipe.get("weight_perturbation"):
        return DEAREST
    if section(method, "attack").get("name") in ("fgsm", "rs_fgsm"):
        return ONE_STEP
    return BUDGETS.get(str(method.get("name")), OTHERS)


def _data(data: Mapping[str, Any], photographs: bool) -> dict[str, Any]:
    small: dict[str, Any] = {}
    if photographs:
        small = {"size": _at_most(data["size"], SIDE), "resize": None, "limit": None, "validation": None}
    elif data.get("source") in MANY:
        small = {key: _at_most(data.get(key), most) for key, most in LIMITS.items()}
    if data.get("per_class") is not None:
        small |= {"limit": None, "per_class": _at_most(data["per_class"], PER_CLASS)}
    if data.get("extra") is not None:
        small["extra"] = {"limit": None}  # all that there are
    return small


def _method(method: Mapping[str, Any], threat: Any, photographs: bool, budget: int) -> dict[str, Any]:
    threat = method.get("threat") or threat
    small: dict[str, Any] = {}
    if "replays" in method:
        small["replays"] = _at_most(method["replays"], REPLAYS)
    if "warmup" in method:
        small["warmup"] = _at_most(method["warmup"], budget // 4)
    for key, most in ATTACK_STEPS.items():
        if attack := section(method, key):
            small[key] = _attack(attack, threat, most[photographs])
    if "method" in method:
        small["method"] = _method(section(method, "method"), threat, photographs, budget)
    return small


def _attack(attack: Mapping[str, Any], threat: Any, most: int) -> dict[str, Any]:
    """At most so many steps, the longer the fewer they have become, but no longer than half of the radius."""
    steps, length = _number(attack.get("steps")), _number(attack.get("step_size"))
    if steps is None or steps <= most:
        return {}
    if length is None:
        return {"steps": most}
    longest = max(length, _radius(threat) / 2)
    return {"steps": most, "step_size": min(length * math.ceil(steps / most), longest)}


def _at_most(value: Any, most: int) -> Any:
    number = most if value is None else _number(value)
    return most if number is not None and number >= most else value


# What is no number or ball here, whoever builds the recipe will refuse.
def _number(value: Any) -> float | None:
    try:
        found = as_number(value)
    except ValueError:
        return None
    return found if isinstance(found, int | float) else None


def _radius(threat: Any) -> float:
    try:
        return float(parse(threat).eps)
    except (TypeError, ValueError):
        return math.inf
