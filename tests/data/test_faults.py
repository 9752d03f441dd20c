"""What users gave that was wrong, and the sentence that says so with a remedy that works."""

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from layouts import (
    CLASSES,
    encoded,
    known,
    write_binary,
    write_folder,
    write_npz,
    write_python,
    write_shards,
    write_tar,
)
from toughen.data import RawDataset, find, load
from toughen.data.sources.cifar_pickle import import_folder

PARTS = known((5, 7, 3))
SQUARE = known((32, 32, 3))


def table(folder: Path, name: str, images: np.ndarray, **columns: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rows = pa.array([{"bytes": encoded(image), "path": None} for image in images], kind)
    pq.write_table(pa.table({"image": rows, **columns}), folder / name)


# --- a fifth set aside


def test_of_training_parquet_alone_the_fifth_is_set_aside_that_tar_and_npz_set_aside(tmp_path):
    parts = known((5, 7, 3), {"train": 30})
    images, labels = parts["train"]
    table(tmp_path / "parquet", "train-00000-of-00002.parquet", images[:17], label=labels[:17])
    table(tmp_path / "parquet", "train-00001-of-00002.parquet", images[17:], label=labels[17:])
    # What `toughen label` writes beside them is no data.
    pq.write_table(pa.table({"pool_index": [1]}), tmp_path / "parquet" / "duplicates.parquet")
    ours = load(str(tmp_path / "parquet"))
    assert ours.test.labels.bincount().tolist() == [2, 2, 2]
    sources = write_shards(tmp_path / "shards", parts), write_npz(tmp_path / "pets.npz", parts)
    for source in sources:
        other = load(str(source))
        assert torch.equal(ours.train.images, other.train.images)
        assert torch.equal(ours.test.images, other.test.images)
    assert torch.equal(load(str(tmp_path / "parquet")).test.images, ours.test.images)


# --- what lies beside


@pytest.mark.parametrize("names", [{"train": ""}, None], ids=["classes", "splits"])
def test_class_folders_win_over_a_stray_table(tmp_path, names):
    folder = write_folder(tmp_path / "pets", PARTS if names is None else {"train": PARTS["train"]}, names)
    before = load(str(folder))
    pq.write_table(pa.table({"attack": ["pgd"], "index": [0]}), folder / "examples.parquet")
    after = load(str(folder))
    assert (after.fingerprint, after.classes) == (before.fingerprint, CLASSES)
    table(folder, "train-0.parquet", PARTS["train"][0], label=PARTS["train"][1])
    found = find(str(folder))
    assert isinstance(found, RawDataset)
    assert "parquet" not in found.parts["train"].images.name(0)
    assert found.parts["train"].images.name(0) == "Example 0 of the train split of pets"


def test_a_table_alone_is_data_whatever_its_name(tmp_path):
    table(tmp_path / "pets", "examples.parquet", PARTS["train"][0], label=PARTS["train"][1])
    assert len(load(str(tmp_path / "pets")).train) == 9


# --- files that are missing


@pytest.mark.parametrize(
    ("there", "missing"),
    [
        (["train-00000-of-00003", "train-00002-of-00003"], "train-00001-of-00003"),
        (["train-00000-of-00002", "train-00001-of-00002", "test-00001-of-00002"], "test-00000-of-00002"),
        (["train-00000-of-00002-0123abcd"], "train-00001-of-00002"),
        (["train-1-of-3", "train-3-of-3"], "train-2-of-3"),
    ],
)
def test_a_missing_file_is_named(tmp_path, there, missing, one_sentence):
    for name in there:
        table(tmp_path / "pets", f"{name}.parquet", PARTS["train"][0], label=PARTS["train"][1])
        write_tar(tmp_path / f"{name}.tar", {"a.png": encoded(PARTS["train"][0][0]), "a.cls": b"0"})
    for folder in (tmp_path / "pets", tmp_path):
        text = one_sentence(load, str(folder))
        assert f"{folder} lacks {missing}, one of the" in text


def test_all_files_are_there_counted_from_nought_or_one(tmp_path):
    for name in ("train-0-of-2", "train-1-of-2", "test-1-of-2", "test-2-of-2"):
        table(tmp_path, f"{name}.parquet", PARTS["train"][0], label=PARTS["train"][1])
    assert len(load(str(tmp_path)).train) == 24


# --- labels


@pytest.mark.parametrize(("fine", "label"), [(False, 10), (False, 99), (True, 100), (False, -1)])
def test_a_label_that_cifar_does_not_have_is_not_imported(tmp_path, fine, label, one_sentence):
    images, labels = SQUARE["test"]
    labels = labels.copy()
    labels[4] = label
    folder = write_python(tmp_path / "cifar", {**SQUARE, "test": (images, labels)}, fine=fine)
    text = one_sentence(import_folder, folder, tmp_path / "out.npz")
    count = 100 if fine else 10
    name = "test" if fine else "test_batch"
    assert text.startswith(
        f"Image 4 of {folder / name} has label {label}, but its {count} classes allow 0 to {count - 1};"
    )
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize(("coarse", "label"), [(False, 10), (False, 49), (True, 100)])
def test_a_label_that_cifars_binary_files_cannot_have(tmp_path, coarse, label, one_sentence):
    folder = write_binary(tmp_path / "cifar", SQUARE, coarse)
    path = folder / ("test.bin" if coarse else "test_batch.bin")
    content = bytearray(path.read_bytes())
    length = 3072 + 1 + coarse
    content[4 * length + coarse] = label
    path.write_bytes(content)
    text = one_sentence(load, str(folder))
    count = 100 if coarse else 10
    assert text.startswith(f"Record 4 of {path} has label {label}, but its {count} classes allow 0 to {count - 1};")


@pytest.mark.parametrize("label", [-1, -5])
@pytest.mark.parametrize("part", ["train", "test"])
def test_a_negative_label_is_named_with_its_place(tmp_path, label, part, one_sentence):
    labels = PARTS[part][1].copy()
    labels[3] = label
    parts = {**PARTS, part: (PARTS[part][0], labels)}
    where = f"image 3 of {part}_images in {tmp_path / 'pets.npz'} has label {label}, but classes count from 0 on"
    assert where in one_sentence(load, str(write_npz(tmp_path / "pets.npz", parts)))
    folder = write_shards(tmp_path / "shards", parts, per_shard=20)
    assert f"{part}-000000.tar has label {label}" in one_sentence(load, str(folder))
    for name, (images, given) in parts.items():
        table(tmp_path / "parquet", f"{name}-0.parquet", images, label=given)
    text = one_sentence(load, str(tmp_path / "parquet"))
    assert f"Example 3 of the {part} split of parquet has label {label}" in text


def test_negative_labels_of_training_images_alone(tmp_path, one_sentence):
    labels = PARTS["train"][1].copy()
    labels[7] = -4
    text = one_sentence(load, str(write_npz(tmp_path / "pets.npz", {"train": (PARTS["train"][0], labels)})))
    assert "image 7 of train_images" in text
    assert "-4" in text


@pytest.mark.parametrize(("labels", "kind"), [(list("abcabcabcabc"), "string"), (np.linspace(0, 2, 12), "float64")])
def test_labels_of_a_table_that_are_no_numbers_are_called_by_their_type(tmp_path, labels, kind, one_sentence):
    table(tmp_path / "pets", "train-0.parquet", PARTS["train"][0], label=labels)
    text = one_sentence(load, str(tmp_path / "pets"))
    assert f"The column label of the train split of pets is of type {kind}, but labels must be integers" in text


# --- what holds nothing, or is something else


def test_what_holds_no_images_says_so(tmp_path, one_sentence):
    for name, members in (("other", {"readme.txt": b"none"}), ("empty", {})):
        (tmp_path / name).mkdir()
        path = write_tar(tmp_path / name / "train-0.tar", members)
        assert one_sentence(load, str(tmp_path / name)) == f"{path} holds no images; give shards with some."
    path = write_npz(tmp_path / "empty.npz", {"train": (np.zeros((0, 5, 7, 3), np.uint8), np.zeros(0, int))})
    assert f"train_images in {path} holds no images" in one_sentence(load, str(path))
    table(tmp_path / "parquet", "train-0.parquet", PARTS["train"][0][:0], label=np.zeros(0, int))
    assert "parquet holds no images" in one_sentence(load, str(tmp_path / "parquet"))


def test_files_whose_folder_is_meant(tmp_path, one_sentence):
    shard = write_shards(tmp_path / "shards", PARTS) / "train-000000.tar"
    folder_of = f"give the folder that holds it, {shard.parent}"
    assert one_sentence(load, str(shard)).endswith(f"; {folder_of}.")
    packed = shard.with_suffix(".tar.gz")
    packed.write_bytes(gzip.compress(shard.read_bytes()))
    assert one_sentence(load, str(packed)).endswith(f"; decompress it to a .tar, and {folder_of}.")
    for name in ("train-0-of-2", "train-1-of-2"):
        table(tmp_path / "pets", f"{name}.parquet", PARTS["train"][0], label=PARTS["train"][1])
    text = one_sentence(load, str(tmp_path / "pets" / "train-0-of-2.parquet"))
    assert text.endswith(f"; give the folder that holds it, {tmp_path / 'pets'}.")
    assert len(load(str(tmp_path / "pets")).train) == 18
    photos = write_tar(tmp_path / "photos.tar", {"cat/1.jpg": b"..."})
    assert one_sentence(load, str(photos)).endswith("; unpack it and give the folder.")
    shard.write_bytes(packed.read_bytes())
    packed.unlink()
    text = one_sentence(load, str(shard.parent))
    assert text == f"{shard} is compressed by gzip, not a whole .tar file; decompress it, and call it .tar."


def test_test_images_alone_are_no_class_of_that_name(tmp_path):
    write_folder(tmp_path / "pets", {"test": PARTS["test"]})
    assert load(str(tmp_path / "pets")).classes == CLASSES
    # With images in it, and another beside it, it may be a class.
    for name in ("test", "cat"):
        for number in range(2):
            (tmp_path / "names" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "names" / name / f"{number}.png").write_bytes(encoded(PARTS["train"][0][number]))
    assert load(str(tmp_path / "names")).classes == ("cat", "test")


def test_what_is_not_there(tmp_path, one_sentence):
    for source in ("", " "):
        assert "is empty" in one_sentence(load, source)
        assert "is empty" in one_sentence(find, source)
    assert one_sentence(load, "missing.npz") == "The file missing.npz does not exist; check the path."
    text = one_sentence(import_folder, tmp_path / "nothere", tmp_path / "out.npz")
    assert text.startswith(f"There is no folder {tmp_path / 'nothere'};")
