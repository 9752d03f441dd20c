from pathlib import Path

import torch
from safetensors.torch import load_file

from method_cases import CASES
from processes import run_ranks

SCRIPT = Path(__file__).with_name("ranks.py")


def run(folder: Path, world: int) -> dict[str, dict[str, torch.Tensor]]:
    folder.mkdir()
    run_ranks(SCRIPT, folder, world)
    return {file.stem: load_file(file) for file in folder.iterdir()}


def test_two_ranks_are_one_rank_for_every_method(tmp_path: Path):
    one, two = (run(tmp_path / str(world), world) for world in (1, 2))
    assert one.keys() == two.keys() == CASES.keys()
    for method, tensors in one.items():
        assert tensors.keys() == two[method].keys()
        for name, value in tensors.items():
            assert torch.allclose(value, two[method][name], rtol=0, atol=1e-12), (method, name)
    assert one["free"]["method.delta"].abs().amax() > 0
