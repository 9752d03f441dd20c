"""Whole runs on a pretended GPU: they resume to the same bits, and what only a GPU is asked for is there."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import pretended
import toughen
from conftest import tiny_data
from photographs import stored_photographs
from tiny_runs import Said, digest, newest_of, tiny_recipe
from toughen.data import DATA, Batches
from toughen.data.loading.batches import Extra
from toughen.export.folder import export
from toughen.training import run as running
from toughen.training import train

CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATA, "tiny", tiny_data)


class Died(BaseException):
    """Thrown amid a run."""


RECIPES: dict[str, dict[str, Any]] = {
    "free": {"weight_perturbation": {}},
    "radii": {
        "method": {"name": "instance_adaptive", "attack": {"name": "pgd", "steps": 2}, "warmup": 1, "gamma": 0.02}
    },
    "micro-batches": {"micro_batch": 12, "method": {"name": "trades", "attack": {"name": "pgd", "steps": 2}}},
    "by rule": {"fast": "rule", "method": {"name": "adversarial", "attack": {"name": "pgd", "steps": 2}}},
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_that_died_ends_in_the_same_bits(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"device": "auto", "fast": "off", "steps": 15, "selection": {"suite": "pgd-1", "every": 12}}
    recipe = tiny_recipe(**changes | RECIPES[name])
    summary = train(recipe, tmp_path / "whole")
    assert summary["device"] == "cuda:0"
    # Between two checkpoints, of which the first is gone on from.
    step, left = running.train_batch, 1 + 9 // recipe.method.steps_per_batch

    def dying(job: Any, batch: Any) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise Died
        step(job, batch)

    with monkeypatch.context() as patch:
        patch.setattr(running, "train_batch", dying)
        with pytest.raises(Died):
            train(recipe, tmp_path / "parts")
    assert newest_of(tmp_path / "parts").name != newest_of(tmp_path / "whole").name
    train(recipe, tmp_path / "parts")
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")


def test_a_run_is_exported_and_read_where_there_is_no_gpu(tmp_path: Path) -> None:
    train(tiny_recipe(device="cuda", steps=12), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out")
    model = toughen.load_model(tmp_path / "out")
    x = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(copy.deepcopy(model).to(CUDA)(x.to(CUDA)).cpu(), model(x))


def test_micro_batch_auto_finds_what_fits(tmp_path: Path) -> None:
    recipe, said = tiny_recipe(device="cuda", steps=6, micro_batch="auto", batch_size=120), Said()
    torch.cuda.reset_peak_memory_stats()
    train(recipe, tmp_path / "all", display=said)
    peak = torch.cuda.max_memory_allocated()
    assert json.loads((newest_of(tmp_path / "all") / "state.json").read_text())["micro_batch"] is None
    held = torch.cuda.memory_allocated()
    with pretended.limit((peak - held) * 2 // 3):
        train(recipe, tmp_path / "less", display=said)
    assert json.loads((newest_of(tmp_path / "less") / "state.json").read_text())["micro_batch"] in (60, 30, 15)


@pytest.mark.parametrize("extra", [False, True])
def test_streamed_photographs_arrive_without_a_wait(extra: bool, tmp_path: Path) -> None:
    stored = stored_photographs(tmp_path, 12)
    settings: dict[str, Any] = {"batch_size": 4, "seed": 0, "flip": True, "workers": 2}
    settings |= {"extra": Extra(stored, 12, 0.5)} if extra else {}
    here, there = (Batches(stored, torch.arange(12), device=device, **settings) for device in ("cpu", CUDA))
    with pretended.waits_of() as waits:
        batches = [there[number] for number in range(4)]
    assert dict(waits) == {}
    for number, batch in enumerate(batches):
        expected = here[number]
        assert batch.x.device == CUDA
        torch.testing.assert_close(batch.x.cpu(), expected.x)
        assert torch.equal(batch.y.cpu(), expected.y)
        if batch.extra is not None and expected.extra is not None:
            assert torch.equal(batch.extra.cpu(), expected.extra)
        assert (batch.extra is None) == (not extra)
    here.close()
    there.close()


def test_blocks_are_computed_again(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "steps": 3,
        "device": "cuda",
        "fast": "off",
        "model": {"name": "wrn-10-1"},
        "batch_size": 4,
    }
    ends = []
    for again in (False, True):
        train(tiny_recipe(**changes, activation_checkpointing=again), tmp_path / str(again))
        ends.append((newest_of(tmp_path / str(again)) / "weights.safetensors").read_bytes())
    assert ends[0] == ends[1]
