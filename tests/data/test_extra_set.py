"""Extra sets: all of the training part, with labels, probabilities or neither, of the classes they go with."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from layouts import CLASSES, encoded, known, write_folder, write_npz
from toughen.data import DATA, LazySplit, ResizeCrop, Split, from_pairs, load_extra

IMAGES, LABELS = known((5, 7, 3), {"train": 12})["train"]
SHAPE = (3, 5, 7)


def npz(path, **arrays) -> str:
    np.savez(path, image=IMAGES, **arrays)
    return str(path)


def write_parquet(folder, **columns) -> str:
    folder.mkdir()
    cells = [{"bytes": encoded(image), "path": None} for image in IMAGES]
    pq.write_table(pa.table({"image": cells, **columns}), folder / "train-00000-of-00001.parquet")
    return str(folder)


def is_same(split: object, labels: np.ndarray) -> bool:
    assert isinstance(split, Split)
    assert np.array_equal(split.images.numpy().transpose(0, 2, 3, 1), IMAGES)
    return np.array_equal(split.labels.numpy(), labels)


def test_all_of_train(tmp_path):
    assert is_same(load_extra(npz(tmp_path / "a.npz", label=LABELS), shape=SHAPE, classes=CLASSES), LABELS)
    whole = write_npz(tmp_path / "b.npz", known((5, 7, 3), {"train": 12, "test": 6}))
    assert is_same(load_extra(str(whole), shape=SHAPE, classes=3), whole_labels := LABELS)
    assert len(whole_labels) == 12
    assert is_same(load_extra(write_parquet(tmp_path / "c", label=LABELS), shape=SHAPE, classes=3), LABELS)
    folder = write_folder(tmp_path / "d", known((5, 7, 3), {"train": 12}), {"train": ""})
    assert is_same(load_extra(str(folder), shape=SHAPE, classes=CLASSES), LABELS)


def test_decoded_once(tmp_path, monkeypatch, cache_folder):
    source = write_parquet(tmp_path / "a", label=LABELS)
    load_extra(source, shape=SHAPE, classes=3)
    (file,) = cache_folder.iterdir()
    monkeypatch.setattr("toughen.data.sources.arrow.open_image", lambda *_: pytest.fail("decoded again"))
    # The first image's header says what shape they are of.
    monkeypatch.setattr(LazySplit, "shape", SHAPE)
    assert is_same(load_extra(source, shape=SHAPE, classes=3), LABELS)
    monkeypatch.undo()
    monkeypatch.setenv("TOUGHEN_CACHE", str(cache_folder))
    file.write_bytes(file.read_bytes()[:500])
    assert is_same(load_extra(source, shape=SHAPE, classes=3), LABELS)


def test_no_label(tmp_path):
    some = np.where(np.arange(12) % 2, LABELS, -1)
    assert is_same(load_extra(npz(tmp_path / "a.npz", label=some), shape=SHAPE, classes=CLASSES), some)
    none = np.full(12, -1)
    assert is_same(load_extra(npz(tmp_path / "b.npz"), shape=SHAPE, classes=CLASSES), none)
    assert is_same(load_extra(write_parquet(tmp_path / "c"), shape=SHAPE, classes=CLASSES), none)
    (tmp_path / "d").mkdir()
    for number, image in enumerate(IMAGES):
        (tmp_path / "d" / f"{number:02d}.png").write_bytes(encoded(image))
    assert is_same(load_extra(str(tmp_path / "d"), shape=SHAPE, classes=CLASSES), none)


def test_probabilities(tmp_path):
    given = np.random.default_rng(0).dirichlet(np.ones(3), 12)
    loaded = load_extra(npz(tmp_path / "a.npz", label=LABELS, probabilities=given), shape=SHAPE, classes=3)
    assert is_same(loaded, given.astype(np.float32))
    rows = pa.array(given.astype(np.float32).tolist(), pa.list_(pa.float32()))
    loaded = load_extra(write_parquet(tmp_path / "b", label=LABELS, probabilities=rows), shape=SHAPE, classes=3)
    assert is_same(loaded, given.astype(np.float32))
    assert loaded.labels.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": np.full(12, 3)}, "Example 0 of the extra set a has label 3, but the 3 classes allow 0 to 2"),
        ({"label": np.full(12, -2)}, "label -2"),
        ({"probabilities": np.full((12, 4), 0.25)}, "4 probabilities"),
        ({"probabilities": np.full((12, 3), 0.5)}, "Example 0"),
        ({"probabilities": np.tile([1.5, -0.5, 0], (12, 1))}, "Example 0"),
        ({"probabilities": np.full((12, 3), np.nan)}, "Example 0"),
        ({"probabilities": np.zeros(12)}, "shape (12,)"),
        ({"probabilities": np.ones((12, 1), np.int64)}, "int64"),
    ],
)
@pytest.mark.parametrize("classes", [3, CLASSES])
def test_labels_that_do_not_fit(tmp_path, change, said, classes, one_sentence):
    assert said in one_sentence(load_extra, npz(tmp_path / "a.npz", **change), shape=SHAPE, classes=classes)


def test_probabilities_of_different_length(tmp_path, one_sentence):
    rows = [[0.5, 0.5]] + [[1.0, 0.0, 0.0]] * 11
    source = write_parquet(tmp_path / "a", probabilities=rows)
    assert "differ in number" in one_sentence(load_extra, source, shape=SHAPE, classes=3)


def test_images_of_another_size(tmp_path, one_sentence):
    source = npz(tmp_path / "a.npz", label=LABELS)
    text = one_sentence(load_extra, source, shape=(3, 32, 32), classes=3)
    assert "(3, 5, 7)" in text
    assert "view=ResizeCrop(224)" in text
    viewed = load_extra(source, shape=(3, 4, 4), classes=3, view=ResizeCrop(4))
    assert isinstance(viewed, LazySplit)
    assert viewed.images.shape == (12, 3, 4, 4)


def test_classes_by_name(tmp_path, one_sentence):
    folder = write_folder(tmp_path / "a", known((5, 7, 3), {"train": 12}), {"train": ""})
    order = ("eel", "cat", "fox", "dog")
    assert is_same(load_extra(str(folder), shape=SHAPE, classes=order), np.array([1, 3, 0])[LABELS])
    assert "class eel" in one_sentence(load_extra, str(folder), shape=SHAPE, classes=("cat", "dog"))
    source = npz(tmp_path / "b.npz", label=LABELS - 1, classes=np.array(CLASSES))
    assert is_same(load_extra(source, shape=SHAPE, classes=order), np.array([-1, 1, 3])[LABELS])
    # Classes that are called by their numbers are numbers.
    source = npz(tmp_path / "c.npz", label=LABELS, classes=np.array(["0", "1", "2"]))
    assert is_same(load_extra(source, shape=SHAPE, classes=order), LABELS)


def test_data_with_a_name(monkeypatch, one_sentence):
    data = from_pairs("mine", (IMAGES, LABELS), (IMAGES, LABELS), CLASSES)
    monkeypatch.setitem(DATA, "mine", lambda: data)
    assert is_same(load_extra("mine", shape=SHAPE, classes=CLASSES), LABELS)
    assert isinstance(load_extra("mine", shape=(3, 4, 4), classes=3, view=ResizeCrop(4)), LazySplit)


def test_too_much_for_memory_stays_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("toughen.data.decode.IN_MEMORY", 1000)
    loaded = load_extra(npz(tmp_path / "a.npz", label=LABELS), shape=SHAPE, classes=3)
    assert isinstance(loaded, LazySplit)
    assert np.array_equal(loaded.images.numpy().transpose(0, 2, 3, 1), IMAGES)
