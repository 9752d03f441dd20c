"""Whole runs on a disk that refuses: each call of the writer, once or from then on, with every error of disks."""

import contextlib
import errno
import random
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from refusing import FREEING, Call, Disk, Refusal
from tiny_runs import Said, command, contents, digest, is_one_sentence, leftovers, tiny_recipe
from toughen.storage.checkpoint import latest_checkpoint, load_checkpoint

# A log that was opened just before the disk refused is closed when the process ends
pytestmark = pytest.mark.faults

ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EACCES": errno.EACCES, "EROFS": errno.EROFS}
ERRORS |= {"EDQUOT": errno.EDQUOT, "short write": 0}
SAVES = [6, 12, 15, 18, 24, 30, 36, 42, 45, 48]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Call]]:
    """What a run ends with, and every call by which it was written."""
    from conftest import tiny_data
    from toughen.data import DATA

    run = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch, Disk(run) as disk:
        patch.setitem(DATA, "tiny", tiny_data)
        assert command(tiny_recipe(), run) == (0, "")
    return digest(run), disk.calls


def points(calls: list[Call]) -> list[Call]:
    """Of calls that differ by the step alone those of the first, a middle and the last checkpoint."""
    kinds: dict[tuple[str, str], list[Call]] = {}
    for call in calls:
        kinds.setdefault((call[0], re.sub("step-[0-9]+", "step", call[1])), []).append(call)
    return [call for alike in kinds.values() for call in sorted({alike[0], alike[len(alike) // 2], alike[-1]})]


class Watching(Said):
    """Looks, whenever a run says that the disk refuses, whether the last good checkpoint is as it was."""

    def __init__(self, run: Path) -> None:
        super().__init__()
        self.run, self.good, self.looked = run, dict[Path, dict[str, bytes]](), 0

    def remember(self) -> None:
        """The checkpoint that a run would go on from now."""
        found = latest_checkpoint(self.run, warn=self.notes.append, clean=False)
        self.good = {found.path: contents(found.path)} if found else {}

    def look(self) -> None:
        """It is whole and has the same bytes."""
        for path, before in self.good.items():
            assert load_checkpoint(path).path == path
            assert contents(path) == before
        self.looked += 1


def check(run: Path, refusal: Refusal, expected: str) -> tuple[str, list[str]]:
    """Train on a disk that refuses, and once more on one that does not; how it ended, and what was said."""
    watching = Watching(run)
    with Disk(run, refusal, watching.remember) as disk:
        code, said = command(tiny_recipe(), run, watching)
    assert disk.refused, refusal
    told = [note for note in watching.notes if "CK31" in note]
    if code == 0:
        if leftovers(run):
            # What could not be deleted then is deleted at the next start, and only that.
            assert refusal.lasting or refusal.call[0] in (*FREEING, "open"), refusal
            assert command(tiny_recipe(), run) == (0, ""), refusal
        assert digest(run) == expected, refusal
        return "recovered", told
    assert code == 2, (refusal, said)
    assert is_one_sentence(said), (refusal, said)
    # After a single refusal later saves may have pruned it.
    if refusal.lasting or all(path.exists() for path in watching.good):
        watching.look()
    assert command(tiny_recipe(), run) == (0, ""), refusal
    assert digest(run) == expected, refusal
    return "stopped", told


def amid(calls: list[Call]) -> set[Call]:
    """Those that a run survives: from the first line of the log to the last checkpoint but one."""
    first = calls.index(("write", "metrics.jsonl", 1))
    return set(calls[first : calls.index(("fsync", "metrics.jsonl", len(SAVES)))])


def trials(calls: list[Call], n: int, seed: int) -> list[tuple[Call, str]]:
    """Calls at which to refuse, each with one of the errors that it can meet."""
    never = {"read": ("EIO", "EACCES"), "scandir": ("EIO", "EACCES"), "unlink": ("EIO", "EACCES", "EROFS")}
    draw = random.Random(seed)
    found = [(call, draw.choice(never.get(call[0], tuple(ERRORS)))) for call in points(calls)]
    return draw.sample(found, min(n, len(found)))


def test_one_refusal_at_every_call(undisturbed, tiny, tmp_path, faults):
    expected, calls = undisturbed
    assert len(points(calls)) >= 60
    assert {name for name, _, _ in points(calls)} >= {"create", "write", "fsync", "rename", "link", "mkdir", "scandir"}
    survived, fell = amid(calls), list[tuple[Call, str]]()
    ended = {"recovered": 0, "stopped": 0}
    chosen = trials(calls, faults.trials(small=5, full=999), 0)
    for number, (call, error) in enumerate(chosen):
        how, _ = check(tmp_path / str(number), Refusal(call, ERRORS[error], lasting=False), expected)
        ended[how] += 1
        if how == "stopped" and call in survived:
            fell.append((call, error))
    assert fell == []
    faults.tell(
        "4 disk",
        f"one refusal at each of {len(chosen)} calls, {len(ERRORS)} errors: {ended['recovered']} runs went on to equal "
        f"bits, {ended['stopped']} (set-up, last checkpoint, summary) ended with exit code 2 and then went on to them",
    )


def test_refusals_from_some_call_on(undisturbed, tiny, tmp_path, faults):
    expected, calls = undisturbed
    ended = {"recovered": 0, "stopped": 0}
    told = 0
    chosen = trials(calls, faults.trials(small=4, full=120), 1)
    for number, (call, error) in enumerate(chosen):
        how, notes = check(tmp_path / str(number), Refusal(call, ERRORS[error], lasting=True), expected)
        ended[how] += 1
        told += len(notes)
    assert told
    faults.tell(
        "4 disk",
        f"disks that refuse from one of {len(chosen)} calls on: {ended['stopped']} runs ended with exit code 2, the "
        f"last good checkpoint as it was, and went on to equal bits; {ended['recovered']} lost nothing by it",
    )


# --- without pretence


def settled(run: Path) -> None:
    """Wait for the first checkpoint, which is written beside the training: it shall not be among those that fail."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (run / "checkpoints" / "LATEST").exists():
        time.sleep(0.005)


class Filling(Said):
    """Fills the disk at one line of the log, and frees it at another."""

    def __init__(self, ballast: Path, full: int, free: int | None) -> None:
        super().__init__()
        self.ballast, self.full, self.free = ballast, full, free

    def progress(self, record: dict[str, Any], images_per_second: float) -> None:
        if record["step"] == self.full:
            settled(self.ballast.parent / "run")
            with self.ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(bytes(4096)):
                    pass
        elif record["step"] == self.free:
            self.ballast.unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(folder)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("only root may mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("free", [18, None])
def test_a_disk_that_is_really_full(undisturbed, tiny, small_disk, faults, free):
    run, said = small_disk / "run", Filling(small_disk / "ballast", 12, free)
    code, error = command(tiny_recipe(), run, said)
    told = [note for note in said.notes if note.startswith("CK311 Not enough space to write ")]
    assert told
    if free is None:
        assert code == 2
        assert is_one_sentence(error)
        assert "CK311" in error
        assert "the last good checkpoint is step-0000000" in error
        assert "and 3 saves in a row have failed" in error
        newest = latest_checkpoint(run, warn=pytest.fail)
        assert newest is not None
        assert newest.step in (6, 12)
        said.ballast.unlink()
        code, error = command(tiny_recipe(), run)
    assert (code, error) == (0, "")
    assert digest(run) == undisturbed[0]
    faults.tell(
        "4 disk",
        f"a file system of 3 MiB really full from step 12 {f'to {free}' if free else 'on'}: {len(told)} notes CK311, "
        + ("equal bits" if free else "exit code 2 after the third failed save, then equal bits when there was space"),
    )


@pytest.mark.parametrize("limit", [0, 300, 2000])
def test_files_that_may_not_grow(undisturbed, tiny, tmp_path, limit):
    """The system lets no file grow past so many bytes for a while: the process's own limit, so needs no root."""

    class Limited(Said):
        def progress(self, record: dict[str, Any], images_per_second: float) -> None:
            if record["step"] in (12, 18):
                settled(tmp_path / "run")
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit if record["step"] == 12 else soft, hard))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler, said = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), Limited()
    try:
        assert command(tiny_recipe(), tmp_path / "run", said) == (0, "")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert [note for note in said.notes if note.startswith("CK312 ") and "File too large" in note]
    assert digest(tmp_path / "run") == undisturbed[0]
