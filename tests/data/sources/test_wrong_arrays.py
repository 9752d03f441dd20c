"""Arrays that are wrong before a run: one sentence that names the place, and nothing written."""

from pathlib import Path

import numpy as np
import pytest

from tiny_runs import command, is_one_sentence, tiny_recipe
from toughen.recipes import Recipe


def recipe(source: Path) -> Recipe:
    settings = {"method": "natural", "batch_size": 5, "steps": 12, "save_every": 4, "averages": []}
    settings |= {"selection": {"suite": "pgd-1", "every": 12}}
    return tiny_recipe(**settings, data={"source": str(source), "validation": 4})


def label_beyond(arrays: dict[str, np.ndarray]) -> None:
    arrays["train_labels"][7] = 99


def label_below(arrays: dict[str, np.ndarray]) -> None:
    arrays["train_labels"][7] = -3


def floats(arrays: dict[str, np.ndarray]) -> None:
    arrays["train_images"] = arrays["train_images"] / np.float32(255)


def words(arrays: dict[str, np.ndarray]) -> None:
    arrays["train_labels"] = np.array([f"{label}" for label in arrays["train_labels"]])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (label_beyond, ("has label 99", "xample 7 ")),
        (label_below, ("has label -3", "image 7 of train_images")),
        (floats, ("train_images", "float32", "uint8")),
        (words, ("train_labels", "integers")),
    ],
)
def test_arrays_that_are_wrong(tmp_path, spoil, says):
    rng = np.random.default_rng(0)
    good = {
        "train_images": rng.integers(0, 256, (24, 16, 16, 3)).astype(np.uint8),
        "train_labels": np.arange(24) % 2,
        "test_images": rng.integers(0, 256, (6, 16, 16, 3)).astype(np.uint8),
        "test_labels": np.arange(6) % 2,
    }
    bad = {name: array.copy() for name, array in good.items()}
    spoil(bad)
    found = recipe(tmp_path / "pets.npz")
    np.savez(tmp_path / "pets.npz", **bad)
    code, said = command(found, tmp_path / "run")
    assert (code, is_one_sentence(said)) == (2, True)
    assert all(part in said for part in says), said
    assert "pets" in said
    assert not (tmp_path / "run").exists()
    np.savez(tmp_path / "pets.npz", **good)
    assert command(found, tmp_path / "run") == (0, "")
