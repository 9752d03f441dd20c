"""Several processes as torchrun starts them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

LEAVING = "import os, runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__'); os._exit(0)"
"""Runs a script and is gone: at the interpreter's end gloo's threads abort a process in 25, torch's doing."""


def run_ranks(script: Path, folder: Path, world: int, *more: str) -> None:
    """Run `script FOLDER MORE` in `world` processes that find each other, and wait until all have ended well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(script.parent)]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LEAVING, str(script), str(folder), *more], env={**common, "RANK": str(rank)}
        )
        for rank in range(world)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0] * world
