"""Every attack on a pretended GPU finds what it finds on the CPU."""

import pytest
import torch

from attack_cases import CASES
from toughen.attacks import AttackSpec
from toughen.testing import toys
from toughen.testing.attack_under_test import BALLS
from toughen.threat import L2, Linf, Threat

CUDA = torch.device("cuda", 0)


def on(device: torch.device, threat: Threat) -> Threat:
    """The ball with its radii on a device."""
    return type(threat)(threat.eps.to(device)) if isinstance(threat.eps, torch.Tensor) else threat


@pytest.mark.parametrize(("name", "norm"), [(name, norm) for name, case in CASES.items() for norm in case.norms])
def test_an_attack_finds_in_float64_what_it_finds_on_the_cpu(name: str, norm: str) -> None:
    attack = AttackSpec.model_validate(CASES[name].settings)
    model, x, y = toys.normed(torch.float64), toys.images(torch.float64), toys.labels()
    there = toys.normed(torch.float64).to(CUDA)
    for ball in BALLS[norm]:
        expected = attack(model, x, y, threat=ball)
        found = attack(there, x.to(CUDA), y.to(CUDA), threat=on(CUDA, ball))
        assert found.device == CUDA
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-12)


def test_both_norms_are_tried() -> None:
    assert {type(ball) for balls in BALLS.values() for ball in balls} == {Linf, L2}


def test_balls_are_equal_wherever_their_radii_lie() -> None:
    radii = torch.tensor([0.1, 0.2])
    assert Linf(radii) == Linf(radii.to(CUDA))
    assert Linf(radii.to(CUDA)) == Linf(radii)
    assert Linf(radii) != Linf(2 * radii.to(CUDA))
