"""An example's outcome depends on its id, its image and its label, and on nothing about its company."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from conftest import few
from toughen.attacks import ATTACKS
from toughen.evaluation import Evaluation, evaluate
from toughen.outcomes import COLUMNS
from toughen.threat import L2, Linf, Threat
from toys import labels, network, photographs, spec

N = 60
SETTINGS: dict[str, dict[str, Any]] = {
    "fgsm": {},
    "r_fgsm": {},
    "pgd": {"steps": 3, "restarts": 2},
    "mi_fgsm": {"steps": 2},
    "targeted_pgd": {"steps": 2},
    "multi_targeted": {"steps": 2},
    "apgd": {"steps": 5, "restarts": 2},
    "apgd_targeted": {"steps": 4, "targets": 2},
    "fab": {"steps": 3, "stop_inside": True},
    "deepfool": {"steps": 3},
    "square": {"queries": 12},
}
SUITE = {name: spec(name, **settings) for name, settings in SETTINGS.items() if name in ATTACKS}
THREATS = {"linf": Linf(3 / 255), "l2": L2(0.15)}


def problem(dtype: torch.dtype) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    model, x = network(dtype=dtype), photographs(N)
    y = labels(model, x.to(dtype) / 255)
    y[::9] = (y[::9] + 1) % 5
    return model, x, y


def run(dtype: torch.dtype, threat: Threat, order: torch.Tensor | None = None, **changes: Any) -> Evaluation:
    model, x, y = problem(dtype)
    ids = torch.arange(N) * 7 + 3
    order = torch.arange(N) if order is None else order
    # Independent, so that an example has a row for every attack, whatever the one before it did.
    given = {"suite": SUITE, "batch_size": 50, "chunk_size": 90, "independent": True, "audit": False} | changes
    return evaluate(model, x[order], y[order], threat=threat, index=ids[order], **given)


def table(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """The columns, sorted by attack and id; without passes, of which only sums over a unit are exact."""
    o = evaluation.outcomes
    order = np.lexsort((o.index, o.attack))
    return {name: getattr(o, name)[order] for name in COLUMNS if name not in ("forwards", "backwards")}


ORDER = torch.randperm(N, generator=torch.Generator().manual_seed(4))
COMPANY: dict[str, dict[str, Any]] = {
    "batches of 1": {"batch_size": 1},
    "batches of 16": {"batch_size": 16},
    "batches of 90": {"batch_size": 90},
    "chunks of 1": {"chunk_size": 1},
    "chunks of 20": {"chunk_size": 20},
    "one chunk": {"chunk_size": 90, "batch_size": 90},
    "another order": {"order": ORDER},
    "another order, batches of 7 in chunks of 30": {"order": ORDER.flip(0), "batch_size": 7, "chunk_size": 30},
}


def in_turn(*companies: str) -> list[Any]:
    """Each company in one ball, and by `make faults` in the other too."""
    balls = [*THREATS, *THREATS]
    pairs = [(company, balls[other + place % 2]) for other in range(2) for place, company in enumerate(companies)]
    return few(*pairs, small=len(companies))


@pytest.fixture(scope="module")
def usual() -> dict[tuple[torch.dtype, str], Evaluation]:
    return {(dtype, name): run(dtype, THREATS[name]) for dtype in (torch.float32, torch.float64) for name in THREATS}


@pytest.mark.parametrize(
    ("company", "threat"), in_turn(*(name for name in COMPANY if name not in ("batches of 1", "chunks of 1")))
)
def test_in_float64_nothing_but_the_last_bits_depends_on_the_company(company, threat, usual):
    expected = table(usual[torch.float64, threat])
    found = table(run(torch.float64, THREATS[threat], **COMPANY[company]))
    assert 0.2 < expected["survived"].mean() < 0.9
    for name, column in expected.items():
        if name in ("distance", "loss", "margin"):
            np.testing.assert_allclose(found[name], column, rtol=1e-6, atol=1e-9, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], column, err_msg=name)


@pytest.mark.parametrize("company", ["batches of 1", "chunks of 1"])
def test_likewise_alone(company):
    some = {name: SUITE[name] for name in ("fgsm", "pgd", "square", "apgd") if name in SUITE}
    given = {"suite": some, "order": torch.arange(0, N, 3)}
    expected = table(run(torch.float64, THREATS["linf"], **given))
    found = table(run(torch.float64, THREATS["linf"], **given, **COMPANY[company]))
    for name in ("attack", "index", "prediction", "survived", "marginal"):
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.parametrize(
    ("company", "threat"), in_turn("batches of 16", "batches of 90", "chunks of 20", "another order")
)
def test_in_float32_every_outcome_that_is_not_marginal_is_equal(company, threat, usual):
    expected = table(usual[torch.float32, threat])
    found = table(run(torch.float32, THREATS[threat], **COMPANY[company]))
    assert 0.2 < expected["survived"].mean() < 0.9
    clear = ~(expected["marginal"] | found["marginal"])
    assert clear.mean() > 0.98
    for name in ("attack", "index", "label"):
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    np.testing.assert_array_equal(found["survived"][clear], expected["survived"][clear])


@pytest.mark.parametrize("threat", THREATS)
def test_a_cascade_leaves_the_same_examples_standing(threat, usual):
    every = usual[torch.float64, threat].outcomes
    for changes in ({}, {"order": ORDER, "chunk_size": 50}):
        cascade = run(torch.float64, THREATS[threat], independent=False, **changes).outcomes
        assert set(cascade.index[~cascade.survived]) == set(every.index[~every.survived])
        # An attack's row on an example does not depend on the attacks before it.
        rows = dict(zip(zip(every.attack, every.index, strict=True), every.survived, strict=True))
        for attack, index, survived in zip(cascade.attack, cascade.index, cascade.survived, strict=True):
            assert rows[attack, index] == survived


def test_independent_runs_every_attack_on_all_that_is_classified_correctly(usual):
    outcomes = usual[torch.float64, "linf"].outcomes
    correct = set(outcomes.index[(outcomes.attack == "clean") & outcomes.survived])
    assert len(correct) == N - len(range(0, N, 9))
    tallies = outcomes.per_attack()
    assert list(tallies) == ["clean", *SUITE]
    worst = correct
    for name in SUITE:
        rows = outcomes.attack == name
        assert set(outcomes.index[rows]) == correct
        survived = set(outcomes.index[rows & outcomes.survived])
        worst = worst & survived
        assert tallies[name]["alone"] == len(survived) / N
    assert outcomes.robust_accuracy == len(worst) / N
    assert tallies[list(SUITE)[-1]]["accuracy"] == outcomes.robust_accuracy


@pytest.mark.parametrize("norm", few(Linf, L2))
def test_every_example_has_its_own_radius(norm):
    """Each as in an evaluation at that radius for all."""
    radii = (0.3, 1.0, 2.5)
    eps = 3 / 255 if norm is Linf else 0.15
    choice = torch.arange(N) % 3
    mixed = table(run(torch.float64, norm(torch.tensor(radii, dtype=torch.float64)[choice] * eps), chunk_size=45))
    of = (mixed["index"] - 3) // 7 % 3
    for number, radius in enumerate(radii):
        uniform = table(run(torch.float64, norm(radius * eps)))
        for name in ("attack", "index", "survived", "prediction"):
            np.testing.assert_array_equal(mixed[name][of == number], uniform[name][of == number], err_msg=name)
        np.testing.assert_allclose(
            mixed["distance"][of == number], uniform["distance"][of == number], rtol=1e-9, atol=1e-12
        )
    survived = [mixed["survived"][of == number].mean() for number in range(3)]
    assert survived[0] > survived[1] > survived[2]


def test_every_example_has_its_own_radius_in_the_order_of_the_examples():
    """The radii belong to the examples, not to the places in a chunk that is left."""
    eps = torch.linspace(0.2, 6, N, dtype=torch.float64) / 255
    expected = table(run(torch.float64, Linf(eps)))
    found = table(run(torch.float64, Linf(eps[ORDER]), order=ORDER, chunk_size=35, independent=True))
    for name in ("attack", "index", "survived", "prediction"):
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
