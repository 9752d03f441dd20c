"""What hangs on the number of a batch; steps worked out by hand are in `test_weights.py` and with each method."""

import pytest
import torch
from torch import Tensor, nn

from toughen.data import load
from toughen.models import MODELS
from toughen.recipes.text import build
from toughen.training.loop import train_batch
from toughen.training.setup import set_up, splits


class Dropping(nn.Module):
    """A network that shows what it has dropped."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(64 * in_channels, num_classes)
        self.kept: list[list[float]] = []

    def forward(self, x: Tensor) -> Tensor:
        kept = nn.functional.dropout(torch.ones(32), 0.5, self.training)
        self.kept.append(kept.tolist())
        return self.linear(x.flatten(1)) * kept.mean()


def dropped(numbers: list[int]) -> list[list[float]]:
    """In the batches of these numbers, one after the other."""
    settings = {"model": "dropping", "method": "natural", "threat": "linf:0.1", "batch_size": 32, "steps": 9}
    recipe = build({"data": "tiny", **settings})
    split, _, index = splits(recipe, load("tiny"))
    job, batches = set_up(recipe, load("tiny"), split, index, torch.device("cpu"))
    net = job.model.net
    assert isinstance(net, Dropping)
    net.kept.clear()
    for number in numbers:
        job.number = number
        train_batch(job, batches[number])
    return net.kept


def test_what_a_model_draws_is_new_at_every_batch_and_the_same_after_a_resume(
    tiny: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(MODELS, "dropping", Dropping)
    first, second, third = dropped([0, 1, 2])
    assert first != second != third != first
    assert dropped([2]) == [third]
