"""Two ranks, each with a pretended GPU of its own, train what two ranks on the CPU train."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

import two_devices
from tiny_runs import newest_of

HERE = Path(__file__).parent


def test_two_devices_train_what_two_ranks_on_the_cpu_train(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "PRETENDED": os.environ.get("PRETENDED", str(HERE / ".compiled")),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, str(HERE / "two_devices.py"), str(tmp_path)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [rank.wait(timeout=600) for rank in ranks] == [0, 0]
    for name in two_devices.RECIPES:
        there, here = (
            load_file(newest_of(tmp_path / f"{name}-{device}") / "weights.safetensors") for device in ("cuda", "cpu")
        )
        assert there.keys() == here.keys()
        for key, value in there.items():
            torch.testing.assert_close(value, here[key], msg=lambda text, key=key: f"{key}: {text}")
