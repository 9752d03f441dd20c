"""Networks that do not take the images, code of the user's own that raises, and what is left behind by either."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from cli.test_app import done, everything, failed
from conftest import tiny_data
from models.pretrained.test_timm import Timm
from toughen import recipes
from toughen.data import DATA, ImageData, Split, held_out
from toughen.models.registry import MODELS
from toughen.training import run as run_module
from toughen.training import train
from toughen.training.setup import set_up

RECIPE = """
data: tiny
model: {name: small_cnn, width: 2, norm: batch}
method: natural
threat: linf:0.1
batch_size: 32
steps: 4
selection: {suite: pgd-1, every: 4}
overfitting_every: 0
"""
MODULE = """
from torch import nn


class Sized(nn.Module):
    pretrained_cfg = {"input_size": (3, 24, 24)}

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 4)

    def forward(self, x):
        assert x.shape[-1] == 24, f"Input height ({x.shape[-1]}) doesn't match model (24).\\nAnd so on."
        return self.head(x.mean((2, 3)))


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 24, 4))


def broken():
    layers = 3
    return nn.Linear(layers, lairs)


def many():
    raise RuntimeError("first line\\nsecond line")


def leaving():
    raise SystemExit("bye")
"""


class Sized(nn.Module):
    """Takes images of one size, as timm's transformers do."""

    pretrained_cfg: dict[str, object] = {"input_size": (3, 24, 24)}  # noqa: RUF012

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(in_channels, 4, 3), nn.Linear(4, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[-1] == 24, f"Input height ({x.shape[-1]}) doesn't match model (24)."
        return self.head(self.conv(x).mean((2, 3)))


@pytest.fixture
def here(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with recipe.yaml, mine.py and colour.npz."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(MODELS, "sized", Sized)
    data = tiny_data()
    test = Split(data.test.images.repeat(1, 3, 1, 1), data.test.labels)
    monkeypatch.setitem(DATA, "colour", lambda: ImageData("colour", test, None, test, data.classes))
    Path("recipe.yaml").write_text(RECIPE)
    Path("mine.py").write_text(MODULE)
    return tmp_path


def test_training_says_before_it_begins_that_the_network_takes_other_images(here: Path):
    given = ("train", "recipe.yaml", "data=colour", "model=sized", "--out", "run")
    before = everything(here)
    said = failed(*given)
    assert said == (
        "error: model: sized does not take images of 3x8x8: Input height (8) doesn't match model (24) "
        "(test_inputs.py, line 74); it takes "
        "3x24x24: give data.size=24\n"
    )
    assert everything(here) == before
    assert "next: toughen evaluate run" in done(*given[:4], "data.size=24", "--out", "run")


def test_training_is_not_changed_by_the_look(here: Path, monkeypatch: pytest.MonkeyPatch):
    """Two images are run forward once, and no statistic of BatchNorm, draw or count knows of it."""
    recipe, data = recipes.load("recipe.yaml"), tiny_data()
    split, _, index = held_out(data, seed=0, size=16)

    def made():
        with torch.random.fork_rng():
            job, _ = set_up(recipe, data, split, index, torch.device("cpu"))
            return job, torch.rand(3)

    seen = []
    monkeypatch.setattr(
        nn.Module, "__call__", lambda self, *given: (seen.append(given[0].shape), self.forward(*given))[1]
    )
    job, drawn = made()
    assert seen[0] == (2, 1, 8, 8)
    assert job.passes.forwards == 0
    assert job.model.training
    monkeypatch.undo()
    monkeypatch.setattr("toughen.training.setup.check_trains", lambda *given, **more: None)
    without, undisturbed = made()
    assert torch.equal(drawn, undisturbed)
    states = job.model.state_dict(), without.model.state_dict()
    assert any(name.endswith("running_var") for name in states[0])
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_a_folder_in_which_nothing_was_trained_takes_another_recipe(here: Path, monkeypatch: pytest.MonkeyPatch):
    def dying(*given: object) -> None:
        raise ValueError("no such luck")

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "train_batch", dying)
        assert "no such luck" in failed("train", "recipe.yaml", "--out", "run")
    assert Path("run/recipe.yaml").is_file()
    text = done("train", "recipe.yaml", "seed=1", "--out", "run")
    assert "run held another recipe, of which nothing was trained yet; this one replaces it" in " ".join(text.split())
    assert recipes.load("run/recipe.yaml").seed == 1
    # To the same bits as in a new folder.
    train(recipes.load("recipe.yaml", ["seed=1"]), Path("new"))
    assert Path("run/metrics.jsonl").read_bytes() == Path("new/metrics.jsonl").read_bytes()
    before = everything(here)
    assert "holds a run of another recipe (seed" in failed("train", "recipe.yaml", "--out", "run")
    assert everything(here) == before


KEPT = {
    "recipe.yaml": RECIPE + "# remarks of mine\n",
    "metrics.jsonl": '{"step": 1}\n',
    "summary.json": "{}",
    "evaluation/pgd-1/result.json": "{}",
    "checkpoints/step-000000002/weights.safetensors": "damaged",
    "notes.txt": "mine",
}


@pytest.mark.parametrize("name", KEPT)
def test_a_folder_with_anything_else_in_it_is_kept(here: Path, name: str):
    run_module.claim(recipes.load("recipe.yaml"), Path("run"))
    Path("run", name).parent.mkdir(parents=True, exist_ok=True)
    Path("run", name).write_text(KEPT[name])
    before = everything(here)
    assert "holds a run of another recipe (seed" in failed("train", "recipe.yaml", "seed=1", "--out", "run")
    assert everything(here) == before


def test_a_normalisation_for_other_channels_names_the_key_to_mend(here: Path):
    given = ("train", "recipe.yaml", "normalize={mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}", "--out", "run")
    said = failed(*given)
    assert said.startswith(
        "error: normalize: mean and std need one number for each of the 1 channels of tiny, got 3 and "
    )
    assert said.endswith('; write so many in "normalize={mean: [...], std: [...]}", or normalize=data\n')
    done(*given[:2], "normalize=data", "--out", "run")


SAYS = "EV226 the model does not take images of 3x8x8: {}; it takes 3x24x24: give --size 24"


@pytest.mark.parametrize("suite", ["pgd-1", "corruptions"])
def test_evaluating_says_which_images_the_network_takes(here: Path, suite: str):
    threat = () if suite == "corruptions" else ("--threat", "linf:0.1")
    given = ("--data", "colour", "--suite", suite, *threat, "--limit", "4")
    said = failed("evaluate", "mine.py:Sized", *given)
    assert said == "error: " + SAYS.format("Input height (8) doesn't match model (24) (mine.py, line 13)") + "\n"
    said = failed("evaluate", "mine.py:linear", *given)
    assert (
        "of 3x8x8: mat1 and mat2 shapes cannot be multiplied (1x192 and 1728x4); nor those of usual sizes; look" in said
    )
    assert len(said.splitlines()) == 1
    assert "results: evaluation" in done("evaluate", "mine.py:Sized", *given, "--size", "24")


RAISED = {
    "mine.py:broken": "'mine.py:broken' cannot be called: NameError: name 'lairs' is not defined ({}, line 23)",
    "mine.py:many": "'mine.py:many' cannot be called: RuntimeError: first line ({}, line 27)",
    "mine.py:leaving": "'mine.py:leaving' cannot be called: SystemExit: bye ({}, line 31)",
    "bad.py:model": "'bad.py:model' cannot be imported: KeyError: 'weights' ({}, line 4)",
    "deep.py:model": "'deep.py:model' cannot be imported: RuntimeError: Expected ",
}


@pytest.mark.parametrize("what", RAISED)
@pytest.mark.parametrize("command", ["evaluate", "check", "label"])
def test_code_that_raises_is_named_with_file_and_line(here: Path, what: str, command: str):
    Path("bad.py").write_text("import torch\n\nfound = {}\nmodel = found['weights']\n")
    # Within torch, but the line that is named is the user's own.
    Path("deep.py").write_text("import torch\n\nmodel = torch.nn.Conv2d(1, 1, 3)(torch.zeros(3))\n")
    given = ("colour", "--scorer", what, "--against", "colour", "--count", 4, "--out", "out")
    said = failed(*(("label", *given) if command == "label" else (command, what, "--data", "colour")))
    assert said.startswith("error: " + RAISED[what].format(here / what.partition(":")[0]))
    assert len(said.splitlines()) == 1
    if what.startswith("deep"):
        assert said.endswith(f"({here / 'deep.py'}, line 3)\n")


@pytest.mark.parametrize("name", ["timm:resnet50", "hub:me/net"])
def test_weights_that_cannot_be_fetched_are_given_as_the_command_takes_them(
    here: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    timm = Timm()
    timm.failure = OSError("no network")
    monkeypatch.setitem(sys.modules, "timm", timm)
    for command in ("evaluate", "check"):
        assert failed(command, name, "--data", "colour").endswith(f"or give weights you have as {name}=FILE\n")
