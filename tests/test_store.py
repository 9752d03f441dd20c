"""Run folders and checkpoints: whole or refused, at every place where the writer can die."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toughen import checkpoint, store
from toughen.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint
from toughen.store import Damaged, Locked, Log, lock, read_json, write_json, write_text

# Python 3.12 warns of a fork beside torch's idle threads; the children here only write files and are killed
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

State = dict[str, object]


def groups(step: int) -> dict[str, dict[str, torch.Tensor]]:
    values = torch.arange(12, dtype=torch.float32) + step
    return {
        "weights": {"conv.weight": values.view(3, 4), "bn.steps": torch.tensor(step)},
        "average-0.995": {"conv.weight": values.double()},
    }


def save(run: Path, step: int, **keywords: object) -> Path:
    return save_checkpoint(run, step, groups(step), {"step": step, "log": 7}, **keywords)  # pyright: ignore[reportArgumentType]


def is_whole(found: Checkpoint, step: int) -> bool:
    loaded = {name: found.tensors(name) for name in groups(step)}
    equal = all(torch.equal(loaded[name][key], value) for name, g in groups(step).items() for key, value in g.items())
    return found.step == step and equal and found.state == {"step": step, "log": 7}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def leftovers(run: Path) -> list[Path]:
    return [*run.rglob(".tmp-*"), *run.rglob(".replaced-*")]


def never(sentence: str) -> None:
    raise AssertionError(sentence)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with checkpoints of steps 1 and 2."""
    save(tmp_path / "run", 1)
    save(tmp_path / "run", 2)
    return tmp_path / "run"


def stop_at(number: int, action: Callable[[], None]) -> Callable[[str], None]:
    reached = iter(range(10**6))
    return lambda _name: action() if next(reached) == number else None


# --- round trip


def test_tensors_come_back_bit_equal(tmp_path: Path) -> None:
    shared = torch.randn(6)
    tensors = {
        "float32": torch.tensor([1.5, -0.0, 1e-45]),
        "float64": torch.randn(2, 3, dtype=torch.float64),
        "float16": torch.randn(3).half(),
        "bfloat16": torch.randn(5).bfloat16(),
        "float8": torch.randn(5).to(torch.float8_e4m3fn),
        "int64": torch.tensor([2**62, -1]),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.25),
        "nothing": torch.empty(0, 3),
        "transposed": torch.randn(3, 4).t(),
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "expanded": torch.randn(1, 3).expand(4, 3),
        "whole": shared,
        "tied": shared,
        "part": shared[2:5],
        "trained": torch.nn.Parameter(torch.randn(2)),
    }
    path = save_checkpoint(tmp_path, 5, {"weights": tensors, "empty": {}}, {"a": [1, None, "\ud800"]})
    found = load_checkpoint(path)
    loaded = found.tensors("weights")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        value = tensor.detach().contiguous()
        assert loaded[name].dtype == tensor.dtype, name
        assert loaded[name].shape == tensor.shape, name
        assert torch.equal(loaded[name].flatten().view(torch.uint8), value.flatten().view(torch.uint8)), name
    assert found.tensors("empty") == {}
    assert (found.path, found.step, found.state) == (path, 5, {"a": [1, None, "\ud800"]})
    assert path == tmp_path / "checkpoints" / "step-000000005"
    assert (tmp_path / "checkpoints" / "LATEST").read_text().strip() == path.name


def test_groups_are_asked_for_by_name(run: Path) -> None:
    found = load_checkpoint(run / "checkpoints" / "step-000000002")
    assert found.has("weights")
    assert not found.has("state")
    assert found.file("weights").is_file()
    with pytest.raises(ValueError, match=r"no tensors 'optimizer'; it has: average-0\.995, weights"):
        found.tensors("optimizer")


def test_equal_saves_have_equal_bytes(tmp_path: Path) -> None:
    assert contents(save(tmp_path / "a", 3)) == contents(save(tmp_path / "b", 3))


def test_nothing_to_resume_is_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "absent", warn=never) is None
    (tmp_path / "checkpoints").mkdir()
    assert latest_checkpoint(tmp_path, warn=never) is None


def test_a_copied_checkpoint_loads_under_another_name(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "checkpoints" / "step-000000002", tmp_path / "best")
    assert is_whole(load_checkpoint(tmp_path / "best"), 2)


# --- damage


def check_refused(run: Path, reason: str) -> None:
    """The newest checkpoint, step 2, is refused and step 1 is used, with the sentence."""
    with pytest.raises(Damaged, match=reason):
        load_checkpoint(run / "checkpoints" / "step-000000002")
    said: list[str] = []
    found = latest_checkpoint(run, warn=said.append)
    assert found is not None
    assert is_whole(found, 1)
    assert len(said) == 1
    start, end = said[0].split("(", 1)[0], said[0].rsplit(")", 1)[1]
    assert start == "CK321 step-000000002 is incomplete or damaged "
    assert end == ". Using step-000000001; 1 step will be repeated."


def test_every_flipped_bit_and_truncation_is_detected(run: Path) -> None:
    folder = run / "checkpoints" / "step-000000002"
    files = sorted(path for path in folder.iterdir())
    assert len(files) == 4
    rng = random.Random(0)
    for trial in range(250):
        path = files[trial % len(files)]
        good = path.read_bytes()
        bad = bytearray(good)
        if trial < 200:
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        else:
            del bad[rng.randrange(len(bad)) :]
        path.write_bytes(bad)
        check_refused(run, path.name)
        path.write_bytes(good)
    found = latest_checkpoint(run, warn=never)
    assert found is not None
    assert is_whole(found, 2)


def test_every_single_bit_of_the_manifest_counts(run: Path) -> None:
    path = run / "checkpoints" / "step-000000002" / "MANIFEST.json"
    good = path.read_bytes()
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        with pytest.raises(Damaged, match=r"MANIFEST\.json"):
            load_checkpoint(path.parent)


@pytest.mark.parametrize("name", ["weights.safetensors", "average-0.995.safetensors", "state.json", "MANIFEST.json"])
def test_missing_zeroed_and_swapped_files_are_detected(run: Path, name: str) -> None:
    path = run / "checkpoints" / "step-000000002" / name
    good = path.read_bytes()
    path.unlink()
    check_refused(run, f"{name} is missing")
    path.write_bytes(bytes(len(good)))
    check_refused(run, name)
    shutil.copy(run / "checkpoints" / "step-000000001" / name, path)
    check_refused(run, name)
    path.unlink()
    os.mkfifo(path)
    check_refused(run, name)
    path.unlink()
    path.mkdir()
    check_refused(run, name)
    path.rmdir()
    elsewhere = run / "elsewhere"
    elsewhere.write_bytes(good)
    path.symlink_to(elsewhere)
    if name != "MANIFEST.json":
        check_refused(run, f"{name} is not a plain file")


def test_extra_files_and_foreign_folders_are_detected(run: Path) -> None:
    folder = run / "checkpoints" / "step-000000002"
    (folder / "optimizer.pt").write_bytes(b"")
    check_refused(run, r"optimizer\.pt is not in the manifest")
    shutil.rmtree(folder)
    check_refused(run, r"MANIFEST\.json is missing")
    folder.mkdir()
    check_refused(run, r"MANIFEST\.json is missing")
    shutil.rmtree(folder)
    shutil.copytree(run / "checkpoints" / "step-000000001", folder)
    check_refused(run, r"MANIFEST\.json is of step 1")
    shutil.rmtree(folder)
    folder.write_bytes(b"not a folder")
    check_refused(run, "Not a directory: MANIFEST")


@pytest.mark.parametrize(
    "text",
    [
        '{"format": 2, "step": 2}',
        "[]",
        "[" * 100_000,
        '{"format": 1, "step": 2, "files": {"state.json": 3}}',
        '{"format": 1, "step": 2, "files": {"state.json": {"size": 1, "sha256": "x"}, "../a.safetensors": {}}}',
        '{"format": 1, "format": 1}',
        "\ufeff{}",
    ],
)
def test_hostile_manifests_are_refused(run: Path, text: str) -> None:
    (run / "checkpoints" / "step-000000002" / "MANIFEST.json").write_text(text)
    check_refused(run, r"MANIFEST\.json")


def test_a_failing_disk_is_damage_and_a_refused_permission_is_not(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def digest(file: object, _kind: str) -> None:
        if "step-000000002" in str(getattr(file, "name", "")):
            raise OSError(code, os.strerror(code))
        return real(file, _kind)  # pyright: ignore[reportArgumentType, reportReturnType]

    real = checkpoint.hashlib.file_digest
    monkeypatch.setattr(checkpoint.hashlib, "file_digest", digest)
    code = errno.EIO
    check_refused(run, r"Input/output error: average-0\.995\.safetensors")
    code = errno.EACCES
    with pytest.raises(PermissionError, match="step-000000002"):
        latest_checkpoint(run, warn=never)


def test_resume_failed_is_not_nothing_to_resume(run: Path) -> None:
    for step in (1, 2):
        (run / "checkpoints" / f"step-00000000{step}" / "state.json").write_text("{}")
    with pytest.raises(Damaged, match=r"no checkpoint in it is whole: step-000000002: state\.json.*; step-000000001"):
        latest_checkpoint(run, warn=never)
    shutil.rmtree(run / "checkpoints" / "step-000000001")
    shutil.rmtree(run / "checkpoints" / "step-000000002")
    with pytest.raises(Damaged, match="step-000000002: MANIFEST"):
        latest_checkpoint(run, warn=never)


@pytest.mark.parametrize("pointer", [None, b"", b"\xff\xfe", b"../../elsewhere", b"step-2"])
def test_a_useless_pointer_leaves_the_newest(run: Path, pointer: bytes | None) -> None:
    latest = run / "checkpoints" / "LATEST"
    latest.unlink() if pointer is None else latest.write_bytes(pointer)
    found = latest_checkpoint(run, warn=never)
    assert found is not None
    assert is_whole(found, 2)


def test_bytes_changed_after_loading_are_refused(run: Path) -> None:
    found = load_checkpoint(run / "checkpoints" / "step-000000002")
    data = bytearray(found.file("weights").read_bytes())
    data[-1] ^= 1
    found.file("weights").write_bytes(data)
    with pytest.raises(Damaged, match=r"hash mismatch in weights\.safetensors"):
        found.tensors("weights")


def test_steps_are_ordered_by_number(tmp_path: Path) -> None:
    for step in (9, 10, 999_999_999, 1_000_000_000):
        save(tmp_path, step, keep=9)
    for expected in (1_000_000_000, 999_999_999, 10, 9):
        (tmp_path / "checkpoints" / "LATEST").unlink(missing_ok=True)
        found = latest_checkpoint(tmp_path, warn=never)
        assert found is not None
        assert found.step == expected
        shutil.rmtree(found.path)


def test_damage_is_a_sentence_that_survives_a_process_boundary() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(Damaged(Path("a"), "b is missing")))
    assert str(error) == "CK321 a is incomplete or damaged (b is missing)."
    assert error.reason == "b is missing"


# --- faults and kills at every stage of the writer


class Fault(Exception):
    """Thrown at a point."""


def fail() -> None:
    raise Fault


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def halt() -> None:
    os._exit(9)


def changed(run: Path) -> None:
    """Another checkpoint at the newest step: the case in which a folder is replaced."""
    save_checkpoint(run, 2, groups(3), {"step": 3, "log": 7}, carry=carried(run))


def appended(run: Path) -> None:
    save(run, 3, carry=carried(run))


def carried(run: Path) -> dict[str, Path]:
    return {"best-weights": run / "checkpoints" / "step-000000002" / "weights.safetensors"}


def points(run: Path, write: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(store, "point", names.append)
        scratch = run.with_name("scratch")
        shutil.copytree(run, scratch)
        write(scratch)
        shutil.rmtree(scratch)
    return names


def check_survived(run: Path, write: Callable[[Path], None]) -> str:
    """After a fault: the old or the new, whole, nothing left over, and the same write works."""
    found = latest_checkpoint(run, warn=never)
    assert found is not None
    assert leftovers(run) == []
    new = found.state["step"] == 3
    for name, tensors in groups(3 if new else 2).items():
        assert all(torch.equal(found.tensors(name)[key], value) for key, value in tensors.items())
    write(run)
    again = latest_checkpoint(run, warn=never)
    assert again is not None
    assert again.state["step"] == 3
    assert torch.equal(again.tensors("weights")["conv.weight"], groups(3)["weights"]["conv.weight"])
    assert leftovers(run) == []
    return "new" if new else "old"


@pytest.mark.parametrize("write", [appended, changed])
def test_a_fault_at_every_point(run: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None]) -> None:
    monkeypatch.setattr(store, "_CHUNK", 100)
    names = points(run, write, monkeypatch)
    assert len(names) >= 30
    assert len(set(names)) >= 25
    outcomes: list[str] = []
    for number in range(len(names)):
        trial = run.with_name(f"trial-{number}")
        shutil.copytree(run, trial)
        with monkeypatch.context() as patch:
            patch.setattr(store, "point", stop_at(number, fail))
            with pytest.raises(Fault):
                write(trial)
        # an error, unlike a kill, cleans up behind itself at once
        within_pruning = names[number].startswith("within pruning")
        assert leftovers(trial) == [] or within_pruning
        outcomes.append(check_survived(trial, write))
    assert outcomes == sorted(outcomes, reverse=True)
    assert {"old", "new"} == set(outcomes)


@pytest.mark.parametrize(("write", "end"), [(appended, kill), (changed, kill), (appended, halt)])
def test_a_process_killed_at_every_point(
    run: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None], end: Callable[[], None]
) -> None:
    monkeypatch.setattr(store, "_CHUNK", 100)
    names = points(run, write, monkeypatch)
    outcomes: list[str] = []
    dirty = 0
    for number in range(len(names)):
        trial = run.with_name(f"trial-{number}")
        shutil.copytree(run, trial)
        child = os.fork()
        if child == 0:
            try:
                store.point = stop_at(number, end)
                write(trial)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == (9 if end is halt else -signal.SIGKILL), names[number]
        dirty += leftovers(trial) != []
        outcomes.append(check_survived(trial, write))
    assert dirty > len(names) // 2
    assert outcomes == sorted(outcomes, reverse=True)
    assert {"old", "new"} == set(outcomes)


def test_the_order_on_the_disk(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    save(run, 3)
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


def test_stale_temporaries_go_at_the_next_start(run: Path) -> None:
    (run / ".tmp-1-a").write_text("recipe")
    (run / "checkpoints" / ".tmp-1-b").mkdir()
    (run / "checkpoints" / ".tmp-1-b" / "weights.safetensors").write_text("half")
    latest_checkpoint(run, warn=never)
    assert leftovers(run) == []


# --- what is refused, with nothing written


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64, torch.float8_e5m2])
def test_a_broken_state_is_never_written(run: Path, value: float, dtype: torch.dtype) -> None:
    before = contents(run)
    tensors = {"weights": {"ok": torch.ones(2)}, "optimizer": {"momentum": torch.tensor([1.0, value]).to(dtype)}}
    with pytest.raises(ValueError, match="CK322 optimizer: momentum"):
        save_checkpoint(run, 3, tensors, {})
    assert contents(run) == before


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
    run: Path, tensors: dict[str, dict[str, torch.Tensor]], carry: dict[str, Path]
) -> None:
    before = contents(run.parent)
    with pytest.raises(ValueError, match="must be letters"):
        save_checkpoint(run, 3, tensors, {}, carry=carry)
    assert contents(run.parent) == before


@pytest.mark.parametrize("state", [{"a": float("nan")}, {"a": (1, 2)}, {1: "a"}, {"a": {1}}, {"a": torch.ones(1)}])
def test_a_state_that_would_come_back_different_is_refused(run: Path, state: State) -> None:
    before = contents(run)
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoint(run, 3, {}, state)
    assert contents(run) == before


@pytest.mark.parametrize(("step", "keep"), [(-1, 2), (3, 0)])
def test_numbers_out_of_range_are_refused(run: Path, step: int, keep: int) -> None:
    with pytest.raises(ValueError, match=f"got {step} and {keep}"):
        save(run, step, keep=keep)


def test_a_full_disk_leaves_everything_as_it_was(run: Path) -> None:
    """Real: the system refuses to let any file grow past so many bytes, for more and more bytes."""
    before = contents(run)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for limit in (0, 50, 150, 160, 400):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            try:
                with pytest.raises(OSError, match=r"File too large: .*/(weights|average|state|MANIFEST)") as caught:
                    save(run, 3)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert caught.value.errno == errno.EFBIG
            assert contents(run) == before
    finally:
        signal.signal(signal.SIGXFSZ, handler)
    save(run, 3)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_failing_fsync_leaves_everything_as_it_was(run: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    before = contents(run)

    def refuse(_handle: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match=r"weights\.safetensors") as caught:
            save(run, 3)
        with pytest.raises(OSError, match=r"\.tmp-"):
            write_text(run / "checkpoints" / "LATEST", "other")
    assert caught.value.errno == code
    assert contents(run) == before
    assert leftovers(run) == []


def test_what_does_not_read_back_is_not_published(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(run)

    def rot(name: str) -> None:
        if name == "after MANIFEST.json":
            path = next((run / "checkpoints").glob(".tmp-*")) / "weights.safetensors"
            path.write_bytes(path.read_bytes()[:-1] + b"?")

    monkeypatch.setattr(store, "point", rot)
    with pytest.raises(Damaged, match=r"hash mismatch in weights\.safetensors"):
        save(run, 3)
    assert contents(run) == before


# --- repeating, pruning, carrying


def test_an_equal_step_is_kept_and_another_replaced(run: Path) -> None:
    folder = run / "checkpoints" / "step-000000002"
    inode = folder.stat().st_ino
    save(run, 2)
    assert folder.stat().st_ino == inode
    save_checkpoint(run, 2, groups(7), {})
    assert torch.equal(load_checkpoint(folder).tensors("weights")["bn.steps"], torch.tensor(7))
    (folder / "state.json").write_text("rot")
    save_checkpoint(run, 2, groups(7), {})
    assert load_checkpoint(folder).state == {}
    assert leftovers(run) == []


def test_the_newest_two_are_kept(run: Path) -> None:
    names = [f"step-{step:09d}" for step in range(9)]
    save(run, 3)
    assert sorted(path.name for path in (run / "checkpoints").glob("step-*")) == names[2:4]
    save(run, 4, keep=1)
    assert [path.name for path in (run / "checkpoints").glob("step-*")] == names[4:5]


def test_the_saved_step_is_not_pruned_by_later_or_incomplete_ones(run: Path) -> None:
    """After falling back, the later steps are of no use but are nobody's to delete, and do not count."""
    save(run, 8)
    save(run, 9)
    save(run, 5)
    assert (run / "checkpoints" / "LATEST").read_text().strip() == "step-000000005"
    assert {int(path.name[5:]) for path in (run / "checkpoints").glob("step-*")} == {5, 8, 9}
    (run / "checkpoints" / "step-000000009" / "state.json").unlink()
    save(run, 10)
    assert {int(path.name[5:]) for path in (run / "checkpoints").glob("step-*")} == {8, 9, 10}


@pytest.mark.parametrize("links", [True, False])
def test_a_carried_file_survives_its_source(run: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def refuse(_source: Path, _target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    source = run / "checkpoints" / "step-000000001" / "weights.safetensors"
    newest = source.parent
    for step in (3, 4, 5, 6):
        carry = {"best-weights": source if step == 3 else newest / "best-weights.safetensors"}
        # the source's own checkpoint is pruned by the very save that carries it
        newest = save(run, step, carry=carry)
    assert not source.exists()
    best = load_checkpoint(newest)
    assert torch.equal(best.tensors("best-weights")["conv.weight"], groups(1)["weights"]["conv.weight"])
    assert best.file("best-weights").stat().st_nlink == (2 if links else 1)


def test_a_carried_file_that_has_rotted_is_not_signed_anew(run: Path) -> None:
    source = run / "checkpoints" / "step-000000002" / "weights.safetensors"
    source.write_bytes(source.read_bytes()[:-1] + b"?")
    with pytest.raises(Damaged, match=r"hash mismatch in best\.safetensors"):
        save(run, 3, carry={"best": source})
    (run / "recipe.yaml").write_text("")
    with pytest.raises(Damaged, match="MANIFEST"):
        save(run, 3, carry={"best": run / "recipe.yaml"})
    with pytest.raises(ValueError, match="not a file of tensors"):
        save(run, 3, carry={"best": source.parent / "state.json"})
    assert leftovers(run) == []


# --- text and JSON


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=30, deadline=None)
@given(value=JSON)
def test_json_comes_back_equal(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path) == value
    assert repr(read_json(path)) == repr(value)


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"a": {1}}, b"x", object()])
def test_json_is_strict_in_writing(tmp_path: Path, value: object) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"b": 1, "a": 2})
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        write_json(path, value)
    assert list(read_json(path)) == ["b", "a"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"1e999",
        b"\xff",
        b'{"a": 1, "a": 2}',
        b"[" * 100_000,
        b"1" * 5000,
    ],
)
def test_json_is_strict_in_reading(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bad.json").write_bytes(data)
    with pytest.raises(ValueError, match=r"bad\.json is not a JSON file"):
        read_json(tmp_path / "bad.json")


def test_json_has_a_size_limit_and_needs_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_JSON_LIMIT", 10)
    (tmp_path / "large.json").write_text(json.dumps("x" * 9))
    with pytest.raises(ValueError, match=r"large\.json is larger than"):
        read_json(tmp_path / "large.json")
    with pytest.raises(ValueError, match="11 bytes of JSON"):
        write_json(tmp_path / "large.json", "x" * 9)
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        read_json(tmp_path / "absent.json")
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(ValueError, match=r"pipe\.json is not a file"):
        read_json(tmp_path / "pipe.json")


def test_text_is_replaced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recipe.yaml"
    write_text(path, "old\n")
    names: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(store, "point", names.append)
        write_text(path, "old\n")
    for number in range(len(names)):
        write_text(path, "old\n")
        with monkeypatch.context() as patch:
            patch.setattr(store, "point", stop_at(number, fail))
            with pytest.raises(Fault):
                write_text(path, "new é\n")
        renamed = number > names.index("before rename to recipe.yaml")
        assert path.read_bytes().decode() == ("new é\n" if renamed else "old\n")
        assert [entry.name for entry in tmp_path.iterdir()] == ["recipe.yaml"]
    with pytest.raises(FileNotFoundError, match="absent"):
        write_text(tmp_path / "absent" / "a", "")


# --- the log


def test_a_resumed_log_has_the_bytes_of_an_undisturbed_one(tmp_path: Path) -> None:
    def steps(log: Log, numbers: range) -> int:
        for number in numbers:
            log.write({"step": number, "note": "a\nb\u2028"})
        return log.flush()

    with Log(tmp_path / "whole.jsonl") as log:
        steps(log, range(20))
    with Log.resume(tmp_path / "cut.jsonl", 0) as log:
        length = steps(log, range(8))
        steps(log, range(8, 13))
    assert (tmp_path / "cut.jsonl").stat().st_size > length
    with open(tmp_path / "cut.jsonl", "ab") as file:
        file.write(b'{"half a li')
    with Log.resume(tmp_path / "cut.jsonl", length) as log:
        assert log.flush() == length
        steps(log, range(8, 20))
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert [json.loads(line)["step"] for line in (tmp_path / "cut.jsonl").read_bytes().splitlines()] == [*range(20)]


def test_a_log_that_lost_bytes_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(Damaged, match=r"metrics\.jsonl has 0 bytes, and the checkpoint counts on 5"):
        Log.resume(path, 5)
    path.write_text('{"a": 1}\n{"a": 2}\n')
    with pytest.raises(Damaged, match="counts on 19"):
        Log.resume(path, 19)
    with pytest.raises(Damaged, match="no end of a line at byte 5"):
        Log.resume(path, 5)
    assert path.stat().st_size == 18


def test_a_log_refuses_what_is_not_json(tmp_path: Path) -> None:
    with Log(tmp_path / "metrics.jsonl") as log:
        log.write({"loss": 1.5})
        with pytest.raises(ValueError, match="JSON"):
            log.write({"loss": float("nan")})
        assert log.flush() == len(b'{"loss": 1.5}\n')


def test_a_line_that_does_not_fit_is_not_written_in_half(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with Log(path) as log:
        log.write({"a": 1})
        resource.setrlimit(resource.RLIMIT_FSIZE, (15, hard))
        try:
            with pytest.raises(OSError, match=r"metrics\.jsonl"):
                log.write({"a": 2})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, handler)
        log.write({"a": 3})
        assert log.flush() == path.stat().st_size
    assert path.read_text() == '{"a": 1}\n{"a": 3}\n'


# --- the lock


def fork_holder(run: Path) -> int:
    """A child that holds the lock; returns its pid once it does."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with lock(run):
                os.write(writer, b"held")
                signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    assert os.read(reader, 4) == b"held"
    os.close(reader)
    return child


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    child = fork_holder(tmp_path / "run")
    try:
        with pytest.raises(Locked, match=rf"RN531 The run folder .*run is .* another process \(pid {child} on "):
            lock(tmp_path / "run").__enter__()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert (tmp_path / "run" / ".lock").exists()
    with lock(tmp_path / "run"):
        assert f"pid {os.getpid()} " in (tmp_path / "run" / ".lock-owner").read_text()
    assert not (tmp_path / "run" / ".lock-owner").exists()


def test_the_lock_is_held_against_oneself_and_released_after_an_error(tmp_path: Path) -> None:
    with lock(tmp_path):
        (tmp_path / ".lock-owner").write_text("<script>")
        with pytest.raises(Locked, match=r"by another process\.$"), lock(tmp_path):
            pass
    with pytest.raises(Fault), lock(tmp_path):
        fail()
    with lock(tmp_path), pytest.raises(Locked), lock(tmp_path):
        pass


def test_no_torch_is_loaded_for_reading_json() -> None:
    code = "import sys, toughen.store, toughen.checkpoint; assert not {'torch', 'safetensors'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
