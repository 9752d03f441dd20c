"""A training step of every method on a pretended GPU: the host waits for nothing, and trains what the CPU trains."""

import pytest
import torch

import pretended
from conftest import tiny_data
from method_cases import CASES
from tiny_runs import tiny_recipe
from toughen.training.acceleration import Acceleration
from toughen.training.loop import train_batch
from toughen.training.setup import set_up

CUDA = torch.device("cuda", 0)
WAYS = {"plain": Acceleration(), "rule": Acceleration(bf16=True, channels_last=True, tf32=True, folded=True)}


@pytest.mark.parametrize("ways", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_a_step_waits_for_nothing(name: str, ways: str) -> None:
    case, data = CASES[name], tiny_data()
    recipe = tiny_recipe(method=case.settings, steps=96, device="cuda", **case.recipe)
    index = torch.arange(len(data.train))
    job, batches = set_up(recipe, data, data.train, index, CUDA, ways=WAYS[ways])
    # Memories are filled and checkpoints of the schedule passed in the first ones.
    for number in range(2):
        train_batch(job, batches[number])
    with pretended.waits_of() as waits:
        train_batch(job, batches[2])
    assert dict(waits) == {}
    assert all(value.device == CUDA for value in job.model.state_dict().values())
    job.finite.check()
