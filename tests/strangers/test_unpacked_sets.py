"""Compressed extra sets that are too large for memory, and shards that are not one set."""

import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from large_sets import IMAGES, LABELS, RECIPE, SHAPE, SOFT, N, batches, extra, shards, stored
from sentences import one_sentence
from toughen.cli.app import app
from toughen.data import LazySplit, load, load_extra
from toughen.data.unpacked import BLOCK
from toughen.progress import Notice
from toughen.recipes.text import build, dump

pytestmark = pytest.mark.usefixtures("cache")

# Compressed files.


def compressed(path: Path, images: np.ndarray = IMAGES) -> Path:
    np.savez_compressed(path, image=images, label=LABELS)
    return path


@pytest.mark.usefixtures("small_memory")
def test_a_compressed_file_is_unpacked_once_and_that_is_said_first(tmp_path: Path, cache: Path):
    path = compressed(tmp_path / "gen.npz")
    with pytest.warns(Notice) as told:
        examples = load_extra(str(path), shape=SHAPE, classes=5)
    (said,) = [str(warning.message) for warning in told]
    assert said.startswith(f"{path} is compressed and too large for memory: unpacked once, into {cache / 'unpacked'}, ")
    assert "takes 0.0 MB of the " in said
    (file,) = cache.rglob("*.npy")
    with zipfile.ZipFile(path) as archive:
        assert file.read_bytes() == archive.read("image.npy")
    stamp = file.stat().st_mtime_ns
    # Nothing is said or written again, also where the archive has moved.
    (tmp_path / "elsewhere").mkdir()
    moved = path.rename(tmp_path / "elsewhere" / "gen.npz")
    again = load_extra(str(moved), shape=SHAPE, classes=5)
    assert torch.equal(again.images, examples.images)
    assert file.stat().st_mtime_ns == stamp
    # Another archive of that name is another file.
    compressed(path, 255 - IMAGES)
    assert np.array_equal(extra(str(path)).images.numpy().transpose(0, 2, 3, 1), 255 - IMAGES)
    assert len([*cache.rglob("*.npy")]) == 2


@pytest.mark.usefixtures("small_memory")
def test_of_shards_the_sum_is_said(tmp_path: Path):
    folder = shards(tmp_path / "gen", np.savez_compressed, label=LABELS)
    with pytest.warns(Notice, match="gen-00000.npz and 3 other files are compressed") as told:
        load_extra(str(folder), shape=SHAPE, classes=5)
    assert len(told) == 1


@pytest.mark.usefixtures("small_memory")
def test_what_a_killed_process_left_is_taken_away(tmp_path: Path, cache: Path):
    (cache / "unpacked").mkdir(parents=True)
    (cache / "unpacked" / ".tmp-1-abc").write_bytes(b"half of it")
    extra(str(compressed(tmp_path / "gen.npz")))
    assert [path.suffix for path in (cache / "unpacked").iterdir() if path.name != ".lock"] == [".npy"]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**28 + 5000))


@pytest.mark.usefixtures("small_memory")
class TestWhatCannotBeUnpacked:
    """One sentence, and nothing is left."""

    @pytest.fixture(autouse=True)
    def _nothing_is_left(self, cache: Path) -> Iterator[None]:
        yield
        left = [path for path in cache.rglob("*") if path.is_file() and path.name != ".lock"]
        assert not left

    @pytest.mark.usefixtures("full_disk")
    def test_no_room(self, tmp_path: Path):
        text = one_sentence(extra, str(compressed(tmp_path / "gen.npz")))
        assert "unpacked it takes 0.0 MB, and" in text
        assert "has 0.3 GB free; set the environment variable TOUGHEN_CACHE to a folder on a disk" in text

    @pytest.mark.usefixtures("full_disk")
    def test_no_room_at_the_command_line(self, tmp_path: Path, tiny: str):
        images = np.repeat(IMAGES[:, :, :1, :1], 8, 2)
        recipe = {**RECIPE, "data": {**RECIPE["data"], "extra": str(compressed(tmp_path / "gen.npz", images))}}
        assert tiny == "tiny"
        (tmp_path / "mine.yaml").write_text(dump(build(recipe)))
        result = CliRunner().invoke(app, ["train", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "run")])
        assert result.exit_code == 2
        assert isinstance(result.exception, SystemExit)
        assert "set the environment variable TOUGHEN_CACHE" in result.stderr
        assert not (tmp_path / "run").exists()

    def test_damaged(self, tmp_path: Path):
        path = compressed(tmp_path / "gen.npz")
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0x55
        path.write_bytes(content)
        assert "fetch" in one_sentence(extra, str(path))

    def test_damaged_and_too_large_to_be_looked_at(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("toughen.data.sources.npz.LARGE", 1)
        path = compressed(tmp_path / "gen.npz")
        content = bytearray(path.read_bytes())
        content[2000] ^= 0x55
        path.write_bytes(content)
        assert "image in" in (text := one_sentence(extra, str(path)))
        assert "is damaged" in text

    def test_the_disk_fills_meanwhile(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        def full(source: Any, file: Any, size: int) -> None:
            assert size == BLOCK
            file.write(source.read(100))
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(shutil, "copyfileobj", full)
        assert "(No space left on device); set the" in one_sentence(extra, str(compressed(tmp_path / "gen.npz")))


@pytest.mark.usefixtures("small_memory")
def test_a_cache_that_is_a_file(tmp_path: Path, cache: Path):
    cache.write_text("not a folder")
    text = one_sentence(extra, str(compressed(tmp_path / "gen.npz")))
    assert "cannot be unpacked into" in text
    assert cache.read_text() == "not a folder"


# Files that are not one data set, or change.


def other_size(folder: Path) -> None:
    np.savez(folder / "gen-00004.npz", image=IMAGES[:, :4], label=LABELS)


def grey(folder: Path) -> None:
    np.savez(folder / "gen-00004.npz", image=IMAGES[..., :1], label=LABELS)


def unlabelled(folder: Path) -> None:
    np.savez(folder / "gen-00004.npz", image=IMAGES)


def soft(folder: Path) -> None:
    np.savez(folder / "gen-00004.npz", image=IMAGES, probabilities=SOFT)


def missing(folder: Path) -> None:
    (folder / "gen-00002.npz").unlink()


def named_classes(folder: Path) -> None:
    np.savez(folder / "gen-00004.npz", image=IMAGES, label=LABELS, classes=np.array(["a", "b", "c", "d", "e"]))


def others(folder: Path) -> None:
    np.savez(folder / "mnist.npz", image=IMAGES, label=LABELS)


def cut(folder: Path) -> None:
    path = folder / "gen-00001.npz"
    path.write_bytes(path.read_bytes()[:300])


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "of another size": (other_size, "gen-00004.npz holds images of (4, 6, 3) (H, W, C), but"),
    "grey ones": (grey, "gen-00004.npz holds images of (8, 6, 1) (H, W, C), but"),
    "without labels": (unlabelled, "gen-00004.npz holds images without labels, but"),
    "with probabilities": (soft, "gen-00004.npz holds 5 probabilities an image, but"),
    "one is missing": (missing, "lacks gen-00002.npz, which lies between the others by its number; fetch it, or give"),
    "other classes": (named_classes, "gen-00004.npz names other classes than"),
    "something else": (others, "of which each may be a data set; give one of them or, where they are one together, "),
    "cut short": (cut, "gen-00001.npz is a damaged .npz file"),
}


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("case", WRONG)
def test_shards_that_do_not_go_together(case: str, large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if large:
        monkeypatch.setattr("toughen.data.decode.IN_MEMORY", 1000)
    spoil, said = WRONG[case]
    folder = shards(tmp_path / "gen", np.savez_compressed if large else np.savez, label=LABELS)
    spoil(folder)
    assert said in one_sentence(extra, str(folder))


def test_a_missing_shard_can_be_done_without(tmp_path: Path):
    folder = shards(tmp_path / "gen", label=LABELS)
    missing(folder)
    assert "lacks gen-00002.npz" in one_sentence(extra, str(folder / "*.npz"))
    given = extra([str(path) for path in sorted(folder.iterdir())])
    assert given.labels.tolist() == np.delete(LABELS, 50).tolist()


def test_lists_and_patterns_of_something_else(tmp_path: Path):
    shards(tmp_path / "gen", label=LABELS)
    assert "No file is called like" in one_sentence(extra, str(tmp_path / "gen" / "x-*.npz"))
    assert "is empty; give one .npz file" in one_sentence(extra, [])
    assert "nothere.npz is no .npz file" in one_sentence(extra, [str(tmp_path / "nothere.npz")])
    (tmp_path / "gen" / "notes.txt").write_text("")
    assert "notes.txt is called like" in one_sentence(extra, str(tmp_path / "gen" / "*"))
    # What lies beside them and is harmless is passed over in a folder.
    assert len(extra(str(tmp_path / "gen"))) == N


def test_shards_as_data(tmp_path: Path):
    """Not as an extra set alone: with parts of their own, or one part of which a fifth is set aside."""
    shards(tmp_path / "gen", name="train-{:02d}.npz", label=LABELS)
    np.savez(tmp_path / "gen" / "test-00.npz", image=IMAGES[:20], label=LABELS[:20])
    data = load(str(tmp_path / "gen"))
    assert np.array_equal(data.train.images.numpy().transpose(0, 2, 3, 1), IMAGES)
    assert data.test.labels.tolist() == LABELS[:20].tolist()
    (tmp_path / "gen" / "test-00.npz").unlink()
    aside = load(str(tmp_path / "gen" / "train-*.npz"))
    assert len(aside.train) + len(aside.test) == N
    assert sorted([*aside.train.labels.tolist(), *aside.test.labels.tolist()]) == sorted(LABELS.tolist())


@pytest.mark.usefixtures("small_memory")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_changes_or_goes_while_it_is_used(workers: int, tmp_path: Path):
    path = Path(stored(tmp_path / "a.npz", IMAGES))
    drawn = batches(extra(str(path)), workers=workers)
    drawn[0]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "was changed while it is used" in one_sentence(drawn.__getitem__, 5)
    path.unlink()
    assert "cannot be read (No such file or directory)" in one_sentence(drawn.__getitem__, 5)
    drawn.close()


@pytest.mark.usefixtures("small_memory")
def test_a_file_that_ends_too_soon(tmp_path: Path):
    path = Path(stored(tmp_path / "a.npz", IMAGES))
    examples = extra(str(path))
    assert isinstance(examples, LazySplit)
    found: Any = examples.encoded
    with path.open("r+b") as file:
        file.truncate(found.start + 8 * 6 * 3 * 10)
    object.__setattr__(found, "changed", path.stat().st_mtime_ns)
    assert np.array_equal(examples.decode(9), IMAGES[9])
    assert "ends before all of image in" in one_sentence(lambda: examples.images)
