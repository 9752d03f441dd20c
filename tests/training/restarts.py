"""Two ranks of which one is killed, or told to stop, or that no longer agree.

python restarts.py stops FOLDER TRIALS            # forks of one warm process; one JSON line for each trial
torchrun ... restarts.py rank FOLDER WHERE        # one rank, which dies at WHERE unless it was started anew
"""

import json
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import torch
import typer

from conftest import tiny_data
from killed_runs import at_optimiser_step, digest, newest, recipe
from toughen.cli.errors import plain_errors
from toughen.data import DATA
from toughen.storage import files
from toughen.training import train

torch.set_num_threads(1)
DATA["tiny"] = tiny_data
FREE = {"method": {"name": "free", "replays": 3}}


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def both(run: Path, at_step: int | None) -> list[dict[str, Any]]:
    """Train on two ranks in forks; the second one is sent SIGTERM before its optimiser step of that number."""
    os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    ends = []
    for rank in range(2):
        heard, to = os.pipe()
        child = os.fork()
        if child == 0:
            os.environ["RANK"] = str(rank)
            if rank == 1 and at_step is not None:
                at_optimiser_step(at_step, [signal.SIGTERM])
            os.dup2(to, 2)
            code = 1
            try:
                with plain_errors():
                    os.write(2, b"ready\n")
                    train(recipe(FREE), run)
                code = 0
            except typer.Exit as end:
                code = end.exit_code
            finally:
                sys.stderr.flush()
                os._exit(code)
        os.close(to)
        ends.append((child, heard))
    begun, found = time.monotonic(), []
    for child, heard in ends:
        with open(heard, encoding="utf-8") as said:
            text = said.read().partition("error: ")[2]
        _, status = os.waitpid(child, 0)
        found.append(
            {"status": os.waitstatus_to_exitcode(status), "said": text.strip(), "took": time.monotonic() - begun}
        )
    return found


def stops(folder: Path, trials: int) -> None:
    # Once here, so that no fork has to import anything.
    train(recipe({"method": "natural"}), folder / "warm")
    both(folder / "whole", None)
    draw = random.Random("stops")
    for trial in range(trials):
        run = folder / f"stopped-{trial}"
        stopped = both(run, draw.randint(1, 30))
        saved = newest(run)
        ended = both(run, None)
        equal = digest(run) == digest(folder / "whole")
        print(json.dumps({"stopped": stopped, "saved": saved, "ended": ended, "equal": equal}), flush=True)


def rank(folder: Path, where: str) -> None:
    """Rank 1 is killed at its 20th optimiser step, or the first one amid its third checkpoint."""
    attempt, own = os.environ["TORCHELASTIC_RESTART_COUNT"], os.environ["RANK"]
    (folder / f"attempt-{attempt}-rank-{own}").touch()
    if where == "step" and own == "1" and (attempt == "0" or (folder / "always").exists()):
        at_optimiser_step(20, [signal.SIGKILL])
    if where == "save" and own == "0" and attempt == "0":
        reached = iter(range(10**6))

        def die(point: str) -> None:
            if point == "within weights.safetensors" and next(reached) == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        files.point = die
    code = 0
    try:
        with plain_errors():
            train(recipe(FREE), folder / "run")
    except typer.Exit as end:
        code = end.exit_code
    sys.exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "stops":
        stops(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        rank(Path(sys.argv[2]), sys.argv[3])
