"""Runs whose images are broken, or have changed since: refused before the first step, or with a way out."""

import shutil
import sys
from pathlib import Path

import pytest
import torch

from conftest import tiny_data
from photographs import photograph
from processes import run_ranks
from toughen.data import DATA, load
from toughen.data.crops import ResizeCrop
from toughen.data.dataset_card import DatasetCard
from toughen.export import export
from toughen.models.exported import load_model, read_config
from toughen.parallel import ranks
from toughen.progress import Display
from toughen.recipes import Recipe, RecipeError
from toughen.recipes.text import build
from toughen.storage.checkpoint import latest_checkpoint
from toughen.training import run as run_module
from toughen.training import train
from toughen.training.setup import check_images
from toughen.workflows import evaluate
from toughen.workflows.run_folder import open_run

PARTS = {"train": 12, "val": 3, "test": 4}


@pytest.fixture(autouse=True)
def _nothing_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache for each test: the images of all are the same."""
    monkeypatch.setenv("TOUGHEN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of 12 training, three validation and four test photographs."""
    number = 0
    for part, count in PARTS.items():
        for name in ("beach", "forest"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for place in range(count):
                number += 1
                photograph(number, 30 + number % 7, 28).save(tmp_path / "images" / part / name / f"{place:02}.png")
    return tmp_path / "images"


def recipe(source: str, **data: object) -> Recipe:
    return build(
        {
            "data": {"source": source, **data},
            "model": {"name": "small_cnn", "width": 2},
            "threat": "linf:0.1",
            "method": "free",
            "batch_size": 8,
            "steps": 24,
            "selection": {"suite": "pgd-2", "every": 24},
            "overfitting_every": 0,
            "save_every": 8,
        }
    )


def of_photographs(folder: Path) -> Recipe:
    return recipe(str(folder), size=16, workers=0)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


class Said(Display):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize("part", PARTS)
def test_broken_images_of_every_split_are_named_before_the_first_step(folder: Path, tmp_path: Path, part: str):
    broken = sorted((folder / part).rglob("*.png"))[-2:]
    for path in broken:
        cut(path)
    with pytest.raises(RecipeError) as caught:
        train(of_photographs(folder), tmp_path / "run")
    each = "each is a broken image (OSError); remove or replace it"
    assert str(caught.value) == f"data: DA412 2 images cannot be used ({broken[0]}, {broken[1]}): {each}"
    assert not (tmp_path / "run").exists()
    for path in broken:
        path.unlink()
    assert train(of_photographs(folder), tmp_path / "run")["batches"] > 0


def test_an_image_that_breaks_in_the_middle_of_a_run_is_to_be_restored(folder: Path, tmp_path: Path, monkeypatch):
    victim = folder / "train" / "beach" / "03.png"
    whole = victim.read_bytes()
    taken = run_module.load_batch

    def breaking(batches, number):
        if number == 1:
            cut(victim)
        return taken(batches, number)

    with monkeypatch.context() as patched:
        patched.setattr(run_module, "load_batch", breaking)
        with pytest.raises(RecipeError) as caught:
            train(of_photographs(folder), tmp_path / "run")
    remedy = "but this run goes on only with the images that it began with: restore them, or begin anew in another out"
    assert str(caught.value) == f"data: DA412 {victim} is a broken image (OSError); remove or replace it; {remedy}"
    assert latest_checkpoint(tmp_path / "run", warn=print) is not None
    with pytest.raises(RecipeError, match=f"{victim} is a broken image .* {remedy}$"):
        train(of_photographs(folder), tmp_path / "run")
    victim.write_bytes(whole)
    assert train(of_photographs(folder), tmp_path / "run")["batches"] > 0


def test_what_was_found_whole_is_not_decoded_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    train(of_photographs(folder), tmp_path / "run")
    seen: list[str] = []
    monkeypatch.setattr("toughen.data.integrity._fault", lambda split, place: seen.append(split.name(place)) or "")
    train(of_photographs(folder), tmp_path / "again")
    assert seen == []
    changed = folder / "test" / "beach" / "00.png"
    shutil.copy(folder / "test" / "beach" / "01.png", changed)
    train(of_photographs(folder), tmp_path / "third")
    # The key of a split changes with any of its files.
    assert sorted(seen) == sorted(map(str, (folder / "test").rglob("*.png")))


@pytest.mark.parametrize("part", PARTS)
def test_the_split_that_has_changed_is_told_and_the_test_split_stops_nothing(folder: Path, tmp_path: Path, part: str):
    train(of_photographs(folder), tmp_path / "run")
    (folder / part / "forest" / "00.png").unlink()
    name = {"val": "validation"}.get(part, part)
    said = Said()
    if part == "test":
        train(of_photographs(folder), tmp_path / "run", display=said)
        assert said.notes[0] == "the test images of images have changed; training goes on, for it never looks at them"
    else:
        remedy = "restore them, or begin anew in another out"
        with pytest.raises(
            RecipeError, match=rf"^CK302 .* data holds now \(the {name} images have changed\); {remedy}$"
        ):
            train(of_photographs(folder), tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert run.said == f"the {name} images of images have changed since {tmp_path / 'run'} was trained"
    found, _ = evaluate(tmp_path / "run", "pgd-2")
    assert found.n == (7 if part == "test" else 8)


def test_a_resumed_run_remembers_the_test_images_that_it_began_with(folder: Path, tmp_path: Path):
    train(of_photographs(folder), tmp_path / "run")
    (folder / "test" / "forest" / "00.png").unlink()
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        if path.name == f"step-{24:09}":
            shutil.rmtree(path)
    train(of_photographs(folder), tmp_path / "run")
    newest = latest_checkpoint(tmp_path / "run", warn=print)
    assert newest is not None
    assert DatasetCard.read(newest.state["data"]).sizes == {"train": 24, "validation": 6, "test": 8}
    assert "test images" in open_run(tmp_path / "run").said


def test_test_images_that_may_have_been_trained_on_are_refused(folder: Path, tmp_path: Path):
    flat = folder / "train"
    train(of_photographs(flat), tmp_path / "run")
    (flat / "forest" / "00.png").unlink()
    # Without a test folder another fifth is set aside.
    with pytest.raises(ValueError, match=r"^CK302 .* \(the train and test images have changed\), and may have seen"):
        open_run(tmp_path / "run")


def test_an_export_needs_no_images(folder: Path, tmp_path: Path):
    train(of_photographs(folder), tmp_path / "run")
    images = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        expected = open_run(tmp_path / "run").model(images)
    export(tmp_path / "run", tmp_path / "before")
    shutil.rmtree(folder)
    made = export(tmp_path / "run", tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "before").iterdir()
    }
    assert "24 images for training, 6 held out" in (tmp_path / "out" / "README.md").read_text()
    assert made.data == str(folder)
    assert read_config(tmp_path / "out")["classes"] == ["beach", "forest"]
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "out")(images), expected)


def test_long_looking_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch):
    data = load(str(folder), ResizeCrop(16))
    monkeypatch.setattr("toughen.training.setup.PATIENCE", 0)
    monkeypatch.setattr("toughen.data.integrity.BLOCK", 10)
    said: list[str] = []
    check_images(data.splits, said.append)
    text = "looking whether all images can be decoded: "
    assert said == [f"{text}{done} of 38" for done in (10, 20, 24, 30, 38)]


def test_pixels_in_memory_need_no_look(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(DATA, "tiny", tiny_data)
    monkeypatch.setattr("toughen.data.integrity._fault", lambda *_: pytest.fail("decoded"))
    check_images(load("tiny", ResizeCrop(8)).splits)
    check_images(load("tiny").splits)


def test_two_ranks_refuse_in_one_sentence(folder: Path, tmp_path: Path):
    cut(folder / "test" / "beach" / "00.png")
    (tmp_path / "said").mkdir()
    run_ranks(Path(__file__), tmp_path, 2)
    one, two = ((tmp_path / "said" / str(rank)).read_text() for rank in range(2))
    assert one == two
    assert str(folder / "test" / "beach" / "00.png") in one


def as_rank(out: Path) -> None:
    with ranks.group(torch.device("cpu")):
        try:
            check_images(load(str(out / "images"), ResizeCrop(16)).splits)
        except RecipeError as error:
            (out / "said" / str(ranks.rank())).write_text(str(error))


if __name__ == "__main__":
    as_rank(Path(sys.argv[1]))
