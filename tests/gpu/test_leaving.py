"""Attacks on a pretended GPU: how often the host waits, and what they are given from the host."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pretended
from attack_cases import CASES
from late_leaving import BALLS, RUNS, examples, given_to
from toughen.attacks import AttackSpec, pgd
from toughen.attacks.compaction import EVERY
from toughen.attacks.contract import GIVEN
from toughen.attacks.neighbours import Donors
from toughen.attacks.registry import ATTACKS
from toughen.evaluation import evaluate
from toughen.models.batched import Batched
from toughen.noise import Stream
from toughen.settings import settings_of
from toughen.testing import toys
from toughen.threat import L2, Linf, Threat

CUDA, MPS, CPU = torch.device("cuda", 0), torch.device("mps"), torch.device("cpu")
FIRST = [(name, norm) for name, case in CASES.items() if case.settings["name"] == name for norm in case.norms]
AROUND = 20
"""For what an attack waits besides: who begins a run and its draws, and the rounds of refinement at its end."""


@pytest.mark.parametrize(("name", "norm"), [(name, norm) for name, run in RUNS.items() for norm in run.norms])
def test_the_host_waits_every_ten_steps(name: str, norm: str) -> None:
    run, model = RUNS[name], toys.normed(torch.float64)
    there = Batched(toys.normed(torch.float64).to(CUDA), 5)
    x, y = examples(model, shape=toys.SHAPE)
    expected = run.spec(model, x, y, threat=BALLS[norm], noise=given_to(run, x, y).get("noise"))
    x_there, y_there = x.to(CUDA), y.to(CUDA)
    noise = Stream(("late",), torch.arange(len(x)), device=CUDA)
    with pretended.waits_of() as waits:
        found = run.spec(there, x_there, y_there, threat=BALLS[norm], noise=noise)
    assert sum(waits.values()) <= run.steps / EVERY + AROUND, dict(waits)
    broken, broken_there = (model(points).argmax(1) != y for points in (expected, found.cpu()))
    assert torch.equal(broken, broken_there)


def test_a_line_search_waits_once_a_try() -> None:
    there = toys.normed(torch.float64).to(CUDA)
    x, y = (part.to(CUDA) for part in examples(toys.normed(torch.float64), shape=toys.SHAPE))
    attack = AttackSpec(name="carlini_wagner_linf", steps=4, halvings=3, doublings=2)
    with pretended.waits_of() as waits:
        attack(there, x, y, threat=BALLS["linf"])
    assert 0 < sum(waits.values()) <= 4 * (1 + 3 + 2), dict(waits)


def arguments(name: str, norm: str, at: torch.device) -> dict[str, Any]:
    """What an attack may be given, all of it on one device."""
    x, y = toys.images(torch.float64), toys.labels()
    radii = torch.linspace(0, 0.3, len(x), dtype=torch.float64, device=at)
    given = {
        "threat": {"linf": Linf, "l2": L2}[norm](radii),
        "noise": Stream(("given",), torch.arange(len(x)), device=at),
        "donors": Donors(*(part.to(at) for part in (x[:3], (x[:3] + 0.02).clamp(0, 1), y[:3]))),
        "step_size": torch.linspace(0.01, 0.05, len(x), dtype=torch.float64, device=at),
        "target": ((y + 1) % toys.CLASSES).to(at),
    }
    settings = dict(CASES[name].settings)
    function = ATTACKS[settings.pop("name")]
    takes = {key for key in inspect.signature(function).parameters if key != "step_size" or takes_radii(function)}
    return settings | {key: value for key, value in given.items() if key in takes}


def takes_radii(function: Any) -> bool:
    """Whether an attack's step size may be a tensor."""
    return "Tensor" in str(settings_of(function, GIVEN).model_fields["step_size"].annotation)


@pytest.mark.parametrize("labels", ["classes", "probabilities"])
@pytest.mark.parametrize(("name", "norm"), FIRST)
def test_what_is_given_is_moved_to_the_images(name: str, norm: str, labels: str) -> None:
    """Radii, step sizes, targets, donors, draws and labels on the host with images on the device, and the reverse."""
    y = toys.labels()
    y = y if labels == "classes" else torch.nn.functional.one_hot(y, toys.CLASSES).double()
    for here, elsewhere in ((CUDA, CPU), (CPU, CUDA)):
        model, x = toys.normed(torch.float64).to(here), toys.images(torch.float64).to(here)
        expected = ATTACKS[name](model, x, y.to(here), **arguments(name, norm, here))
        found = ATTACKS[name](model, x, y.to(elsewhere), **arguments(name, norm, elsewhere))
        assert found.device == here
        assert torch.equal(found, expected)


def test_step_sizes_of_a_schedule_are_moved_and_looked_at_once() -> None:
    there, x, y = toys.normed(torch.float64).to(CUDA), toys.images(torch.float64).to(CUDA), toys.labels().to(CUDA)
    lengths = torch.linspace(0.01, 0.05, len(x), dtype=torch.float64)
    given = {"threat": Linf(0.1), "steps": 6, "random_start": False}
    expected = pgd(there, x, y, step_size=lengths, **given)
    spec = AttackSpec(name="pgd", steps=6, random_start=False, step_size=lambda step: lengths)
    with pretended.waits_of() as waits:
        found = spec(there, x, y, threat=Linf(0.1))
    assert torch.equal(found, expected)
    assert sum(waits.values()) == 1


def test_a_block_keeps_its_draws_wherever_they_are_wanted() -> None:
    stream = Stream(("block",), torch.tensor([3, 0, 2]), block=5)
    for draw in (lambda s: s.uniform((2,)), lambda s: s.normal((2,)), lambda s: s.integers(9, (2,))):
        there = draw(stream.on(CUDA))
        assert there.device == CUDA
        assert torch.equal(there.cpu(), draw(stream))
        assert torch.equal(draw(stream.on(CUDA).child("a").on(CPU)[1:]), draw(stream.child("a")[1:]))


@pytest.mark.parametrize("at", [CPU, CUDA], ids=str)
@pytest.mark.parametrize("ball", [Linf, L2])
def test_an_evaluation_takes_radii_from_anywhere(ball: type[Threat], at: torch.device) -> None:
    model = toys.normed(torch.float64)
    x, y = examples(model, shape=toys.SHAPE)
    radii = torch.linspace(0, 0.1 if ball is Linf else 0.6, len(x), dtype=torch.float64)
    suite = {"square": AttackSpec(name="square", queries=40), "apgd": AttackSpec(name="apgd", steps=25)}
    expected = evaluate(model, x, y, threat=ball(radii), suite=suite, batch_size=6)
    found = evaluate(toys.normed(torch.float64).to(CUDA), x, y, threat=ball(radii.to(at)), suite=suite, batch_size=6)
    for name in ("index", "attack", "survived", "prediction"):
        assert np.array_equal(getattr(found.outcomes, name), getattr(expected.outcomes, name))
    spent = expected.outcomes.forwards.sum() + expected.outcomes.backwards.sum()
    more = found.outcomes.forwards.sum() + found.outcomes.backwards.sum()
    assert expected.idle_passes == 0
    assert 0 < found.idle_passes == more - spent
    assert found.summary()["idle_passes"] == found.idle_passes


def close(found: Tensor, expected: Tensor) -> bool:
    """Whether nearly all points are the same: a sign may turn with the last bit of a gradient."""
    return bool(((found.cpu() - expected).abs() < 1e-4).double().mean() > 0.9)


@pytest.mark.parametrize(("name", "norm"), [(name, norm) for name, case in CASES.items() for norm in case.norms])
def test_an_attack_needs_no_float64(name: str, norm: str) -> None:
    attack = AttackSpec.model_validate(CASES[name].settings)
    x, y = toys.images(), toys.labels()
    with pretended.only("mps"):
        there = toys.normed().to(MPS)
        for ball in (BALLS[norm], type(BALLS[norm])(torch.linspace(0, 0.3, len(x), dtype=torch.float64))):
            expected = attack(toys.normed(), x, y, threat=ball)
            found = attack(there, x.to(MPS), y.to(MPS), threat=ball)
            assert found.device.type == "mps"
            assert close(found, expected)


def test_labels_of_64_bits_are_taken_without_float64() -> None:
    y = torch.nn.functional.one_hot(toys.labels(), toys.CLASSES)
    with pretended.only("mps"):
        found = pgd(toys.normed().to(MPS), toys.images().to(MPS), y.double(), threat=Linf(0.1))
    assert close(found, pgd(toys.normed(), toys.images(), y.float(), threat=Linf(0.1)))


@pytest.mark.parametrize("block", [None, 5])
def test_integers_are_made_on_the_host_where_there_is_no_float64(block: int | None) -> None:
    rows = torch.tensor([3, 0, 2])
    with pretended.only("mps"):
        found = Stream(("whole",), rows, block, MPS).integers(1000, (4,))
        wide = Stream(("whole",), rows, block, MPS).uniform((4,), dtype=torch.float64)
    assert found.device.type == "mps"
    assert torch.equal(found.cpu(), Stream(("whole",), rows, block).integers(1000, (4,)))
    assert torch.equal(wide, Stream(("whole",), rows, block).uniform((4,), dtype=torch.float64))
