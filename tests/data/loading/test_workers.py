"""Workers that die or hang, images that go bad under a run, labels that are none: one sentence, and a way on."""

import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from conftest import few
from photographs import photograph, stored_photographs
from tiny_runs import Said, command, digest, is_one_sentence, tiny_recipe
from toughen.data import Batches
from toughen.data.loading import prefetch
from toughen.data.sources.image_folder import FileImages
from toughen.recipes import Recipe
from toughen.training import run as run_module

# Python 3.12 warns of a fork beside torch's idle threads; workers only decode
pytestmark = [
    pytest.mark.faults,
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

N = 12
SECONDS = 10.0
"""So soon a fault is told. Only a guard: what is told takes 2 or 3 seconds."""

Fault = Callable[[], object]


@pytest.fixture(autouse=True)
def _impatient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead worker is seen after a second, and no image was found whole by another test."""
    monkeypatch.setattr(prefetch, "POLL", 1)
    monkeypatch.setenv("TOUGHEN_CACHE", str(tmp_path / "cache"))
    # What another test left to the garbage collector may hold workers, which would end amid this one.
    gc.collect()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of 12 training photographs and 3 for testing."""
    number = 0
    for part, count in (("train", N), ("test", 3)):
        for name in ("beach", "forest"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for place in range(count):
                number += 1
                photograph(number, 20 + number % 3, 19).save(tmp_path / "images" / part / name / f"{place:02}.png")
    return tmp_path / "images"


def recipe(source: Path, **changes: object) -> Recipe:
    data = {"source": str(source), "size": 16, "validation": 4, "workers": 2, "flip": True}
    settings = {"method": "natural", "batch_size": 5, "steps": 12, "save_every": 4, "averages": []}
    settings |= {"selection": {"suite": "pgd-1", "every": 12}}
    return tiny_recipe(**settings | {"data": data} | changes)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def freeze() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def sleep() -> None:
    time.sleep(60)


def in_workers(monkeypatch: pytest.MonkeyPatch, victim: str, fault: Fault, mark: Path, times: int) -> None:
    """Workers meet the fault where they open the victim; so many of them, each of which leaves a mark."""
    if fault in (freeze, sleep):
        # Nowhere else: a machine that is busy for two seconds is no fault.
        monkeypatch.setattr(prefetch, "PATIENCE", 2.0)
    real = FileImages.open

    def opened(self: FileImages, number: int) -> Image.Image:
        if (
            multiprocessing.parent_process()
            and self.name(number).endswith(victim)
            and len(list(mark.parent.glob("met-*"))) < times
        ):
            (mark.parent / f"met-{os.getpid()}").touch()
            fault()
        return real(self, number)

    monkeypatch.setattr(FileImages, "open", opened)


def children() -> list[int]:
    """Processes of this one's, zombies too."""
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


# --- workers


@pytest.mark.parametrize(
    ("fault", "how"), few((die, "was killed"), (freeze, "gave no sign"), (sleep, "gave no sign"), small=2)
)
def test_a_worker_that_is_lost_once_changes_no_bit(folder, tmp_path, monkeypatch, fault, how, faults):
    whole, said = tmp_path / "whole", Said()
    assert command(recipe(folder), whole) == (0, "")
    before = children()
    in_workers(monkeypatch, "beach/03.png", fault, tmp_path / "met", 1)
    started = time.monotonic()
    assert command(recipe(folder), tmp_path / "run", said) == (0, "")
    seconds = time.monotonic() - started
    assert len(list(tmp_path.glob("met-*"))) == 1
    (note,) = [note for note in said.notes if "DA411" in note]
    assert f"DA411 Data worker {note[18]} {how} " in note
    assert f"while decoding {folder}/train/beach/03.png" in note
    assert note.endswith("it was decoded again, and training goes on.")
    assert digest(tmp_path / "run") == digest(whole)
    assert children() == before
    faults.tell("9 data faults", f"worker lost by {fault.__name__}: decoded again, equal bits, {seconds:.1f} s in all")


@pytest.mark.parametrize(
    ("fault", "how"),
    few(
        (die, "was killed (signal 9, often out of memory)"),
        (sleep, "gave no sign for 2 s"),
        (freeze, "gave no sign for 2 s"),
        small=2,
    ),
)
def test_a_worker_that_is_lost_each_time_ends_the_run_in_a_sentence(folder, tmp_path, monkeypatch, fault, how, faults):
    whole = tmp_path / "whole"
    assert command(recipe(folder), whole) == (0, "")
    before = children()
    with monkeypatch.context() as patched:
        in_workers(patched, "forest/07.png", fault, tmp_path / "met", 99)
        started = time.monotonic()
        code, said = command(recipe(folder), tmp_path / "run")
        seconds = time.monotonic() - started
    assert code == 2
    assert is_one_sentence(said)
    assert f"{how} while decoding {folder}/train/forest/07.png;" in said
    assert "DA411 Data worker" in said
    assert seconds < SECONDS
    assert children() == before
    assert command(recipe(folder), tmp_path / "run") == (0, "")
    assert digest(tmp_path / "run") == digest(whole)
    faults.tell("9 data faults", f"worker lost by {fault.__name__} each time: exit code 2 after {seconds:.1f} s")


def test_a_worker_that_dies_amid_a_step_is_noticed_between_two(folder, tmp_path, monkeypatch):
    """Torch's own handler, which any other loader of the process sets too, would raise wherever the main process is."""
    next(iter(DataLoader([0], num_workers=1)))  # pyright: ignore[reportArgumentType]
    whole = tmp_path / "whole"
    assert command(recipe(folder), whole) == (0, "")
    train_batch, killed, others = run_module.train_batch, [], children()

    def deadly(job: Any, batch: Any) -> None:
        if job.number == 4:
            # Some child of another test's may be there.
            killed.extend(pid for pid in children() if pid not in others)
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline and any(_state(pid) not in "ZX" for pid in killed):
                time.sleep(0.01)
        train_batch(job, batch)

    monkeypatch.setattr(run_module, "train_batch", deadly)
    said = Said()
    assert command(recipe(folder), tmp_path / "run", said) == (0, "")
    assert len(killed) == 2
    assert [note for note in said.notes if "DA411" in note]
    assert digest(tmp_path / "run") == digest(whole)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "X"


def test_after_a_failure_the_same_batch_can_be_asked_for_again(tmp_path):
    stored, path, others = stored_photographs(tmp_path, 8), tmp_path / "002.jpg", children()
    whole = path.read_bytes()
    batches = Batches(stored, torch.arange(8), batch_size=8, seed=0, device="cpu", workers=1)
    expected = batches[0].x
    path.write_bytes(whole[:200])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"DA412 .*002\.jpg is a broken image") as kept:
            batches[9]
        # Although the error, by its traceback, still holds all that it came through.
        assert kept.traceback
        assert children() == others
    path.write_bytes(whole)
    assert torch.equal(batches[0].x, expected)
    batches.close()
    assert children() == others


def test_workers_end_where_their_feed_does(tmp_path):
    split, before = stored_photographs(tmp_path), children()
    # What watches over a batch and is not waited for would keep them in most of ten times.
    for _ in range(10):
        batches = Batches(split, torch.arange(len(split)), batch_size=1, seed=0, device="cpu", workers=1)
        assert len(batches[0]) == 1
        del batches
        assert children() == before


class Dying:
    """A killed process whose end of the connection is gone and which its parent cannot collect yet."""

    exitcode: int | None = None

    def join(self, timeout: float) -> None:
        self.exitcode = -signal.SIGKILL


def test_a_worker_that_is_still_dying_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(prefetch, "_end", lambda workers, parent: None)

    def dead(split: object, seed: int) -> prefetch.DataWorker:
        ours, theirs = multiprocessing.Pipe()
        theirs.close()
        return prefetch.DataWorker(Dying(), ours, [-1])  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(prefetch, "start_worker", dead)
    rows = prefetch.Rows(torch.tensor([0]), 0, torch.tensor([0]))
    feed = prefetch.Streamed(
        stored_photographs(tmp_path), lambda number: rows, seed=0, device=torch.device("cpu"), workers=1
    )
    with pytest.raises(ValueError, match=r"DA411 Data worker 0 was killed \(signal 9"):
        feed[0]


def test_a_batch_without_examples_comes_from_workers_too(tmp_path):
    none = torch.tensor([], dtype=torch.int64)
    split, cpu = stored_photographs(tmp_path, 8), torch.device("cpu")
    feed = prefetch.Streamed(split, lambda number: prefetch.Rows(none, 0, none), seed=0, device=cpu, workers=1)
    assert [tuple(feed[number].shape) for number in (0, 1)] == [(0, *split.shape)] * 2
    feed.close()


def test_an_error_of_ours_in_a_worker_stays_one(tmp_path, monkeypatch):
    """It is no hanging worker, and no batch is passed over for it; and whoever keeps it keeps no workers."""
    stored, before = stored_photographs(tmp_path, 8), children()
    monkeypatch.setattr(type(stored), "decode", lambda *_: (_ for _ in ()).throw(RuntimeError("a bug")))
    batches = Batches(stored, torch.arange(8), batch_size=4, seed=0, device="cpu", workers=1)
    with pytest.raises(RuntimeError, match="a bug") as kept:
        batches[0]
    assert kept.traceback
    assert children() == before


def test_an_error_that_ends_a_run_keeps_no_workers(folder, tmp_path, monkeypatch):
    before = children()
    monkeypatch.setattr(run_module, "train_batch", lambda job, batch: 1 / 0)
    with pytest.raises(ZeroDivisionError) as kept:
        run_module.train(recipe(folder), tmp_path / "run")
    assert kept.traceback
    assert children() == before


# --- images that change under a run


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


def of_floats(path: Path) -> None:
    Image.fromarray(np.zeros((19, 20), np.float32)).save(path, "TIFF")


def nothing(path: Path) -> None:
    path.write_bytes(b"")


SPOILT = [
    (shorten, "DA412 {} is a broken image (OSError); remove or replace it"),
    (nothing, "DA412 {} is a broken image (UnidentifiedImageError); remove or replace it"),
    (Path.unlink, "DA412 {} cannot be read (No such file or directory); restore or remove it"),
    (of_floats, "{} is of floats (mode F), of which nothing says which number is white"),
]


@pytest.mark.parametrize(
    ("spoil", "says", "workers"),
    few(
        *((*case, 2) for case in SPOILT[:2]),
        *((*case, 0) for case in SPOILT[2:]),
        *((*case, 0) for case in SPOILT[:2]),
        *((*case, 2) for case in SPOILT[2:]),
        small=4,
    ),
)
def test_an_image_that_is_spoilt_under_a_run(folder, tmp_path, monkeypatch, spoil, says, workers, faults):
    found = recipe(folder, data={"source": str(folder), "size": 16, "validation": 4, "workers": workers, "flip": True})
    assert command(found, tmp_path / "whole") == (0, "")
    victim, taken = folder / "train" / "beach" / "03.png", run_module.load_batch
    whole = victim.read_bytes()

    def spoiling(batches: Batches, number: int) -> object:
        if number == 5:
            spoil(victim)
        return taken(batches, number)

    with monkeypatch.context() as patched:
        patched.setattr(run_module, "load_batch", spoiling)
        started = time.monotonic()
        code, said = command(found, tmp_path / "run")
        seconds = time.monotonic() - started
    assert code == 2
    assert is_one_sentence(said)
    assert says.format(victim) in said
    assert "this run goes on only with the images that it began with" in said
    assert seconds < SECONDS
    victim.write_bytes(whole)
    assert command(found, tmp_path / "run") == (0, "")
    assert digest(tmp_path / "run") == digest(tmp_path / "whole")
    faults.tell("9 data faults", f"{spoil.__name__} of an image, {workers} workers: exit code 2 after {seconds:.1f} s")


def test_an_image_that_a_server_lost_for_a_moment_is_read_again(folder, tmp_path, monkeypatch):
    assert command(recipe(folder), tmp_path / "whole") == (0, "")

    def stale() -> None:
        raise OSError(116, "Stale file handle")

    in_workers(monkeypatch, "beach/03.png", stale, tmp_path / "met", 1)
    said = Said()
    assert command(recipe(folder), tmp_path / "run", said) == (0, "")
    (note,) = [note for note in said.notes if "DA412" in note]
    assert f"DA412 {folder}/train/beach/03.png cannot be read (Stale file handle)" in note
    assert digest(tmp_path / "run") == digest(tmp_path / "whole")


# --- data that are wrong before a run


def no_image_in_a_class(folder: Path) -> Callable[[], object]:
    (folder / "train" / "meadow").mkdir()
    return (folder / "train" / "meadow").rmdir


def notes_in_a_class(folder: Path) -> Callable[[], object]:
    (folder / "train" / "meadow").mkdir()
    (folder / "train" / "meadow" / "readme.txt").write_text("soon")

    def mend() -> None:
        (folder / "train" / "meadow" / "readme.txt").unlink()
        (folder / "train" / "meadow").rmdir()

    return mend


@pytest.mark.parametrize("spoil", [no_image_in_a_class, notes_in_a_class])
def test_a_class_without_images(folder, tmp_path, spoil):
    mend = spoil(folder)
    code, said = command(recipe(folder), tmp_path / "run")
    assert (code, is_one_sentence(said)) == (2, True)
    assert f"The class folder {folder}/train/meadow holds no image; remove it or put images into it." in said
    assert not (tmp_path / "run").exists()
    mend()
    assert command(recipe(folder), tmp_path / "run") == (0, "")
