"""Every verb on a device without float64, as Apple's are: what needs it is computed on the host."""

from collections.abc import Iterator
from pathlib import Path

import pretended
import pytest
import torch

from conftest import tiny_data
from method_cases import CASES
from tiny_runs import Said, tiny_recipe
from toughen.data import DATA
from toughen.evaluation import evaluate
from toughen.testing import toys
from toughen.threat import Linf
from toughen.training import train

MPS = torch.device("mps")


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(DATA, "tiny", tiny_data)
    with pretended.only("mps"):
        yield


@pytest.mark.parametrize(
    "name", ["natural", "free", "trades", "bilateral", "bilateral-supplement", "mixup-free", "instance-adaptive"]
)
def test_training(name: str, tmp_path: Path) -> None:
    case, said = CASES[name], Said()
    summary = train(
        tiny_recipe(method=case.settings, device="auto", **case.recipe, overfitting_every=6, steps=12),
        tmp_path / "run",
        display=said,
    )
    assert summary["device"] == "mps"


@pytest.mark.parametrize("suite", ["pgd-3", "quick", "iaat", "bilateral", "adaptive", "random-target-3", "cw-3"])
def test_evaluation(suite: str) -> None:
    n = 24
    x = torch.rand(n, *toys.SHAPE, generator=torch.Generator().manual_seed(0))
    host = toys.normed()
    y = host(x).argmax(1)
    a = evaluate(host, x, y, threat=Linf(8 / 255), suite=suite, batch_size=16)
    b = evaluate(toys.normed().to(MPS), x, y, threat=Linf(8 / 255), suite=suite, batch_size=16)
    assert a.robust_accuracy == b.robust_accuracy
    assert (a.outcomes.survived == b.outcomes.survived).all()
