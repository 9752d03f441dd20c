"""What several processes do and one does not: exchanges, BatchNorm over ranks, a model in parts, resuming together."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from conftest import FULL
from processes import run_ranks
from toughen.models import build
from toughen.parallel import ranks
from toughen.recipes import Recipe
from toughen.training.micro_batches import batchnorm_of_ranks
from toughen.training.setup import synchronises

SCRIPT = Path(__file__).with_name("many.py")


def recipe(**changes: object) -> Recipe:
    return Recipe.model_validate(
        {
            "data": "tiny",
            "model": {"name": "small_cnn", "width": 2, "norm": "batch"},
            "method": "natural",
            "threat": "linf:0.1",
            "batch_size": 13,
            "steps": 10,
            **changes,
        }
    )


def model_of(norm: str = "batch") -> nn.Module:
    return build("small_cnn", num_classes=4, in_channels=1, width=2, norm=norm)


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "world", lambda: 2)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    run_ranks(SCRIPT, folder, 2, "sharded", "synchronised", "counted")
    return folder


def test_a_sharded_model_and_synchronised_batchnorm_train_as_one_process_does(tmp_path: Path, two: Path):
    run_ranks(SCRIPT, tmp_path, 1, "sharded", "synchronised")
    files = sorted(file.relative_to(tmp_path) for file in tmp_path.rglob("*.safetensors"))
    assert {file.parts[0] for file in files} >= {"natural", "adversarial", "free", "trades", "parts", "recomputed"}
    assert {file.parts[0] for file in files} >= {"train", "batch", "replays", "two-passes"}
    assert files == sorted(file.relative_to(two) for file in two.rglob("*.safetensors"))
    for file in files:
        alone, found = load_file(tmp_path / file), load_file(two / file)
        assert alone.keys() == found.keys()
        for name, value in alone.items():
            assert torch.allclose(found[name], value, rtol=0, atol=1e-12), (file, name)


def test_ranks_exchange_gradients_once_a_step_however_long_the_attack(two: Path):
    found = json.loads((two / "calls.json").read_text())
    assert len(found) == 12
    for entry in found:
        steps = entry["k"] if entry["method"] == "free" else 1
        assert (entry["steps"], entry["gradients"]) == (steps, steps), entry
        # Radii go to all ranks once for each part of the batch.
        parts = 1 if entry["rows"] is None else 4
        radii = {"allgather_": parts} if entry["method"] == "instance_adaptive" else {}
        # Gradients, whether all of them are finite, and BatchNorm's statistics.
        assert entry["calls"] == {"allreduce_": 3 * steps, **radii}, entry


@pytest.mark.parametrize("sharding", [pytest.param("none", marks=FULL), "full"])
def test_two_ranks_that_were_killed_end_with_the_bits_of_two_that_were_not(sharding: str, tmp_path: Path):
    run_ranks(SCRIPT, tmp_path, 2, "survive", sharding)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["killed"] == found["whole"]
    assert found["alone"].items() <= found["best"].items()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weight_perturbation": {}}, "weight_perturbation moves whole weights; use weight_perturbation: null"),
        ({"micro_batch": "auto"}, "micro_batch: auto tries what does not fit"),
        (
            {"method": {"name": "adversarial", "attack": {"name": "rs_fgsm"}, "alignment": 0.2}},
            "method adversarial differentiates gradients",
        ),
    ],
)
def test_what_a_sharded_model_cannot_do_is_refused(changes: dict[str, object], words: str):
    recipe(**changes)
    with pytest.raises(ValueError, match=words):
        recipe(sharding="full", **changes)


def test_one_process_says_nothing_of_ranks():
    assert batchnorm_of_ranks(recipe(batchnorm="synchronised"), model_of()) == ""
    assert not synchronises(model_of(), torch.device("cuda"))


@pytest.mark.usefixtures("two_ranks")
def test_the_run_says_by_what_batchnorm_normalises():
    cpu, gpu, model = torch.device("cpu"), torch.device("cuda"), model_of()
    assert batchnorm_of_ranks(recipe(), model_of("none")) == ""
    alone = "per-rank BatchNorm: each rank normalises by its own part of the batch"
    assert batchnorm_of_ranks(recipe(), model) == alone
    wanted = recipe(batchnorm="synchronised")
    assert batchnorm_of_ranks(wanted, model) == f"{alone}; batchnorm: synchronised needs GPUs"
    assert [synchronises(model, cpu), synchronises(model, gpu), synchronises(model_of("none"), gpu)] == [0, 1, 0]
    said = "synchronised BatchNorm: all ranks normalise by the whole batch"
    assert batchnorm_of_ranks(wanted, ranks.synchronised(model)) == said
