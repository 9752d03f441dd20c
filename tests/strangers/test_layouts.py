"""What lies on strangers' disks is read for what it is, bit for bit, or refused in a sentence whose advice works."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest

from layouts import CLASSES, encoded, write_folder, write_python, write_tar
from strangers.written_layouts import (
    ALONE,
    CIFAR,
    COLOUR,
    GREY,
    SPLIT,
    TEST,
    TRAIN,
    arrays,
    beside,
    hugging_face,
    idx,
    images,
    parquet,
    saved,
    table,
    write_mnist,
)
from toughen.data import ImageData, load
from toughen.data.base import Examples
from toughen.storage.limits import FREE


@pytest.fixture(autouse=True)
def _quiet_datasets():
    datasets.disable_progress_bars()


def same(split: Examples, part: tuple[np.ndarray, np.ndarray]) -> bool:
    pixels, labels = part
    return (
        np.array_equal(split.images.numpy().transpose(0, 2, 3, 1), pixels) and split.labels.tolist() == labels.tolist()
    )


def refused(path: Path | str, *, whole: bool = False) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load(str(path), whole=whole)
    text = str(caught.value)
    assert "\n" not in text
    assert ". " not in text
    return text


@pytest.mark.parametrize(("parts", "write"), SPLIT.values(), ids=SPLIT)
def test_a_layout_with_splits(parts, write: Callable[[Path], Path], tmp_path: Path):
    path = write(tmp_path / "pets")
    for whole in (True, False):
        data = load(str(path), whole=whole)
        assert same(data.train, parts["train"])
        assert same(data.test, parts.get("test", parts.get("validation")))
        assert data.test_part == ("test" if "test" in parts else "validation")
        assert data.classes in (CLASSES, ("0", "1", "2"))


@pytest.mark.parametrize(("part", "parts", "write"), ALONE.values(), ids=ALONE)
def test_a_part_alone_is_evaluated_whole(part: str, parts, write: Callable[[Path], Path], tmp_path: Path):
    (tmp_path / "pets").mkdir()
    path = write(tmp_path / "pets")
    (held,) = parts.values()
    # Once more, from the cache where there is one.
    for _ in range(2):
        data = load(str(path), whole=True)
        assert same(data.test, held)
        assert (data.test_part, [*data.splits], data.validation) == (part, ["test"], None)
    trained = load(str(path))
    assert (len(trained.train), len(trained.test)) == ((24, 6) if part == "train" and len(held[1]) == 30 else
                                                       (9, 3) if part == "train" else (0, 12))  # fmt: skip


def test_what_was_found_is_said(tmp_path: Path):
    folder = write_folder(tmp_path / "pets" / "dataset", COLOUR)
    assert load(str(folder.parent)).notes == (f"the data of {folder.parent} lie in {folder}, and are read there",)
    assert load(str(folder)).notes == ()
    # The cache knows the images and not the place.
    assert load(str(folder.rename(tmp_path / "other"))).notes == ()
    rows = images(tmp_path / "few" / "images")
    table(tmp_path / "few" / "labels.csv", "filename,label", rows[:20])
    assert load(str(tmp_path / "few")).notes == ("10 of the 30 images are not named in a table, and are left aside",)
    write_folder(tmp_path / "flat", TRAIN)
    images(tmp_path / "flat" / "test", "test")
    assert load(str(tmp_path / "flat")).notes == ("the test part has no labels, and is left aside",)
    emnist = write_mnist(tmp_path / "letters", "emnist-letters-{}-{}-idx{}-ubyte")
    assert "mirrored along the diagonal" in load(str(emnist)).notes[0]


def test_class_folders_win_over_a_stray_table(tmp_path: Path):
    folder = write_folder(tmp_path / "pets", COLOUR)
    before = load(str(folder))
    table(folder / "noisy.csv", "path,label", [("train/cat/000000.png", "dog")])
    assert load(str(folder)).fingerprint == before.fingerprint
    flat = write_folder(tmp_path / "flat", TRAIN, {"train": ""})
    before = load(str(flat))
    table(flat / "labels.csv", "path,label", [("cat/000000.png", "dog")])
    assert load(str(flat)).fingerprint == before.fingerprint


def two_sets(folder: Path) -> Path:
    return write_folder(write_folder(folder / "a", COLOUR).parent / "b", COLOUR).parent


def classes_above(folder: Path) -> Path:
    for number, name in enumerate(("cat/train", "cat/test", "dog/train", "dog/test")):
        (folder / name).mkdir(parents=True)
        (folder / name / "1.png").write_bytes(encoded(COLOUR["train"][0][number]))
    return folder


def lost_label_file(folder: Path) -> Path:
    (write_mnist(folder) / "t10k-labels-idx1-ubyte").unlink()
    return folder


def labels_of_others(folder: Path) -> Path:
    idx(write_mnist(folder) / "t10k-labels-idx1-ubyte", GREY["train"][1])
    return folder


def cut_idx(folder: Path) -> Path:
    path = write_mnist(folder) / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    return folder


def bomb(folder: Path) -> Path:
    head = bytes((0, 0, 8, 3)) + struct.pack(">3I", FREE + 1, 1, 1)
    (write_mnist(folder, packed=True) / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + bytes(100)))
    return folder


def no_arrow(folder: Path) -> Path:
    next((saved(folder / "pets", "train", "test") / "test").glob("*.arrow")).write_bytes(
        b"\xff\xff\xff\xff\x10\0\0\0none"
    )
    return folder / "pets"


def outside_arrow(folder: Path) -> Path:
    """Offsets that point far beyond the file's end."""
    path, schema = folder / "train.arrow", hugging_face("test").features.arrow_schema
    folder.mkdir()
    rows = {"image": [{"bytes": b"01234", "path": None}, {"bytes": b"5678", "path": None}], "label": [0, 1]}
    with pa.ipc.new_stream(str(path), schema) as writer:
        writer.write_table(pa.table(rows, schema=schema))
    content = path.read_bytes()
    assert content.count(struct.pack("<3i", 0, 5, 9)) == 1
    path.write_bytes(content.replace(struct.pack("<3i", 0, 5, 9), struct.pack("<3i", 0, 5, 2**30)))
    return path


def broken_text(folder: Path) -> Path:
    (folder / "labels.csv").write_bytes(b"file,label\n0000.png,k\xe4fer\n")
    return folder


def with_rows(header: str, change: Callable[[list], list]) -> Callable[[Path], Path]:
    return lambda folder: table(folder / "labels.csv", header, change(images(folder / "images")))


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "two data sets": (two_sets, "pets is no data set but holds a, b; give the folder of one, like"),
    "a data set beside other images": (
        lambda p: table(write_folder(p / "a", COLOUR).parent / "samples" / "a.csv", "x", images(p / "samples")).parent,
        "holds a beside samples; give the folder of one",
    ),
    "splits below the classes": (classes_above, "turn that round, as in"),
    "files of two sets": (
        lambda p: write_mnist(write_mnist(p, "emnist-letters-{}-{}-idx{}-ubyte"), "emnist-digits-{}-{}-idx{}-ubyte"),
        "2 data sets (emnist-digits, emnist-letters); give a file of one, like",
    ),
    "images without their labels": (lost_label_file, "t10k-images-idx3-ubyte lies there without its labels"),
    "labels of other images": (labels_of_others, "12 images, and the file of their labels 30"),
    "an idx file that is cut": (cut_idx, "does not hold the 1,920 numbers that it speaks of; fetch it again"),
    "an idx file that is a bomb": (bomb, "says that it holds 67108865 x 1 x 1 numbers"),
    "a damaged arrow file": (no_arrow, "save_to_disk (ArrowInvalid); save the set again"),
    "an arrow file that points outside": (outside_arrow, "cannot be read as arrow (ArrowInvalid)"),
    "something called arrow": (lambda p: table(p / "x.arrow", "none", []), "cannot be read as arrow"),
    "one file of several": (
        lambda p: parquet(p, "train-00000-of-00002", "train-00001-of-00002") / "train-00001-of-00002.parquet",
        "give the folder that holds it",
    ),
    "CIFAR's pickles, one folder above": (
        lambda p: write_python(p / "cifar-10-batches-py", CIFAR).parent,
        "run `toughen import",
    ),
    "an archive in a folder": (
        lambda p: write_tar(p / "cifar-10-python.tar.gz", {"a": b"b"}, "w:gz").parent,
        "cifar-10-python.tar.gz is compressed by gzip, not an image; unpack it and give the folder that comes of it",
    ),
    "arrays in a folder": (
        lambda p: beside(p, "images.npy"),
        "images.npy is no image but holds data; save its images and labels as image and label in an .npz file",
    ),
    "two .npz files": (
        lambda p: arrays(arrays(p / "a.npz", "x", "y").with_name("b.npz"), "x", "y").parent,
        "of which each may be a data set; give one of them or, where they are one together, {path}/*.npz",
    ),
    "an image without a row": (
        with_rows("filename,label", lambda rows: [*rows, ("nope.png", 1)]),
        "Row 31 of {path}/labels.csv names 'nope.png', but {path} holds no such image; restore it, or take the row out",
    ),
    "a row that points out of the folder": (
        with_rows("filename,label", lambda rows: [*rows, ("../../nope.png", 1)]),
        "holds no such image",
    ),
    "an image twice": (
        with_rows("file,label", lambda rows: [*rows, rows[3]]),
        "as Row 4 of {path}/labels.csv does already",
    ),
    "a row without a label": (with_rows("file,class", lambda rows: [*rows[1:], (rows[0][0], "")]), "write one"),
    "a split of another name": (
        with_rows("file,class,split", lambda rows: [(*row, "fold1") for row in rows]),
        "The column split of {path}/labels.csv says 'fold1'; write train, val or test there",
    ),
    "one column a class": (
        with_rows("file,a,b,c", lambda rows: [(name, 0, 0, 1) for name, _ in rows]),
        "{path}/labels.csv has no column that names images in {path} and one of their labels; write a first line like",
    ),
    "images without anything": (
        lambda p: table(p / "notes.json", "{}", images(p / "images")),
        "write a table labels.csv of the columns filename and label into it",
    ),
    "a table of broken text": (
        lambda p: broken_text(table(p / "labels.csv", "file,label", images(p / "images"))),
        "write it again as UTF-8",
    ),
    "a film beside the classes": (
        lambda p: beside(write_folder(p, TRAIN, {"train": ""}), "film.mp4"),
        "film.mp4 is no image (.jpg, .jpeg, .png, .webp, ...); take it out of the folder",
    ),
}


@pytest.mark.parametrize(("write", "says"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_data_set_is_one_sentence(write: Callable[[Path], Path], says: str, tmp_path: Path):
    path = write(tmp_path / "pets")
    for whole in (True, False):
        assert says.format(path=path) in refused(path, whole=whole)


def follow(text: str) -> str:
    """The path that a sentence ends with."""
    return text.rstrip(".").split(" ")[-1]


@pytest.mark.parametrize("name", ["two data sets", "files of two sets", "one file of several"])
def test_a_path_that_is_advised_is_read(name: str, tmp_path: Path):
    data = load(follow(refused(REFUSED[name][0](tmp_path / "pets"))), whole=True)
    assert isinstance(data, ImageData)
    assert data.num_classes == 3


def test_advice_for_images_without_labels_is_true_each_way(tmp_path: Path):
    rows = images(tmp_path / "images")
    text = refused(tmp_path / "images")
    assert text.endswith(f"give {tmp_path}.")
    table(tmp_path / "images" / "labels.csv", "filename,label", rows)
    inside = load(str(tmp_path / "images"))
    (tmp_path / "images" / "labels.csv").rename(tmp_path / "labels.csv")
    assert load(follow(text)).fingerprint == inside.fingerprint
    cat = write_folder(tmp_path / "pets", TRAIN, {"train": ""}) / "cat"
    assert load(follow(refused(cat))).classes == CLASSES


def test_few_images_of_many_classes(tmp_path: Path):
    np.savez(tmp_path / "u.npz", images=COLOUR["train"][0][:5], labels=np.arange(5) * 99)
    data = load(str(tmp_path / "u.npz"), whole=True)
    assert data.test.labels.tolist() == [0, 99, 198, 297, 396]
    assert "too few others to set some aside" in refused(tmp_path / "u.npz")
    np.savez(tmp_path / "u.npz", images=COLOUR["train"][0][:5], labels=np.array([0, 0, 1, 1, 10**9]))
    assert "Example 4 of the train split of u has label 1000000000" in refused(tmp_path / "u.npz", whole=True)


def test_an_image_of_an_arrow_file_that_is_not_there(tmp_path: Path):
    Path(tmp_path / "a.png").write_bytes(encoded(COLOUR["train"][0][0]))
    features = hugging_face("test").features
    rows = {"image": [{"bytes": None, "path": str(tmp_path / "a.png")}] * 4, "label": [0, 0, 1, 1]}
    with pa.ipc.new_file(str(tmp_path / "pets.arrow"), features.arrow_schema) as writer:
        writer.write_table(pa.table(rows, schema=features.arrow_schema))
    data = load(str(tmp_path / "pets.arrow"), whole=True)
    assert np.array_equal(data.test.images[3].numpy().transpose(1, 2, 0), COLOUR["train"][0][0])
    Path(tmp_path / "a.png").unlink()
    rows["label"] = [0, 0, 1, 2]
    with pa.ipc.new_file(str(tmp_path / "pets.arrow"), features.arrow_schema) as writer:
        writer.write_table(pa.table(rows, schema=features.arrow_schema))
    assert "Example 0 of the train split of pets is the file" in refused(tmp_path / "pets.arrow")


def test_test_images_alone_have_the_fingerprint_of_the_test_split(tmp_path: Path):
    both, alone = load(str(write_folder(tmp_path / "a", COLOUR))), load(str(write_folder(tmp_path / "b", TEST)))
    assert alone.fingerprints == {"test": both.fingerprints["test"]}
