"""Which device a run gets, and what is said where it cannot have the one that was named."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import pretended
from conftest import tiny_data
from tiny_runs import tiny_recipe
from toughen.data import DATA
from toughen.devices import placed
from toughen.recipes import RecipeError
from toughen.studies.executors import visible_gpus
from toughen.testing import toys
from toughen.training import train
from toughen.training.acceleration import Acceleration, by_rule, chosen_ways
from toughen.training.setup import chosen_device, set_up
from toughen.workflows.run_folder import open_trained

TORCH = re.escape(torch.__version__)


@pytest.mark.parametrize(
    ("kind", "name", "device"),
    [
        ("cuda", "auto", "cuda:0"),
        ("mps", "auto", "mps"),
        ("xpu", "auto", "xpu:0"),
        ("cuda", "cuda", "cuda:0"),
        ("cuda", "cuda:1", "cuda:1"),
        ("mps", "mps", "mps"),
        ("xpu", "xpu", "xpu:0"),
        ("xpu", "xpu:0", "xpu:0"),
        ("mps", "cpu", "cpu"),
    ],
)
def test_the_device_of_a_recipe(kind: str, name: str, device: str) -> None:
    assert tiny_recipe(device=name).device == name
    with pretended.only(kind):
        assert str(chosen_device(name)) == device


@pytest.mark.parametrize(
    ("kind", "hidden", "name", "says"),
    [
        (
            "cuda",
            None,
            "cuda:2",
            "cuda:2 is not available on this machine, where torch VERSION finds cpu, cuda:0 and cuda:1",
        ),
        ("cuda", None, "mps", "mps is not available on this machine, where torch VERSION finds cpu, cuda:0 and cuda:1"),
        ("mps", None, "cuda", "cuda is not available on this machine, where torch VERSION finds cpu and mps:0"),
        ("xpu", None, "xpu:1", "xpu:1 is not available on this machine, where torch VERSION finds cpu and xpu:0"),
        ("cuda", "1", "cuda:1", r"finds cpu and cuda:0 \(CUDA_VISIBLE_DEVICES is '1'\)"),
        ("cuda", "", "cuda", r"finds cpu alone \(CUDA_VISIBLE_DEVICES is ''\)"),
        ("cuda", "gpu one", "cuda:0", r"finds cpu alone \(CUDA_VISIBLE_DEVICES is 'gpu one'\)"),
    ],
)
def test_one_that_is_not_there(
    kind: str, hidden: str | None, name: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    says = f"device: .*{says.replace('VERSION', TORCH)}; use device=cpu or device=auto$"
    with pretended.only(kind), pytest.raises(RecipeError, match=says):
        chosen_device(name)


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_more_processes_than_gpus(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert str(chosen_device(name)) == "cuda:1"
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(RecipeError, match=r"cuda:3, the turn of process 3, is not .* start as many processes as there"):
        chosen_device(name)


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_processes_that_cannot_exchange(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pretended.only(kind):
        assert str(chosen_device("auto")) == "cpu"
        with pytest.raises(RecipeError, match=f"2 processes cannot exchange tensors on {kind}; start one"):
            chosen_device(kind)


def test_workers_of_a_study_share_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert visible_gpus() == ("CUDA_VISIBLE_DEVICES", ["0", "1"])
    with pretended.only("mps"):
        assert visible_gpus()[1] == []
    with pretended.only("xpu"):
        assert visible_gpus() == ("ZE_AFFINITY_MASK", ["0"])
        monkeypatch.setenv("ZE_AFFINITY_MASK", "2,3")
        assert visible_gpus() == ("ZE_AFFINITY_MASK", ["2", "3"])


def test_weights_of_a_run_go_where_they_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATA, "tiny", tiny_data)
    train(
        tiny_recipe(method="natural", steps=2, device="cuda:1", selection={"suite": "pgd-1", "every": 2}),
        tmp_path / "run",
    )

    def device() -> str:
        return str(next(open_trained(tmp_path / "run").model.parameters()).device)

    assert device() == "cuda:1"
    with pretended.only("mps"):
        assert device() == "mps:0"


def test_a_model_in_float64_is_refused_where_there_is_none() -> None:
    with pretended.only("mps"):
        assert placed(toys.normed(), torch.device("mps")).get_parameter("0.weight").device.type == "mps"
        with pytest.raises(ValueError, match=r"in float64 \('0.weight'\), which mps does not have; .* model.float\(\)"):
            placed(toys.normed(torch.float64), torch.device("mps"))


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_ways_that_nobody_has_seen_are_left_out_and_said_so_once(kind: str, tmp_path: Path) -> None:
    seen = tiny_recipe(steps=96_000)
    cuda, other = torch.device("cuda"), torch.device(kind)
    assert by_rule(seen, cuda).compiled
    assert by_rule(seen, other) == Acceleration(folded=True)
    asked: dict[str, Any] = {"fast": "measure", "precision": "bf16"}
    data, notes = tiny_data(), []
    # As if it went on from a checkpoint of a run on a GPU.
    ways = Acceleration(bf16=True, channels_last=True, compiled=True, tf32=True)
    rows = torch.arange(len(data.train))
    with pretended.only(kind):
        job, _ = set_up(seen, data, data.train, rows, other, note=notes.append, ways=ways)
        assert job.ways == Acceleration(folded=True)
        assert notes == [
            "computing in folded (fast: rule; bf16, channels_last and graphs have not been seen on "
            f"{kind} yet, and are left out)"
        ]
        by_name = chosen_ways(tiny_recipe(**asked), job.model, (2, 1, 8, 8), other, notes.append, False)
        assert by_name == Acceleration(bf16=True, folded=True)
        assert notes[1:] == [
            f"computing in bf16, folded (fast: measure; channels_last and graphs have not been seen on {kind} yet, and "
            "are left out)"
        ]


def test_memory_that_is_the_machines_is_not_tried() -> None:
    data, recipe = tiny_data(), tiny_recipe(micro_batch="auto")
    with (
        pretended.only("mps"),
        pytest.raises(RecipeError, match=r"micro_batch: auto asks a GPU .* on mps, whose memory"),
    ):
        set_up(recipe, data, data.train, torch.arange(len(data.train)), torch.device("mps"))
