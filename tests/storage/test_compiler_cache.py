"""A folder of torch's compiler that cannot be written ends nothing: another is taken, and said."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from toughen.models import registry
from toughen.progress import Notice
from toughen.storage.compiler_cache import CACHE, writable_cache

TRAINING = ("-m", "toughen", "train", "mnist-free", "steps=8", "batch_size=32", "data.limit=64", "selection=pgd-1")


@pytest.fixture
def unwritable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder below a file."""
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE, str(tmp_path / "file" / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / "file" / "cache"


@pytest.mark.slow
def test_a_command_goes_on_with_another(unwritable: Path, tmp_path: Path):
    """In a process of its own, for torch looks for the folder once, when it imports its compiler."""
    command = [sys.executable, *TRAINING, "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    notes = [line for line in done.stderr.splitlines() if CACHE in line]
    assert len(notes) == 1
    said = f"note: {CACHE}: {unwritable} cannot be written (Not a directory); until this command ends it is {tmp_path}"
    assert notes[0].startswith(said)
    assert list(tmp_path.glob("torchinductor_*")) == []


def test_in_python_too(unwritable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry, "_TRIED", {})
    with pytest.warns(Notice, match=f"{CACHE}: .* cannot be written"):
        registry.try_options("small_cnn", {})
    assert Path(os.environ[CACHE]).is_dir()
    assert Path(os.environ[CACHE]).parent == tmp_path


def test_one_that_can_be_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told: list[str] = []
    monkeypatch.setenv(CACHE, str(tmp_path / "mine"))
    writable_cache(told.append)
    assert os.environ[CACHE] == str(tmp_path / "mine")
    # It is torch's to make.
    assert list(tmp_path.iterdir()) == []
    monkeypatch.delenv(CACHE)
    writable_cache(told.append)
    assert CACHE not in os.environ
    assert told == []
