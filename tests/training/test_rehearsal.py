"""What cannot be compiled here is known before training begins: a step is tried, taken back, and the run goes on."""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from method_cases import CASES, FIRST
from tiny_runs import Said, command, tiny_job, tiny_recipe
from toughen import models
from toughen.parallel import ranks
from toughen.storage.compiler_cache import CACHE
from toughen.training import rehearsal, run, setup, train
from toughen.training.acceleration import Acceleration, Graphs
from toughen.training.loop import Job, rehearse, train_batch
from toughen.training.state import capture

COMPILED = Acceleration(channels_last=True, compiled=True)
PLAIN = Acceleration(channels_last=True, folded=True)

Backend = Callable[[torch.fx.GraphModule, list[Tensor]], Any]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def failing(after: int = 0, error: Callable[[], Exception] = lambda: RuntimeError("no compiler. Get one")) -> Backend:
    """A backend that runs what was captured as it is, and raises after so many graphs."""
    graphs = iter(range(10**6))

    def backend(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        if next(graphs) >= after:
            raise error()
        return module.forward

    return backend


def small(**changes: object) -> Any:
    """Three batches of adversarial training, whose attack is in inference mode."""
    method = {"name": "adversarial", "attack": {"name": "pgd", "steps": 2}}
    return tiny_recipe(**{"method": method, "steps": 3, "averages": [], "save_every": 1, **changes})


def on_a_gpu(patch: pytest.MonkeyPatch, backend: Backend, ways: Acceleration = COMPILED) -> None:
    """What the rule says there, with another backend."""
    patch.setattr(setup, "chosen_ways", lambda *given: ways)
    patch.setattr(setup, "Graphs", partial(Graphs, backend=backend))


@pytest.mark.parametrize("name", sorted(FIRST))
def test_a_step_that_is_tried_leaves_nothing_behind(tiny: str, name: str):
    parts = {} if name == "interpolated" else {"micro_batch": 10}
    recipe = tiny_recipe(method=CASES[name].settings, **parts, **CASES[name].recipe)
    job, batches = tiny_job(recipe)

    def state() -> dict[str, Tensor]:
        found, _ = capture(job, slots=recipe.batch_size)
        return {f"{group}.{name}": value.clone() for group, members in found.items() for name, value in members.items()}

    before, drawn = state(), torch.get_rng_state()
    rehearse(job, batches[0], job.micro_batch)
    assert torch.equal(torch.get_rng_state(), drawn)
    after = state()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(p.grad is None and p.requires_grad for p in job.model.parameters())
    assert (job.step, job.number, job.passes.forwards) == (0, 0, 0)


@pytest.mark.parametrize("name", ["adversarial-batch", "free", "trades", "weight-perturbation"])
def test_all_forms_of_a_batch_are_tried(tiny: str, name: str, monkeypatch: pytest.MonkeyPatch):
    graphs: list[object] = []

    def backend(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(module)
        return module.forward

    on_a_gpu(monkeypatch, backend)
    job, batches = tiny_job(tiny_recipe(method=CASES[name].settings, **CASES[name].recipe))
    with warnings.catch_warnings(action="ignore"):
        rehearse(job, batches[0], None)
    tried = len(graphs)
    assert tried >= 1
    for number in range(3):
        train_batch(job, batches[number])
    assert len(graphs) == tried


@pytest.mark.parametrize("after", [0, 1])
def test_where_a_form_cannot_be_compiled_the_run_goes_on_without_graphs(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
):
    """The first form is that of the attack, the second that of training."""
    said = Said()
    with monkeypatch.context() as patch:
        on_a_gpu(patch, failing(after))
        summary = train(small(), tmp_path / "run", display=said)
    assert [note for note in said.notes if "compiled" in note] == [
        f"the network cannot be compiled here (BackendCompilerFailed: no compiler. Get one); computing in {PLAIN}"
    ]
    assert summary["ways"] == vars(PLAIN)
    with monkeypatch.context() as patch:
        on_a_gpu(patch, failing(), PLAIN)
        train(small(), tmp_path / "plain")
    one, other = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("run", "plain"))
    assert one == other


def test_a_run_that_goes_on_computes_as_it_did(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without graphs where it had none, though they could be compiled now."""
    real = run.train_batch

    def dying(job: Job, batch: Any) -> None:
        if job.number == 1:
            raise KeyboardInterrupt
        real(job, batch)

    with monkeypatch.context() as patch:
        on_a_gpu(patch, failing())
        patch.setattr(run, "train_batch", dying)
        with pytest.raises(KeyboardInterrupt):
            train(small(), tmp_path / "run")
    said, backend = Said(), failing(99)
    on_a_gpu(monkeypatch, backend)
    assert train(small(), tmp_path / "run", display=said)["ways"] == vars(PLAIN)
    assert not [note for note in said.notes if "compiled" in note]


def test_what_can_be_compiled_stays_so(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    on_a_gpu(monkeypatch, failing(99))
    said = Said()
    assert train(small(), tmp_path / "run", display=said)["ways"] == vars(COMPILED)
    assert not [note for note in said.notes if "compiled" in note]


def test_where_one_rank_cannot_compile_none_does(tiny: str, monkeypatch: pytest.MonkeyPatch):
    on_a_gpu(monkeypatch, failing(99))
    job, batches = tiny_job(small())
    notes: list[str] = []
    monkeypatch.setattr(ranks, "from_every", lambda said: [said, "GPUTooOldForTriton: it is too old."])
    rehearsal.compile_or_not(job, batches[0], notes.append)
    assert job.graphs is None
    assert notes == [f"the network cannot be compiled here (GPUTooOldForTriton: it is too old); computing in {PLAIN}"]


def test_without_a_c_compiler_the_run_goes_on(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """torch's own backend."""
    import torch._inductor.config as config

    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(config.cpp, "cxx", (None, "/nowhere/g++"))
    monkeypatch.setattr(setup, "chosen_ways", lambda *given: COMPILED)
    said = Said()
    assert train(small(), tmp_path / "run", display=said)["ways"] == vars(PLAIN)
    (note,) = [note for note in said.notes if "compiled" in note]
    assert note.startswith("the network cannot be compiled here (InductorError: ")
    assert "No working C++ compiler found" in note
    assert len(note.splitlines()) == 1


class Refusing(nn.Module):
    """A network of a user's that fails in training mode."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.last = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) > 2:
            raise KeyError("scale")
        return self.last(x.mean((2, 3)))


def test_what_the_network_itself_raises_is_no_matter_of_compilers(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(models.MODELS, "refusing", Refusing)
    on_a_gpu(monkeypatch, failing(99))
    said = Said()
    code, sentence = command(small(model={"name": "refusing"}), tmp_path / "run", said)
    assert code == 2
    assert sentence.startswith("error: the model raises KeyError: 'scale' (test_rehearsal.py, line ")
    assert not [note for note in said.notes if "compiled" in note]
