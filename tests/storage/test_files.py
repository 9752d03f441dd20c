"""Text, JSON, logs and locks of run folders: whole or refused."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toughen.storage import files
from toughen.storage.files import Damaged, Locked, Log, lock, read_json, write_json, write_text

# Python 3.12 warns of a fork beside torch's idle threads; the children here only write files and are killed
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


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
    monkeypatch.setattr(files, "_JSON_LIMIT", 10)
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


def test_text_is_replaced_at_once(saving: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recipe.yaml"
    write_text(path, "old\n")
    names: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(files, "point", names.append)
        write_text(path, "old\n")
    for number in range(len(names)):
        write_text(path, "old\n")
        with monkeypatch.context() as patch:
            patch.setattr(files, "point", saving.stop_at(number, saving.fail))
            with pytest.raises(saving.Fault):
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


def test_the_lock_is_held_against_oneself_and_released_after_an_error(saving: Any, tmp_path: Path) -> None:
    with lock(tmp_path):
        (tmp_path / ".lock-owner").write_text("<script>")
        with pytest.raises(Locked, match=r"by another process\.$"), lock(tmp_path):
            pass
    with pytest.raises(saving.Fault), lock(tmp_path):
        saving.fail()
    with lock(tmp_path), pytest.raises(Locked), lock(tmp_path):
        pass


def test_no_torch_is_loaded_for_reading_json() -> None:
    imports = "import sys, toughen.storage.files, toughen.storage.checkpoint"
    code = f"{imports}; assert not {{'torch', 'safetensors'}} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
