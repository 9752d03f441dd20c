"""The fast path: what is chosen, that it computes the same, captures whole graphs and never makes the device wait."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import FULL
from method_cases import CASES, FIRST, Case
from toughen import models
from toughen.recipes import Recipe
from toughen.recipes.text import build
from toughen.testing.method_under_test import Waits
from toughen.training import acceleration, train
from toughen.training.acceleration import (
    Acceleration,
    Graphs,
    autotuned,
    by_rule,
    can_compile,
    kernels,
    measured,
)
from toughen.training.loop import Job, train_batch
from toughen.training.setup import load_data, set_up, splits
from toughen.training.state import capture

CPU, GPU = torch.device("cpu"), torch.device("cuda")
MODEL = {"name": "preact_resnet18", "width": 2}


def recipe_of(case: Case = CASES["natural"], **changes: object) -> Recipe:
    return build(
        {
            "data": {"source": "tiny", "validation": 16, "pad": 1, "flip": True},
            "model": MODEL,
            "method": case.settings,
            "threat": "linf:0.1",
            "batch_size": 19,
            "steps": 60,
            "averages": [0.9],
            **case.recipe,
            **changes,
        }
    )


def forms(*labels: str) -> list[Any]:
    """One of each method, and by `make faults` the others, which differ in the calls of the network alone."""
    return [pytest.param(label, marks=[] if label in FIRST else FULL) for label in labels]


def job_of(recipe: Recipe, ways: Acceleration | None = None):
    data = load_data(recipe)
    split, _, index = splits(recipe, data)
    return set_up(recipe, data, split, index, CPU, ways=ways)


def tensors(job: Job) -> dict[str, Tensor]:
    found, _ = capture(job, slots=19)
    return {f"{group}.{name}": value for group, members in found.items() for name, value in members.items()}


# What is chosen.


def test_a_cpu_computes_plainly_unless_the_recipe_says_otherwise():
    assert by_rule(recipe_of(), CPU) == Acceleration(folded=True)
    assert by_rule(recipe_of(precision="bf16"), CPU) == Acceleration(bf16=True, folded=True)
    assert by_rule(recipe_of(fast="off"), CPU) == Acceleration()


@pytest.mark.parametrize(
    ("changes", "modern", "expected"),
    [
        ({}, True, Acceleration(bf16=True, channels_last=True, compiled=True, tf32=True)),
        ({}, False, Acceleration(channels_last=True, compiled=True, tf32=True)),
        ({"precision": "fp32"}, True, Acceleration(channels_last=True, compiled=True, tf32=True)),
        ({"precision": "bf16"}, False, Acceleration(bf16=True, channels_last=True, compiled=True, tf32=True)),
        ({"steps": 999}, True, Acceleration(bf16=True, channels_last=True, tf32=True, folded=True)),
        ({"activation_checkpointing": True}, True, Acceleration(bf16=True, channels_last=True, tf32=True, folded=True)),
        (
            {"method": CASES["gradalign"].settings},
            True,
            Acceleration(bf16=True, channels_last=True, tf32=True, folded=True),
        ),
        ({"fast": "off"}, True, Acceleration()),
        ({"fast": "off", "precision": "bf16"}, True, Acceleration(bf16=True)),
    ],
)
def test_the_rule_for_gpus(
    changes: dict[str, Any], modern: bool, expected: Acceleration, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: modern)
    assert by_rule(recipe_of(**{"steps": 1000, **changes}), GPU) == expected


def test_wrapped_methods_say_whether_they_differentiate_a_gradient():
    aligned = {"name": "mixup", "method": {"name": "label_smoothing", "method": CASES["gradalign"].settings}}
    assert not can_compile(recipe_of(method=aligned))
    assert can_compile(recipe_of(CASES["mixup-free"]))


def test_measuring_takes_what_is_faster_by_more_than_the_margin(monkeypatch: pytest.MonkeyPatch):
    plain, low, last, both = (
        Acceleration(),
        Acceleration(bf16=True),
        Acceleration(channels_last=True),
        Acceleration(bf16=True, channels_last=True),
    )
    seconds: dict[Acceleration, float] = {}
    monkeypatch.setattr(acceleration, "_timed", lambda model, x, y, tried: {ways: seconds[ways] for ways in tried})
    model, x, y = (
        models.build("small_cnn", num_classes=2, in_channels=1),
        torch.zeros(2, 1, 8, 8),
        torch.zeros(2).long(),
    )

    def taken(**options: Any) -> Acceleration:
        return measured(model, x, y, **{"bf16": (False, True), "compiles": False, **options})[0]

    seconds |= {plain: 1.0, low: 0.7, last: 0.96, both: 0.5}
    assert taken() == both
    assert taken(bf16=(False,)) == plain, "four per cent may be chance"
    assert taken(bf16=(True,)) == both
    compiled = Acceleration(bf16=True, channels_last=True, compiled=True)
    seconds[compiled] = 0.4
    assert taken(compiles=True) == compiled
    seconds[compiled] = 0.6
    assert taken(compiles=True) == both
    del seconds[compiled]
    assert taken(compiles=True) == both, "a compiler that fails costs nothing but the try"


def test_measuring_leaves_the_model_as_it_is_and_says_what_it_found(tiny: str, tmp_path: Path):
    told: list[str] = []
    recipe = recipe_of(fast="measure", steps=3, selection="pgd-1", method=CASES["gradalign"].settings)
    data = load_data(recipe)
    split, _, index = splits(recipe, data)
    job, _ = set_up(recipe, data, split, index, CPU, note=told.append)
    plain, _ = job_of(recipe, Acceleration())
    for name, value in plain.model.state_dict().items():
        assert torch.equal(job.model.state_dict()[name], value), name
    assert all(parameter.grad is None for parameter in job.model.parameters())
    said = told[-1]
    assert said.startswith("measured a natural step: plain float32 ")
    assert said.endswith(f"taken: {replace(job.ways, folded=False)}")


def test_what_was_measured_is_kept_over_a_stop(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from toughen.training import run

    # Without strided shortcuts, with which the CPU would do without channels last: see `training.unsafe_kernels`.
    recipe = recipe_of(
        fast="measure", steps=3, selection="pgd-1", save_every=1, model={"name": "small_cnn", "width": 2}
    )
    found = iter([Acceleration(channels_last=True), Acceleration(bf16=True)])
    monkeypatch.setattr(acceleration, "by_measuring", lambda *given: (next(found), "measured"))
    real = run.train_batch

    def dying(job: Job, batch: Any) -> None:
        if job.number == 2:
            raise KeyboardInterrupt
        real(job, batch)

    with monkeypatch.context() as patch:
        patch.setattr(run, "train_batch", dying)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "stopped")
    summary = train(recipe, tmp_path / "stopped")
    assert summary["ways"] == {"bf16": False, "channels_last": True, "compiled": False, "tf32": False, "folded": False}
    found = iter([Acceleration(channels_last=True)])
    train(recipe, tmp_path / "whole")
    one, other = (sorted((tmp_path / name / "checkpoints").iterdir())[-1] for name in ("stopped", "whole"))
    for file in one.glob("*.safetensors"):
        assert file.read_bytes() == (other / file.name).read_bytes(), file.name


# That it computes the same.


@pytest.mark.parametrize("name", ["natural", "free", "adversarial-train", "trades", "weight-perturbation", "mixup"])
def test_channels_last_is_the_same_to_rounding(tiny: str, name: str):
    recipe = recipe_of(CASES[name])
    data = load_data(recipe)
    split, _, index = splits(recipe, data)
    jobs = [
        set_up(recipe, data, split, index, CPU, dtype=torch.float64, ways=ways)
        for ways in (Acceleration(), Acceleration(channels_last=True))
    ]
    for job, batches in jobs:
        for number in range(3):
            batch = batches[number]
            batch.__dict__["x"] = batch.x.double()
            train_batch(job, batch)
    (plain, _), (last, _) = jobs
    assert any(p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous() for p in weights(last))
    expected = tensors(plain)
    for key, value in tensors(last).items():
        assert torch.allclose(value, expected[key], rtol=0, atol=1e-9), key


def normalised(job: Job, batch: Any) -> int:
    """How often BatchNorm is computed while a job trains on a batch."""
    seen: list[str] = []

    class Looking(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with Looking():
        train_batch(job, batch)
    return sum(name in ("native_batch_norm", "cudnn_batch_norm") for name in seen)


def weights(job: Job) -> list[Tensor]:
    return [p for p in job.model.parameters() if p.ndim == 4]


def test_bf16_gradients_point_where_those_of_float32_do(tiny: str):
    """Without BatchNorm, which makes rounding larger: `training.acceleration` says by how much."""
    recipe = recipe_of(batch_size=64, model={"name": "small_cnn", "width": 8})
    gradients, losses = [], []
    for ways in (Acceleration(), Acceleration(bf16=True)):
        job, batches = job_of(recipe, ways)
        job.optimizer.step = lambda: None  # pyright: ignore[reportAttributeAccessIssue]
        train_batch(job, batches[0])
        gradients.append(torch.cat([p.grad.flatten() for p in job.model.parameters() if p.grad is not None]))
        losses.append(job.meters.read()["loss"])
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_batchnorm_folded_in_attacks_is_the_same_to_rounding_and_a_tenth_of_the_work(tiny: str):
    recipe = recipe_of(CASES["adversarial"])
    data = load_data(recipe)
    split, _, index = splits(recipe, data)
    jobs = [
        set_up(recipe, data, split, index, CPU, dtype=torch.float64, ways=ways)
        for ways in (Acceleration(), Acceleration(folded=True))
    ]
    calls = []
    for job, batches in jobs:
        norms, seen = [m for m in job.model.modules() if isinstance(m, nn.BatchNorm2d)], 0
        for number in range(3):
            batch = batches[number]
            batch.__dict__["x"] = batch.x.double()
            seen = normalised(job, batch)
        calls.append((seen, len(norms)))
        assert not any("forward" in vars(module) or "folding" in vars(module) for module in job.model.modules())
    (plain, norms), (folded, _) = calls
    # Two attack passes and one of training; each of the 8 blocks has one BatchNorm behind a convolution.
    assert plain == 3 * norms
    assert folded == plain - 2 * 8
    expected = tensors(jobs[0][0])
    for key, value in tensors(jobs[1][0]).items():
        assert torch.allclose(value, expected[key], rtol=0, atol=1e-9), key


# Graphs.


class Counting:
    """A backend that runs what was captured as it is, so that not a bit changes, and counts the graphs."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, module: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        self.graphs += 1
        return module.forward


@pytest.fixture
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


COMPILED = [name for name, case in CASES.items() if can_compile(recipe_of(case, data="mnist5k", batch_size=19))]


@pytest.mark.usefixtures("fresh")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own look at inputs
@pytest.mark.parametrize("name", forms(*COMPILED))
def test_graphs_without_a_break_give_the_same_bits(tiny: str, name: str):
    recipe, backend = recipe_of(CASES[name], model={"name": "small_cnn", "width": 2, "norm": "batch"}), Counting()
    (plain, batches), (compiled, _) = (job_of(recipe, Acceleration()) for _ in range(2))
    assert isinstance(compiled.model, models.Classifier)
    compiled.graphs = Graphs(compiled.model.net, 19, backend)
    captured = 0
    # Two batches of warm-up, one after it; the last of an epoch is short.
    for number in (0, 1, 2, len(batches) - 1, len(batches)):
        train_batch(plain, batches[number])
        train_batch(compiled, batches[number])
        if number == 2:
            captured = backend.graphs
    assert not counters["graph_break"]
    assert 1 <= backend.graphs <= 4
    assert backend.graphs == captured, "a short batch and the batches after it need no further graph"
    expected = tensors(plain)
    for key, value in tensors(compiled).items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.usefixtures("fresh")
def test_every_network_of_ours_is_one_graph():
    for name in ("small_cnn", "preact_resnet18", "resnet50", "wrn-10-1", "madry-w32-10"):
        width: dict[str, Any] = {} if name.startswith("wrn") else {"width": 2}
        model = models.build(name, num_classes=3, in_channels=3, **width)
        backend = Counting()
        torch._dynamo.reset()
        with Graphs(model.net, 2, backend).on(2):
            model(torch.rand(2, 3, 16, 16))
        assert (backend.graphs, dict(counters["graph_break"])) == (1, {}), name


@pytest.mark.usefixtures("fresh")
def test_outside_of_a_batch_the_network_is_its_own_again():
    model, backend = models.build("small_cnn", num_classes=3, in_channels=1, width=2), Counting()
    graphs, x = Graphs(model.net, 4, backend), torch.rand(4, 1, 8, 8)
    expected = model(x)
    with graphs.on(3):
        model(x[:3])
    assert backend.graphs == 0
    with graphs.on(4):
        assert torch.equal(model(x), expected)
    assert backend.graphs == 1
    assert "forward" not in vars(model.net)


# Waiting.


@pytest.mark.parametrize("name", forms(*CASES))
def test_no_step_waits_for_the_device(tiny: str, name: str):
    job, batches = job_of(recipe_of(CASES[name]))
    # The one counter of a method that lies on the CPU whatever the device is.
    on_host = [job.state["step"]] if "step" in job.state else []
    for number in range(3):
        batch = batches[number]
        with Waits(on_host) as waits:
            train_batch(job, batch)
        assert waits.seen == []


def test_waiting_would_be_seen():
    with Waits() as waits:
        float(torch.ones(()))
        torch.ones(2)[torch.tensor([True, False])]
        torch.ones(2).nonzero()
    assert waits.seen == ["_local_scalar_dense", "index by a mask", "nonzero"]


def test_kernels_of_a_gpu_are_chosen_and_put_back():
    flags = lambda: (  # noqa: E731
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
    )
    before = flags()
    with kernels(recipe_of(), Acceleration(tf32=True)):
        assert flags() == (False, False, True, True)
        with autotuned(recipe_of()):
            assert flags() == (True, False, True, True)
    with kernels(recipe_of(fast="off"), Acceleration()), autotuned(recipe_of(fast="off")):
        assert flags() == (False, True, False, False)
    assert flags() == before


def test_a_network_of_transformers_kind_keeps_its_attribute(tiny: str):
    """A module that defines `forward` on the instance must not lose it."""
    net = nn.Linear(3, 2)
    net.forward = own = net.forward
    graphs = Graphs(net, 2, Counting())
    with graphs.on(2):
        pass
    assert vars(net).get("forward") is own
