"""`--limit` takes the first test images, or as many spread over all of them where these lie sorted by class."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cli.test_app import done, failed
from conftest import tiny_split
from toughen.corruptions import MAIN, corrupt
from toughen.data import DATA, ImageData, Split
from toughen.evaluation import Evaluation
from toughen.evaluation.corruption.result import CorruptionResult
from toughen.workflows import EvaluationSettings, ModelSource, evaluate, measure_corruptions
from toughen.workflows.evaluated_images import limited

# Answers by the brightest quarter; noise leaves some answers wrong.
MINE = """
import torch

def build():
    return torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten()).eval()
"""

SORTED_DATA = ModelSource("mine.py:build", data="sorted")
SORTED = "images spread over the 40 of the test set, which lie sorted by class: the i-th, from 0, is number floor("
ROWS = [0, 6, 13, 20, 26, 33]
"""floor(40 i / 6)"""


def by_class() -> ImageData:
    """The tiny data set in the order of class folders: eight of class 0, then 8, 12 and 12."""
    test = tiny_split("test", 48)
    rows = torch.cat([(test.labels == label).nonzero().flatten()[: 8 + 4 * (label > 1)] for label in range(4)])
    return ImageData("sorted", tiny_split("train", 150), None, test.take(rows), ("a", "b", "c", "d"))


@pytest.fixture
def here(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(DATA, "sorted", by_class)
    monkeypatch.chdir(tmp_path)
    # Opening `mine.py` adds its folder.
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("mine.py").write_text(MINE)
    return tmp_path


def right(test: Split) -> Tensor:
    return torch.nn.functional.avg_pool2d(test.images.float(), 4).flatten(1).argmax(1) == test.labels


def split(labels: list[int]) -> Split:
    return Split(torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1), torch.tensor(labels))


@pytest.mark.parametrize("labels", [[0, 1, 2, 0, 1, 2], [0, 0, 0, 1, 1, 0], [2, 2, 1, 1, 0, 0], [3, 3, 3, 3, 3, 3]])
def test_the_first_ones_where_classes_are_mixed_or_one(labels: list[int]):
    test = split(labels)
    for limit in (None, 6):
        assert limited(test, limit) == (test, None, ())
    for limit in (1, 2, 5):
        some, rows, notes = limited(test, limit)
        assert some.images.flatten().tolist() == list(range(limit))
        assert (rows, notes) == (None, ())
    with pytest.raises(ValueError, match=r"^limit is 7, but there are 6 test images; give at most that$"):
        limited(test, 7)


def test_spread_where_they_lie_by_class():
    test = split([0] * 10 + [1] * 10 + [2] * 10)
    some, rows, notes = limited(test, 10)
    assert some.images.flatten().tolist() == [0, 3, 6, 9, 12, 15, 18, 21, 24, 27]
    assert some.labels.bincount().tolist() == [4, 3, 3]
    assert rows is not None
    assert rows.tolist() == [0, 3, 6, 9, 12, 15, 18, 21, 24, 27]
    (note,) = notes
    assert note == (
        "10 images spread over the 30 of the test set, which lie sorted by class: the i-th, from 0, is number "
        "floor(i * 30 / 10) of them"
    )
    for limit in range(1, 30):
        some, rows, _ = limited(test, limit)
        assert rows is not None
        assert rows.tolist() == [30 * i // limit for i in range(limit)]
        assert len(rows.unique()) == limit
        counts = some.labels.bincount(minlength=3)
        assert counts.max() - counts.min() <= 1
    assert limited(test, 30) == (test, None, ())


def test_an_evaluation_says_which_images_it_took(here: Path):
    whole_set = EvaluationSettings("pgd-2", threat="linf:0.01")
    few = replace(whole_set, limit=6)
    found, folder = evaluate(SORTED_DATA, few)
    clean = found.outcomes.attack == "clean"
    test = by_class().test
    assert isinstance(test, Split)
    assert found.outcomes.index[clean].tolist() == ROWS
    assert found.outcomes.label[clean].tolist() == test.labels[ROWS].tolist()
    assert found.outcomes.survived[clean].tolist() == right(test)[ROWS].tolist()
    which, note = found.notes
    assert which == "images: from the test part of sorted (40)"
    assert note == f"6 {SORTED}i * 40 / 6) of them; that is its index in examples.parquet"
    assert Evaluation.read(folder).notes == found.notes
    # A part of the whole: an image's random draws are those that it has there.
    whole, _ = evaluate(SORTED_DATA, whole_set)
    assert whole.notes == (which,)
    for attack in whole.outcomes.attacks:
        all_of = whole.outcomes.attack == attack
        distances = dict(zip(whole.outcomes.index[all_of], whole.outcomes.distance[all_of], strict=True))
        some = found.outcomes.attack == attack
        for row, distance in zip(found.outcomes.index[some], found.outcomes.distance[some], strict=True):
            assert distance == pytest.approx(distances[row], abs=1e-7)
    mixed, _ = evaluate(ModelSource("mine.py:build", data="tiny"), few, out=Path("mixed"))
    assert mixed.notes == ("images: from the test part of tiny (40)",)
    assert mixed.outcomes.index[mixed.outcomes.attack == "clean"].tolist() == list(range(6))


def test_the_command_prints_the_note(here: Path):
    text = " ".join(
        done("evaluate", "mine.py:build", "--data", "sorted", "--threat", "linf:0.01", "--suite", "pgd-1", "--limit", 6)
        .replace("\n", " ")
        .split()
    )
    assert f"note: 6 {SORTED}i * 40 / 6) of them" in text


def test_corruptions_of_spread_images_are_those_of_the_whole_test_set(here: Path):
    found, _, folder = measure_corruptions(SORTED_DATA, limit=6)
    whole, _, _ = measure_corruptions(SORTED_DATA)
    assert np.array_equal(found.label, whole.label[ROWS])
    assert np.array_equal(found.clean, whole.clean[ROWS])
    assert np.array_equal(found.prediction, whole.prediction[:, :, ROWS])
    which, note = CorruptionResult.read(folder).notes
    assert note == f"6 {SORTED}i * 40 / 6) of them; i is its index in examples.parquet"
    assert whole.notes == (which,)


def test_published_images_are_found_where_the_spread_ones_are(here: Path):
    test = by_class().test
    assert isinstance(test, Split)
    published = here / "TINY-C"
    published.mkdir()
    for name in MAIN:
        every = torch.cat([corrupt(test.images, name, severity, seed=9) for severity in range(1, 6)])
        np.save(published / f"{name}.npy", every.permute(0, 2, 3, 1).numpy())
    np.save(published / "labels.npy", np.tile(test.labels.numpy(), 5))
    found, _, _ = measure_corruptions(SORTED_DATA, limit=6, published=published)
    for name, severity in (("fog", 5), ("gaussian_noise", 1)):
        images = corrupt(test.images, name, severity, seed=9)
        assert found.accuracy(name, severity) == right(Split(images, test.labels))[ROWS].double().mean()
    np.save(published / "labels.npy", np.tile(test.labels.flip(0).numpy(), 5))
    said = failed(
        "evaluate",
        "mine.py:build",
        "--data",
        "sorted",
        "--suite",
        "corruptions",
        "--limit",
        5,
        "--published",
        published,
    )
    assert "TINY-C has other labels, or none, at the 5 positions that are taken of the test images" in said
    assert json.loads((here / "evaluation/mine-py-build/corruptions_published_n6/result.json").read_text())["n"] == 6
