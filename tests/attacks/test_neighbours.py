"""Starts from broken neighbours, by hand, and where nothing else gets."""

import pytest
import torch
from torch import Tensor, nn

from attacks.test_diversified import Recorder
from oracles import Affine
from toughen.attacks.diversified import diversified_pgd
from toughen.attacks.neighbours import Donors, neighbour_pgd
from toughen.models.cost import counted
from toughen.threat import L2, Linf


def image(*pixels: float) -> Tensor:
    return torch.tensor(pixels, dtype=torch.float64).reshape(1, 1, 1, -1)


@pytest.mark.parametrize("ball", [Linf(0.1), L2(0.1)])
def test_where_it_starts(ball):
    # Class 0 where the first pixel is below 0.5; the second counts for little.
    weight = torch.tensor([[-10.0, 0.0], [10.0, 0.0]], dtype=torch.float64)
    model = Recorder(weight, torch.tensor([5.0, -5.0], dtype=torch.float64))
    x, y = image(0.2, 0.5), torch.tensor([0])
    donors = Donors(
        torch.cat([image(0.45, 0.9), image(0.46, 0.5), image(0.6, 0.5), image(0.4, 0.4)]),
        torch.cat([image(0.55, 0.9), image(0.53, 0.42), image(0.45, 0.6), image(0.52, 0.3)]),
        torch.tensor([0, 0, 1, 0]),
    )
    neighbour_pgd(model, x, y, threat=ball, donors=donors, neighbours=4, steps=1)
    starts = [model.seen[1 + 2 * run] for run in range(4)]

    def within(delta: Tensor) -> Tensor:
        return (x + ball.project(delta)).clamp(0, 1)

    # Towards the nearest images that are taken for another class: the second donor's (0.53, 0.42), then the last one's.
    torch.testing.assert_close(starts[0], within(image(0.33, -0.08)))
    torch.testing.assert_close(starts[2], within(image(0.32, -0.2)))
    # With the perturbations of the nearest images of the same class: those of the last donor, then of the second.
    torch.testing.assert_close(starts[1], within(image(0.12, -0.1)))
    torch.testing.assert_close(starts[3], within(image(0.07, -0.08)))


def test_what_it_costs_with_and_without_donors():
    weight = torch.tensor([[-10.0, 0.0], [10.0, 0.0]], dtype=torch.float64)
    model = Affine(weight, torch.tensor([5.0, -5.0], dtype=torch.float64))
    x, y = image(0.2, 0.5).expand(3, 1, 1, 2), torch.zeros(3, dtype=torch.long)
    donors = Donors(image(0.45, 0.5), image(0.55, 0.5), torch.tensor([0]))
    for given, more in ((None, 0), (donors, 1)):
        with counted(model) as passes:
            neighbour_pgd(model, x, y, threat=Linf(0.1), neighbours=5, steps=4, donors=given)
        assert (passes.example_forwards, passes.example_backwards) == (3 * 5 * 5 + more, 3 * 5 * 4)


class Needle(nn.Module):
    """Wrong in a narrow spot around (0.9, 0.1, 0.9, ...) of which no gradient outside of it tells."""

    def __init__(self) -> None:
        super().__init__()
        self.spot = nn.Parameter(torch.tensor([0.9, 0.1] * 32, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        away = (x.flatten(1) - self.spot).abs().mean(1)
        return torch.stack([torch.zeros_like(away), (0.15 - away).clamp(min=0) - 0.01], 1)


def test_a_neighbour_shows_what_no_gradient_does():
    model, y = Needle(), torch.tensor([0])
    x = torch.full((1, 1, 8, 8), 0.5, dtype=torch.float64) + 0.28 * (model.spot.detach() - 0.5).sign().reshape(8, 8)
    x = 0.5 + (x - 0.5) * 0.4
    ball = Linf(0.3)
    donors = Donors(x, model.spot.detach().reshape(1, 1, 8, 8), y)
    alone = diversified_pgd(model, x, y, threat=ball, steps=50, restarts=5)
    assert model(alone).argmax(1).item() == 0
    found = neighbour_pgd(model, x, y, threat=ball, donors=donors, neighbours=1, steps=5)
    assert model(found).argmax(1).item() == 1
    assert (found - x).abs().max() <= 0.3 + 1e-12
