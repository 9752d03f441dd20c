"""Extra sets larger than memory: streamed from .npz files and shards with the bits of those in memory."""

import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from conftest import tiny_split
from large_sets import IMAGES, LABELS, RECIPE, RNG, SOFT, batches, extra, same, shards, stored
from sparse_npz import write_sparse
from toughen.cli.app import app
from toughen.data import Batches, LazySplit, ResizeCrop, Split
from toughen.data.base import fingerprint
from toughen.data.loading.batches import Extra
from toughen.progress import Notice
from toughen.recipes import RecipeError
from toughen.recipes.text import build, dump
from toughen.recipes.text import load as load_recipe
from toughen.storage.checkpoint import latest_checkpoint
from toughen.training import train

pytestmark = pytest.mark.usefixtures("cache")

FORMS: dict[str, Callable[[Path], str | tuple[str, ...]]] = {
    "one file": lambda path: stored(path / "a.npz", IMAGES),
    "channels first": lambda path: stored(path / "a.npz", IMAGES.transpose(0, 3, 1, 2).copy()),
    "in Fortran's order": lambda path: stored(path / "a.npz", np.asfortranarray(IMAGES)),
    "probabilities": lambda path: stored(path / "a.npz", IMAGES, probabilities=SOFT),
    "no labels": lambda path: stored(path / "a.npz", IMAGES, other=LABELS),
    "compressed": lambda path: stored(path / "a.npz", IMAGES, np.savez_compressed),
    "compressed, channels first": lambda path: stored(
        path / "a.npz", IMAGES.transpose(0, 3, 1, 2).copy(), np.savez_compressed
    ),
    "a folder of shards": lambda path: str(shards(path / "gen", label=LABELS)),
    "a pattern": lambda path: str(shards(path / "gen", label=LABELS) / "gen-*.npz"),
    "a pattern, numbers not padded": lambda path: str(
        shards(path / "gen", name="gen-{}.npz", first=8, label=LABELS) / "gen-*.npz"
    ),
    "a list": lambda path: tuple(
        str(shards(path / "gen", label=LABELS) / f"gen-{number:05d}.npz") for number in range(4)
    ),
    "compressed shards": lambda path: str(shards(path / "gen", np.savez_compressed, probabilities=SOFT)),
    "shards of train": lambda path: str(shards(path / "gen", name="train-{:05d}-of-00004.npz", label=LABELS)),
}


@pytest.mark.parametrize("form", FORMS)
def test_streamed_and_in_memory_are_equal_to_the_last_bit(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = FORMS[form](tmp_path)
    whole = extra(source)
    assert isinstance(whole, Split)
    assert np.array_equal(whole.images.numpy().transpose(0, 2, 3, 1), IMAGES)
    monkeypatch.setattr("toughen.data.decode.IN_MEMORY", 1000)
    streamed = extra(source)
    assert isinstance(streamed, LazySplit)
    assert torch.equal(streamed.labels, whole.labels)
    assert torch.equal(streamed.images, whole.images)
    resident, ahead = batches(whole), batches(streamed)
    # In order, on from a place in the third epoch of the extra set, and back.
    for number in (0, 1, 2, 3, 4, 23, 24, 7):
        assert same(ahead[number], resident[number])


@pytest.mark.usefixtures("small_memory")
@pytest.mark.parametrize("form", ["one file", "compressed shards"])
def test_ranks_and_workers_change_no_bit(form: str, tmp_path: Path):
    streamed = extra(FORMS[form](tmp_path))
    whole = batches(Split(torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy()), streamed.labels))
    parts = [batches(streamed, rank=rank, world=3, workers=workers) for rank, workers in enumerate((0, 1, 2))]
    for number in (0, 1, 9):
        for rank, part in enumerate(parts):
            batch = part[number]
            assert torch.equal(batch.x, whole[number].x[rank::3])
            assert torch.equal(batch.y, whole[number].y[rank::3])
            assert torch.equal(batch.index, whole[number].index[rank::3])
    for part in parts:
        part.close()


@pytest.mark.usefixtures("small_memory")
def test_a_view_and_a_part_of_the_images(tmp_path: Path):
    source = FORMS["a folder of shards"](tmp_path)
    viewed, limited = extra(source, shape=(3, 4, 4), view=ResizeCrop(4)), extra(source)
    plain = extra(FORMS["one file"](tmp_path), shape=(3, 4, 4), view=ResizeCrop(4))
    assert torch.equal(viewed.images, plain.images)
    rows = torch.tensor([88, 3, 50, 51, 12, 13])
    assert np.array_equal(limited.take(rows).images.numpy().transpose(0, 2, 3, 1), IMAGES[rows])
    assert isinstance(limited, LazySplit)
    assert limited.name(13) == f"image 0 of image in {tmp_path / 'gen' / 'gen-00001.npz'}"


# A file of 100 GB that takes a few hundred kilobytes of the disk.

SIDE, MANY = 512, 127_000


def read_so_far() -> int:
    """Bytes that this process has asked the system for."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux counts what is read")
@pytest.mark.parametrize("files", [1, 2])
def test_of_a_hundred_gigabytes_only_what_is_asked_for_is_read(files: int, tmp_path: Path):
    image = RNG.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    paths = [tmp_path / f"gen-{number}.npz" for number in range(files)]
    for path in paths:
        write_sparse(path, (MANY, SIDE, SIDE, 3), (np.arange(MANY) % 5).astype(np.uint8), {MANY - 2: image})
        assert path.stat().st_size > 99e9
        assert path.stat().st_blocks * 512 < 3e6
    with zipfile.ZipFile(paths[0]) as archive:
        assert archive.read("label.npy")[-MANY:][:7] == bytes((0, 1, 2, 3, 4, 0, 1))
    before = read_so_far()
    examples = extra(str(paths[0]) if files == 1 else [*map(str, paths)], shape=(3, SIDE, SIDE))
    assert isinstance(examples, LazySplit)
    assert len(examples) == files * MANY
    last = len(examples) - 2
    assert np.array_equal(examples.decode(last), image)
    train = Split(torch.zeros(4, 3, SIDE, SIDE).byte(), torch.arange(4))
    drawn = Batches(
        train, torch.arange(4), batch_size=4, seed=0, device="cpu", classes=5, workers=0, extra=Extra(examples, 4, 0.5)
    )
    # The ten-thousandth batch as soon as the first.
    for number in (0, 10_000):
        batch = drawn[number]
        assert batch.extra is not None
        assert batch.y[batch.extra].tolist() == [(row - 4) % MANY % 5 for row in batch.index[batch.extra].tolist()]
    assert fingerprint({"extra": examples})
    # Two batches of two images, the planted one, the first one twice for its size, and labels.
    assert read_so_far() - before < 7 * image.size + files * 3e5


# A whole run.


def weights(folder: Path) -> dict[str, torch.Tensor]:
    newest = latest_checkpoint(folder, warn=print)
    assert newest is not None
    return dict(newest.tensors("weights"))


def test_a_run_on_shards_has_the_bits_of_one_in_memory_and_its_recipe_works_anywhere(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    more = tiny_split("extra", 300)
    images, labels = more.images.permute(0, 2, 3, 1).numpy(), more.labels.numpy()
    (tmp_path / "gen").mkdir()
    np.savez(tmp_path / "gen.npz", image=images, label=labels)
    for number, rows in enumerate(np.split(np.arange(300), (100, 250))):
        np.savez_compressed(tmp_path / "gen" / f"{number}.npz", image=images[rows], label=labels[rows])
    monkeypatch.chdir(tmp_path)
    assert tiny == "tiny"
    given = {"memory": "gen.npz", "folder": "gen", "pattern": "gen/*.npz", "list": [f"gen/{n}.npz" for n in range(3)]}
    for name, source in given.items():
        recipe = build({**RECIPE, "data": {**RECIPE["data"], "extra": source}})
        (tmp_path / f"{name}.yaml").write_text(dump(recipe))
        again = load_recipe(str(tmp_path / f"{name}.yaml"))
        assert again == recipe
        assert recipe.data.extra is not None
        kept = recipe.data.extra.source
        assert all(Path(path).is_absolute() for path in ([kept] if isinstance(kept, str) else kept))
        with monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore", Notice)
            patch.setattr("toughen.data.decode.IN_MEMORY", 2**30 if name == "memory" else 1000)
            train(recipe, tmp_path / name)
    whole = weights(tmp_path / "memory")
    for name in given:
        found = weights(tmp_path / name)
        assert found.keys() == whole.keys()
        assert all(torch.equal(value, found[key]) for key, value in whole.items())


def test_a_command_says_what_it_unpacks(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    more = tiny_split("extra", 100)
    np.savez_compressed(tmp_path / "gen.npz", image=more.images[:, 0].numpy(), label=more.labels.numpy())
    recipe = build({**RECIPE, "steps": 2, "data": {**RECIPE["data"], "extra": str(tmp_path / "gen.npz")}})
    (tmp_path / "mine.yaml").write_text(dump(recipe))
    assert tiny == "tiny"
    monkeypatch.setattr("toughen.data.decode.IN_MEMORY", 1000)
    words = ["train", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
    assert f"{tmp_path / 'gen.npz'} is compressed and too large for memory" in line


def test_an_empty_list_in_a_recipe():
    with pytest.raises(RecipeError) as caught:
        build({**RECIPE, "data": {**RECIPE["data"], "extra": []}})
    assert "data.extra.source" in str(caught.value)
    assert "\n" not in str(caught.value)
