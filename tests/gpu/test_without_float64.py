"""Every verb on a device without float64, as Apple's are: what needs it is computed on the host."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import pretended
from cli.test_app import done
from conftest import tiny_data, tiny_split
from method_cases import CASES
from refusals_of_mps import RefusalsOfMps
from tiny_runs import tiny_recipe
from toughen.data import DATA
from toughen.data.base import ImageData
from toughen.evaluation import evaluate
from toughen.testing import toys
from toughen.threat import Linf
from toughen.training.loop import train_batch
from toughen.training.setup import set_up
from toughen.workflows import analysis_kinds

MPS = torch.device("mps")


@pytest.fixture(autouse=True)
def _mac(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(DATA, "tiny", tiny_data)
    monkeypatch.setattr(torch._C, "_mps_driverAllocatedMemory", lambda: 1000, raising=False)
    with pretended.only("mps"), RefusalsOfMps():
        yield


@pytest.mark.parametrize("name", CASES)
def test_every_method_trains(name: str) -> None:
    case, data = CASES[name], tiny_data()
    recipe = tiny_recipe(method=case.settings, steps=96, device="mps", **case.recipe)
    job, batches = set_up(recipe, data, data.train, torch.arange(len(data.train)), MPS)
    for number in range(2):
        train_batch(job, batches[number])
    job.finite.check()
    assert all(value.device.type == "mps" for value in job.model.state_dict().values())


VERBS = """
data: tiny
model: {name: small_cnn, width: 2, norm: batch}
method: {name: instance_adaptive, attack: {name: pgd, steps: 2, step_size: 0.05}, gamma: 0.03}
threat: linf:0.1
batch_size: 32
steps: 6
selection: {suite: pgd-1, every: 3}
"""


def test_every_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(analysis_kinds, "POINTS", 5)
    monkeypatch.setattr(analysis_kinds, "STEPS", (1, 5))
    pool = ImageData("pool", tiny_split("pool", 20), None, tiny_split("other", 4), tuple("abcd"))
    monkeypatch.setitem(DATA, "pool", lambda: pool)
    Path("verbs.yaml").write_text(VERBS)
    import time

    t = time.time()
    for words in (
        ("train", "verbs.yaml", "--out", "run", "--dry-run"),
        ("train", "verbs.yaml", "--out", "run"),
        ("evaluate", "run", "--suite", "pgd-2"),
        ("evaluate", "run", "--suite", "corruptions", "--limit", 4),
        ("analyse", "run", "--limit", 4),
        ("label", "pool", "run", "--against", "tiny", "--counts", "8", "--threshold", "0.01", "--out", "extra"),
        ("check", "run"),
        ("export", "run", "--out", "exported"),
        ("evaluate", "exported", "--data", "tiny", "--suite", "pgd-2"),
        ("check", "exported", "--data", "tiny"),
        ("report", "run"),
    ):
        try:
            print(words, done(*words)[-300:])
        except BaseException as e:
            import traceback

            traceback.print_exc()
            print("FAILED", words, e)
        print(time.time() - t)
        t = time.time()


@pytest.mark.parametrize("suite", ["pgd-3", "cw-3", "quick", "adaptive"])
def test_evaluation(suite: str) -> None:
    n = 12
    x = torch.rand(n, *toys.SHAPE, generator=torch.Generator().manual_seed(0))
    host = toys.normed()
    y = host(x).argmax(1)
    a = evaluate(host, x, y, threat=Linf(8 / 255), suite=suite, batch_size=16)
    b = evaluate(toys.normed().to(MPS), x, y, threat=Linf(8 / 255), suite=suite, batch_size=16)
    assert a.robust_accuracy == b.robust_accuracy
    assert (a.outcomes.survived == b.outcomes.survived).all()
