"""Runs that are killed at random times, each in a fork of one warm process: `python kills.py FOLDER TRIALS`.

Prints one JSON line for each trial: the digest of everything that must be equal, and how often it was killed.
"""

import hashlib
import itertools
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from conftest import tiny_data
from toughen.data import DATA
from toughen.recipes import Recipe
from toughen.training import loop, train

torch.set_num_threads(1)
DATA["tiny"] = tiny_data


def recipe(method: object) -> Recipe:
    return Recipe.model_validate(
        {
            "data": {"source": "tiny", "pad": 1, "flip": True},
            "model": {"name": "small_cnn", "width": 2, "norm": "batch"},
            "method": method,
            "threat": "linf:0.1",
            "batch_size": 32,
            "steps": 48,
            "optimizer": {"lr": 0.05, "nesterov": True},
            "schedule": "cosine",
            "averages": [0.9, 0.99],
            "selection": {"suite": "pgd-2", "every": 14},
            "log_every": 7,
            "overfitting_every": 7,
            "save_every": 5,
        }
    )


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


def die_at(step: int) -> None:
    """Let this process kill itself just before its n-th optimiser step: with three replays, 20 is amid a minibatch."""
    original, taken = loop.set_rate, itertools.count(1)

    def deadly(*given: Any) -> None:
        if next(taken) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        original(*given)

    loop.set_rate = deadly


def in_child(method: object, run: Path, *, kill_after: float | None = None, die_at_step: int | None = None) -> bool:
    """Train in a fork; whether it ended by itself."""
    child = os.fork()
    if child == 0:
        try:
            if die_at_step is not None:
                die_at(die_at_step)
            train(recipe(method), run)
        finally:
            # Never back into the parent's code, whatever happened.
            if sys.exception():
                traceback.print_exc()
            os._exit(sys.exception() is not None)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return not os.WIFSIGNALED(status)


def main(folder: Path, trials: int) -> None:
    # Once here, so that no fork has to import anything; one thread, so that forking is safe.
    train(recipe({"name": "natural"}), folder / "warm")
    for name, method in {
        "free": {"name": "free", "replays": 3},
        "pgd": {"name": "adversarial", "attack": {"name": "pgd", "steps": 2}},
        "instance_adaptive": {"name": "instance_adaptive", "attack": {"name": "pgd", "steps": 1}, "warmup": 9},
    }.items():
        started = time.monotonic()
        in_child(method, folder / name)
        length = time.monotonic() - started
        print(json.dumps({"method": name, "digest": digest(folder / name), "kills": 0}))
        for trial in range(trials):
            run, kills, draw = folder / f"{name}-{trial}", 0, random.Random(trial)
            if trial == 0:
                assert not in_child(method, run, die_at_step=20)
                kills += 1
            while not in_child(method, run, kill_after=draw.uniform(0, length) if kills < 4 else None):
                kills += 1
            print(json.dumps({"method": name, "digest": digest(run), "kills": kills}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
