"""The Hub without the Hub: HF `datasets` builds from a local repository, or fails as it does on the network."""

import urllib.error
from pathlib import Path

import datasets
import httpx2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError, DatasetNotFoundError
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from layouts import CLASSES, encoded, known
from toughen.cli.listing import catalogue
from toughen.data import DATA, LazySplit, RawDataset, ResizeCrop, find, load, load_extra
from toughen.data.files import by_split
from toughen.data.sources import hub

PARTS = known((5, 7, 3), {"train": 12, "test": 6, "extra": 9})


def repository(folder: Path, names: dict[str, str], unlabelled: str = "") -> Path:
    """Parquet files of some splits under other names."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    (folder / "data").mkdir(parents=True)
    for part, name in names.items():
        images, labels = PARTS[part]
        cells = [{"bytes": encoded(image), "path": None} for image in images]
        labels = [-1] * len(labels) if part == unlabelled else labels.tolist()
        table = pa.table({"image": cells, "label": labels}, schema=features.arrow_schema)
        pq.write_table(table, folder / "data" / f"{name}-00000-of-00001.parquet")
    return folder


@pytest.fixture
def local(tmp_path, monkeypatch):
    """Makes a name on the Hub stand for a folder; returns what was asked for."""
    asked = []
    build = datasets.load_dataset_builder

    def builder(path, name=None, **_):
        asked.append((path, name))
        return build(str(tmp_path / path))

    monkeypatch.setattr(hub, "_ask", lambda address: None)
    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    return asked


def test_any_name(tmp_path, local):
    repository(tmp_path / "ada" / "pets", {"train": "train", "test": "test"})
    data = load("hub:ada/pets")
    assert np.array_equal(data.train.images.numpy().transpose(0, 2, 3, 1), PARTS["train"][0])
    assert data.test.labels.tolist() == PARTS["test"][1].tolist()
    assert (data.name, data.classes) == ("pets", CLASSES)
    # From the cache, without asking again; another repository of a longer name is another.
    assert load("hub:ada/pets").fingerprint == data.fingerprint
    assert local == [("ada/pets", None)]
    repository(tmp_path / "ada" / "pets-more", {"test": "train", "train": "test"})
    assert load("hub:ada/pets-more").fingerprint != data.fingerprint
    assert load("hub:ada/pets").fingerprint == data.fingerprint


def test_configurations_and_views(tmp_path, local):
    repository(tmp_path / "ada" / "pets", {"train": "train", "test": "test"})
    data = load("hub:ada/pets:small", ResizeCrop(4))
    assert local == [("ada/pets", "small")]
    assert isinstance(data.train, LazySplit)
    assert data.image_shape == (3, 4, 4)
    found = find("hub:ada/pets:small")
    assert isinstance(found, RawDataset)
    assert np.array_equal(np.asarray(found.parts["test"].images.open(3)), PARTS["test"][0][3])
    other = find("hub:ada/pets")
    assert isinstance(other, RawDataset)
    assert found.key != other.key


def test_one_split_and_splits_without_labels(tmp_path, local):
    repository(tmp_path / "a" / "one", {"train": "train"})
    data = load("hub:a/one")
    assert (len(data.train), len(data.test)) == (9, 3)
    # As ImageNet: the test split's labels are -1, so validation is the test split.
    repository(tmp_path / "a" / "hidden", {"train": "train", "test": "validation", "extra": "test"}, unlabelled="extra")
    data = load("hub:a/hidden")
    assert data.validation is None
    assert data.test.labels.tolist() == PARTS["test"][1].tolist()


def test_svhn_and_its_extra_split(tmp_path, local):
    repository(tmp_path / "ufldl-stanford" / "svhn", {part: part for part in PARTS})
    data = load("svhn")
    assert {part: len(split) for part, split in data.splits.items()} == {"train": 12, "test": 6}
    extra = load_extra("svhn_extra", shape=(3, 5, 7), classes=CLASSES)
    assert np.array_equal(extra.images.numpy().transpose(0, 2, 3, 1), PARTS["extra"][0])
    assert set(local) == {("ufldl-stanford/svhn", "cropped_digits")}


def test_the_names(tmp_path, local):
    for path, name in (
        ("uoft-cs/cifar10", "cifar10"),
        ("uoft-cs/cifar100", "cifar100"),
        ("ylecun/mnist", "mnist"),
        ("zalando-datasets/fashion_mnist", "fashion_mnist"),
    ):
        repository(tmp_path / path, {"train": "train", "test": "test"})
        assert load(name).name == name
        assert local[-1] == (path, None)
    repository(tmp_path / "ILSVRC" / "imagenet-1k", {"train": "train", "test": "validation"})
    data = load("imagenet", ResizeCrop(4))
    assert torch.equal(data.test.labels, torch.from_numpy(PARTS["test"][1]))


def test_imagenet_wants_a_view(one_sentence):
    assert "view=ResizeCrop(224)" in one_sentence(load, "imagenet")


def failing(monkeypatch, error: Exception) -> None:
    def builder(*_, **__):
        raise error

    monkeypatch.setattr(hub, "_ask", lambda address: None)
    monkeypatch.setattr(datasets, "load_dataset_builder", builder)


def answered(status: int) -> httpx2.Response:
    return httpx2.Response(status, request=httpx2.Request("GET", "http://hub"))


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


GONE = RepositoryNotFoundError("404 Client Error. Repository Not Found", response=answered(404))
GATED = GatedRepoError("401 Client Error. Cannot access gated repo", response=answered(401))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (caused(DatasetNotFoundError("Dataset 'ada/pets' doesn't exist on the Hub"), GONE), "no data set ada/pets"),
        (caused(DatasetNotFoundError("Dataset 'ada/pets' is a gated dataset on the Hub."), GATED), "accept its terms"),
        (GATED, "hf auth login"),
        (GONE, "check the spelling"),
        (ConnectionError("Couldn't reach 'ada/pets' on the Hub (ConnectError)"), "connect to the network"),
        (httpx2.ConnectError("Name or service not known"), "connect to the network"),
        (httpx2.ReadTimeout("timed out"), "connect to the network"),
        (DataFilesNotFoundError("No (supported) data files found in ada/pets"), "no files that HF datasets reads"),
        (ValueError("Config name is missing.\nPlease pick one among: ['a', 'b']"), "hub:owner/name:configuration"),
        (RuntimeError("Dataset scripts are no longer supported, but found pets.py"), "download it"),
        (DatasetGenerationError("An error occurred while generating the dataset"), "download it"),
    ],
)
@pytest.mark.parametrize("view", [None, ResizeCrop(4)])
def test_what_fails_is_told(monkeypatch, error, said, view, one_sentence):
    failing(monkeypatch, error)
    text = one_sentence(load, "hub:ada/pets", view)
    assert said in text
    # By its whole name: "pets" alone is nobody's.
    assert text.startswith("ada/pets ") or "data set ada/pets " in text
    assert "pets" in text


def test_a_name_that_is_not_there_is_known_at_once(monkeypatch, one_sentence):
    def refuse(address, **_):
        raise urllib.error.HTTPError(address, 404, "Not Found", None, None)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(hub.urllib.request, "urlopen", refuse)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_: pytest.fail("asked in spite of the answer"))
    assert "no data set ada/pets" in one_sentence(load, "hub:ada/pets")


def test_imagenet_behind_its_terms(monkeypatch, one_sentence):
    failing(monkeypatch, GATED)
    text = one_sentence(load, "imagenet", ResizeCrop(224))
    assert "accept" in text
    assert "ILSVRC/imagenet-1k" in text


def test_splits_of_other_names(tmp_path, local, one_sentence):
    repository(tmp_path / "a" / "odd", {"train": "one", "test": "two"})
    assert "splits one, two" in one_sentence(load, "hub:a/odd")
    assert by_split("odd", {"all": 1}, "none") == {"train": 1}
    assert by_split("odd", {"train": 1, "valid": 2, "extra": 3}, "none") == {"train": 1, "validation": 2}
    assert by_split("odd", {"test": 1}, "none") == {"test": 1}


@pytest.mark.parametrize("source", ["hub:pets", "hub:", "hub:/pets", "hub:ada/", "hub:a/b/c", "hub:a/b:c:d"])
def test_names_that_are_none(source, one_sentence):
    assert "hub:owner/name" in one_sentence(load, source)


def test_the_list():
    lines = catalogue("data")
    assert lines[0] == "data:"
    assert [line.split()[0] for line in lines[1:]] == [*DATA, "hub:OWNER/NAME", "FOLDER", "FILE.npz"]
    assert all(len(line.split()) > 3 for line in lines[1:])
