"""Checkpoints at every place where their writer can die or the disk refuse: the old or the new, whole."""

import errno
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from toughen.storage import files
from toughen.storage.checkpoint import latest_checkpoint, save_checkpoint
from toughen.storage.files import Damaged, write_text

# Python 3.12 warns of a fork beside torch's idle threads; the children here only write files and are killed
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

State = dict[str, object]
Write = Callable[[Any, Path], None]


@pytest.fixture
def run(saving: Any, tmp_path: Path) -> Path:
    """A run folder with checkpoints of steps 1 and 2."""
    saving.save(tmp_path / "run", 1)
    saving.save(tmp_path / "run", 2)
    return tmp_path / "run"


# --- faults and kills at every stage of the writer


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def halt() -> None:
    os._exit(9)


def changed(saving: Any, run: Path) -> None:
    """Another checkpoint at the newest step: the case in which a folder is replaced."""
    save_checkpoint(run, 2, saving.groups(3), {"step": 3, "log": 7}, carry=carried(run))


def appended(saving: Any, run: Path) -> None:
    saving.save(run, 3, carry=carried(run))


def carried(run: Path) -> dict[str, Path]:
    return {"best-weights": run / "checkpoints" / "step-000000002" / "weights.safetensors"}


def points(saving: Any, run: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(files, "point", names.append)
        scratch = run.with_name("scratch")
        shutil.copytree(run, scratch)
        write(saving, scratch)
        shutil.rmtree(scratch)
    return names


def check_survived(saving: Any, run: Path, write: Write) -> str:
    """After a fault: the old or the new, whole, nothing left over, and the same write works."""
    found = latest_checkpoint(run, warn=saving.never)
    assert found is not None
    assert saving.leftovers(run) == []
    new = found.state["step"] == 3
    for name, tensors in saving.groups(3 if new else 2).items():
        assert all(torch.equal(found.tensors(name)[key], value) for key, value in tensors.items())
    write(saving, run)
    again = latest_checkpoint(run, warn=saving.never)
    assert again is not None
    assert again.state["step"] == 3
    assert torch.equal(again.tensors("weights")["conv.weight"], saving.groups(3)["weights"]["conv.weight"])
    assert saving.leftovers(run) == []
    return "new" if new else "old"


@pytest.mark.parametrize("write", [appended, changed])
def test_a_fault_at_every_point(saving: Any, run: Path, monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    monkeypatch.setattr(files, "_CHUNK", 100)
    names = points(saving, run, write, monkeypatch)
    assert len(names) >= 30
    assert len(set(names)) >= 25
    outcomes: list[str] = []
    for number in range(len(names)):
        trial = run.with_name(f"trial-{number}")
        shutil.copytree(run, trial)
        with monkeypatch.context() as patch:
            patch.setattr(files, "point", saving.stop_at(number, saving.fail))
            with pytest.raises(saving.Fault):
                write(saving, trial)
        # an error, unlike a kill, cleans up behind itself at once
        within_pruning = names[number].startswith("within pruning")
        assert saving.leftovers(trial) == [] or within_pruning
        outcomes.append(check_survived(saving, trial, write))
    assert outcomes == sorted(outcomes, reverse=True)
    assert {"old", "new"} == set(outcomes)


@pytest.mark.parametrize(("write", "end"), [(appended, kill), (changed, kill), (appended, halt)])
def test_a_process_killed_at_every_point(
    saving: Any, run: Path, monkeypatch: pytest.MonkeyPatch, write: Write, end: Callable[[], None]
) -> None:
    monkeypatch.setattr(files, "_CHUNK", 100)
    names = points(saving, run, write, monkeypatch)
    outcomes: list[str] = []
    dirty = 0
    for number in range(len(names)):
        trial = run.with_name(f"trial-{number}")
        shutil.copytree(run, trial)
        child = os.fork()
        if child == 0:
            try:
                files.point = saving.stop_at(number, end)
                write(saving, trial)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == (9 if end is halt else -signal.SIGKILL), names[number]
        dirty += saving.leftovers(trial) != []
        outcomes.append(check_survived(saving, trial, write))
    assert dirty > len(names) // 2
    assert outcomes == sorted(outcomes, reverse=True)
    assert {"old", "new"} == set(outcomes)


def test_the_order_on_the_disk(saving: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes before names, the manifest last, the name before the pointer, the pointer before the pruning."""
    events: list[str] = []

    def fsync(handle: int) -> None:
        events.append("fsync " + Path(os.readlink(f"/proc/self/fd/{handle}")).name.split("-")[0])

    def record(kind: str, function: Callable[..., None]) -> Callable[..., None]:
        def call(source: Path, target: Path) -> None:
            events.append(f"{kind} {target.name}")
            function(source, target)

        return call

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", record("rename", os.rename))
    monkeypatch.setattr(os, "replace", record("replace", os.replace))
    saving.save(run, 3)
    assert [event.split(".tmp-")[0] for event in events] == [
        "fsync weights.safetensors",
        "fsync average",
        "fsync state.json",
        "fsync MANIFEST.json",
        "fsync .tmp",
        "rename step-000000003",
        "fsync checkpoints",
        "fsync .tmp",
        "replace LATEST",
        "fsync checkpoints",
        "rename ",
    ]


def test_stale_temporaries_go_at_the_next_start(saving: Any, run: Path) -> None:
    (run / ".tmp-1-a").write_text("recipe")
    (run / "checkpoints" / ".tmp-1-b").mkdir()
    (run / "checkpoints" / ".tmp-1-b" / "weights.safetensors").write_text("half")
    latest_checkpoint(run, warn=saving.never)
    assert saving.leftovers(run) == []


# --- what is refused, with nothing written


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64, torch.float8_e5m2])
def test_a_broken_state_is_never_written(saving: Any, run: Path, value: float, dtype: torch.dtype) -> None:
    before = saving.contents(run)
    tensors = {"weights": {"ok": torch.ones(2)}, "optimizer": {"momentum": torch.tensor([1.0, value]).to(dtype)}}
    with pytest.raises(ValueError, match="CK322 optimizer: momentum"):
        save_checkpoint(run, 3, tensors, {})
    assert saving.contents(run) == before


@pytest.mark.parametrize(
    ("tensors", "carry"),
    [
        ({"../x": {}}, {}),
        ({"a/b": {}}, {}),
        ({"": {}}, {}),
        ({"a\n": {}}, {}),
        ({}, {"../x": Path()}),
        ({"b": {}}, {"b": Path()}),
    ],
)
def test_names_that_are_not_plain_are_refused(
    saving: Any, run: Path, tensors: dict[str, dict[str, torch.Tensor]], carry: dict[str, Path]
) -> None:
    before = saving.contents(run.parent)
    with pytest.raises(ValueError, match="must be letters"):
        save_checkpoint(run, 3, tensors, {}, carry=carry)
    assert saving.contents(run.parent) == before


@pytest.mark.parametrize("state", [{"a": float("nan")}, {"a": (1, 2)}, {1: "a"}, {"a": {1}}, {"a": torch.ones(1)}])
def test_a_state_that_would_come_back_different_is_refused(saving: Any, run: Path, state: State) -> None:
    before = saving.contents(run)
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoint(run, 3, {}, state)
    assert saving.contents(run) == before


@pytest.mark.parametrize(("step", "keep"), [(-1, 2), (3, 0)])
def test_numbers_out_of_range_are_refused(saving: Any, run: Path, step: int, keep: int) -> None:
    with pytest.raises(ValueError, match=f"got {step} and {keep}"):
        saving.save(run, step, keep=keep)


def test_a_full_disk_leaves_everything_as_it_was(saving: Any, run: Path) -> None:
    """Real: the system refuses to let any file grow past so many bytes, for more and more bytes."""
    before = saving.contents(run)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for limit in (0, 50, 150, 160, 400):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            try:
                with pytest.raises(OSError, match=r"File too large: .*/(weights|average|state|MANIFEST)") as caught:
                    saving.save(run, 3)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert caught.value.errno == errno.EFBIG
            assert saving.contents(run) == before
    finally:
        signal.signal(signal.SIGXFSZ, handler)
    saving.save(run, 3)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_failing_fsync_leaves_everything_as_it_was(
    saving: Any, run: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    before = saving.contents(run)

    def refuse(_handle: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match=r"weights\.safetensors") as caught:
            saving.save(run, 3)
        with pytest.raises(OSError, match=r"\.tmp-"):
            write_text(run / "checkpoints" / "LATEST", "other")
    assert caught.value.errno == code
    assert saving.contents(run) == before
    assert saving.leftovers(run) == []


def test_what_does_not_read_back_is_not_published(saving: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saving.contents(run)

    def rot(name: str) -> None:
        if name == "after MANIFEST.json":
            path = next((run / "checkpoints").glob(".tmp-*")) / "weights.safetensors"
            path.write_bytes(path.read_bytes()[:-1] + b"?")

    monkeypatch.setattr(files, "point", rot)
    with pytest.raises(Damaged, match=r"hash mismatch in weights\.safetensors"):
        saving.save(run, 3)
    assert saving.contents(run) == before
