"""Of data without a test part, all of it is evaluated on, but what a model was trained on never; and it is said."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cli.test_app import done, failed, toughen
from conftest import tiny_split
from layouts import CLASSES, encoded, write_folder
from strangers.written_layouts import COLOUR, TEST, TRAIN, arrays
from toughen.data import load
from toughen.data.decode import set_aside
from toughen.export import export
from toughen.models import exported
from toughen.recipes.text import build
from toughen.training import train
from toughen.workflows import EvaluationSettings, ModelSource, evaluate
from toughen.workflows.evaluated_images import unseen

RECIPE: dict[str, Any] = {
    "model": {"name": "small_cnn", "width": 2},
    "method": "natural",
    "threat": "linf:0.1",
    "batch_size": 16,
    "steps": 4,
    "selection": {"suite": "pgd-1", "every": 4},
}
SUITE = EvaluationSettings("pgd-1", threat="linf:0.1")

MINE = """
import torch

def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4)).eval()
"""

SPLIT = tiny_split("train", 60)
PIXELS = SPLIT.images.repeat(1, 3, 1, 1).permute(0, 2, 3, 1).numpy()
LABELS = SPLIT.labels.numpy()
ASIDE = set_aside(SPLIT.labels).numpy()


def npz(path: Path, images: np.ndarray = PIXELS, labels: np.ndarray = LABELS) -> str:
    np.savez(path, image=images, label=labels)
    return str(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with pets.npz, a run that was trained on it, and its export; do not write into it."""
    folder = tmp_path_factory.mktemp("trained")
    train(build({**RECIPE, "data": npz(folder / "pets.npz")}), folder / "run")
    export(folder / "run", folder / "export")
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # Opening `mine.py` adds its folder.
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("mine.py").write_text(MINE)
    return tmp_path


def labels_of(source: ModelSource | Path) -> tuple[list[int], tuple[str, ...]]:
    """The labels of the images that a model was evaluated on, and what the stored result says."""
    found, folder = evaluate(source, SUITE, out=Path("result"))
    notes = tuple(json.loads((folder / "result.json").read_text())["notes"])
    shutil.rmtree(folder)
    return found.outcomes.label[found.outcomes.attack == "clean"].tolist(), notes


HELD_OUT = "images: from the 12 that are set aside of {}, which has no test part, and not the 48 to train on"


def test_a_stranger_is_evaluated_on_all(here: Path):
    labels, notes = labels_of(ModelSource("mine.py:build", data=npz(here / "other.npz")))
    assert labels == LABELS.tolist()
    assert notes == ("images: from all 60 of other, which has no test part",)


@pytest.mark.parametrize("size", [None, 8])
def test_an_export_is_not_evaluated_on_what_it_was_trained_on(trained: Path, here: Path, size: int | None):
    shutil.copy(trained / "pets.npz", here / "renamed.npz")
    labels, notes = labels_of(ModelSource(str(trained / "export"), data=str(here / "renamed.npz"), size=size))
    assert labels == LABELS[ASIDE].tolist()
    assert notes == (HELD_OUT.format("renamed"),)
    # Other images of the same name were not trained on.
    labels, notes = labels_of(
        ModelSource(str(trained / "export"), data=npz(here / "pets.npz", 255 - PIXELS), size=size)
    )
    assert labels == LABELS.tolist()
    assert notes == ("images: from all 60 of pets, which has no test part",)


def test_an_export_is_refused_on_its_training_images_alone(trained: Path, here: Path):
    rest = npz(here / "rest.npz", PIXELS[~ASIDE], LABELS[~ASIDE])
    with pytest.raises(ValueError, match="was trained on all 48 images of rest; give it others with data, such as"):
        evaluate(ModelSource(str(trained / "export"), data=rest), SUITE)
    text = failed("evaluate", trained / "export", "--data", rest, "--suite", "pgd-1")
    assert "give it others with --data, such as the test images that go with them" in text


def test_a_run_says_what_it_is_evaluated_on(trained: Path):
    labels, notes = labels_of(trained / "run")
    assert labels == LABELS[ASIDE].tolist()
    assert notes == (HELD_OUT.format("pets"),)


def test_an_export_that_does_not_say_what_it_was_trained_on_is_known_by_the_name(trained: Path):
    data = load(str(trained / "pets.npz"), whole=True)
    config = {key: value for key, value in exported.read_config(trained / "export").items() if key != "fingerprints"}
    assert len(unseen("it", data, config, lambda: data).test) == 12
    assert unseen("it", data, {**config, "data": "another"}, lambda: data) is data


def test_all_verbs_say_it(here: Path):
    data = npz(here / "pets.npz")
    said = "images: from all 60 of pets, which has no test part"
    given = ("mine.py:build", "--data", data)
    assert f"note: {said}" in done("evaluate", *given, "--suite", "pgd-1", "--threat", "linf:0.1", "--out", "a")
    assert f"note: {said}" in done("evaluate", *given, "--suite", "corruptions", "--out", "b")
    assert said in done("analyse", *given, "--threat", "linf:0.1", "--only", "pictures", "--limit", "4", "--out", "c")
    text = toughen("check", *given).stdout
    assert said in text
    assert "EV227" not in text
    few = npz(here / "few.npz", PIXELS[LABELS < 2], LABELS[LABELS < 2])
    # The classes are only numbered: there may be more than the images show.
    assert "EV227" not in toughen("check", "mine.py:build", "--data", few).stdout


def test_a_pool_and_what_it_must_not_copy_are_said(trained: Path, here: Path):
    write_folder(here / "above" / "pool", {"train": (PIXELS, LABELS % 3)}, {"train": ""})
    arguments = ("--against", trained / "pets.npz", "--count", "4", "--threshold", "0.001", "--out", "set")
    text = done("label", "above", "--scorer", trained / "run", *arguments)
    assert HELD_OUT.format("pets") in text
    assert "the data of above lie in above/pool, and are read there" in text


def test_few_images_of_the_classes_that_an_export_knows(trained: Path, here: Path):
    few = LABELS < 2
    labels, notes = labels_of(
        ModelSource(str(trained / "export"), data=str(arrays(here / "few.npz", "x_{}", "y_{}",
                                                             {"test": (PIXELS[few], LABELS[few])})))
    )  # fmt: skip
    assert labels == LABELS[few].tolist()
    assert notes == ("images: from the test part of few (30)",)
    one = npz(here / "one.npz", PIXELS[LABELS == 1], LABELS[LABELS == 1])
    _, notes = labels_of(ModelSource(str(trained / "export"), data=one))
    assert notes == ("images: from all 15 of one, which has no test part; all of them are of class 1",)
    text = done("check", trained / "export", "--data", here / "few.npz")
    assert "a head of" not in text


def test_one_class_is_no_classification(here: Path):
    for number in range(3):
        (here / "pets" / "cat").mkdir(parents=True, exist_ok=True)
        (here / "pets" / "cat" / f"{number}.png").write_bytes(encoded(PIXELS[number]))
    says = "pets has one class only, cat; give two at least, a folder each, and as data the folder that they lie in"
    given = ("mine.py:build", "--data", here / "pets")
    assert says in failed("evaluate", *given, "--suite", "pgd-1", "--threat", "linf:0.1")
    assert says in failed("check", *given)
    assert says in failed("analyse", *given, "--threat", "linf:0.1")
    assert "has one class only, cat" in failed("train", recipe(here, here / "pets"), "--out", here / "run")


def recipe(here: Path, data: Path) -> Path:
    path = here / "mine.yaml"
    path.write_text(json.dumps({**RECIPE, "data": str(data)}))
    return path


def test_nothing_is_trained_on_test_images(here: Path):
    write_folder(here / "pets", TEST)
    text = failed("train", recipe(here, here / "pets"), "--out", here / "run")
    assert "data: pets holds test images alone, and nothing to train on; give data with training images" in text
    assert not (here / "run").exists()


def test_training_says_where_its_images_are(here: Path):
    write_folder(here / "above" / "pets", TRAIN, {"train": ""})
    text = done("train", recipe(here, here / "above"), "--out", here / "run")
    assert f"the data of {here / 'above'} lie in {here / 'above' / 'pets'}, and are read there" in text
    assert "above has no test part; 6 images, a fifth of each class, are set aside" in text
    state = json.loads(next((here / "run" / "checkpoints").glob("step-*/state.json")).read_text())
    assert state["data"]["sizes"] == {"train": 24, "test": 6}


def test_a_folder_that_is_one_too_high_is_evaluated_on_its_test_part_alone(here: Path):
    write_folder(here / "pets" / "dataset", COLOUR)
    labels, notes = labels_of(ModelSource("mine.py:build", data=str(here / "pets")))
    assert labels == COLOUR["test"][1].tolist()
    said = f"the data of {here / 'pets'} lie in {here / 'pets' / 'dataset'}, and are read there"
    assert notes == (
        f"images: from the test part of pets (12); {said}",
        "the images name 3 classes (cat, dog, eel) and the model returns 4 logits: it is taken to mean them by the "
        "first 3, in this order",
    )
    assert load(str(here / "pets")).classes == CLASSES
    assert torch.equal(load(str(here / "pets")).test.images, load(str(here / "pets" / "dataset")).test.images)
