"""A real run's checkpoints, damaged in every way that disks know: all of it is seen, and the one before is used."""

import hashlib
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from conftest import tiny_data
from tiny_runs import Said, command, contents, digest, is_one_sentence, tiny_recipe
from toughen.data import DATA
from toughen.storage.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint
from toughen.storage.files import Damaged

pytestmark = pytest.mark.faults

NEWEST, BEFORE = "step-000000048", "step-000000045"
PAGE = 4096


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Two finished runs with averages and best weights, of other seeds."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATA, "tiny", tiny_data)
        for seed in (0, 1):
            assert command(recipe(seed), folder / str(seed)) == (0, "")
        yield folder / "0", folder / "1"


def recipe(seed: int = 0) -> Any:
    # Wide enough for files of several pages; the last best is older than both checkpoints that are left.
    changes = {"model": {"name": "small_cnn", "width": 6, "norm": "batch"}, "save_every": 15, "seed": seed}
    return tiny_recipe(**changes)


@pytest.fixture
def run(runs: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the first run that may be spoilt."""
    # No two checkpoints share a file, so that a copy is as good as the original.
    assert {file.stat().st_nlink for file in (runs[0] / "checkpoints").glob("step-*/*")} == {1}
    return shutil.copytree(runs[0], tmp_path / "run")


@dataclass
class Spy:
    """What is made of a run folder by whoever goes on with it, and which bytes became tensors."""

    run: Path
    loaded: set[str] = field(default_factory=set)
    touched: set[str] = field(default_factory=set)
    said: list[str] = field(default_factory=list)

    def goes_on(self) -> Checkpoint:
        """As a run does: find a checkpoint, and take all of its tensors."""
        for noted in (self.loaded, self.touched, self.said):
            noted.clear()
        found = latest_checkpoint(self.run, warn=self.said.append)
        assert found is not None
        assert not self.loaded
        for name in found.files:
            if name.endswith(".safetensors"):
                found.tensors(name.removesuffix(".safetensors"))
        return found


@pytest.fixture
def spy(run: Path, monkeypatch: pytest.MonkeyPatch) -> Spy:
    """Notes the hash of all bytes of which tensors are made, and every checkpoint that is asked for any."""
    spy = Spy(run)
    load, tensors = safetensors.torch.load, Checkpoint.tensors

    def loading(data: bytes) -> dict[str, torch.Tensor]:
        spy.loaded.add(hashlib.sha256(data).hexdigest())
        return load(data)

    def asked(self: Checkpoint, name: str) -> dict[str, torch.Tensor]:
        spy.touched.add(self.path.name)
        return tensors(self, name)

    monkeypatch.setattr(safetensors.torch, "load", loading)
    monkeypatch.setattr(Checkpoint, "tensors", asked)
    return spy


def hashes(folder: Path) -> set[str]:
    """Of all tensor files of a checkpoint."""
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}


def check_fell_back(spy: Spy, file: str, good: set[str]) -> None:
    """The newest checkpoint is refused for that file, in one sentence, and the one before is used and nothing else."""
    found = spy.goes_on()
    assert found.path.name == BEFORE
    assert spy.touched == {BEFORE}
    assert spy.loaded == good
    (sentence,) = spy.said
    start, reason, end = sentence.partition("(")[0], sentence.partition("(")[2], sentence.rpartition(")")[2]
    assert start == f"CK321 {NEWEST} is incomplete or damaged "
    assert file in reason
    assert end == f". Using {BEFORE}; 3 steps will be repeated."


def flipped(data: bytes, draw: random.Random) -> bytes:
    bad = bytearray(data)
    bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
    return bytes(bad)


def cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def zeroed(data: bytes, draw: random.Random) -> bytes:
    """One page of what is there."""
    start = draw.randrange(0, len(data), PAGE)
    return data[:start] + bytes(len(data[start : start + PAGE])) + data[start + PAGE :]


@pytest.mark.parametrize(
    ("damage", "what", "small", "full"),
    [(flipped, "flipped bits", 80, 1000), (cut, "truncations", 40, 300), (zeroed, "zeroed pages", 25, 100)],
)
def test_damaged_bytes(spy, run, faults, damage, what, small, full):
    """Written into the file that is there, as a disk spoils it."""
    draw, folder, good = random.Random(0), run / "checkpoints" / NEWEST, hashes(run / "checkpoints" / BEFORE)
    files = [*sorted(folder.iterdir()), run / "checkpoints" / "LATEST"]
    assert len(files) == 11
    n, led = faults.trials(small, full), 0
    for trial in range(n):
        path = files[trial % len(files)]
        whole = path.read_bytes()
        while (bad := damage(whole, draw)) == whole:
            pass
        path.write_bytes(bad)
        if path.name == "LATEST":
            # It says nothing about the checkpoints, each of which is verified by itself.
            assert spy.goes_on().path.name in (NEWEST, BEFORE)
            assert len(spy.said) <= 1
            led += 1
        else:
            check_fell_back(spy, path.name, good)
        path.write_bytes(whole)
    assert spy.goes_on().path.name == NEWEST
    assert spy.said == []
    faults.tell(
        "3 damage",
        f"{n} {what} in {len(files)} files: {n - led} of {n - led} in a checkpoint detected before a tensor was made "
        f"of it, the one before used, one sentence each; {led} of {led} in LATEST led to a whole checkpoint",
    )


def test_swapped_files(spy, run, runs, faults):
    """With another file of the checkpoint, with its like of the checkpoint before, and with that of another run."""
    draw, folder, good = random.Random(1), run / "checkpoints" / NEWEST, hashes(run / "checkpoints" / BEFORE)
    names = sorted(path.name for path in folder.iterdir())
    others = [folder, run / "checkpoints" / BEFORE, runs[1] / "checkpoints" / NEWEST]
    n = trial = 0
    while n < faults.trials(30, 50):
        trial += 1
        name, source = draw.choice(names), others[trial % 3]
        other = source / (draw.choice(names) if source == folder else name)
        path, whole = folder / name, (folder / name).read_bytes()
        if other.read_bytes() == whole:
            continue
        # A new file under the name: a swap of names, which writes into neither.
        stranger = other.read_bytes()
        path.unlink()
        path.write_bytes(stranger)
        if source == folder:
            other.unlink()
            other.write_bytes(whole)
        check_fell_back(spy, "", good)
        # A manifest that is whole but another's blames whichever file it does not fit.
        assert name in spy.said[0] or other.name in spy.said[0] or "MANIFEST.json" in (name, other.name)
        for changed, content in ((path, whole), (other, stranger)):
            if changed.parent == folder:
                changed.write_bytes(content)
        n += 1
    assert spy.goes_on().path.name == NEWEST
    faults.tell("3 damage", f"{n} files swapped within, between checkpoints and between runs: {n} detected")


def missing(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.unlink()
    path.touch()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def beside(path: Path) -> None:
    path.with_name(f"extra-{path.name}").write_bytes(path.read_bytes())


def folder_beside(path: Path) -> None:
    path.with_name(f"extra-{path.name}").mkdir()


@pytest.mark.parametrize("spoil", [missing, empty, a_folder, beside, folder_beside])
def test_missing_extra_and_empty_files(spy, run, faults, spoil: Callable[[Path], None]):
    folder, kept = run / "checkpoints" / NEWEST, run.with_name("kept")
    good = hashes(run / "checkpoints" / BEFORE)
    shutil.copytree(folder, kept)
    names = sorted(path.name for path in kept.iterdir())
    for name in names:
        spoil(folder / name)
        check_fell_back(spy, name, good)
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
    faults.tell("3 damage", f"{spoil.__name__.replace('_', ' ')}: {len(names)} of {len(names)} files detected")


def test_empty_and_missing_folders(spy, run):
    checkpoints, good = run / "checkpoints", hashes(run / "checkpoints" / BEFORE)
    shutil.rmtree(checkpoints / NEWEST)
    check_fell_back(spy, "MANIFEST.json is missing", good)
    (checkpoints / NEWEST).mkdir()
    check_fell_back(spy, "MANIFEST.json is missing", good)
    # A pointer to it or none: it is the newest by its name.
    (checkpoints / "LATEST").unlink()
    check_fell_back(spy, "MANIFEST.json is missing", good)
    (checkpoints / NEWEST).rmdir()
    assert spy.goes_on().path.name == BEFORE
    assert spy.said == []


@pytest.mark.parametrize("name", ["weights.safetensors", "best-average-0.9.safetensors", "MANIFEST.json", "LATEST"])
def test_the_run_goes_on_to_the_same_bits(run, runs, name):
    path = run / "checkpoints" / ("" if name == "LATEST" else NEWEST) / name
    path.write_bytes(flipped(path.read_bytes(), random.Random(3)))
    said = Said()
    assert command(recipe(), run, said) == (0, "")
    assert digest(run) == digest(runs[0])
    if name != "LATEST":
        (note,) = [note for note in said.notes if "CK321" in note]
        assert name in note
        assert note.endswith(f"Using {BEFORE}; 3 steps will be repeated.")


def test_no_checkpoint_is_whole(spy, run):
    for name in (NEWEST, BEFORE):
        path = run / "checkpoints" / name / "method.safetensors"
        path.write_bytes(flipped(path.read_bytes(), random.Random(4)))
    before = contents(run)
    with pytest.raises(Damaged, match=f"CK321 .*no checkpoint in it is whole: {NEWEST}: hash.*; {BEFORE}: hash"):
        latest_checkpoint(run, warn=print)
    code, said = command(recipe(), run)
    assert (code, is_one_sentence(said)) == (2, True)
    assert "CK321" in said
    assert "hash mismatch in method.safetensors" in said
    assert not spy.loaded
    assert {name: data for name, data in contents(run).items() if ".lock" not in name} == {
        name: data for name, data in before.items() if ".lock" not in name
    }


def test_what_hashing_costs_of_a_save(tmp_path, faults):
    """A figure, no promise: the tensors of a WRN-28-10 with momentum and an average."""
    values = faults.trials(2**10, 36_500_000)
    tensors = {name: {"values": torch.randn(values)} for name in ("weights", "optimizer", "average-0.995")}
    started = time.monotonic()
    path = save_checkpoint(tmp_path, 1, tensors, {})
    save = time.monotonic() - started
    files = [file.read_bytes() for file in path.glob("*.safetensors")]
    started = time.monotonic()
    # Once of what is written and once of what reads back.
    digests = [hashlib.sha256(data).hexdigest() for data in files * 2]
    share = (time.monotonic() - started) / save
    assert len(set(digests)) == 3
    size = sum(map(len, files)) / 1e6
    faults.tell("3 damage", f"saving {size:.0f} MB takes {save:.2f} s, of which hashing twice is {share:.0%}")
