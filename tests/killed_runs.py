"""Runs that signals end at random times, each in a fork of one warm process.

    python killed_runs.py FOLDER TRIALS SIGTERM
    python killed_runs.py FOLDER TRIALS points         # SIGKILL at so many places in the writer of checkpoints

Prints one JSON line for each trial: the digest of everything that must be equal, and what each signal met. Trials go
through all methods that keep state; each method has one that nothing disturbs, whose digest is the one to be met.
"""

import contextlib
import hashlib
import io
import itertools
import json
import os
import random
import re
import select
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from conftest import tiny_data
from toughen.cli.errors import plain_errors
from toughen.data import DATA
from toughen.progress import Display
from toughen.recipes import Recipe
from toughen.storage import files
from toughen.training import loop, train

torch.set_num_threads(1)
DATA["tiny"] = tiny_data

PGD = {"name": "pgd", "steps": 2}
SHORT = {"name": "pgd", "steps": 1}
RUNS: dict[str, dict[str, Any]] = {
    "free": {"method": {"name": "free", "replays": 3}},
    "pgd": {"method": {"name": "adversarial", "attack": PGD}},
    "instance_adaptive": {"method": {"name": "instance_adaptive", "attack": SHORT, "warmup": 9}},
    "free of each image": {"method": {"name": "free", "replays": 2, "memory": "image", "clip_delta": True}},
    "free of each batch": {"method": {"name": "free", "replays": 2, "memory": "batch"}},
    "instance_adaptive, reuse": {
        "method": {"name": "instance_adaptive", "attack": SHORT, "warmup": 9, "selection": "reuse"}
    },
    "one step": {"method": {"name": "adversarial", "attack": {"name": "rs_fgsm"}}},
    "trades, perturbed weights": {"method": {"name": "trades", "attack": SHORT}, "weight_perturbation": {}},
    "mart, in parts": {"method": {"name": "mart", "attack": SHORT}, "micro_batch": 16},
    "mixup of free": {"method": {"name": "mixup", "method": {"name": "free", "replays": 2}}},
    "bilateral": {"method": {"name": "bilateral"}},
    "interpolated": {"method": {"name": "interpolated", "attack": SHORT}},
}
FIRST = list(RUNS)[:3]
"""What the short form of the test runs."""
BRIEF: dict[str, Any] = {**RUNS["free"], "steps": 18}
"""Long enough for every place in the writer of checkpoints."""


def recipe(changes: dict[str, Any]) -> Recipe:
    return Recipe.model_validate(
        {
            "data": {"source": "tiny", "pad": 1, "flip": True},
            "model": {"name": "small_cnn", "width": 2, "norm": "batch"},
            "threat": "linf:0.1",
            "batch_size": 32,
            "steps": 32,
            "optimizer": {"lr": 0.05, "nesterov": True},
            "schedule": "cosine",
            "averages": [0.9, 0.99],
            "selection": {"suite": "pgd-2", "every": 11},
            "log_every": 7,
            "overfitting_every": 14,
            "save_every": SAVE_EVERY,
            **changes,
        }
    )


SAVE_EVERY = 5


def digest(run: Path) -> str:
    """Of the final checkpoint and the log; what the clock said is not compared."""
    total = hashlib.sha256((run / "metrics.jsonl").read_bytes())
    newest = run / "checkpoints" / (run / "checkpoints" / "LATEST").read_text().strip()
    for file in sorted(newest.glob("*.safetensors")):
        total.update(file.name.encode() + file.read_bytes())
    state = json.loads((newest / "state.json").read_text())
    for key in ("seconds", "timing"):
        state.pop(key)
    total.update(json.dumps(state, sort_keys=True).encode())
    left = [str(path) for path in run.rglob(".tmp-*")]
    assert not left, left
    return total.hexdigest()


def at_optimiser_step(number: int, signals: list[int]) -> None:
    """Let this process send itself signals before its n-th optimiser step: with three replays, amid a minibatch."""
    original, taken = loop.set_rate, itertools.count(1)

    def deadly(*given: Any) -> None:
        if next(taken) == number:
            for each in signals:
                os.kill(os.getpid(), each)
        original(*given)

    loop.set_rate = deadly


class Steps(Display):
    """Writes the step from which a run goes on."""

    def __init__(self, to: int) -> None:
        self.to = to

    def start(self, title: str, step: int, total: int) -> None:
        os.write(self.to, f"from {step}\n".encode())


@dataclass(frozen=True)
class Sitting:
    """How a process ended.

    Attributes:
        ended: it was done.
        status: its exit code, negative for a signal.
        begun: the step that it went on from; None where it was stopped before.
        saved: the step that it said it had saved; None where it did not.
        said: its standard error.
        took: seconds from the signal to the end.
    """

    ended: bool
    status: int
    begun: int | None
    saved: int | None
    said: str
    took: float


def in_child(
    changes: dict[str, Any],
    run: Path,
    *,
    after: float | None = None,
    number: int = signal.SIGKILL,
    at_step: int | None = None,
    at_point_number: int | None = None,
) -> Sitting:
    """Train in a fork, as the command line does, to which a signal is sent after so many seconds."""
    heard, to = os.pipe()
    child = os.fork()
    if child == 0:
        code, errors = 1, io.StringIO()
        try:
            if at_step is not None:
                at_optimiser_step(at_step, [number])
            if at_point_number is not None:
                at_point(at_point_number)
            with contextlib.redirect_stderr(errors), plain_errors():
                os.write(to, b"ready\n")
                train(recipe(changes), run, display=Steps(to))
            code = 0
        except typer.Exit as end:
            code = end.exit_code
        except BaseException:  # noqa: BLE001  # a traceback is what the test must see
            traceback.print_exc(file=errors)
        finally:
            # Never back into the parent's code, whatever happened.
            os.write(to, errors.getvalue().encode())
            os._exit(code)
    os.close(to)
    sent = time.monotonic()
    if after is not None:
        select.select([heard], [], [])
        time.sleep(after)
        sent = time.monotonic()
        os.kill(child, number)
    with open(heard, encoding="utf-8") as said:
        text = said.read()
    _, status = os.waitpid(child, 0)
    took = time.monotonic() - sent
    begun, saved = re.search(r"^from (\d+)$", text, re.M), re.search(r"saved step (\d+)", text)
    end = os.waitstatus_to_exitcode(status)
    return Sitting(
        end == 0,
        end,
        int(begun[1]) if begun else None,
        int(saved[1]) if saved else None,
        text.partition("error: ")[2],
        took,
    )


def at_point(number: int) -> None:
    """Let this process kill itself at the n-th place of its writer of checkpoints."""
    reached = itertools.count()

    def die(_name: str) -> None:
        if next(reached) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    files.point = die


def points(run: Path) -> list[int]:
    """Numbers of the places that a run's writer reaches, one for each name."""
    seen: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "point", lambda name: seen.append(re.sub(r"\.tmp-[^/ ]*|[0-9]{9}", "", name)))
        train(recipe(BRIEF), run)
    # The last of each name: the checkpoints before have all there is to lose.
    return sorted({name: number for number, name in enumerate(seen)}.values())


def killed_at_points(folder: Path, trials: int) -> None:
    found = points(folder / "whole")
    for number in found[:: max(1, len(found) // trials)]:
        run = folder / f"point-{number}"
        died, ended = in_child(BRIEF, run, at_point_number=number), in_child(BRIEF, run)
        assert (died.status, ended.status) == (-signal.SIGKILL, 0), (died, ended)
        print(json.dumps({"point": number, "equal": digest(run) == digest(folder / "whole")}), flush=True)


def newest(run: Path) -> int:
    """Step of the newest checkpoint, 0 when there is none."""
    return max((int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*")), default=0)


def cut_short(run: Path) -> bool:
    """Whether a signal came amid the validation that is due at the newest checkpoint."""
    state = run / "checkpoints" / f"step-{newest(run):09}" / "state.json"
    return state.exists() and json.loads(state.read_text())["unvalidated"]


def main(folder: Path, trials: int, name: str) -> None:
    # Once here, so that no fork has to import anything; one thread, so that forking is safe.
    train(recipe({"method": "natural"}), folder / "warm")
    if name == "points":
        killed_at_points(folder, trials)
        return
    number, draw = signal.Signals[name], random.Random(name)
    full = trials > len(FIRST) * 4
    runs, most = (RUNS, 4) if full else ({key: RUNS[key] for key in FIRST[:trials]}, 2)
    lengths = {}
    for key, changes in runs.items():
        started = time.monotonic()
        sitting = in_child(changes, folder / key)
        assert sitting.ended, sitting
        lengths[key] = time.monotonic() - started
        print(json.dumps({"method": key, "digest": digest(folder / key), "sittings": []}), flush=True)
    for trial, (key, changes) in zip(range(trials), itertools.cycle(runs.items()), strict=False):
        run, sittings = folder / f"{key}-{trial}", []
        while True:
            first = {"at_step": 17} if len(sittings) == 0 and trial < len(runs) else {}
            again = {"after": draw.uniform(0, lengths[key])} if len(sittings) < most and not first else {}
            before, cut = newest(run), cut_short(run)
            sitting = in_child(changes, run, number=number, **again, **first)
            if sitting.ended:
                break
            sittings.append({**vars(sitting), "before": before, "cut": cut, "newest": newest(run)})
        print(json.dumps({"method": key, "digest": digest(run), "sittings": sittings}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
