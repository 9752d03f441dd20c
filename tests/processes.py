"""Scripts in processes of their own that need not import torch again: forks of one that has.

    run_ranks(script, folder, 2)                     # two ranks that find each other, as torchrun starts them
    done = run_script(script, folder, 9, "SIGKILL")  # `python script FOLDER 9 SIGKILL`; done.stdout is what it printed
    done = run_script(TOUGHEN, "list", folder=here)  # `python -m toughen list` in the folder `here`

Run as a script, this file is the process that forks: it is begun when it is first needed and ends with whoever asks.
"""

import atexit
import functools
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import toughen

TOUGHEN = Path(toughen.__file__).with_name("__main__.py")
"""The command line, as a script."""
SECONDS = 1800
"""After which scripts have plainly hung."""


@functools.cache
def _warm() -> subprocess.Popen[str]:
    """The process that forks."""
    found = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        start_new_session=True,
    )
    atexit.register(found.communicate)
    return found


def _codes(scripts: list[dict[str, Any]]) -> list[int]:
    """Exit codes of scripts that run side by side."""
    warm = _warm()
    assert warm.stdin is not None
    assert warm.stdout is not None
    warm.stdin.write(json.dumps(scripts) + "\n")
    warm.stdin.flush()
    if not select.select([warm.stdout], [], [], SECONDS)[0]:
        _warm.cache_clear()
        os.killpg(warm.pid, signal.SIGKILL)
        raise TimeoutError(f"{scripts} still run after {SECONDS} s")
    return json.loads(warm.stdout.readline())


def run_script(script: Path, *arguments: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `script ARGUMENTS` in a process of its own, in a folder."""
    argv = [str(script), *map(str, arguments)]
    with tempfile.TemporaryDirectory() as place:
        said = [Path(place) / name for name in ("stdout", "stderr")]
        given = {"argv": argv, "environment": dict(os.environ), "folder": str(folder or Path.cwd())}
        (code,) = _codes([{**given, "said": list(map(str, said))}])
        return subprocess.CompletedProcess(argv, code, *(path.read_text(encoding="utf-8") for path in said))


def run_ranks(script: Path, folder: Path, world: int, *more: str) -> None:
    """Run `script FOLDER MORE` in `world` processes that find each other, and wait until all have ended well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    argv = [str(script), str(folder), *more]
    given = {"argv": argv, "folder": str(Path.cwd()), "said": None}
    ranks = [{**given, "environment": {**common, "RANK": str(rank)}} for rank in range(world)]
    assert _codes(ranks) == [0] * world


def serve() -> None:
    """Answer each line of the input, scripts that are to run side by side, by their exit codes."""
    import torch

    # One thread, so that forking is safe.
    torch.set_num_threads(1)
    # What scripts import, much of it no sooner than a network is trained and measured.
    import torch.distributed.fsdp

    import toughen.cli.app  # noqa: F401
    from conftest import tiny_data
    from tiny_runs import tiny_recipe
    from toughen import train, workflows
    from toughen.data import DATA

    DATA["tiny"] = tiny_data
    with tempfile.TemporaryDirectory() as folder:
        train(tiny_recipe(steps=3), Path(folder) / "run")
        workflows.evaluate(Path(folder) / "run", "pgd-1")
    del DATA["tiny"]
    gc.freeze()

    for line in sys.stdin:
        children = [_forked(script) for script in json.loads(line)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(codes), flush=True)


def _forked(script: dict[str, Any]) -> int:
    if child := os.fork():
        return child
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if script["said"] is None:
            os.dup2(2, 1)
        else:
            for number, path in enumerate(script["said"], 1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.environ.clear()
        os.environ |= script["environment"]
        os.chdir(script["folder"])
        sys.argv = script["argv"]
        sys.path.insert(0, str(Path(sys.argv[0]).parent))
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001  # whatever it is, the parent's code is not for this process
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not by the interpreter's end, where gloo's threads abort a process in 25, torch's doing.
        os._exit(code)


if __name__ == "__main__":
    serve()
