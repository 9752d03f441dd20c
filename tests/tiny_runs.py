"""Tiny runs for tests of what a disk can do to them: `train` of a small network, and what must be equal in the end."""

import contextlib
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import torch
import typer

from toughen.cli.errors import plain_errors
from toughen.data import Batches
from toughen.progress import Display
from toughen.recipes import Recipe
from toughen.recipes.text import build
from toughen.training import train
from toughen.training.loop import Job
from toughen.training.setup import load_data, set_up, splits


def tiny_recipe(**changes: object) -> Recipe:
    """Free with BatchNorm, momentum, two averages and best weights: 48 steps in 16 batches, saved nine times."""
    mapping: dict[str, object] = {
        "data": {"source": "tiny", "pad": 1, "flip": True},
        "model": {"name": "small_cnn", "width": 2, "norm": "batch"},
        "method": {"name": "free", "replays": 3},
        "threat": "linf:0.1",
        "batch_size": 32,
        "steps": 48,
        "optimizer": {"lr": 0.05, "nesterov": True},
        "averages": [0.9, 0.99],
        "selection": {"suite": "pgd-1", "every": 15},
        "log_every": 6,
        "overfitting_every": 0,
        "save_every": 6,
    }
    return build({**mapping, **changes})


def tiny_job(recipe: Recipe, **given: Any) -> tuple[Job, Batches]:
    """A run in its first state, and its batches; what else is given goes to `set_up`."""
    data = load_data(recipe)
    split, _, index = splits(recipe, data)
    return set_up(recipe, data, split, index, torch.device("cpu"), **given)


def newest_of(run: Path) -> Path:
    """The newest checkpoint."""
    return max((run / "checkpoints").glob("step-*"))


def digest(run: Path) -> str:
    """Of the log and the newest checkpoint; what the clock said is not compared, and nothing may be left over."""
    assert leftovers(run) == []
    total = hashlib.sha256((run / "metrics.jsonl").read_bytes())
    for file in sorted(newest_of(run).glob("*.safetensors")):
        total.update(file.name.encode() + file.read_bytes())
    state = json.loads((newest_of(run) / "state.json").read_text())
    for key in ("seconds", "timing"):
        state.pop(key)
    total.update(json.dumps(state, sort_keys=True).encode())
    return total.hexdigest()


def leftovers(run: Path) -> list[str]:
    """What a writer left behind."""
    return [str(path) for path in run.rglob(".*") if path.name.startswith((".tmp-", ".replaced-"))]


class Said(Display):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def command(recipe: Recipe, out: Path, display: Display | None = None) -> tuple[int, str]:
    """Train as `toughen train` does: its exit code, and what stands on standard error."""
    said, code = io.StringIO(), 0
    with contextlib.redirect_stderr(said):
        try:
            with plain_errors():
                train(recipe, out, display=display)
        except typer.Exit as error:
            code = error.exit_code
    return code, said.getvalue()


def is_one_sentence(said: str) -> bool:
    """Whether it is one line that begins like an error of ours."""
    return said.startswith("error: ") and said.count("\n") == 1 and "Traceback" not in said


def contents(folder: Path) -> dict[str, Any]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
