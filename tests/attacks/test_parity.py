"""Attacks against what other libraries' found on the same frozen models, example by example.

`frozen/references.json` holds their verified outcomes (see `tools/record_references.py`). Ours have the same budget
per run, and as many runs, where runs are random, as there are libraries of which the best outcome counts.
"""

import functools
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from frozen_models import FROZEN, RADII, load
from toughen.attacks.apgd import apgd, apgd_targeted
from toughen.attacks.carlini_wagner import carlini_wagner
from toughen.attacks.deepfool import deepfool
from toughen.attacks.fab import fab
from toughen.attacks.square import square
from toughen.evaluation.verify import ROUNDING

REFERENCES = json.loads((FROZEN / "references.json").read_text())
SETTINGS: dict[str, dict[str, Any]] = REFERENCES["settings"]
CLOSE = 1e-4

OURS: dict[str, Callable[..., Tensor]] = {
    "apgd-ce": functools.partial(apgd, loss="cross_entropy"),
    "apgd-dlr": functools.partial(apgd, loss="dlr"),
    "apgd-t": apgd_targeted,
    "fab-t": fab,
    "square": square,
    "deepfool": deepfool,
    "carlini-wagner": carlini_wagner,
}
RANDOM = ("apgd-ce", "apgd-dlr", "apgd-t", "square")


def recorded(name: str, norm: str, attack: str) -> list[dict[str, Any]]:
    """The libraries' rows."""
    wanted = {"model": name, "norm": norm, "attack": attack}
    return [row for row in REFERENCES["rows"] if all(row[key] == value for key, value in wanted.items())]


def best_of(rows: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """Which examples any library broke (N,), and the shortest distance that any found, infinite where none (N,)."""
    broken = torch.tensor([[flag == "1" for flag in row["broken"]] for row in rows]).any(0)
    none = [None] * len(broken)
    distance = [[torch.inf if d is None else d for d in row.get("distance", none)] for row in rows]
    return broken, torch.tensor(distance, dtype=torch.float64).amin(0)


def outcome(name: str, norm: str, attack: str) -> tuple[Tensor, Tensor]:
    """The same of ours, verified as theirs were."""
    rows = recorded(name, norm, attack)
    model, x, y, threat = load(name, norm, REFERENCES["images"])
    settings = SETTINGS[attack] | ({"restarts": len(rows)} if attack in RANDOM else {})
    x_adv = OURS[attack](model, x, y, threat=threat, **settings)
    with torch.no_grad():
        wrong = model(x_adv).argmax(1) != y
    assert ((x_adv >= 0) & (x_adv <= 1)).all()
    distance = threat.size(x_adv.double() - x.double()).where(wrong, torch.inf)
    share, amount = ROUNDING[norm]
    return distance <= threat.eps * (1 + share) + amount, distance


CASES = [
    pytest.param(name, norm, attack, id=f"{name}-{norm}-{attack}")
    for name in RADII
    for norm in RADII[name]
    for attack in OURS
    if recorded(name, norm, attack)
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norm", "attack"), CASES)
def test_at_least_as_strong_as_the_best_library(name, norm, attack):
    theirs, nearest = best_of(recorded(name, norm, attack))
    ours, distance = outcome(name, norm, attack)
    weaker = theirs & ~ours
    assert weaker.double().mean() <= 0.01, f"not broken: {weaker.nonzero().flatten().tolist()} of {int(theirs.sum())}"
    if nearest.isfinite().any():
        farther = (distance > nearest * (1 + CLOSE)) & ~(ours & theirs)
        assert farther.double().mean() <= 0.01, f"farther away: {farther.nonzero().flatten().tolist()}"


def test_the_references_are_those_of_these_models_and_settings():
    assert REFERENCES["radii"] == RADII
    for row in REFERENCES["rows"]:
        assert len(row["broken"]) == REFERENCES["images"]
    model, x, y, _ = load("linear", "l2", REFERENCES["images"])
    assert (model(x).argmax(1) == y).all()
