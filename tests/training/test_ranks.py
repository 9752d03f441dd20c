import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("ranks.py")


def run(folder: Path, world: int) -> dict[str, dict[str, torch.Tensor]]:
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ,
        "PYTHONPATH": str(SCRIPT.parents[1]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
    }
    processes = [
        subprocess.Popen([sys.executable, str(SCRIPT), str(folder)], env={**common, "RANK": str(rank)})
        for rank in range(world)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0] * world
    return {file.stem: load_file(file) for file in folder.iterdir()}


def test_two_ranks_are_one_rank_for_every_method(tmp_path: Path):
    one, two = (run(tmp_path / str(world), world) for world in (1, 2))
    assert one.keys() == two.keys() == {"natural", "pgd", "free"}
    for method, tensors in one.items():
        assert tensors.keys() == two[method].keys()
        for name, value in tensors.items():
            assert torch.allclose(value, two[method][name], rtol=0, atol=1e-12), (method, name)
    assert one["free"]["method.delta"].abs().amax() > 0
