"""What `train` refuses it refuses before the first step, and `--dry-run` before that: weights, images, suites."""

import functools
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cli.test_app import done, everything, failed
from conftest import tiny_data, tiny_split
from models.pretrained.test_timm import Timm
from tiny_study import write_tiny_study
from toughen import recipes, workflows
from toughen.data import DATA, ImageData, Split
from toughen.evaluation import evaluate
from toughen.models import build
from toughen.recipes import Recipe
from toughen.recipes.text import build as recipe_of
from toughen.recipes.text import parse_yaml
from toughen.threat import L2
from toughen.training import run as run_module
from toughen.training import train
from toughen.workflows import ModelSource
from toughen.workflows.run_folder import open_run

RECIPE = """
data: colour
model: {name: small_cnn, width: 2, norm: batch}
method: {name: free, replays: 2}
threat: linf:0.1
batch_size: 32
steps: 4
selection: {suite: pgd-1, every: 2}
overfitting_every: 0
save_every: 2
"""
RESNET = "model=resnet18"


def colour() -> ImageData:
    """The tiny images in three equal channels."""
    data = tiny_data()
    train, test = (Split(part.images.repeat(1, 3, 1, 1), part.labels) for part in (data.train, data.test))
    return ImageData("colour", train, None, test, data.classes)


@functools.cache
def weights(name: str = "resnet18", classes: int = 7, **given: Any) -> dict[str, Tensor]:
    """Of a small network for other classes."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return build(name, num_classes=classes, **{"width": 2, **given}).net.state_dict()


@pytest.fixture
def here(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with recipe.yaml, files of weights and of images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(DATA, "colour", colour)
    pair = tiny_split("train", 60, 2)
    monkeypatch.setitem(DATA, "pair", lambda: ImageData("pair", pair, None, tiny_split("test", 20, 2), ("a", "b")))
    Path("recipe.yaml").write_text(RECIPE)
    torch.save(weights(stem="imagenet"), "theirs.pt")
    torch.save({"state_dict": weights(stem="imagenet"), "state_dict_ema": weights(stem="imagenet", width=2)}, "same.pt")
    other = {name: tensor + 0.01 for name, tensor in weights(stem="imagenet").items()}
    torch.save({"state_dict": weights(stem="imagenet"), "state_dict_ema": other}, "both.pt")
    torch.save(weights(in_channels=1), "grey.pt")
    Path("cut.pt").write_bytes(Path("theirs.pt").read_bytes()[:900])
    np.savez("far.npz", image=np.zeros((9, 5, 5, 3), np.uint8), label=np.zeros(9, np.int64))
    for number in range(24):
        path = Path("photos") / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 9 * number, np.uint8)).save(path)
    Path("photos/a/4.png").write_bytes(Path("photos/a/4.png").read_bytes()[:50])
    Path("thesis").mkdir()
    Path("thesis/thesis.tex").write_text("years of work")
    return tmp_path


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "no file of weights": (("model.weights=none.pt",), "model.weights: there is no file "),
    "a file cut short": (("model.weights=cut.pt",), "cut.pt is damaged or cut short"),
    "another stem than the recipe says": (
        ("model.weights=theirs.pt", "model.stem=cifar"),
        "model.stem: it is cifar, and the weights in ",
    ),
    "another network": (
        ("model=resnet34", "model.weights=theirs.pt"),
        "are of resnet18 with 7 classes, stem: imagenet, width: 2, and the recipe's network is resnet34; write "
        "model=resnet18 model.weights=",
    ),
    "two that fit": (
        ("model.weights=both.pt",),
        "(state_dict, state_dict_ema); say which is meant with model.key, like model.key=state_dict",
    ),
    "no such key": (("model.weights=both.pt", "model.key=ema"), "no weights under model.key=ema; it has state_dict"),
    "a key without weights": (("model.key=ema",), "key is 'ema', and goes with weights, a file"),
    "images of other channels": (
        ("model.weights=grey.pt",),
        "was trained on images of 1 channels, and those of colour have 3; give images of 1 channels",
    ),
    "nothing to freeze": (("model.freeze=true",), "model.freeze: what would be held fixed was never trained"),
    "another normalisation": (
        ("model.weights=normal.pt", "normalize={mean: [0.1, 0.1, 0.1], std: [1, 1, 1]}"),
        "come with their normalisation",
    ),
    "a radius in units of 255": (("threat=l2:128",), "threat: the L2 radius 128 reaches every image of 3x8x8"),
    "the method's own radius": (
        ("method={name: adversarial, threat: l2:200}",),
        "method.threat: the L2 radius 200 reaches every image",
    ),
    "a radius, of what must be fetched": (
        ("data=cifar10", "threat=l2:128"),
        "threat: the L2 radius 128 reaches every image of 3x32x32",
    ),
    "a suite for other balls": (
        ("threat=l2:0.5", "selection.suite=iaat"),
        "selection.suite: suite iaat: carlini_wagner_linf is for linf balls, the threat is l2:0.5; use carlini_wagner ",
    ),
    "no such suite": (("selection.suite=pdg-20",), "selection.suite: 'pdg-20' is not a known suite"),
    "no such images": (("data=./nowhere",), "nowhere does not exist"),
    "larger batches than images": (("batch_size=500",), "batch_size is 500, but there are "),
    "more validation than images": (("data.validation=150",), "150 validation images"),
    "an extra set of other images": (("data.extra=far.npz",), "data.extra: "),
    "a broken image": (("data=photos", "batch_size=4"), "4.png"),
    "more classes than there are": (
        ("method={name: bilateral, largest: 9}",),
        "the label adversary gives mass to the 9 of the largest loss, but the model has 4 classes",
    ),
    "a loss for more classes": (
        ("data=pair", "method={name: adversarial, attack: {name: pgd, loss: dlr}}"),
        "loss dlr needs at least 3 classes, the model has 2; use loss: margin",
    ),
    "no such device": (("device=cuda:7",), "device: cuda:7 is not available on this machine"),
    "a folder of other things": (("--out", "thesis"), "thesis exists and is no run folder"),
    "activations of a network without blocks": (("activation_checkpointing=true",), "activation_checkpointing: "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_training_refuses_is_refused_before_it(case: str, here: Path, monkeypatch: pytest.MonkeyPatch):
    given, says = REFUSED[case]
    normal = {"normalize.mean": torch.full((3,), 0.4), "normalize.std": torch.full((3,), 0.2)}
    torch.save({f"net.{key}": tensor for key, tensor in weights().items()} | normal, "normal.pt")
    given = (RESNET, *given) if "model." in "".join(given) else given
    before = everything(here)
    dry = failed("train", "recipe.yaml", *given, "--dry-run")
    assert says in dry
    assert len(dry.splitlines()) == 1
    assert everything(here) == before
    if "fetched" not in case and "method" not in "".join(given):
        # The very sentence, and no step.
        monkeypatch.setattr(run_module, "fit", None)
        assert failed("train", "recipe.yaml", *given) == dry
        assert everything(here) == before


def test_a_dry_run_says_what_training_would_say_and_writes_nothing(here: Path):
    before = everything(here)
    text = done("train", "recipe.yaml", RESNET, "model.weights=theirs.pt", "threat=l2:1.5", "--dry-run")
    assert everything(here) == before
    notes = [line for line in text.splitlines() if line.startswith("# ")]
    assert f"# model.stem=imagenet model.width=2, as {here / 'theirs.pt'} shows" in notes
    assert any(line.startswith("# threat: the L2 radius 1.5 is far above the customary") for line in notes)
    assert any(line.endswith("; linear keeps its own weights") for line in notes)
    # What it printed is the recipe that is trained.
    Path("printed.yaml").write_text(text)
    assert recipe_of(parse_yaml(text, "text")) == recipes.load("printed.yaml")
    summary = train(recipes.load("printed.yaml"), Path("printed"))
    assert summary["steps"] == 4
    kept = recipes.load("printed/recipe.yaml").model
    assert (kept.settings["stem"], kept.settings["width"]) == ("imagenet", 2)


def test_what_must_be_fetched_is_said_and_not_fetched(here: Path):
    text = done("train", "mnist-natural", "data=mnist", "threat=l2:1", "--dry-run")
    assert "# mnist is fetched from the Hub when training begins, and was not looked at" in text


def test_pretrained_weights_are_not_fetched_to_try_them(here: Path, monkeypatch: pytest.MonkeyPatch):
    timm = Timm()
    monkeypatch.setitem(sys.modules, "timm", timm)
    given = ("train", "recipe.yaml", "model=timm:resnet50", "model.pretrained=true")
    text = done(*given, "normalize=pretrained", "--dry-run")
    assert "# the weights of timm:resnet50 are fetched when training begins, and were not looked at" in text
    assert not any(pretrained for _, pretrained in timm.asked)
    assert "write normalize=pretrained" in failed(*given, "normalize={mean: [0, 0, 0], std: [1, 1, 1]}", "--dry-run")
    assert "these have 1; give data.size" in failed(*given, "normalize=pretrained", "data=tiny", "--dry-run")


def test_what_weights_show_is_set_and_a_run_goes_on_without_them(here: Path):
    given = ("train", "recipe.yaml", RESNET, "model.weights=same.pt", "--out", "run")
    text = done(*given)
    assert f"model.stem=imagenet model.width=2 model.key=state_dict, as {here / 'same.pt'} shows" in text
    kept = recipes.load("run/recipe.yaml").model
    assert (kept.settings["stem"], kept.settings["width"], kept.key) == ("imagenet", 2, "state_dict")
    assert open_run(Path("run")).model.net.get_parameter("stem.0.weight").shape == (2, 3, 7, 7)
    Path("same.pt").unlink()
    assert "run is complete" in done(*given)
    assert "key: state_dict" in done(*given, "--dry-run")
    assert "another recipe (seed: 0 there, 1 here)" in failed(*given, "seed=1")
    assert "model.width" in failed(*given, "model.width=3")
    opened = workflows.open(ModelSource("run"))
    found = evaluate(opened.model, opened.test.images[:4], opened.test.labels[:4], threat=L2(0.1), suite="pgd-1")
    assert found.n == 4


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("resnet18", {"stem": "imagenet", "width": 3}),
        ("resnet34", {"stem": "cifar", "width": 2}),
        ("preact_resnet18", {"width": 3}),
        ("small_cnn", {"norm": "batch", "width": 3}),
        ("madry-w32-10", {"width": 1}),
    ],
)
def test_every_option_that_shapes_tell_is_found(here: Path, name: str, theirs: dict[str, Any]):
    torch.save({"model": weights(name, **theirs)}, "mine.pt")
    recipe = recipes.load("recipe.yaml", ["model=resnet50", f"model={name}", "model.weights=mine.pt"])
    notes: list[str] = []
    found = workflows.dry_run(recipe, Path("run"), note=notes.append)
    assert {key: found.model.settings[key] for key in theirs} == theirs
    assert found.model.key == "model"
    assert notes[0].startswith("model.")


def test_what_the_recipe_says_is_told_from_what_is_by_default():
    given: dict[str, Any] = {"data": "mnist5k", "method": "natural", "threat": "linf:0.1", "steps": 2}
    models: tuple[Any, ...] = ("resnet18", {"name": "resnet18", "stem": "cifar"})
    plain, said = (Recipe(**given, model=model) for model in models)
    assert plain == said
    assert plain.model.model_fields_set == {"name"}
    assert said.model.model_fields_set == {"name", "stem"}


def test_a_study_is_tried_too(here: Path):
    path = write_tiny_study(here)
    given = ("study", "run", str(path), "--scale", "toy", "--dry-run", "--out", "study")
    done(*given)
    free = here / "free.yaml"
    for number, (change, says) in enumerate(
        (
            ("model: {name: small_cnn, width: 2, weights: none.pt}", "model.weights: there is no file "),
            ("model: {name: small_cnn, width: 2, weights: theirs.pt}", "are of resnet18 with 7 classes"),
            ("threat: l2:128", "threat: the L2 radius 128 reaches every image of 1x28x28"),
            ("model: {name: resnet18, weights: theirs.pt}", "was trained on images of 3 channels"),
        )
    ):
        text = free.read_text()
        key = change.partition(":")[0]
        free.write_text(re.sub(rf"^{key}:.*$", change, text, flags=re.MULTILINE))
        given = (*given[:-1], f"study-{number}")
        assert says in failed(*given)
        free.write_text(text)


def test_own_weights_under_every_key_make_the_run_that_they_should(here: Path):
    for key, shift in (("state_dict", 0), ("state_dict_ema", 0.01)):
        start = weights(stem="imagenet")["stem.0.weight"] + shift
        assert torch.equal(_first_weights(key)["net.stem.0.weight"], start)


def _first_weights(key: str) -> dict[str, Tensor]:
    """What a run with a held trunk has below its head, which is what it began with."""
    given = (RESNET, "model.weights=both.pt", f"model.key={key}", "model.freeze=true")
    done("train", "recipe.yaml", *given, "--out", key)
    assert re.search(f"key: {key}$", Path(key, "recipe.yaml").read_text(), re.MULTILINE)
    return dict(open_run(Path(key)).model.state_dict())
