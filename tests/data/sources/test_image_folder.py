"""Folders of class folders: bit for bit what Pillow was given, and a sentence for everything that is amiss."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from layouts import CLASSES, encoded, known, write_folder
from toughen.data import ImageData, LazySplit, RawDataset, ResizeCrop, Split, find, load
from toughen.data.files import BY_SIZE


def equal(split: object, images: np.ndarray, labels: np.ndarray) -> bool:
    assert isinstance(split, Split | LazySplit)
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    return torch.equal(split.images, pixels) and split.labels.tolist() == labels.tolist()


def same(data: ImageData, parts) -> bool:
    return set(data.splits) == set(parts) and all(equal(data.splits[part], *parts[part]) for part in parts)


@pytest.mark.parametrize(
    ("names", "ending"),
    [
        ({"train": "train", "validation": "val", "test": "test"}, "png"),
        ({"train": "Training", "validation": "VALID", "test": "testing"}, "PNG"),
        ({"train": "TRAIN", "validation": "dev", "test": "Test"}, "bmp"),
        ({"train": "training", "validation": "validation", "test": "test"}, "tif"),
        ({"train": "train", "validation": "Val", "test": "test"}, "webp"),
        ({"train": "train", "validation": "Val", "test": "test"}, "ppm"),
    ],
)
def test_splits_of_any_name_bit_for_bit(tmp_path, names, ending):
    parts = known((5, 7, 3), {"train": 9, "validation": 6, "test": 3})
    data = load(str(write_folder(tmp_path / "pets", parts, names, ending)))
    assert same(data, parts)
    assert (data.name, data.classes, data.image_shape) == ("pets", CLASSES, (3, 5, 7))


def test_grey_images(tmp_path):
    parts = known((5, 7, 1))
    assert same(load(str(write_folder(tmp_path / "pets", parts))), parts)


def test_validation_is_the_test_split_where_there_is_none(tmp_path):
    parts = known((5, 7, 3), {"train": 9, "validation": 6})
    data = load(str(write_folder(tmp_path / "pets", parts)))
    assert data.validation is None
    assert equal(data.test, *parts["validation"])
    assert equal(data.train, *parts["train"])


def test_a_fifth_of_each_class_is_set_aside_where_there_are_no_splits(tmp_path):
    parts = known((5, 7, 3), {"train": 30})
    write_folder(tmp_path / "pets", parts, {"train": ""})
    for number in range(4):
        (tmp_path / "pets" / "dog" / f"{number + 10:06d}.png").unlink()
    data = load(str(tmp_path / "pets"))
    # 10 cats, 6 dogs, 10 eels: a fifth, rounded, of each.
    assert data.test.labels.bincount().tolist() == [2, 1, 2]
    assert data.train.labels.bincount().tolist() == [8, 5, 8]
    pixels = {image.numpy().tobytes() for split in (data.train, data.test) for image in split.images}
    left = np.delete(parts["train"][0], range(10, 14), 0).transpose(0, 3, 1, 2)
    assert pixels == {image.tobytes() for image in left}
    # The draw is for each class alone, and the same each time, from the cache or not.
    again = load(str(tmp_path / "pets"))
    assert again.fingerprint == data.fingerprint
    (tmp_path / "pets" / "dog" / "000020.png").write_bytes(encoded(parts["train"][0][11]))
    cats = load(str(tmp_path / "pets")).test
    assert torch.equal(cats.images[cats.labels != 1], data.test.images[data.test.labels != 1])


def test_order_links_and_what_is_skipped(tmp_path):
    images = known((4, 4, 3), {"train": 4})["train"][0]
    cat = tmp_path / "pets" / "cat"
    (cat / "10").mkdir(parents=True)
    dog = tmp_path / "elsewhere"
    dog.mkdir()
    (tmp_path / "pets" / "dog").symlink_to(dog, target_is_directory=True)
    (cat / "b.PNG").write_bytes(encoded(images[1]))
    (cat / "10" / "z.png").write_bytes(encoded(images[2]))
    (tmp_path / "c.png").write_bytes(encoded(images[0]))
    (cat / "B.png").symlink_to(tmp_path / "c.png")
    (dog / "x.png").write_bytes(encoded(images[3]))
    for name in (".DS_Store", "Thumbs.db", "notes.txt", "._b.png"):
        (cat / name).write_text("no image")
        (tmp_path / "pets" / name).write_text("no image")
    (tmp_path / "pets" / ".cache").mkdir()
    found = find(str(tmp_path / "pets"))
    assert isinstance(found, RawDataset)
    train = found.parts["train"]
    assert found.classes == ("cat", "dog")
    assert [Path(train.images.name(i)).name for i in range(4)] == ["B.png", "b.PNG", "z.png", "x.png"]
    assert all(np.array_equal(np.asarray(train.images.open(i)), images[i]) for i in range(4))
    assert train.labels.tolist() == [0, 0, 0, 1]


def test_images_are_not_turned_as_exif_asks(tmp_path):
    from PIL import Image

    image = known((4, 6, 3))["train"][0][0]
    exif = Image.Exif()
    exif[0x0112] = 6
    for part in ("train", "test"):
        (tmp_path / part / "cat").mkdir(parents=True)
        for number in range(2):
            (tmp_path / part / "cat" / f"{number}.png").write_bytes(encoded(image, exif=exif))
    assert load(str(tmp_path)).image_shape == (3, 4, 6)


def test_the_cache_follows_the_files(tmp_path, cache_folder):
    parts = known((5, 7, 3))
    folder = write_folder(tmp_path / "pets", parts)
    first = load(str(folder))
    assert len(list(cache_folder.iterdir())) == 1
    assert load(str(folder.rename(tmp_path / "other"))).fingerprint == first.fingerprint
    assert len(list(cache_folder.iterdir())) == 1
    (tmp_path / "other" / "train" / "cat" / "000000.png").write_bytes(encoded(parts["test"][0][0]))
    second = load(str(tmp_path / "other"))
    assert torch.equal(second.train.images[0], torch.from_numpy(parts["test"][0][0].transpose(2, 0, 1).copy()))


def test_the_key_of_a_large_folder_is_of_names_and_sizes(tmp_path, monkeypatch, cache_folder):
    folder = write_folder(tmp_path / "pets", known((5, 7, 3)), ending="bmp")
    small = find(str(folder))
    monkeypatch.setattr("toughen.data.files.LARGE", 100)
    large = find(str(folder))
    assert isinstance(small, RawDataset)
    assert isinstance(large, RawDataset)
    assert large.key.startswith(BY_SIZE) != small.key.startswith(BY_SIZE)
    load(str(folder))
    # Names and sizes do not say what the pixels are, so nothing is kept under such a key.
    assert not cache_folder.exists()


def test_with_a_view_images_stay_in_their_files(tmp_path, cache_folder):
    parts = known((9, 12, 3))
    folder = write_folder(tmp_path / "pets", parts)
    view = ResizeCrop(6, resize=8)
    data = load(str(folder), view)
    assert isinstance(data.train, LazySplit)
    assert not cache_folder.exists()
    from PIL import Image

    expected = [np.asarray(Image.fromarray(image).resize((11, 8), 2))[1:7, 2:8] for image in parts["test"][0]]
    assert equal(data.test, np.stack(expected), parts["test"][1])
    assert data.fingerprint != load(str(folder), ResizeCrop(6, resize=7)).fingerprint
    assert data.fingerprint == load(str(folder), view).fingerprint


def test_too_much_for_memory_stays_in_its_files(tmp_path, monkeypatch, one_sentence):
    parts = known((5, 7, 3))
    folder = write_folder(tmp_path / "pets", parts)
    monkeypatch.setattr("toughen.data.decode.IN_MEMORY", 12 * 5 * 7 * 3 - 1)
    data = load(str(folder))
    assert isinstance(data.train, LazySplit)
    assert same(data, parts)
    (folder / "train" / "eel" / "000011.png").write_bytes(encoded(parts["train"][0][0][:4]))
    assert "view=ResizeCrop(224)" in one_sentence(load, str(folder))


def test_large_images_are_decoded_alike(tmp_path):
    parts = known((70, 70, 3), {"train": 3, "test": 3})
    assert same(load(str(write_folder(tmp_path / "pets", parts))), parts)


def broken(folder: Path) -> None:
    (folder / "train" / "dog" / "000005.png").write_bytes(b"<html>not found</html>")


def cut(folder: Path) -> None:
    path = folder / "train" / "dog" / "000005.png"
    path.write_bytes(path.read_bytes()[:-40])


def other_size(folder: Path) -> None:
    (folder / "train" / "dog" / "000005.png").write_bytes(encoded(np.zeros((4, 7, 3), np.uint8)))


def other_mode(folder: Path) -> None:
    (folder / "train" / "dog" / "000005.png").write_bytes(encoded(np.zeros((5, 7, 1), np.uint8)))


def four_channels(folder: Path) -> None:
    (folder / "train" / "cat" / "000000.png").write_bytes(encoded(np.zeros((5, 7, 4), np.uint8)))


def empty_class(folder: Path) -> None:
    (folder / "train" / "fox").mkdir()


def other_class(folder: Path) -> None:
    (folder / "test" / "cat").rename(folder / "test" / "kat")


def film(folder: Path) -> None:
    (folder / "train" / "dog" / "film.mp4").write_bytes(b"film")


def outside(folder: Path) -> None:
    (folder / "train" / "stray.png").write_bytes(b"")


def dead_link(folder: Path) -> None:
    (folder / "train" / "dog" / "link.png").symlink_to(folder / "gone.png")


def circle(folder: Path) -> None:
    (folder / "train" / "dog" / "loop").symlink_to(folder / "train" / "dog", target_is_directory=True)


def twice(folder: Path) -> None:
    (folder / "valid").mkdir()
    (folder / "val").mkdir()


def beside(folder: Path) -> None:
    (folder / "annotations").mkdir()


@pytest.mark.parametrize(
    ("spoil", "named", "remedy"),
    [
        (broken, "train/dog/000005.png", "remove or replace"),
        (cut, "train/dog/000005.png", "remove or replace"),
        (other_size, "train/dog/000005.png", "view=ResizeCrop(224)"),
        (other_mode, "train/dog/000005.png", "view=ResizeCrop(224)"),
        (four_channels, "train/cat/000000.png", "view=ResizeCrop(224)"),
        (empty_class, "train/fox", "remove it or put images"),
        (other_class, "test/kat", "the same class folders"),
        (film, "dog/film.mp4", "take it out"),
        (outside, "train/stray.png", "put it into that of its class"),
        (dead_link, "dog/link.png", "restore or remove"),
        (circle, "dog/loop", "remove the link"),
        (twice, "valid", "leave one"),
        (beside, "annotations", "take it away"),
    ],
)
def test_what_is_amiss_is_named(tmp_path, spoil, named, remedy, one_sentence):
    folder = write_folder(tmp_path / "pets", known((5, 7, 3)))
    spoil(folder)
    text = one_sentence(load, str(folder))
    assert named in text
    assert remedy in text


def test_test_images_of_another_size(tmp_path, one_sentence):
    folder = write_folder(tmp_path / "pets", known((5, 7, 3)))
    write_folder(folder, {"test": known((5, 8, 3))["test"]})
    assert "test images" in one_sentence(load, str(folder))


def test_no_class_folders(tmp_path, one_sentence):
    assert "no class folders of images" in one_sentence(load, str(tmp_path))
    (tmp_path / "a.png").write_bytes(encoded(np.zeros((4, 4, 3), np.uint8)))
    assert "no class folders" in one_sentence(load, str(tmp_path))
    pool = find(str(tmp_path), unlabelled=True)
    assert isinstance(pool, RawDataset)
    assert pool.parts["train"].labels.tolist() == [-1]


def test_a_class_called_train(tmp_path):
    for name in ("train", "car"):
        (tmp_path / name).mkdir()
        for number in range(5):
            (tmp_path / name / f"{number}.png").write_bytes(encoded(np.zeros((4, 4, 3), np.uint8)))
    assert load(str(tmp_path)).classes == ("car", "train")


def test_too_few_to_set_some_aside(tmp_path, one_sentence):
    folder = write_folder(tmp_path / "pets", known((4, 4, 3), {"train": 3}), {"train": ""})
    assert "too few" in one_sentence(load, str(folder))


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(tmp_path, one_sentence):
    folder = write_folder(tmp_path / "pets", known((4, 4, 3)))
    (folder / "train" / "cat" / "000000.png").chmod(0)
    assert "train/cat/000000.png" in one_sentence(load, str(folder))
