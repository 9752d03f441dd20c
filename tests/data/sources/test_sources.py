import io
import urllib.error
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from toughen.data import DATA, ImageData, load
from toughen.data.sources import hub, parquet

CIFAR = Path(__file__).resolve().parents[4] / "shared" / "data" / "cifar10"


def pixels(n: int, shape: tuple[int, ...] = (6, 5, 3), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def write(
    path: Path, images: Sequence[bytes | None], labels: Sequence[int | None], *, image="img", label="label", names=None
):
    """A parquet file as the Hub has them, with the features of HF datasets in its schema."""
    feature = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
    features = datasets.Features({image: datasets.Image(), label: feature})
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {image: [{"bytes": content, "path": None} for content in images], label: labels}
    # By arrow, because datasets itself would refuse what the tests of broken files need.
    table = pa.table(columns, schema=features.arrow_schema)
    pq.write_table(table, path)


def make_folder(folder: Path, shape: tuple[int, ...] = (6, 5, 3), names=("cat", "dog", "eel"), **columns) -> Path:
    for part, n, seed in (("train-0", 7, 0), ("train-1", 5, 1), ("test-0", 4, 2)):
        images = [png(array) for array in pixels(n, shape, seed)]
        write(folder / f"{part}.parquet", images, [i % 3 for i in range(n)], names=names, **columns)
    return folder


def bit_exact(data: ImageData, shape: tuple[int, ...]) -> bool:
    train = np.concatenate([pixels(7, shape, 0), pixels(5, shape, 1)]).reshape(12, 6, 5, -1).transpose(0, 3, 1, 2)
    test = pixels(4, shape, 2).reshape(4, 6, 5, -1).transpose(0, 3, 1, 2)
    return np.array_equal(data.train.images.numpy(), train) and np.array_equal(data.test.images.numpy(), test)


@pytest.mark.parametrize("shape", [(6, 5, 3), (6, 5)])
def test_a_folder_is_read_bit_for_bit(tmp_path, shape):
    data = load(str(make_folder(tmp_path / "pets", shape)))
    assert bit_exact(data, shape)
    assert data.train.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 0, 1, 2, 0, 1]
    assert data.test.labels.tolist() == [0, 1, 2, 0]
    assert (data.name, data.classes, data.validation) == ("pets", ("cat", "dog", "eel"), None)
    assert data.image_shape == (3 if len(shape) == 3 else 1, 6, 5)


def test_files_written_by_datasets_itself(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    arrays = pixels(4)
    table = datasets.Dataset.from_dict(
        {"image": [{"bytes": png(a), "path": None} for a in arrays], "label": [0, 1, 1, 0]}, features=features
    )
    datasets.disable_progress_bars()
    for part in ("train", "validation", "test"):
        table.to_parquet(tmp_path / "made" / f"{part}-00000-of-00001.parquet")
    data = load(str(tmp_path / "made"))
    assert data.validation is not None
    assert torch.equal(data.validation.images, torch.from_numpy(arrays.transpose(0, 3, 1, 2).copy()))
    assert data.classes == ("a", "b")


def test_columns_without_hub_metadata(tmp_path):
    for part in ("train", "test"):
        images = [{"bytes": png(array), "path": None} for array in pixels(4)]
        table = pa.table({"picture": images, "coarse_label": [0, 0, 0, 0], "fine_label": [0, 3, 1, 2]})
        pq.write_table(table, tmp_path / f"{part}-0.parquet")
    data = load(str(tmp_path))
    assert data.train.labels.tolist() == [0, 3, 1, 2]
    assert data.classes == ("0", "1", "2", "3")


def test_the_fine_labels_of_two_columns_of_classes():
    features = datasets.Features(
        {"img": datasets.Image(), "coarse_label": datasets.ClassLabel(2), "fine_label": datasets.ClassLabel(4)}
    )
    assert parquet.find_image(features, "it") == "img"
    assert parquet.find_label(features, "it") == "fine_label"


def test_the_second_load_is_from_the_cache(tmp_path, monkeypatch, cache_folder):
    folder = make_folder(tmp_path / "pets")
    first = load(str(folder))
    assert len(list(cache_folder.iterdir())) == 1
    monkeypatch.setattr(parquet, "assemble", forbidden)
    second = load(str(folder.rename(tmp_path / "renamed")))
    assert second.fingerprint == first.fingerprint
    assert (second.classes, second.name) == (first.classes, "renamed")
    assert bit_exact(second, (6, 5, 3))
    write(tmp_path / "renamed" / "test-0.parquet", [png(pixels(1)[0])], [0], names=["cat", "dog", "eel"])
    with pytest.raises(AssertionError, match="decoded"):
        load(str(tmp_path / "renamed"))


def forbidden(*_):
    raise AssertionError("decoded again")


@pytest.mark.faults
def test_a_damaged_cache_is_rebuilt(tmp_path, cache_folder, faults):
    folder = make_folder(tmp_path / "pets")
    fingerprint = load(str(folder)).fingerprint
    (file,) = cache_folder.iterdir()
    whole = file.read_bytes()
    damaged = [b"", b"no archive", whole[: len(whole) // 2], whole[:-1]]
    damaged += [
        whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :]
        for at in range(0, len(whole), faults.trials(small=37, full=7))
    ]
    for content in damaged:
        file.write_bytes(content)
        assert load(str(folder)).fingerprint == fingerprint
    file.write_bytes(damaged[2])
    load(str(folder))
    assert [path.stat().st_size for path in cache_folder.iterdir()] == [len(whole)]


def test_wrong_pixels_with_right_checksums_are_noticed(tmp_path, cache_folder):
    folder = make_folder(tmp_path / "pets")
    load(str(folder))
    (file,) = cache_folder.iterdir()
    with np.load(file) as stored:
        arrays = dict(stored)
    arrays["train_images"][0] ^= 1
    np.savez(file, allow_pickle=False, **arrays)
    assert bit_exact(load(str(folder)), (6, 5, 3))


def test_an_unwritable_cache_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("TOUGHEN_CACHE", str(tmp_path / "file" / "cache"))
    assert bit_exact(load(str(make_folder(tmp_path / "pets"))), (6, 5, 3))


def test_where_the_cache_is(tmp_path, monkeypatch):
    folder = parquet.cache.folder
    assert folder() == tmp_path / "cache"
    monkeypatch.delenv("TOUGHEN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert folder() == Path("/xdg/toughen")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/ada")
    assert folder() == Path("/home/ada/.cache/toughen")


def test_missing_folders_and_files(tmp_path, one_sentence):
    assert "does not exist" in one_sentence(load, str(tmp_path / "nowhere"))
    assert "does not exist" in one_sentence(load, "some/where")
    (tmp_path / "empty").mkdir()
    assert "holds no train-*.parquet" in one_sentence(load, str(tmp_path / "empty"))
    folder = make_folder(tmp_path / "pets")
    (folder / "test-0.parquet").write_bytes(b"PAR1 no more")
    assert "test-0.parquet cannot be read" in one_sentence(load, str(folder))


def test_unknown_names(one_sentence):
    assert "'cifar10'" in (text := one_sentence(load, "cifra10"))
    assert ", ".join(DATA) in text
    assert "did you mean" not in one_sentence(load, "zebra")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (png(pixels(1)[0])[:60], "broken image"),
        (png(pixels(1)[0])[:-30], "broken image"),
        (b"not an image", "broken image"),
        (b"", "holds no image"),
        (None, "holds no image"),
        (png(pixels(1, (6, 4, 3))[0]), "RGB of 4x6"),
        (png(pixels(1, (6, 5))[0]), "L of 5x6"),
    ],
)
def test_an_example_unlike_the_others(tmp_path, content, part, one_sentence):
    folder = make_folder(tmp_path / "pets")
    images: list[bytes | None] = [png(array) for array in pixels(5)]
    images[3] = content
    write(folder / "train-1.parquet", images, [0] * 5, names=["cat", "dog", "eel"])
    text = one_sentence(load, str(folder))
    assert "Example 10 of the train split of pets" in text
    assert part in text


def test_a_first_image_of_another_mode(tmp_path, one_sentence):
    folder = make_folder(tmp_path / "pets")
    write(folder / "train-0.parquet", [png(pixels(1, (6, 5, 4))[0])], [0], names=["cat", "dog", "eel"])
    assert "mode RGBA" in one_sentence(load, str(folder))


@pytest.mark.parametrize(
    ("label", "part"),
    [(-1, "has label -1, but the 3 classes allow 0 to 2"), (3, "has label 3"), (None, "has no label")],
)
def test_labels_outside_the_classes(tmp_path, label, part, one_sentence):
    folder = make_folder(tmp_path / "pets")
    write(folder / "test-0.parquet", [png(a) for a in pixels(4)], [0, 1, label, 0], names=["cat", "dog", "eel"])
    text = one_sentence(load, str(folder))
    assert "Example 2 of the test split of pets" in text
    assert part in text


def test_other_contradictions(tmp_path, one_sentence):
    images: list[bytes | None] = [png(array) for array in pixels(4)]
    folder = make_folder(tmp_path / "a")
    write(folder / "test-0.parquet", images, [0] * 4, names=["cat", "eel", "dog"])
    assert "called otherwise" in one_sentence(load, str(folder))
    folder = make_folder(tmp_path / "b")
    write(folder / "train-1.parquet", images, [0] * 4, label="target", names=["cat", "dog", "eel"])
    assert "differ in their columns" in one_sentence(load, str(folder))
    folder = make_folder(tmp_path / "c", names=None, label="target")
    assert "no single column of labels" in one_sentence(load, str(folder))
    folder = make_folder(tmp_path / "d", names=None)
    write(folder / "train-0.parquet", images, [0, 10**9, 0, 0])
    assert "has label 1000000000" in one_sentence(load, str(folder))
    for part in ("train", "test"):
        (tmp_path / "e").mkdir(exist_ok=True)
        pq.write_table(pa.table({"label": [0, 1]}), tmp_path / "e" / f"{part}-0.parquet")
    assert "hold 0 columns of images" in one_sentence(load, str(tmp_path / "e"))


def test_without_network_the_way_out_is_told(monkeypatch, one_sentence):
    def unreachable(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(hub.urllib.request, "urlopen", unreachable)
    for name in ("cifar10", "cifar100"):
        text = one_sentence(load, name)
        assert "cannot be reached" in text
        assert "data=PATH" in text
        assert f"uoft-cs/{name}" in text


def test_a_hub_name_is_downloaded_once(tmp_path, monkeypatch):
    files = parquet.split_files(make_folder(tmp_path / "pets"))
    tables = {part: pq.read_table(paths) for part, paths in files.items()}
    monkeypatch.setattr(hub, "_download", lambda repository: ("0123abcd", tables))
    first = load("cifar10")
    monkeypatch.setattr(hub, "_download", forbidden)
    assert load("cifar10").fingerprint == first.fingerprint
    assert (first.name, first.classes) == ("cifar10", ("cat", "dog", "eel"))
    with pytest.raises(AssertionError, match="decoded"):
        load("cifar100")


def test_what_the_builder_of_datasets_gives(tmp_path, monkeypatch):
    """The Hub's route without the Hub: the same builder on a local folder."""
    monkeypatch.setattr(hub, "_ask", lambda address: None)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    data = hub.load_hub("pets", str(make_folder(tmp_path / "pets")))
    assert bit_exact(data, (6, 5, 3))
    assert data.classes == ("cat", "dog", "eel")
    monkeypatch.setattr(hub, "_download", forbidden)
    assert hub.load_hub("pets", "nobody/pets").fingerprint == data.fingerprint


def test_the_download_leaves_the_settings_of_datasets_alone():
    before = datasets.are_progress_bars_disabled()
    with hub._quiet():
        assert datasets.are_progress_bars_disabled()
    assert datasets.are_progress_bars_disabled() == before


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR.is_dir(), reason=f"{CIFAR} is not there")
def test_cifar10():
    data = load(str(CIFAR))
    assert data.train.labels.bincount().tolist() == [5000] * 10
    assert data.test.labels.bincount().tolist() == [1000] * 10
    assert data.image_shape == (3, 32, 32)
