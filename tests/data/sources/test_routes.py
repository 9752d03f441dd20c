"""The same images through every route are the same data; and every route can be read by worker processes."""

import io
import pickle
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from conftest import few
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
from toughen.data import (
    DATA,
    Collection,
    ImageData,
    ImageSource,
    LazySplit,
    RawDataset,
    ResizeCrop,
    Split,
    find,
    from_pairs,
    load,
)
from toughen.data.files import BY_SIZE
from toughen.data.sources.cifar_pickle import import_folder

PARTS = known()


def write_parquet(folder: Path, parts=PARTS, group: int = 4, **columns: object) -> Path:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    folder.mkdir(parents=True, exist_ok=True)
    for part, (images, labels) in parts.items():
        cells = [{"bytes": encoded(image), "path": None} for image in images]
        table = pa.table({"image": cells, "label": labels.tolist()}, schema=features.arrow_schema)
        half = len(images) // 2
        for number, piece in enumerate((table[:half], table[half:])):
            pq.write_table(piece, folder / f"{part}-{number:05d}-of-00002.parquet", row_group_size=group)
    return folder


def imported(tmp_path: Path, parts=PARTS) -> str:
    import_folder(write_python(tmp_path / "py", parts), tmp_path / "py.npz")
    return str(tmp_path / "py.npz")


def compressed(tmp_path: Path, parts=PARTS) -> str:
    arrays = {f"{part}_{kind}": array for part, pair in parts.items() for kind, array in zip("xy", pair, strict=True)}
    np.savez_compressed(tmp_path / "c.npz", allow_pickle=False, **arrays)
    return str(tmp_path / "c.npz")


ROUTES = {
    "parquet": lambda tmp_path, parts=PARTS: str(write_parquet(tmp_path / "parquet", parts)),
    "parquet in data/": lambda tmp_path, parts=PARTS: str(write_parquet(tmp_path / "inside" / "data", parts).parent),
    "folder": lambda tmp_path, parts=PARTS: str(write_folder(tmp_path / "folder", parts)),
    "npz": lambda tmp_path, parts=PARTS: str(write_npz(tmp_path / "a.npz", parts)),
    "compressed npz": compressed,
    "binary": lambda tmp_path, parts=PARTS: str(write_binary(tmp_path / "binary", parts)),
    "binary, fine": lambda tmp_path, parts=PARTS: str(write_binary(tmp_path / "fine", parts, coarse=True)),
    "shards": lambda tmp_path, parts=PARTS: str(write_shards(tmp_path / "shards", parts)),
    "import": imported,
}


def expected() -> str:
    splits = {
        part: Split(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels))
        for part, (images, labels) in PARTS.items()
    }
    return ImageData("by hand", splits["train"], None, splits["test"], CLASSES).fingerprint


@pytest.mark.parametrize("route", ROUTES)
def test_equal_data_by_every_route(tmp_path, route):
    source = ROUTES[route](tmp_path)
    assert load(source).fingerprint == expected()
    # Once more, from the cache where there is one.
    assert load(source).fingerprint == expected()


@pytest.mark.parametrize("route", ROUTES)
def test_equal_views_by_every_route(tmp_path, route):
    view = ResizeCrop(10, resize=12)
    reference = load(str(write_npz(tmp_path / "reference.npz", PARTS)), view)
    data = load(ROUTES[route](tmp_path), view)
    assert isinstance(data.train, LazySplit)
    assert torch.equal(data.train.images, reference.train.images)
    assert torch.equal(data.test.images, reference.test.images)


@pytest.mark.parametrize("route", ROUTES)
def test_the_key_says_which_data(tmp_path, route):
    def key(folder: str, parts=PARTS) -> str:
        (tmp_path / folder).mkdir()
        found = find(ROUTES[route](tmp_path / folder, parts))
        assert isinstance(found, RawDataset)
        return found.key

    images, labels = PARTS["train"]
    changed = images.copy()
    changed[5, 3, 3, 1] ^= 1
    keys = [
        key("a"),
        key("b", {**PARTS, "train": (changed, labels)}),
        key("c", {**PARTS, "train": (images, np.where(np.arange(12) == 11, 0, labels))}),
    ]
    assert len(set(keys)) == 3
    assert key("d") == keys[0]


class Opened(Dataset):
    """What a worker process does with encoded images."""

    def __init__(self, images: ImageSource) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> torch.Tensor:
        return torch.from_numpy(np.array(self.images.open(number).convert("RGB")))


def large_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RawDataset:
    monkeypatch.setattr("toughen.data.sources.parquet.LARGE", 1)
    found = find(str(write_parquet(tmp_path / "parquet")))
    assert isinstance(found, RawDataset)
    return found


@pytest.mark.parametrize("route", [*ROUTES, "large parquet"])
def test_encoded_images_are_pickled_and_read_in_any_order(tmp_path, route, monkeypatch):
    found = large_parquet(tmp_path, monkeypatch) if route == "large parquet" else find(ROUTES[route](tmp_path))
    assert isinstance(found, RawDataset)
    images = pickle.loads(pickle.dumps(found.parts["train"].images))
    order = [7, 0, 11, 7, 3]
    for number in order:
        assert np.array_equal(np.asarray(images.open(number)), PARTS["train"][0][number])
    assert len(images) == 12
    assert len({images.name(number) for number in range(12)}) == 12


@pytest.mark.parametrize("start", few("fork", "spawn"))
def test_worker_processes_read_every_route(tmp_path, start, monkeypatch):
    founds = [find(ROUTES[route](tmp_path)) for route in ("folder", "npz", "shards", "parquet")]
    founds.append(large_parquet(tmp_path / "large", monkeypatch))
    images = [found.parts["train"].images for found in founds if isinstance(found, RawDataset)]
    # Opened here first, so that a forked worker inherits what is open.
    assert all(image.open(0) for image in images)
    joined = torch.utils.data.ConcatDataset([Opened(image) for image in images])
    loader = DataLoader(joined, 4, num_workers=2 if start == "fork" else 1, multiprocessing_context=start)
    read = torch.cat(list(loader)).numpy()
    assert np.array_equal(read, np.concatenate([PARTS["train"][0]] * 5))


def test_large_parquet_files_are_mapped(tmp_path, monkeypatch, cache_folder):
    found = large_parquet(tmp_path, monkeypatch)
    assert found.key.startswith(BY_SIZE)
    assert sorted(path.suffix for path in cache_folder.iterdir()) == [".arrow", ".arrow"]
    assert load(str(tmp_path / "parquet")).fingerprint == expected()
    before = {path: path.stat().st_mtime_ns for path in cache_folder.glob("*.arrow")}
    find(str(tmp_path / "parquet"))
    assert {path: path.stat().st_mtime_ns for path in cache_folder.glob("*.arrow")} == before


def test_large_parquet_files_that_differ_or_are_broken(tmp_path, monkeypatch, one_sentence):
    monkeypatch.setattr("toughen.data.sources.parquet.LARGE", 1)
    folder = write_parquet(tmp_path / "parquet")
    path = folder / "train-00001-of-00002.parquet"
    pq.write_table(pa.table({"label": [1]}), path)
    assert "differ in their columns" in one_sentence(load, str(folder))
    path.write_text("<html>")
    text = one_sentence(load, str(folder))
    assert path.name in text
    assert "web page" in text
    assert not list((tmp_path / "cache").glob(".*"))


def test_parquet_files_that_name_no_split_are_training(tmp_path):
    folder = write_parquet(tmp_path / "parquet", {"train": known(sizes={"train": 30})["train"]})
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"{number:04d}.parquet")
    data = load(str(folder))
    assert (len(data.train), len(data.test)) == (24, 6)


def test_a_builder_may_give_what_is_not_decoded(monkeypatch, cache_folder):
    images, labels = PARTS["train"]

    class Pictures:
        def __len__(self) -> int:
            return len(images)

        def open(self, number: int):
            from PIL import Image

            return Image.open(io.BytesIO(encoded(images[number])))

        def name(self, number: int) -> str:
            return f"picture {number}"

    pictures = Pictures()
    parts = {"train": Collection(pictures, labels), "test": Collection(pictures, labels)}
    monkeypatch.setitem(DATA, "mine", lambda: RawDataset("mine", parts, CLASSES, "1"))
    assert torch.equal(load("mine").train.images, torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    assert isinstance(load("mine", ResizeCrop(16)).train, LazySplit)
    # Whoever writes a builder changes it, and forgets the key.
    assert not cache_folder.exists()


def test_data_in_memory_can_be_viewed(monkeypatch):
    view = ResizeCrop(16, resize=20)
    data = load("mnist5k", view)
    assert data.image_shape == (3, 16, 16)
    from PIL import Image

    plain = load("mnist5k")
    first = Image.fromarray(plain.test.images[0, 0].numpy()).convert("RGB").resize((20, 20), 2).crop((2, 2, 18, 18))
    assert np.array_equal(data.test.take(torch.tensor([0])).images[0].numpy().transpose(1, 2, 0), np.asarray(first))
    assert data.validation is not None
    assert torch.equal(data.train.labels, plain.train.labels)
    pairs = from_pairs("mine", PARTS["train"], PARTS["test"])
    monkeypatch.setitem(DATA, "mine", lambda: pairs)
    assert load("mine") is pairs
    assert load("mine", view).fingerprint != pairs.fingerprint


def test_the_place_of_the_data_is_told(tmp_path, one_sentence):
    folder = write_parquet(tmp_path / "repository" / "plain_text")
    data = load(str(folder.parent))
    assert data.fingerprint == expected()
    assert data.notes == (f"the data of {folder.parent} lie in {folder}, and are read there",)
    assert load(str(folder)).notes == ()
    write_tar(tmp_path / "unpacked.tar", {"a.txt": b""})
    assert "unpack it" in one_sentence(load, str(tmp_path / "unpacked.tar"))
    assert "does not exist" in one_sentence(load, "nowhere.npz")
