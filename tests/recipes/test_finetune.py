"""The recipe for a folder of one's own: its figures, and the way from trained weights to an exported model."""

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cli.test_app import done, everything, failed, toughen
from models.pretrained.test_timm import Timm
from photographs import photograph
from toughen import recipes
from toughen.data import load
from toughen.models import build
from toughen.storage.checkpoint import latest_checkpoint
from toughen.training.setup import splits
from toughen.workflows.run_folder import open_run

README = Path(__file__).parents[2] / "README.md"
SHORT = ("data.size=32", "data.workers=0", "batch_size=8", "steps=16", "selection={suite: pgd-1, every: 8}")
SMALL = "model={name: small_cnn, width: 2, norm: batch, weights: theirs.pt}"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with `photos` of three classes and the weights of a network for five."""
    monkeypatch.chdir(tmp_path)
    write(Path("photos"), {"beach": 14, "forest": 12, "street": 10})
    with torch.random.fork_rng():
        torch.save(trained("small_cnn", width=2, norm="batch"), "theirs.pt")
    return tmp_path


def write(folder: Path, counts: dict[str, int]) -> None:
    for label, count in counts.items():
        (folder / label).mkdir(parents=True)
        for number in range(count):
            image = photograph(100 * len(label) + number, 40 + number % 7, 36 + number % 5)
            image.save(folder / label / f"{number:03}.{'png' if number % 2 else 'jpg'}")


def trained(name: str, **options: Any) -> dict[str, Tensor]:
    """A state dict for five classes with numbers as after training."""
    net: nn.Module = build(name, num_classes=5, **options).net
    draw = torch.Generator().manual_seed(4)
    for key, tensor in net.state_dict().items():
        if "running" in key:
            tensor.copy_(torch.rand(tensor.shape, generator=draw) + 0.1)
    return net.state_dict()


def best(out: str) -> dict[str, Tensor]:
    newest = latest_checkpoint(Path(out), warn=print)
    assert newest is not None
    return {key.removeprefix("net."): tensor for key, tensor in newest.tensors("best-average-0.995").items()}


def test_its_figures():
    recipe = recipes.load("finetune")
    view = recipe.data.view
    assert view is not None
    assert (view.size, view.short_side, view.area, recipe.data.flip) == (224, 256, 0.25, True)
    assert (recipe.method.name, recipe.method.steps_per_batch, str(recipe.threat)) == ("free", 4, "linf:4/255")
    assert (recipe.batches, recipe.total_steps, recipe.natural_steps) == (1000, 4000, 4000)
    assert (recipe.headline, recipe.averages_warm_start) == ("average-0.995", True)
    assert recipe.selection.every == recipe.total_steps / 4
    # The rate is what the file says at its batch size, and is reached after a tenth of the steps.
    assert recipe.optimizer.lr_batch_size == recipe.batch_size
    factor = recipe.schedule.factor()
    assert factor(0.1) == 1 == max(factor(step / 1000) for step in range(1001))
    assert recipe.model.freeze is False


def test_of_400_photographs_288_are_trained_on(tmp_path: Path):
    write(tmp_path / "photos", {"a": 134, "b": 133, "c": 133})
    recipe = recipes.load("finetune", [f"data={tmp_path}/photos"])
    data = load(recipe.data.source, recipe.data.view)
    train, validation, _ = splits(recipe, data)
    assert (len(train), len(validation), len(data.test)) == (288, 31, 81)
    assert recipe.batches * recipe.batch_size // len(train) == 222


def test_the_commands_of_the_readme(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm", Timm())
    commands = [line for line in README.read_text().splitlines() if "toughen train finetune" in line]
    assert len(commands) == 2
    torch.save(trained("resnet50", width=2), "resnet50.pth")
    # The stand-in for timm was trained with other numbers, and there are fewer photographs than in a batch.
    few = ("batch_size=8", "data.size=32", "--dry-run")
    more = [(*few, "normalize=pretrained"), few]
    lines = [shlex.split(line.removeprefix("$ toughen "), comments=True) for line in commands]
    texts = [done(*words, *rest) for words, rest in zip(lines, more, strict=True)]
    assert "batch_size is 64, but there are 27 training images" in failed(*lines[1], "--dry-run")
    for text in texts:
        assert f"source: {here}/photos" in text
        assert "# predicted cost: 1000 batches of 8, 4000 optimiser steps" in text
    assert f"# model.width=2, as {here}/resnet50.pth shows" in texts[1]
    assert "pretrained: true" in texts[0]
    assert f"weights: {here}/resnet50.pth" in texts[1]
    assert "freeze: true" in texts[1]


def test_from_weights_to_an_exported_model(here: Path):
    text = done("train", "finetune", "data=photos", SMALL, *SHORT)
    lines = text.splitlines()
    assert lines[0] == "predicted cost: 4 batches of 8, 16 optimiser steps"
    assert lines[2] == "  in all:  16 natural steps; validation and checks are not counted"
    assert lines[3].startswith("schedule: one_cycle (peak 0.1")
    assert lines[3].endswith(f"of learning rate {0.01 / 8:g}")
    assert (
        lines[4]
        == "validation: pgd-1 in linf:4/255 every 8 steps, of the weights and 1 average, the best by robust accuracy"
    )
    assert lines[5] == "photos has no test part; 7 images, a fifth of each class, are set aside"
    assert lines[6] == (f"training starts from 24 tensors from {here}/theirs.pt; linear keeps its own weights")
    assert lines[7].startswith(
        f"finetune: free on 27 images of {here}/photos (2 held out, the best by robust accuracy), linf:4/255, 16 steps"
    )
    assert text.endswith("run folder: runs/finetune\nnext: toughen evaluate runs/finetune --suite pgd-20\n")

    run = open_run(Path("runs/finetune"))
    assert (run.data.classes, len(run.data.test)) == (("beach", "forest", "street"), 7)
    trunk = {key: tensor for key, tensor in torch.load("theirs.pt").items() if "linear" not in key}
    assert all(not torch.equal(tensor, trunk[key]) for key, tensor in best("runs/finetune").items() if key in trunk)
    x = run.data.test.images.float() / 255
    with torch.no_grad():
        right = int((run.model(x).argmax(1) == run.data.test.labels).sum())
    done("evaluate", "runs/finetune", "--suite", "pgd-1")
    result = json.loads(Path("runs/finetune/evaluation/pgd-1/result.json").read_text())
    assert (result["n"], result["threat"], result["clean_accuracy"]) == (7, "linf:4/255", right / 7)
    done("export", "runs/finetune", "--out", "exported")
    done("evaluate", "exported", "--data", "photos", "--suite", "pgd-1")
    again = json.loads(Path("evaluation/exported/pgd-1/result.json").read_text())
    assert again["attacks"] == result["attacks"]
    assert toughen("check", "runs/finetune").exit_code in (0, 3)


def test_the_head_alone(here: Path):
    text = done("train", "finetune", "data=photos", SMALL, *SHORT, "model.freeze=true", "--out", "run")
    theirs = torch.load("theirs.pt")
    held = sum(theirs[key].numel() for key in theirs if key.endswith(("weight", "bias")) and "linear" not in key)
    assert f"{held} weights below the head stay as they are" in text.splitlines()
    found = best("run")
    assert all(torch.equal(found[key], tensor) for key, tensor in theirs.items() if "linear" not in key)
    assert found["linear.weight"].shape == (3, 128)


def test_the_weights_beside_it_are_found_by_the_recipes_own_path(here: Path):
    torch.save(trained("resnet50", width=2), "resnet50.pth")
    text = done("train", "finetune", "data=photos", "model.width=2", *SHORT, "steps=4", "--out", "run")
    assert f"training starts from 318 tensors from {here}/resnet50.pth; linear keeps its own weights" in text


def test_without_weights_or_images_the_sentence_says_what_to_give(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm", Timm())
    before = everything(here)
    result = toughen("train", "finetune", "data=photos", *SHORT)
    assert result.exit_code == 2
    assert result.stdout.startswith("predicted cost: ")
    (remedy,) = re.findall(r"with its weights: (.*)", result.stderr)
    assert "images does not exist" in failed("train", "finetune", "data.size=32")
    said = failed("train", "finetune", "data=photos", SMALL, "data.size=32", "data.workers=0")
    assert "batch_size is 64" in said
    assert everything(here) == before
    # timm's stand-in was trained with other numbers than ImageNet's.
    given = ("train", "finetune", "data=photos", *SHORT, *remedy.split())
    assert "write normalize=pretrained" in failed(*given)
    assert "starts from the pretrained weights of timm:resnet50" in done(*given, "normalize=pretrained")
