"""Attacks against tiny ReLU networks whose best adversarial example is known exactly."""

import functools
import inspect
from typing import Any

import pytest
import torch

from attack_cases import CASES
from conftest import few
from oracles import ReLUProblem, relu_problem
from toughen.attacks import ATTACKS
from toughen.attacks.apgd import apgd, apgd_targeted
from toughen.attacks.contract import is_minimal_norm
from toughen.attacks.multi_targeted import multi_targeted
from toughen.losses import margin
from toughen.noise import Stream, generator
from toughen.threat import Linf

EPS = 0.1
KEYS = [(0, 2), (0, 3), (1, 2), (2, 2), (3, 2)]
# The oracle's ball is Linf.
ALL = {name: attack for name, attack in ATTACKS.items() if name in CASES and "linf" in CASES[name].norms}
FEW: dict[str, Any] = {"steps": 20, "queries": 200}
FOUR = ("apgd_targeted", "fab")
"""Attacks whose default of nine targets is more than the four other classes."""


@functools.cache
def solved(seed: int, width: int) -> tuple[ReLUProblem, torch.Tensor]:
    """A problem of 50 images, and the highest margin of each."""
    problem = relu_problem(seed, width=width)
    return problem, problem.best_margin(EPS)


@pytest.mark.parametrize(("seed", "width"), few(*KEYS, small=2))
def test_the_oracle_is_never_beaten_and_within_reach(seed, width):
    """By a search that shares nothing with it: on two pixels by two, random corners and points find most optima."""
    problem, best = solved(seed, width)
    x, y = problem.x, problem.y
    assert 0.2 < (best > 0).double().mean() < 0.8
    assert not ((best > -1e-6) & (best < 1e-6)).any()
    low, high = (x - EPS).clamp(0, 1), (x + EPS).clamp(0, 1)
    highest, draw = torch.full_like(best, -torch.inf), generator("exact", seed, width)
    for _ in range(300):
        share = torch.rand(x.shape, generator=draw, dtype=x.dtype)
        share = torch.where(torch.rand(x.shape, generator=draw, dtype=x.dtype) < 0.7, share.round(), share)
        highest = torch.maximum(highest, margin(problem.model(low + share * (high - low)).detach(), y))
    assert (highest <= best + 1e-12).all()
    if width == 2:
        assert (highest > best - 0.1 * best.std()).double().mean() > 0.9


@pytest.mark.faults
@pytest.mark.parametrize("name", list(ALL))
def test_no_attack_does_the_impossible(name, faults):
    attack = ALL[name]
    settings = {key: value for key, value in FEW.items() if key in inspect.signature(attack).parameters}
    settings |= {"targets": 4} if name in FOUR else {}
    for key in KEYS[: faults.trials(small=2, full=5)]:
        problem, best = solved(*key)
        found = attack(problem.model, problem.x, problem.y, threat=Linf(EPS), **settings)
        inside = (found - problem.x).flatten(1).abs().amax(1) <= EPS + 1e-12
        assert inside.all() or is_minimal_norm(attack)
        reached = margin(problem.model(found).detach(), problem.y)
        assert (reached[inside] <= best[inside] + 1e-9).all()


STRONG = {
    "apgd_targeted": functools.partial(apgd_targeted, targets=4, steps=25, restarts=2),
    "multi_targeted": functools.partial(multi_targeted, steps=20, restarts=12),
    "apgd": functools.partial(apgd, loss="margin", steps=50, restarts=6),
}


@pytest.mark.parametrize("name", list(STRONG))
def test_strong_attacks_find_what_can_be_found(name):
    breakable, broken = 0, 0
    for key in KEYS:
        problem, best = solved(*key)
        noise = Stream(("exact", *key), torch.arange(len(best)))
        found = STRONG[name](problem.model, problem.x, problem.y, threat=Linf(EPS), noise=noise)
        reached = problem.model(found).argmax(1) != problem.y
        assert not (reached & (best <= 0)).any()
        breakable, broken = breakable + int((best > 0).sum()), broken + int(reached.sum())
    assert broken >= 0.98 * breakable, f"{name} broke {broken} of {breakable}"
