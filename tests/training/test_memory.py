"""Memory that does not suffice, wherever it ends: one sentence, and the last checkpoint as it was."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from tiny_runs import Said, command, contents, is_one_sentence, newest_of, tiny_recipe
from toughen.cli.errors import plain_errors
from toughen.training import checkpointer, rehearsal, run, setup, train
from toughen.training.acceleration import Acceleration, Graphs

TEXT = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.7 GiB of which 1.2 GiB is free."
)
HOST = "[enforce fail at alloc_cpu.cpp:126] err == 0. DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"


def full(*args: Any, **kwargs: Any) -> Any:
    raise torch.OutOfMemoryError(TEXT)


def full_host(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError(HOST)


def no_more(*args: Any, **kwargs: Any) -> Any:
    raise MemoryError


SMALLER = "use a smaller model or micro_batch=16 or activation_checkpointing=true or precision=bf16"


@pytest.mark.parametrize(
    ("place", "name", "raises", "said"),
    [
        (setup, "build_model", no_more, "MemoryError"),
        (setup, "check_trains", full, "CUDA out of memory. Tried to allocate 2.00 GiB"),
        (setup, "images_needed", full_host, HOST),
        (run, "train_batch", full, "CUDA out of memory. Tried to allocate 2.00 GiB"),
        (run, "validate", full, "CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_before_the_first_checkpoint_less_is_asked_for(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, raises: Any, said: str
):
    monkeypatch.setattr(place, name, raises)
    code, sentence = command(tiny_recipe(save_every=48), tmp_path / "run")
    assert (code, sentence) == (2, f"error: out of memory on cpu ({said}); {SMALLER}\n")


def test_in_a_graph_the_run_goes_on_without(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(setup, "chosen_ways", lambda *given: Acceleration(compiled=True))
    monkeypatch.setattr(setup, "Graphs", partial(Graphs, backend=full))
    torch._dynamo.reset()
    said = Said()
    summary = train(tiny_recipe(steps=6), tmp_path / "run", display=said)
    assert not summary["ways"]["compiled"]
    assert [note for note in said.notes if "out of memory" in note and "cannot be compiled" in note]


def test_where_neither_fits_it_is_said_once(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(setup, "chosen_ways", lambda *given: Acceleration(compiled=True))
    monkeypatch.setattr(rehearsal, "rehearse", full)
    code, sentence = command(tiny_recipe(), tmp_path / "run", said := Said())
    assert code == 2
    assert sentence.endswith(f"{SMALLER}\n")
    assert not [note for note in said.notes if "compiled" in note]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The log of a run that nothing disturbs."""
    from conftest import tiny_data
    from toughen.data import DATA

    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATA, "tiny", tiny_data)
        train(tiny_recipe(), folder)
    return (folder / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("place", "name", "raises"),
    [(run, "train_batch", full), (run, "validate", full), (checkpointer, "capture", full_host)],
)
def test_amid_a_run_the_last_checkpoint_stays_and_is_gone_on_from(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bytes, place: Any, name: str, raises: Any
):
    folder, real = tmp_path / "run", getattr(place, name)
    kept: dict[str, Any] = {}

    def once_there_is_one(*args: Any, **kwargs: Any) -> Any:
        if (folder / "checkpoints").is_dir() and any((folder / "checkpoints").glob("step-*/MANIFEST.json")):
            kept["newest"] = newest_of(folder)
            kept["files"] = contents(kept["newest"])
            raises()
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(place, name, once_there_is_one)
        code, sentence = command(tiny_recipe(), folder)
    assert code == 2
    newest = newest_of(folder)
    assert newest >= kept["newest"]
    assert contents(kept["newest"]) == kept["files"]
    assert is_one_sentence(sentence)
    assert sentence.endswith(
        f"{newest.name} in {folder} is whole, and the same command goes on from it where there is more\n"
    )
    assert command(tiny_recipe(), folder) == (0, "")
    assert (folder / "metrics.jsonl").read_bytes() == whole


@pytest.mark.parametrize("raises", [no_more, full_host])
def test_while_a_checkpoint_is_written_the_next_save_tries_again(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bytes, raises: Any
):
    real, calls = checkpointer.save_checkpoint, iter(range(10**6))

    def second_fails(*args: Any, **kwargs: Any) -> Path:
        return raises() if next(calls) == 1 else real(*args, **kwargs)

    monkeypatch.setattr(checkpointer, "save_checkpoint", second_fails)
    said = Said()
    assert command(tiny_recipe(), tmp_path / "run", said) == (0, "")
    (note,) = [note for note in said.notes if "CK312" in note]
    assert "cannot be written (Cannot allocate memory); the last good checkpoint is step-" in note
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == whole


def test_every_other_command_says_it_in_a_sentence(capsys: pytest.CaptureFixture[str]):
    for raises, said in ((full, TEXT[:180]), (no_more, "MemoryError")):
        with pytest.raises(typer.Exit) as caught, plain_errors():
            raises()
        sentence = capsys.readouterr().err
        assert caught.value.exit_code == 2
        assert is_one_sentence(sentence)
        assert said in sentence

    def with_another() -> None:
        raise RuntimeError("no kernel image is available")

    with pytest.raises(RuntimeError, match="no kernel"), plain_errors():
        with_another()
