"""Every verb on a device without float64, as Apple's are: what needs it is computed on the host."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pretended
from cli.test_app import done, toughen
from conftest import few, tiny_data, tiny_split
from method_cases import CASES
from photographs import stored_photographs
from refusals_of_mps import RefusalsOfMps
from strangers.test_every_verb import NEEDS_GRADIENT, NEEDS_NO_GRADIENT
from strangers.test_models import Plain, made
from test_verbs import SUITES, X, _shortened, labels, verdicts  # noqa: F401
from tiny_runs import Said, digest, tiny_recipe
from toughen.data import DATA, Batches
from toughen.data.base import ImageData
from toughen.evaluation import evaluate
from toughen.evaluation.audit.model_check import check
from toughen.evaluation.corruption.evaluate import corruption_accuracy
from toughen.models import Classifier
from toughen.models.batched import out_of_memory
from toughen.testing import toys
from toughen.threat import L2, Linf, Threat
from toughen.training import run as running
from toughen.training import train
from toughen.training.loop import train_batch
from toughen.training.monitors import NonFinite
from toughen.training.setup import set_up
from toughen.workflows import analysis_kinds

MPS = torch.device("mps")
FIRST = ("autoattack", "aa+mt", "adaptive")


@pytest.fixture(autouse=True)
def _mac(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(DATA, "tiny", tiny_data)
    monkeypatch.setattr(torch._C, "_mps_driverAllocatedMemory", lambda: 1000, raising=False)
    with pretended.only("mps"):
        yield


@pytest.fixture
def _strict() -> Iterator[None]:
    with RefusalsOfMps():
        yield


@pytest.mark.usefixtures("_strict")
@pytest.mark.parametrize("name", CASES)
def test_every_method_trains(name: str) -> None:
    case, data = CASES[name], tiny_data()
    recipe = tiny_recipe(method=case.settings, steps=96, device="mps", **{"batch_size": 8, **case.recipe})
    job, batches = set_up(recipe, data, data.train, torch.arange(len(data.train)), MPS)
    before = {name: value.clone() for name, value in job.model.state_dict().items()}
    for number in range(2):
        train_batch(job, batches[number])
    after = job.model.state_dict()
    assert all(value.device.type == "mps" for value in after.values())
    assert any(not torch.equal(before[name], value) for name, value in after.items())


def test_a_run_that_died_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said, recipe = Said(), tiny_recipe(device="auto", overfitting_every=12, steps=24)

    class Died(Exception):
        pass

    def dying(job: Any, batch: Any) -> None:
        if job.number == 5:
            raise Died
        train_batch(job, batch)

    summary = train(recipe, tmp_path / "whole", display=said)
    assert (summary["device"], summary["peak_memory_bytes"]) == ("mps", 1000)
    assert len([note for note in said.notes if "have not been seen on mps yet" in note]) == 1
    with monkeypatch.context() as patch:
        patch.setattr(running, "train_batch", dying)
        with pytest.raises(Died):
            train(recipe, tmp_path / "parts")
    train(recipe, tmp_path / "parts")
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")


@pytest.mark.usefixtures("_strict")
def test_a_bad_step_is_not_taken() -> None:
    data, recipe = tiny_data(), tiny_recipe(method="natural", device="mps")
    job, batches = set_up(recipe, data, data.train, torch.arange(len(data.train)), MPS)
    train_batch(job, batches[0])
    before = [parameter.clone() for parameter in job.model.parameters()]
    batch = batches[1]
    batch.x[3] = torch.nan
    with pytest.raises(
        NonFinite, match=f"at step 1 on rank 0 .examples {int(batch.index[3])}.\\. The optimiser was not"
    ):
        train_batch(job, batch)
    assert all(torch.equal(a, b) for a, b in zip(before, job.model.parameters(), strict=True))


@pytest.mark.usefixtures("_strict")
def test_streamed_images_arrive_before_they_go(tmp_path: Path) -> None:
    stored = stored_photographs(tmp_path, 8)
    settings: dict[str, Any] = {"batch_size": 4, "seed": 0, "workers": 0}
    here, there = (Batches(stored, torch.arange(8), device=device, **settings) for device in ("cpu", MPS))
    torch.testing.assert_close(there[0].x.cpu(), here[0].x)


VERBS = """
data: tiny
model: {name: small_cnn, width: 2, norm: batch}
method: {name: instance_adaptive, attack: {name: pgd, steps: 2, step_size: 0.05}, gamma: 0.03}
threat: linf:0.1
batch_size: 32
steps: 6
selection: {suite: pgd-1, every: 3}
"""


def test_every_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(analysis_kinds, "POINTS", 3)
    monkeypatch.setattr(analysis_kinds, "STEPS", (1, 3))
    monkeypatch.setattr(analysis_kinds, "SHARES", (0.5, 1))
    pool = ImageData("pool", tiny_split("pool", 20), None, tiny_split("other", 4), tuple("abcd"))
    monkeypatch.setitem(DATA, "pool", lambda: pool)
    Path("verbs.yaml").write_text(VERBS)
    assert "(fast: off)" in done("train", "verbs.yaml", "--out", "run", "--dry-run")
    done("train", "verbs.yaml", "--out", "run")
    done("evaluate", "run", "--suite", "pgd-2", "--limit", 8)
    done("analyse", "run", "--limit", 2)
    assert {path.name for path in Path("run/analysis").iterdir()} >= set(analysis_kinds.FILES)
    done("label", "pool", "--scorer", "run", "--against", "tiny", "--count", 8, "--threshold", 0.01, "--out", "extra")
    done("export", "run", "--out", "exported")
    # After six steps no model is sound.
    assert toughen("check", "exported", "--data", "tiny").exit_code in (0, 3)
    done("report", "run", "--plain")


@pytest.mark.usefixtures("_shortened")
@pytest.mark.parametrize("suite", few(*FIRST, *(suite for suite in SUITES if suite not in FIRST), small=3))
def test_an_evaluation_comes_to_the_same_verdicts(suite: str) -> None:
    same_verdicts(suite, Linf(0.04))


@pytest.mark.usefixtures("_shortened")
def test_radii_of_64_bits_are_taken() -> None:
    same_verdicts("autoattack", L2(torch.linspace(0.1, 0.4, 4, dtype=torch.float64)))


def same_verdicts(suite: str, ball: Threat) -> None:
    """An evaluation on the device, of images of 64 bits, comes to the verdicts of the CPU's."""
    y = labels()
    settings: dict[str, Any] = {"threat": ball, "suite": suite}
    expected, found = evaluate(toys.normed(), X, y, **settings), evaluate(toys.normed().to(MPS), X, y, **settings)
    assert found.device == "mps:0"
    assert verdicts(found) == verdicts(expected)
    assert found.outcomes.distance == pytest.approx(expected.outcomes.distance, abs=1e-5)


@pytest.mark.usefixtures("_strict")
@pytest.mark.parametrize(
    ("verb", "call"), (NEEDS_NO_GRADIENT | NEEDS_GRADIENT).items(), ids=NEEDS_NO_GRADIENT | NEEDS_GRADIENT
)
def test_a_verb_says_the_same(verb: str, call: Callable[[Any, Path], Any], tmp_path: Path) -> None:
    expected = call(made(Plain), tmp_path / "host")
    assert call(made(Plain).to(MPS), tmp_path / "device") == expected


def test_corruptions_are_counted_the_same() -> None:
    torch.manual_seed(0)
    pixels, y = torch.randint(0, 256, (6, 1, 32, 32), dtype=torch.uint8), torch.arange(6) % 4
    net, which = nn.Sequential(nn.Flatten(), nn.Linear(1024, 4)), ["gaussian_noise"]
    expected = corruption_accuracy(net, pixels, y, corruptions=which)
    found = corruption_accuracy(net.to(MPS), pixels, y, corruptions=which)
    assert [found.accuracy(which[0], severity) for severity in range(1, 6)] == [
        expected.accuracy(which[0], severity) for severity in range(1, 6)
    ]


def scaled() -> nn.Module:
    """Logits so far apart that float32 leaves the cross-entropy no gradient."""
    return nn.Sequential(toys.normed(), Scale(3000.0)).eval()


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x


FAULTY = {
    "sound": toys.normed,
    "saturated": scaled,
    "probabilities": lambda: nn.Sequential(scaled(), nn.Softmax(1)).eval(),
    "rounds": lambda: nn.Sequential(Rounds(), toys.normed()).eval(),
    "normalised twice": lambda: Classifier(
        Classifier(toys.normed(), mean=(0.4, 0.5), std=(0.2, 0.3)), mean=(0.4, 0.5), std=(0.2, 0.3)
    ).eval(),
}


class Rounds(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * 255).round() / 255


@pytest.mark.usefixtures("_strict")
@pytest.mark.parametrize("fault", FAULTY)
def test_audit_and_check_find_the_same(fault: str) -> None:
    x = torch.rand(24, *toys.SHAPE, generator=torch.Generator().manual_seed(2))
    y = toys.normed()(x).argmax(1)
    y[::7] = (y[::7] + 1) % toys.CLASSES
    host, there = FAULTY[fault](), FAULTY[fault]().to(MPS)
    settings: dict[str, Any] = {"threat": Linf(0.04), "suite": "pgd-3"}
    expected, found = evaluate(host, x, y, **settings), evaluate(there, x, y, **settings)
    assert found.audit == expected.audit
    said = [
        [(item.what, item.verdict, item.code, item.remedy) for item in check(model, x, y).items if item.what != "input"]
        for model in (host, there)
    ]
    assert said[0] == said[1]


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn_like(x)


def test_draws_on_the_device_are_seen() -> None:
    x = torch.rand(8, *toys.SHAPE, generator=torch.Generator().manual_seed(2))
    items = check(nn.Sequential(Noisy(), toys.normed()).eval().to(MPS), x, toys.normed()(x).argmax(1)).items
    (found,) = [item for item in items if item.code == "EV212"]
    assert "draws or sets random numbers of torch" in found.evidence


@pytest.mark.parametrize("said", ["MPS backend out of memory (MPS allocated: 9 GB).", "Invalid buffer size: 90.00 GiB"])
def test_memory_of_mps_ends_in_words_of_its_own(said: str) -> None:
    assert out_of_memory(RuntimeError(said))
