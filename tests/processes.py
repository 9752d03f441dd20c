"""Several processes as torchrun starts them."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def run_ranks(script: Path, folder: Path, world: int, *more: str) -> None:
    """Run `script FOLDER MORE` in `world` processes that find each other, and wait until all have ended well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parent),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
    }
    processes = [
        subprocess.Popen([sys.executable, str(script), str(folder), *more], env={**common, "RANK": str(rank)})
        for rank in range(world)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0] * world
