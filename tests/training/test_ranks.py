from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import FULL, Faults
from method_cases import CASES
from processes import run_ranks
from toughen.methods import METHODS

Tensors = dict[str, torch.Tensor]

DIVISIBLE = {name for name, case in CASES.items() if METHODS[case.settings["name"]].divisible}
KEEPING = {"free", "free-image", "instance-adaptive", "mixup-free", "interpolated", "weight-perturbation"}
"""Those that keep something between batches, or whose examples meet others of the batch."""

SCRIPT = Path(__file__).with_name("ranks.py")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, faults: Faults) -> dict[str, Tensors]:
    return run(tmp_path_factory.mktemp("alone"), 1, 0, CASES if faults.full else KEEPING)


def run(folder: Path, world: int, rows: int, cases: Iterable[str]) -> dict[str, Tensors]:
    run_ranks(SCRIPT, folder, world, str(rows), *cases)
    return {file.stem: load_file(file) for file in folder.iterdir()}


@pytest.mark.parametrize(
    ("world", "rows", "cases"),
    [
        pytest.param(2, 0, KEEPING, id="two-ranks"),
        pytest.param(2, 4, KEEPING & DIVISIBLE, id="two-ranks-in-parts"),
        # In threads every form is asked for two ranks and for parts: `methods/test_contract.py`.
        pytest.param(2, 0, CASES, id="two-ranks-every-form", marks=FULL),
        pytest.param(4, 0, KEEPING, id="four-ranks", marks=FULL),
        pytest.param(1, 7, DIVISIBLE, id="in-parts", marks=FULL),
    ],
)
def test_ranks_and_parts_train_every_method_as_one_does(
    tmp_path: Path, alone: dict[str, Tensors], world: int, rows: int, cases: Iterable[str]
):
    found = run(tmp_path, world, rows, sorted(cases))
    assert found.keys() == set(cases)
    for method, tensors in found.items():
        assert tensors.keys() == alone[method].keys()
        for name, value in tensors.items():
            assert torch.allclose(value, alone[method][name], rtol=0, atol=1e-12), (method, name)
    assert found["free"]["method.delta"].abs().amax() > 0
