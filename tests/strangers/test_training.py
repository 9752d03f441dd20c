"""Networks of strangers in training: what is done for speed is tried first."""

import pytest
import torch
from torch import Tensor, nn

from toughen import models
from toughen.recipes.text import build
from toughen.training import acceleration
from toughen.training.acceleration import Acceleration, chosen_ways, measured, takes_channels_last

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Viewing(nn.Module):
    """Flattens by `view`, which takes one layout alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return self.head(h.view(len(h), -1))


def test_a_network_that_does_not_run_with_channels_last_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch):
    viewing, taking = models.Classifier(Viewing()), models.build("small_cnn", num_classes=3, in_channels=1, width=2)
    assert not takes_channels_last(viewing, (1, 8, 8), CPU)
    assert takes_channels_last(taking, (1, 8, 8), CPU)
    assert all(parameter.grad is None for model in (viewing, taking) for parameter in model.parameters())
    x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    ways, said = measured(viewing, x, y, bf16=(False,), compiles=False)
    assert not ways.channels_last
    assert "channels_last" not in said
    # By the rule of a GPU, which this is not.
    monkeypatch.setattr(acceleration, "by_rule", lambda recipe, device: Acceleration(channels_last=True, tf32=True))
    monkeypatch.setattr(
        acceleration, "takes_channels_last", lambda model, shape, _: takes_channels_last(model, shape, CPU)
    )
    notes: list[str] = []
    for model in (viewing, taking):
        chosen_ways(
            build({"data": "mnist5k", "model": "small_cnn", "method": "natural", "threat": "linf:0.1", "steps": 2}),
            model,
            (4, 1, 8, 8),
            GPU,
            notes.append,
            False,
        )
    assert notes == [
        "computing in tf32 (fast: rule; the network does not run in channels_last)",
        "computing in channels_last, tf32 (fast: rule)",
    ]
