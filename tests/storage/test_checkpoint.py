"""Checkpoints: whole or refused, whatever has happened to their files."""

import errno
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from toughen.storage import checkpoint
from toughen.storage.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint
from toughen.storage.files import Damaged


@pytest.fixture
def run(saving: Any, tmp_path: Path) -> Path:
    """A run folder with checkpoints of steps 1 and 2."""
    saving.save(tmp_path / "run", 1)
    saving.save(tmp_path / "run", 2)
    return tmp_path / "run"


def is_whole(saving: Any, found: Checkpoint, step: int) -> bool:
    loaded = {name: found.tensors(name) for name in saving.groups(step)}
    equal = all(
        torch.equal(loaded[name][key], value) for name, g in saving.groups(step).items() for key, value in g.items()
    )
    return found.step == step and equal and found.state == {"step": step, "log": 7}


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


def test_equal_saves_have_equal_bytes(saving: Any, tmp_path: Path) -> None:
    assert saving.contents(saving.save(tmp_path / "a", 3)) == saving.contents(saving.save(tmp_path / "b", 3))


def test_nothing_to_resume_is_none(saving: Any, tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "absent", warn=saving.never) is None
    (tmp_path / "checkpoints").mkdir()
    assert latest_checkpoint(tmp_path, warn=saving.never) is None


def test_a_copied_checkpoint_loads_under_another_name(saving: Any, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "checkpoints" / "step-000000002", tmp_path / "best")
    assert is_whole(saving, load_checkpoint(tmp_path / "best"), 2)


# --- damage


def check_refused(saving: Any, run: Path, reason: str) -> None:
    """The newest checkpoint, step 2, is refused and step 1 is used, with the sentence."""
    with pytest.raises(Damaged, match=reason):
        load_checkpoint(run / "checkpoints" / "step-000000002")
    said: list[str] = []
    found = latest_checkpoint(run, warn=said.append)
    assert found is not None
    assert is_whole(saving, found, 1)
    assert len(said) == 1
    start, end = said[0].split("(", 1)[0], said[0].rsplit(")", 1)[1]
    assert start == "CK321 step-000000002 is incomplete or damaged "
    assert end == ". Using step-000000001; 1 step will be repeated."


def test_every_flipped_bit_and_truncation_is_detected(saving: Any, run: Path) -> None:
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
        check_refused(saving, run, path.name)
        path.write_bytes(good)
    found = latest_checkpoint(run, warn=saving.never)
    assert found is not None
    assert is_whole(saving, found, 2)


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
def test_missing_zeroed_and_swapped_files_are_detected(saving: Any, run: Path, name: str) -> None:
    path = run / "checkpoints" / "step-000000002" / name
    good = path.read_bytes()
    path.unlink()
    check_refused(saving, run, f"{name} is missing")
    path.write_bytes(bytes(len(good)))
    check_refused(saving, run, name)
    shutil.copy(run / "checkpoints" / "step-000000001" / name, path)
    check_refused(saving, run, name)
    path.unlink()
    os.mkfifo(path)
    check_refused(saving, run, name)
    path.unlink()
    path.mkdir()
    check_refused(saving, run, name)
    path.rmdir()
    elsewhere = run / "elsewhere"
    elsewhere.write_bytes(good)
    path.symlink_to(elsewhere)
    if name != "MANIFEST.json":
        check_refused(saving, run, f"{name} is not a plain file")


def test_extra_files_and_foreign_folders_are_detected(saving: Any, run: Path) -> None:
    folder = run / "checkpoints" / "step-000000002"
    (folder / "optimizer.pt").write_bytes(b"")
    check_refused(saving, run, r"optimizer\.pt is not in the manifest")
    shutil.rmtree(folder)
    check_refused(saving, run, r"MANIFEST\.json is missing")
    folder.mkdir()
    check_refused(saving, run, r"MANIFEST\.json is missing")
    shutil.rmtree(folder)
    shutil.copytree(run / "checkpoints" / "step-000000001", folder)
    check_refused(saving, run, r"MANIFEST\.json is of step 1")
    shutil.rmtree(folder)
    folder.write_bytes(b"not a folder")
    check_refused(saving, run, "Not a directory: MANIFEST")


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
def test_hostile_manifests_are_refused(saving: Any, run: Path, text: str) -> None:
    (run / "checkpoints" / "step-000000002" / "MANIFEST.json").write_text(text)
    check_refused(saving, run, r"MANIFEST\.json")


def test_a_failing_disk_is_damage_and_a_refused_permission_is_not(
    saving: Any, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digest(file: object, _kind: str) -> None:
        if "step-000000002" in str(getattr(file, "name", "")):
            raise OSError(code, os.strerror(code))
        return real(file, _kind)  # pyright: ignore[reportArgumentType, reportReturnType]

    real = checkpoint.hashlib.file_digest
    monkeypatch.setattr(checkpoint.hashlib, "file_digest", digest)
    code = errno.EIO
    check_refused(saving, run, r"Input/output error: average-0\.995\.safetensors")
    code = errno.EACCES
    with pytest.raises(PermissionError, match="step-000000002"):
        latest_checkpoint(run, warn=saving.never)


def test_resume_failed_is_not_nothing_to_resume(saving: Any, run: Path) -> None:
    for step in (1, 2):
        (run / "checkpoints" / f"step-00000000{step}" / "state.json").write_text("{}")
    with pytest.raises(Damaged, match=r"no checkpoint in it is whole: step-000000002: state\.json.*; step-000000001"):
        latest_checkpoint(run, warn=saving.never)
    shutil.rmtree(run / "checkpoints" / "step-000000001")
    shutil.rmtree(run / "checkpoints" / "step-000000002")
    with pytest.raises(Damaged, match="step-000000002: MANIFEST"):
        latest_checkpoint(run, warn=saving.never)


@pytest.mark.parametrize("pointer", [None, b"", b"\xff\xfe", b"../../elsewhere", b"step-2"])
def test_a_useless_pointer_leaves_the_newest(saving: Any, run: Path, pointer: bytes | None) -> None:
    latest = run / "checkpoints" / "LATEST"
    latest.unlink() if pointer is None else latest.write_bytes(pointer)
    found = latest_checkpoint(run, warn=saving.never)
    assert found is not None
    assert is_whole(saving, found, 2)


def test_a_writer_killed_before_it_could_point_at_its_checkpoint_has_not_worked_in_vain(saving: Any, run: Path) -> None:
    pointer = run / "checkpoints" / "LATEST"
    pointer.write_text("step-000000001\n")
    for clean, pointed in ((False, "step-000000001\n"), (True, "step-000000002\n")):
        found = latest_checkpoint(run, warn=saving.never, clean=clean)
        assert found is not None
        assert is_whole(saving, found, 2)
        assert pointer.read_text() == pointed
    pointer.write_text("step-000000001\n")
    # After falling back there may be damaged ones beyond, of which the user has been told.
    (run / "checkpoints" / "step-000000002" / "state.json").write_text("rot")
    found = latest_checkpoint(run, warn=saving.never)
    assert found is not None
    assert is_whole(saving, found, 1)


def test_bytes_changed_after_loading_are_refused(run: Path) -> None:
    found = load_checkpoint(run / "checkpoints" / "step-000000002")
    data = bytearray(found.file("weights").read_bytes())
    data[-1] ^= 1
    found.file("weights").write_bytes(data)
    with pytest.raises(Damaged, match=r"hash mismatch in weights\.safetensors"):
        found.tensors("weights")


def test_steps_are_ordered_by_number(saving: Any, tmp_path: Path) -> None:
    for step in (9, 10, 999_999_999, 1_000_000_000):
        saving.save(tmp_path, step, keep=9)
    for expected in (1_000_000_000, 999_999_999, 10, 9):
        (tmp_path / "checkpoints" / "LATEST").unlink(missing_ok=True)
        found = latest_checkpoint(tmp_path, warn=saving.never)
        assert found is not None
        assert found.step == expected
        shutil.rmtree(found.path)


def test_damage_is_a_sentence_that_survives_a_process_boundary() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(Damaged(Path("a"), "b is missing")))
    assert str(error) == "CK321 a is incomplete or damaged (b is missing)."
    assert error.reason == "b is missing"


# --- repeating, pruning, carrying


def test_an_equal_step_is_kept_and_another_replaced(saving: Any, run: Path) -> None:
    folder = run / "checkpoints" / "step-000000002"
    inode = folder.stat().st_ino
    saving.save(run, 2)
    assert folder.stat().st_ino == inode
    save_checkpoint(run, 2, saving.groups(7), {})
    assert torch.equal(load_checkpoint(folder).tensors("weights")["bn.steps"], torch.tensor(7))
    (folder / "state.json").write_text("rot")
    save_checkpoint(run, 2, saving.groups(7), {})
    assert load_checkpoint(folder).state == {}
    assert saving.leftovers(run) == []


def test_the_newest_two_are_kept(saving: Any, run: Path) -> None:
    names = [f"step-{step:09d}" for step in range(9)]
    saving.save(run, 3)
    assert sorted(path.name for path in (run / "checkpoints").glob("step-*")) == names[2:4]
    saving.save(run, 4, keep=1)
    assert [path.name for path in (run / "checkpoints").glob("step-*")] == names[4:5]


def test_the_saved_step_is_not_pruned_by_later_or_incomplete_ones(saving: Any, run: Path) -> None:
    """After falling back, the later steps are of no use but are nobody's to delete, and do not count."""
    saving.save(run, 8)
    saving.save(run, 9)
    saving.save(run, 5)
    assert (run / "checkpoints" / "LATEST").read_text().strip() == "step-000000005"
    assert {int(path.name[5:]) for path in (run / "checkpoints").glob("step-*")} == {5, 8, 9}
    (run / "checkpoints" / "step-000000009" / "state.json").unlink()
    saving.save(run, 10)
    assert {int(path.name[5:]) for path in (run / "checkpoints").glob("step-*")} == {8, 9, 10}


@pytest.mark.parametrize("links", [True, False])
def test_a_carried_file_survives_its_source(
    saving: Any, run: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def refuse(_source: Path, _target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    source = run / "checkpoints" / "step-000000001" / "weights.safetensors"
    newest, inodes = source.parent, list[int]()
    for step in (3, 4, 5, 6):
        carry = {"best-weights": source if step == 3 else newest / "best-weights.safetensors"}
        # the source's own checkpoint is pruned by the very save that carries it
        newest = saving.save(run, step, carry=carry)
        inodes.append((newest / "best-weights.safetensors").stat().st_ino)
    assert not source.exists()
    best = load_checkpoint(newest)
    assert torch.equal(best.tensors("best-weights")["conv.weight"], saving.groups(1)["weights"]["conv.weight"])
    # Two files in turn, so that a bit that flips in one checkpoint leaves the other.
    assert {path.stat().st_nlink for path in (run / "checkpoints").glob("step-*/*")} == {1}
    assert (len(set(inodes)) == 2) == links


def test_a_carried_file_that_has_rotted_is_not_signed_anew(saving: Any, run: Path) -> None:
    source = run / "checkpoints" / "step-000000002" / "weights.safetensors"
    source.write_bytes(source.read_bytes()[:-1] + b"?")
    with pytest.raises(Damaged, match=r"hash mismatch in best\.safetensors"):
        saving.save(run, 3, carry={"best": source})
    (run / "recipe.yaml").write_text("")
    with pytest.raises(Damaged, match="MANIFEST"):
        saving.save(run, 3, carry={"best": run / "recipe.yaml"})
    with pytest.raises(ValueError, match="not a file of tensors"):
        saving.save(run, 3, carry={"best": source.parent / "state.json"})
    assert saving.leftovers(run) == []


def test_who_only_reads_leaves_temporaries_alone(saving: Any, run: Path) -> None:
    """They may belong to a writer at work, as may a checkpoint that it has set aside."""
    for parent in (run, run / "checkpoints"):
        (parent / ".tmp-1-a").mkdir()
        (parent / ".tmp-1-a" / "weights.safetensors").write_text("half")
    shutil.copytree(run / "checkpoints" / "step-000000001", run / "checkpoints" / ".replaced-step-000000003")
    before = saving.contents(run)
    found = latest_checkpoint(run, warn=saving.never, clean=False)
    assert found is not None
    assert is_whole(saving, found, 2)
    assert saving.contents(run) == before
    assert len(saving.leftovers(run)) == 3
    latest_checkpoint(run, warn=saving.never)
    assert saving.leftovers(run) == []
    assert (run / "checkpoints" / "step-000000003").is_dir()
