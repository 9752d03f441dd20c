"""Whole runs on photographs in files, with an extra set beside them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from photographs import photograph
from toughen.data import load
from toughen.data.crops import ResizeCrop
from toughen.recipes import Recipe, RecipeError
from toughen.recipes.text import build
from toughen.storage.checkpoint import latest_checkpoint
from toughen.training import run as run_module
from toughen.training import train
from toughen.training.loop import train_batch
from toughen.workflows import evaluate
from toughen.workflows.run_folder import open_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of 20 photographs of several sizes for training, and five of each for testing."""
    number = 0
    for part, count in (("train", 20), ("test", 5)):
        for name in ("beach", "forest", "street"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for place in range(count):
                number += 1
                image = photograph(number, 30 + number % 7, 28 + number % 5)
                image.save(tmp_path / "images" / part / name / f"{place:02}.jpg", quality=95)
    return tmp_path / "images"


@pytest.fixture
def extra(tmp_path: Path) -> Path:
    """Pseudo-labelled images of one size, with probabilities."""
    rng = np.random.default_rng(0)
    soft = rng.dirichlet(np.ones(3), 40).astype(np.float32)
    path = tmp_path / "extra.npz"
    np.savez(path, image=rng.integers(0, 256, (40, 20, 20, 3)).astype(np.uint8), probabilities=soft)
    return path


def recipe(folder: Path, **data: object) -> Recipe:
    return build(
        {
            "data": {"source": str(folder), "size": 16, "flip": True, "validation": 9, "workers": 0, **data},
            "model": {"name": "small_cnn", "width": 2},
            "normalize": "data",
            "method": {"name": "free", "replays": 2},
            "threat": "linf:0.1",
            "batch_size": 8,
            "steps": 28,
            "selection": {"suite": "pgd-2", "every": 14},
            "overfitting_every": 0,
            "save_every": 4,
        }
    )


def last(out: Path) -> dict[str, torch.Tensor]:
    newest = latest_checkpoint(out, warn=print)
    assert newest is not None
    groups = ("weights", "method", "optimizer", "best-weights")
    return {f"{group}.{name}": t for group in groups for name, t in newest.tensors(group).items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


class Killed(Exception):
    """Stands for a kill in the middle of a batch."""


def train_until(batch: int, found: Recipe, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dying(job, given):
        if job.number == batch:
            raise Killed
        train_batch(job, given)

    with monkeypatch.context() as patched:
        patched.setattr(run_module, "train_batch", dying)
        with pytest.raises(Killed):
            train(found, out)


@pytest.mark.parametrize("mixed", [False, True], ids=["photographs", "with an extra set"])
def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(folder, extra, tmp_path, monkeypatch, mixed):
    data = {"extra": {"source": str(extra), "labelled": 0.5}} if mixed else {}
    found = recipe(folder, **data)
    train(found, tmp_path / "whole")
    whole = last(tmp_path / "whole")
    for batch in (1, 6, 13):
        out = tmp_path / f"killed-{batch}"
        train_until(batch, found, out, monkeypatch)
        train(found, out)
        assert same(last(out), whole)


def test_workers_change_no_bit(folder, extra, tmp_path):
    data = {"extra": {"source": str(extra), "labelled": 0.5}}
    train(recipe(folder, **data), tmp_path / "none")
    train(recipe(folder, workers=2, **data), tmp_path / "two")
    assert same(last(tmp_path / "none"), last(tmp_path / "two"))


def test_the_test_split_is_evaluated_in_its_centre_view(folder, tmp_path):
    train(recipe(folder), tmp_path / "run")
    run = open_run(tmp_path / "run")
    paths = sorted((folder / "test").rglob("*.jpg"))
    assert run.data.classes == ("beach", "forest", "street")
    assert len(run.data.test) == len(paths) == 15
    views = []
    for path in paths:
        with Image.open(path) as image:
            views.append(torch.tensor(ResizeCrop(16).centre(image).transpose(2, 0, 1)))
    assert torch.equal(run.data.test.images, torch.stack(views))
    right = run.model(torch.stack(views).float() / 255).argmax(1) == torch.arange(3).repeat_interleave(5)
    found, _ = evaluate(tmp_path / "run", "pgd-2")
    assert found.clean_accuracy == int(right.sum()) / 15
    assert found.n == 15


def test_other_photographs_or_another_extra_set_are_refused(folder, extra, tmp_path, monkeypatch):
    found = recipe(folder, extra={"source": str(extra), "labelled": 0.5})
    train_until(6, found, tmp_path / "run", monkeypatch)
    arrays = dict(np.load(extra))
    np.savez(extra, **{**arrays, "image": arrays["image"][::-1]})
    with pytest.raises(RecipeError, match=r"CK302 .* other images than its extra holds now"):
        train(found, tmp_path / "run")
    np.savez(extra, **arrays)
    victim = next((folder / "train" / "beach").iterdir())
    photograph(99, 40, 40).save(victim, quality=95)
    with pytest.raises(RecipeError, match=r"CK302 .* other images than its data holds now"):
        train(found, tmp_path / "run")


def test_the_same_photographs_in_another_place_go_on(folder, tmp_path):
    assert (
        load(str(folder), ResizeCrop(16)).fingerprint
        == load(str(folder.rename(tmp_path / "moved")), ResizeCrop(16)).fingerprint
    )
