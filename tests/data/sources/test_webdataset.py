"""Webdataset shards: read where the members lie, equal to what was written, and refused in a sentence."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from layouts import encoded, known, write_shards, write_tar
from toughen.data import ImageData, RawDataset, find, load

PARTS = known((5, 7, 3), {"train": 12, "validation": 4, "test": 6})


def same(data: ImageData) -> bool:
    return set(data.splits) == set(PARTS) and all(
        np.array_equal(data.splits[part].images.numpy().transpose(0, 2, 3, 1), images)
        and data.splits[part].labels.tolist() == labels.tolist()
        for part, (images, labels) in PARTS.items()
    )


@pytest.mark.parametrize("label", ["cls", "json"])
def test_shards_bit_for_bit(tmp_path, label):
    data = load(str(write_shards(tmp_path / "pets", PARTS, label=label)))
    assert same(data)
    assert (data.name, data.classes) == ("pets", ("0", "1", "2"))


def test_splits_from_folders_or_longer_names(tmp_path):
    folder = write_shards(tmp_path / "a", PARTS)
    for path in list(folder.iterdir()):
        part = path.name.partition("-")[0]
        moved = tmp_path / "b" / {"validation": "val"}.get(part, part) / path.name.partition("-")[2]
        moved.parent.mkdir(parents=True, exist_ok=True)
        path.rename(moved)
    assert same(load(str(tmp_path / "b")))
    folder = write_shards(tmp_path / "c", PARTS)
    for path in list(folder.iterdir()):
        path.rename(folder / f"imagenet1k-{path.name}")
    assert same(load(str(folder)))


def test_names_that_say_nothing_are_all_training(tmp_path):
    folder = write_shards(tmp_path / "pets", PARTS)
    for path in list(folder.glob("[vt]*")):
        path.rename(folder / path.name.replace("-", "0").replace("train", "a").replace("test", "b"))
    for path in list(folder.glob("validation*")):
        path.unlink()
    found = find(str(folder))
    assert isinstance(found, RawDataset)
    assert {part: len(collection.labels) for part, collection in found.parts.items()} == {"train": 18}


def test_places_names_and_what_is_ignored(tmp_path):
    image = PARTS["train"][0][0]
    members = {
        "deep/a.jpg": encoded(image, "JPEG", quality=95),
        "deep/a.cls": b" 1\n",
        "deep/a.txt": b"a caption",
        "deep/a.seg.png": b"another image",
        "deep/.hidden.png": b"none",
        "b.json": json.dumps({"label": 2}).encode(),
        "b.PPM": encoded(image, "PPM"),
    }
    write_tar(tmp_path / "train-0.tar", members, "w:")
    write_tar(tmp_path / "test-0.tar", members)
    found = find(str(tmp_path))
    assert isinstance(found, RawDataset)
    train = found.parts["train"]
    assert train.labels.tolist() == [1, 2]
    assert [train.images.name(i) for i in (0, 1)] == [
        f"deep/a.jpg in {tmp_path / 'train-0.tar'}",
        f"b.PPM in {tmp_path / 'train-0.tar'}",
    ]
    assert np.array_equal(np.asarray(train.images.open(1)), image)
    assert train.images.open(0).format == "JPEG"


def test_the_cache(tmp_path, cache_folder, monkeypatch):
    folder = write_shards(tmp_path / "pets", PARTS)
    first = load(str(folder))
    monkeypatch.setattr("toughen.data.decode.assemble", None)
    assert torch.equal(load(str(folder)).train.images, first.train.images)
    assert len(list(cache_folder.iterdir())) == 1


def compressed(folder: Path) -> None:
    path = folder / "train-000005.tar"
    path.with_suffix(".tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


def compressed_unsaid(folder: Path) -> None:
    path = folder / "train-000005.tar"
    path.write_bytes(gzip.compress(path.read_bytes()))


def page(folder: Path) -> None:
    (folder / "train-000005.tar").write_text("<!doctype html><title>Too many requests</title>" * 40)


def cut(folder: Path) -> None:
    path = folder / "train-000005.tar"
    members = {"x.cls": b"1", "x.png": bytes(5000)}
    path.write_bytes(write_tar(path, members).read_bytes()[:4000])


def empty(folder: Path) -> None:
    (folder / "train-000005.tar").write_bytes(b"")


def unlabelled(folder: Path) -> None:
    write_tar(folder / "train-000005.tar", {"x.png": encoded(PARTS["train"][0][0])})


def imageless(folder: Path) -> None:
    write_tar(folder / "train-000005.tar", {"x.cls": b"1"})


def no_number(folder: Path) -> None:
    write_tar(folder / "train-000005.tar", {"x.png": encoded(PARTS["train"][0][0]), "x.cls": b"cat"})


def half_number(folder: Path) -> None:
    write_tar(folder / "train-000005.tar", {"x.png": encoded(PARTS["train"][0][0]), "x.json": b'{"label": 1.5}'})


def broken(folder: Path) -> None:
    write_tar(folder / "train-000005.tar", {"x.png": b"no image", "x.cls": b"1"})


def two(folder: Path) -> None:
    image = encoded(PARTS["train"][0][0])
    write_tar(folder / "train-000005.tar", {"x.png": image, "x.jpg": image, "x.cls": b"1"})


def beyond(folder: Path) -> None:
    write_tar(folder / "test-000005.tar", {"x.png": encoded(PARTS["train"][0][0]), "x.cls": b"3"})


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (compressed, "train-000005.tar.gz is compressed"),
        (compressed_unsaid, "train-000005.tar is compressed by gzip"),
        (page, "train-000005.tar is a web page"),
        (cut, "train-000005.tar is a damaged tar file"),
        (empty, "train-000005.tar is empty"),
        (unlabelled, "x.png in"),
        (imageless, "no image"),
        (no_number, "x.cls in"),
        (half_number, "1.5"),
        (broken, "x.png in"),
        (two, "two images of x"),
        (beyond, "label 3"),
    ],
)
def test_what_is_amiss_is_named(tmp_path, spoil, said, one_sentence):
    folder = write_shards(tmp_path / "pets", PARTS)
    spoil(folder)
    assert said in one_sentence(load, str(folder))


def test_test_shards_alone(tmp_path):
    data = load(str(write_shards(tmp_path / "pets", {"test": PARTS["test"]})))
    assert data.test.labels.tolist() == PARTS["test"][1].tolist()
    assert (len(data.train), data.test_part, [*data.splits]) == (0, "test", ["test"])


def test_a_pool_without_labels(tmp_path):
    write_tar(tmp_path / "pool.tar", {"x.png": encoded(PARTS["train"][0][0])})
    found = find(str(tmp_path), unlabelled=True)
    assert isinstance(found, RawDataset)
    assert found.parts["train"].labels.tolist() == [-1]
