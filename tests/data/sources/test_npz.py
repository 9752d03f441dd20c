"""Arrays: .npz files, CIFAR's binary files, and Python objects."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from layouts import CLASSES, known, write_binary, write_npz
from toughen.data import ImageData, LazySplit, RawDataset, ResizeCrop, find, from_pairs, load

PARTS = known((5, 7, 3), {"train": 12, "validation": 4, "test": 6})
CIFAR = known()


def same(data: ImageData, parts=PARTS) -> bool:
    return set(data.splits) == set(parts) and all(
        np.array_equal(data.splits[part].images.numpy().transpose(0, 2, 3, 1), images)
        and data.splits[part].labels.tolist() == labels.tolist()
        for part, (images, labels) in parts.items()
    )


def written(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, allow_pickle=False, **arrays)
    return str(path)


def named(template: str, images: str, labels: str, axes=(0, 1, 2, 3)) -> dict[str, np.ndarray]:
    arrays = {}
    for part, word in (("train", "train"), ("validation", "val"), ("test", "test")):
        arrays[template.format(kind=images, part=word)] = PARTS[part][0].transpose(axes)
        arrays[template.format(kind=labels, part=word)] = PARTS[part][1]
    return arrays


@pytest.mark.parametrize(
    "arrays",
    [
        named("{part}_{kind}", "images", "labels"),
        named("{kind}_{part}", "x", "y"),
        named("{kind}_{part}", "X", "Y", (0, 3, 1, 2)),
        named("{part}_{kind}", "data", "targets", (0, 3, 1, 2)),
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_of_any_names_and_axes(tmp_path, arrays, save):
    save(tmp_path / "pets.npz", **arrays)
    data = load(str(tmp_path / "pets.npz"))
    assert same(data)
    assert (data.name, data.classes) == ("pets", ("0", "1", "2"))


def test_npz_of_other_forms(tmp_path, cache_folder):
    images, labels = known((5, 7))["train"]
    arrays = {"x_train": np.asfortranarray(images), "y_train": labels[:, None].astype(np.uint8)}
    path = written(
        tmp_path / "grey.npz", **arrays, x_test=images, y_test=labels, classes=np.array(CLASSES), other=labels
    )
    data = load(path)
    assert np.array_equal(data.train.images[:, 0].numpy(), images)
    assert data.train.labels.tolist() == labels.tolist()
    assert data.classes == CLASSES
    # The arrays are as good as a copy.
    assert not cache_folder.exists()


def test_one_part_alone_and_a_fifth_of_it(tmp_path):
    images, labels = known((5, 7, 3), {"train": 30})["train"]
    data = load(written(tmp_path / "made.npz", image=images, label=labels))
    assert data.test.labels.bincount().tolist() == [2, 2, 2]
    assert len(data.train) == 24
    assert data.validation is None


def test_a_changed_file_is_read_again(tmp_path):
    images, labels = known((5, 7, 3), {"train": 30})["train"]
    path = tmp_path / "made.npz"
    first = load(written(path, image=images, label=labels))
    path.unlink()
    second = load(written(path, image=255 - images, label=labels))
    assert torch.equal(second.train.images, 255 - first.train.images)


def test_npz_with_a_view(tmp_path):
    data = load(str(write_npz(tmp_path / "pets.npz", PARTS)), ResizeCrop(4, resize=5))
    assert isinstance(data.test, LazySplit)
    first = Image.fromarray(PARTS["test"][0][0]).resize((7, 5), Image.Resampling.BILINEAR).crop((1, 0, 5, 4))
    assert np.array_equal(data.test.images[0].numpy().transpose(1, 2, 0), np.asarray(first))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"train_images": np.zeros((12, 5, 7, 3), np.float32)},
            "float32, but images must be uint8; if they are in [0, 1]",
        ),
        ({"train_images": np.zeros((12, 5, 7, 3), np.int64)}, "int64, but images must be uint8; convert"),
        ({"train_images": np.array([None] * 12, object)}, "train_images in"),
        ({"train_labels": np.array([None] * 12, object)}, "train_labels in"),
        ({"train_images": np.zeros((12, 5, 7, 4), np.uint8)}, "(12, 5, 7, 4)"),
        ({"train_images": np.zeros((12, 3, 7, 3), np.uint8)}, "both fit"),
        ({"train_images": np.zeros((12, 35), np.uint8)}, "(12, 35)"),
        ({"train_labels": np.zeros(12)}, "float64"),
        ({"train_labels": np.zeros((12, 3), np.int64)}, "(12, 3)"),
        ({"train_labels": np.zeros(11, np.int64)}, "12 images and 11 labels"),
        ({"test_labels": np.full(6, 3)}, "label 3"),
        ({"train_labels": np.full(12, 99)}, "label 99"),
        ({"train_labels": np.full(12, -1)}, "label -1"),
        ({"test_images": np.zeros((6, 5, 8, 3), np.uint8)}, "test images"),
        ({"x_train": np.zeros((12, 5, 7, 3), np.uint8)}, "both say train image"),
    ],
)
def test_what_is_amiss_in_an_npz_is_named(tmp_path, change, said, one_sentence):
    arrays = {f"{part}_images": images for part, (images, _) in PARTS.items()}
    arrays |= {f"{part}_labels": labels for part, (_, labels) in PARTS.items()}
    np.savez(tmp_path / "pets.npz", allow_pickle=True, **arrays | change)
    assert said in one_sentence(load, str(tmp_path / "pets.npz"))


def test_npz_without_labels_or_training_images(tmp_path, one_sentence):
    path = written(tmp_path / "a.npz", image=PARTS["train"][0])
    assert "without labels" in one_sentence(load, path)
    found = find(path, unlabelled=True)
    assert isinstance(found, RawDataset)
    assert found.parts["train"].labels.tolist() == [-1] * 12
    assert "without labels" in one_sentence(load, written(tmp_path / "b.npz", test_images=PARTS["test"][0]))
    assert "but no images" in one_sentence(load, written(tmp_path / "c.npz", weights=np.zeros(3)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html>", "is a web page"),
        (b"\x1f\x8b\x08\x00", "is compressed by gzip"),
        (b"\x93NUMPY\x01\x00", "is a single numpy array"),
        (b"\x80\x04K\x00.", "is a Python pickle"),
        (b"nothing", "is of no known kind"),
    ],
)
def test_an_npz_that_is_something_else(tmp_path, content, said, one_sentence):
    (tmp_path / "pets.npz").write_bytes(content)
    assert said in one_sentence(load, str(tmp_path / "pets.npz"))


def test_a_damaged_npz(tmp_path, one_sentence):
    path = write_npz(tmp_path / "pets.npz", PARTS)
    whole = path.read_bytes()
    for content in (whole[:-100], whole[: len(whole) // 2], whole[:400] + bytes([whole[400] ^ 1]) + whole[401:]):
        path.write_bytes(content)
        assert "damaged" in one_sentence(load, str(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("image.npy", b"\x93NUMPY\x01\x00 no header")
    assert "image in" in one_sentence(load, str(path))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("cifar.tar.gz", b"\x1f\x8b\x08", "unpack it"),
        ("cifar.zip", b"PK\x03\x04", "unpack it"),
        ("cifar.parquet", b"PAR1", "cannot be read as parquet"),
        ("cifar", b"<html>", "a web page"),
    ],
)
def test_files_that_are_no_data(tmp_path, name, content, said, one_sentence):
    (tmp_path / name).write_bytes(content)
    text = one_sentence(load, str(tmp_path / name))
    assert name in text
    assert said in text


@pytest.mark.parametrize("coarse", [False, True])
def test_binary_files_bit_for_bit(tmp_path, coarse):
    data = load(str(write_binary(tmp_path / "cifar", CIFAR, coarse)))
    assert same(data, CIFAR)
    assert (data.name, data.classes) == ("cifar", CLASSES)


def test_binary_files_that_are_not_whole(tmp_path, one_sentence):
    folder = write_binary(tmp_path / "cifar", CIFAR)
    path = folder / "data_batch_3.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert f"data_batch_3.bin has {len(whole) - 1} bytes" in one_sentence(load, str(folder))
    path.unlink()
    assert "data_batch_3.bin is missing" in one_sentence(load, str(folder))


class Items:
    """A map-style data set."""

    def __init__(self, part: str, form: str) -> None:
        self.images, self.labels = PARTS[part]
        self.form = form

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int):
        image = self.images[number]
        forms = {
            "pil": lambda: Image.fromarray(image),
            "array": lambda: image,
            "tensor": lambda: torch.from_numpy(image).permute(2, 0, 1),
        }
        return forms[self.form](), int(self.labels[number])


@pytest.mark.parametrize("form", ["pil", "array", "tensor"])
def test_map_style_data_sets(form):
    parts = {part: Items(part, form) for part in PARTS}
    data = from_pairs("mine", parts["train"], parts["test"], CLASSES, parts["validation"])
    assert same(data)
    assert (data.name, data.classes) == ("mine", CLASSES)


def test_pairs_of_tensors_arrays_and_sequences():
    tensors = {p: (torch.from_numpy(x.transpose(0, 3, 1, 2)), torch.from_numpy(y)) for p, (x, y) in PARTS.items()}
    data = from_pairs("mine", tensors["train"], tensors["test"], validation=tensors["validation"])
    assert same(data)
    arrays = from_pairs("other", PARTS["train"], PARTS["test"], validation=PARTS["validation"])
    pictures = {
        part: ([Image.fromarray(x) for x in images], labels.tolist()) for part, (images, labels) in PARTS.items()
    }
    listed = from_pairs("third", pictures["train"], pictures["test"], validation=pictures["validation"])
    assert data.fingerprint == arrays.fingerprint == listed.fingerprint
    viewed = from_pairs("mine", tensors["train"], tensors["test"], view=ResizeCrop(4))
    assert viewed.image_shape == (3, 4, 4)
    changed = from_pairs("mine", (255 - tensors["train"][0], tensors["train"][1]), tensors["test"], view=ResizeCrop(4))
    assert viewed.fingerprint != changed.fingerprint


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ((torch.zeros(4, 3, 5, 5), [0, 0, 1, 1]), "float32"),
        ((torch.zeros(4, 5, 5, 3).byte(), [0, 0, 1, 1]), "(4, 5, 5, 3)"),
        ((torch.zeros(4, 3, 5, 5).byte(), [0, 0, 1]), "4 images"),
        ((torch.zeros(4, 3, 5, 5).byte(), [0.0, 0.5, 1, 1]), "float64"),
        ((torch.zeros(4, 3, 5, 5).byte(), [0] * 4, [1]), "tuple of 3"),
        ((["a.png"] * 4, [0, 0, 1, 1]), "Example 0 of the train split of mine is of type str"),
    ],
)
def test_what_is_amiss_in_pairs_is_named(train, said, one_sentence):
    assert said in one_sentence(from_pairs, "mine", train, (np.zeros((1, 5, 5, 3), np.uint8), [0]))
