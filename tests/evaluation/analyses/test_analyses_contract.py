"""What every analysis promises: written and read whole, nobody depends on company, the model is left as found."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from toughen.evaluation.analyses.analysis import Analysis
from toughen.evaluation.analyses.gradients import gradient_magnitude
from toughen.evaluation.analyses.landscape import LossSurface, loss_surface, weakly_bounded
from toughen.evaluation.analyses.sweeps import EpsSweep, eps_sweep, step_sweep
from toughen.evaluation.analyses.transfer import transfer
from toughen.threat import Linf
from toys import labels, network, photographs, spec

Analyse = Callable[..., Analysis]
BALL = Linf(4 / 255)
FEW = spec("pgd", steps=3, step_size=2 / 255, restarts=2)

ANALYSES: dict[str, Analyse] = {
    "eps_sweep": lambda model, x, y, **more: eps_sweep(
        model, x, y, radii=[2 / 255, 8 / 255], suite={"few": FEW}, **more
    ),
    "step_sweep": lambda model, x, y, **more: step_sweep(
        model, x, y, threat=BALL, steps=[4, 1], target="random", **more
    ),
    "gradient_magnitude": gradient_magnitude,
    "loss_surface": lambda model, x, y, **more: loss_surface(model, x, y, radius=8 / 255, points=3, **more),
    "weakly_bounded": lambda model, x, y, **more: weakly_bounded(model, x, y, steps=3, **more),
    "transfer": lambda model, x, y, **more: transfer(
        {"a": model, "b": network(dtype=torch.float64).eval()}, model, x, y, threat=BALL, attack=FEW, **more
    ),
}


@pytest.fixture(params=ANALYSES, name="analyse")
def _analyse(request: pytest.FixtureRequest) -> Analyse:
    return ANALYSES[request.param]


@pytest.fixture(name="problem")
def _problem() -> tuple[nn.Module, Tensor, Tensor]:
    model, x = network(dtype=torch.float64).eval(), photographs(7)
    y = labels(model, x.double() / 255)
    y[3] = (y[3] + 1) % 5
    return model, x, y


def per_example(found: Analysis) -> dict[str, dict[int, Any]]:
    """Every array that has an example's dimension, by example."""
    index = found.index.tolist()  # pyright: ignore[reportAttributeAccessIssue]
    split = {}
    for name, (_, dimensions) in found.ARRAYS.items():
        if "N" in dimensions and name != "index":
            rows = np.moveaxis(getattr(found, name), dimensions.index("N"), 0)
            split[name] = dict(zip(index, rows, strict=True))
    return split


def assert_equal(found: Analysis, expected: Analysis) -> None:
    one, other = per_example(found), per_example(expected)
    for name, rows in one.items():
        for number, value in rows.items():
            # Not bit-equal: how a matrix product sums depends on how many rows it has.
            np.testing.assert_allclose(value, other[name][number], rtol=1e-12, atol=1e-12, err_msg=f"{name} {number}")


@pytest.mark.parametrize("ending", [".json", ".npz"])
def test_what_is_written_is_read(analyse: Analyse, problem: tuple, tmp_path: Path, ending: str):
    found = analyse(*problem)
    path = tmp_path / f"result{ending}"
    found.write(path)
    read = type(found).read(path)
    assert json.dumps(read.to_json()) == json.dumps(found.to_json())
    for name, (kind, _) in found.ARRAYS.items():
        assert getattr(read, name).dtype == kind
        assert not getattr(read, name).flags.writeable
    before = path.read_bytes()
    analyse(*problem).write(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_batch_size_changes_nothing(analyse: Analyse, problem: tuple, batch_size: int):
    assert_equal(analyse(*problem, batch_size=batch_size), analyse(*problem))


def test_neither_company_nor_order_change_an_example(analyse: Analyse, problem: tuple):
    model, x, y = problem
    rows = torch.tensor([5, 0, 3])
    assert_equal(analyse(model, x[rows], y[rows], index=rows), analyse(model, x, y))


def test_another_seed_is_another_draw(problem: tuple):
    found = [loss_surface(*problem, radius=0.1, points=3, seed=seed) for seed in (0, 1)]
    assert not np.array_equal(found[0].first, found[1].first)


def test_the_model_and_the_generator_are_left_as_found(analyse: Analyse, problem: tuple):
    model, x, y = problem
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[4].weight.grad = torch.ones_like(model[4].weight)
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    images = x.clone()
    analyse(model, x, y)
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [False, *[True] * 5]
    assert torch.equal(model[4].weight.grad, torch.ones_like(model[4].weight))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, images)


def test_it_runs_in_float32_and_without_a_gradient_around_it(analyse: Analyse):
    model, x = network(), photographs(3)
    with torch.no_grad():
        assert analyse(model, x, torch.tensor([0, 1, 2])).summary()["n"] == 3


def test_progress_ends_at_all(analyse: Analyse, problem: tuple):
    seen: list[tuple] = []
    analyse(*problem, batch_size=3, progress=lambda *now: seen.append(now))
    name, done, total = seen[-1]
    assert isinstance(name, str)
    assert done == total > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x": torch.zeros(0, 3, 8, 8), "y": torch.zeros(0).long()}, "no images"),
        ({"x": torch.full((7, 3, 8, 8), 2.0)}, r"must be in \[0, 1\]"),
        ({"y": torch.full((7,), 5)}, "classes 0 to 4"),
        ({"y": torch.full((7, 5), 0.2)}, r"give class numbers \(N,\)"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"index": torch.zeros(7).long()}, "each its own|whole numbers"),
    ],
)
def test_bad_input_is_named(analyse: Analyse, problem: tuple, change: dict[str, Any], said: str):
    model, x, y = problem
    given = {"x": x, "y": y, **change}
    with pytest.raises(ValueError, match=said):
        analyse(model, given.pop("x"), given.pop("y"), **given)


def test_infinite_logits_are_no_result(analyse: Analyse, problem: tuple):
    model, x, y = problem
    with torch.no_grad():
        model[4].bias[0] = torch.inf
    with pytest.raises(ValueError, match=r"EV20[23]"):
        analyse(model, x, y)


def test_a_value_that_is_no_number_is_not_written_as_json(tmp_path: Path):
    zeros = np.zeros((1, 3, 3))
    signs = np.ones((1, 1, 2, 2))
    lost = LossSurface("rademacher", 0.1, 0, [0], [0], [-0.1, 0, 0.1], signs, signs, zeros + np.nan, zeros)  # pyright: ignore
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        lost.write(tmp_path / "surface.json")
    assert not list(tmp_path.iterdir())


def test_a_file_that_was_changed_is_refused(problem: tuple, tmp_path: Path):
    found = eps_sweep(*problem, radii=[0.0], suite="pgd-1")
    path = tmp_path / "sweep.json"
    for change, said in [
        ({"kind": "Other"}, "its kind is 'Other'"),
        ({"extra": 1}, "its fields are"),
        ({"survived": [[True] * 6]}, "'survived' has shape"),
        ({"clean_correct": [False] * 7}, "but the arrays beside it say"),
        ({name: [] for name in ("index", "clean_correct")} | {"survived": [[]], "marginal": [[]]}, "is no EpsSweep"),
    ]:
        path.write_text(json.dumps({**found.to_json(), **change}))
        with pytest.raises(ValueError, match=said):
            EpsSweep.read(path)


def test_files_of_another_kind_are_refused(problem: tuple, tmp_path: Path):
    found = ANALYSES["gradient_magnitude"](*problem)
    with pytest.raises(ValueError, match=r"write and read \.json or \.npz"):
        found.write(tmp_path / "result.pkl")
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "object.npz", record=np.array([{}], dtype=object))
    np.savez(tmp_path / "bare.npz", norm=np.ones(3))
    with open(tmp_path / "array.npz", "wb") as file:
        np.save(file, np.ones(3))
    for name in ("text", "object", "bare", "array"):
        with pytest.raises(ValueError, match=r"is not an \.npz file of toughen's"):
            type(found).read(tmp_path / f"{name}.npz")
