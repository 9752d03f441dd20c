"""Batches in parts: `test_ranks.py` has every method; here is what the parts are, and what the user is told."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from toughen.data import Batch
from toughen.methods import Free, InstanceAdaptive, Natural
from toughen.methods.base import Spec
from toughen.progress import Display
from toughen.recipes import RecipeError
from toughen.recipes.text import build
from toughen.threat import Linf
from toughen.training import rehearsal
from toughen.training import run as run_module
from toughen.training import setup as preparing
from toughen.training.loop import Job
from toughen.training.micro_batch_search import rows_that_fit
from toughen.training.micro_batches import divided
from toughen.training.setup import load_data, set_up, splits

RECIPE = {
    "data": {"source": "tiny", "validation": 16},
    "model": {"name": "small_cnn", "width": 2},
    "method": "natural",
    "threat": "linf:0.1",
    "batch_size": 19,
    "steps": 3,
}


def batch_of(tiny: str):
    recipe = build(RECIPE)
    data = load_data(recipe)
    split, _, index = splits(recipe, data)
    return set_up(recipe, data, split, index, torch.device("cpu"))[1][0]


def test_parts_are_stretches_of_the_batch_with_its_very_draws(tiny: str):
    batch = batch_of(tiny)
    with divided(Natural(), batch, {}, 8) as parts:
        assert [(len(part.batch), part.batch.size) for part in parts] == [(8, 8), (8, 8), (3, 3)]
        for name in ("x", "y", "index"):
            joined = torch.cat([getattr(part.batch, name) for part in parts])
            assert torch.equal(joined, getattr(batch, name))
        draws = torch.cat([part.batch.noise.child("start").uniform((2,)) for part in parts])
        assert torch.equal(draws, batch.noise.child("start").uniform((2,)))


@pytest.mark.parametrize("rows", [None, 19, 20])
def test_what_fits_is_not_taken_apart(tiny: str, rows: int | None):
    batch, state = batch_of(tiny), {}
    with divided(Natural(), batch, state, rows) as (part,):
        assert part.batch is batch
        assert part.state is state


def test_slots_belong_to_their_part_and_what_is_replicated_moves_once(tiny: str):
    batch = batch_of(tiny)
    spec = Spec((1, 8, 8), 19, 150, 4)
    free = Free(threat=Linf(0.1))
    state = free.init(spec)
    with divided(free, batch, state, 8) as parts:
        for number, part in enumerate(parts, 1):
            part.state["delta"] += number
    assert state["delta"][:, 0, 0, 0].tolist() == [1.0] * 8 + [2.0] * 8 + [3.0] * 3
    adaptive = InstanceAdaptive(threat=Linf(0.1))
    state = adaptive.init(spec)
    with divided(adaptive, batch, state, 8) as parts:
        for part in parts:
            part.state["step"] += 1
            part.state["radius"][part.batch.index] = 0.05
    assert int(state["step"]) == 1
    assert int((state["radius"] == 0.05).sum()) == 19


def test_a_method_that_mixes_after_its_attack_is_refused():
    with pytest.raises(RecipeError, match="micro_batch is 8, but method interpolated mixes images of the whole batch"):
        build({**RECIPE, "method": {"name": "label_smoothing", "method": "interpolated"}, "micro_batch": 8})


def test_the_user_is_told_what_batchnorm_sees(tiny: str, tmp_path: Path):
    told: list[str] = []

    class Listening(Display):
        def note(self, text: str) -> None:
            told.append(text)

    model = {"name": "small_cnn", "width": 2, "norm": "batch"}
    selection = {"suite": "pgd-1"}
    for name, change in (("parts", {"model": model, "micro_batch": 8}), ("whole", {"model": model})):
        recipe = build({**RECIPE, "selection": selection, **change})
        run_module.train(recipe, tmp_path / name, display=Listening())
    assert told.count("BatchNorm by parts: every 8 images are normalised by themselves (micro_batch)") == 1


class Limited(nn.Module):
    """A model for which the memory ends at so many images."""

    def __init__(self, net: nn.Module, most: int):
        super().__init__()
        self.net, self.most = net, most

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError("out of memory")
        return self.net(x)


@pytest.mark.parametrize("method", ["free", "instance_adaptive", "mixup"])
@pytest.mark.parametrize(("most", "found"), [(100, None), (19, None), (18, 10), (9, 5), (1, 1), (0, "refused")])
def test_the_most_that_fits_is_found_and_nothing_is_left_behind(tiny: str, method: str, most: int, found: object):
    model = {"name": "small_cnn", "width": 2, "norm": "batch"}
    recipe = build({**RECIPE, "method": method, "model": model, "weight_perturbation": {}})
    data = load_data(recipe)
    split, _, index = splits(recipe, data)
    job, batches = set_up(recipe, data, split, index, torch.device("cpu"))
    job.model = job.wrapped = Limited(job.model, most)
    before = copy.deepcopy((job.model.state_dict(), job.state))
    if found == "refused":
        with pytest.raises(RecipeError, match="not even one image fits"):
            rows_that_fit(job, batches[0])
    else:
        assert rows_that_fit(job, batches[0]) == found
    for now, then in zip((job.model.state_dict(), job.state), before, strict=True):
        assert all(torch.equal(now[name], then[name]) for name in then)
    assert all(p.grad is None and p.requires_grad for p in job.model.parameters())
    assert job.step == job.number == 0


def test_on_the_cpu_nothing_can_be_asked(tiny: str, tmp_path: Path):
    with pytest.raises(RecipeError, match="give a number, like micro_batch=64"):
        run_module.train(build({**RECIPE, "micro_batch": "auto"}), tmp_path / "run")


def test_what_was_found_is_kept_over_a_stop(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The memory may be fuller the next time, and other parts give other bits."""
    asked: list[int] = []

    def finding(rows: int):
        def found(job: Job, batch: Batch) -> int:
            asked.append(rows)
            return rows

        return found

    monkeypatch.setattr(preparing, "check_auto", lambda recipe, device: None)
    recipe = build({**RECIPE, "micro_batch": "auto", "selection": "pgd-1", "save_every": 1})
    real = run_module.train_batch

    def dying(job: Job, batch: Batch) -> None:
        if job.number == 1:
            raise KeyboardInterrupt
        real(job, batch)

    monkeypatch.setattr(rehearsal, "rows_that_fit", finding(5))
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "train_batch", dying)
        with pytest.raises(KeyboardInterrupt):
            run_module.train(recipe, tmp_path / "run")
    monkeypatch.setattr(rehearsal, "rows_that_fit", finding(7))
    assert run_module.train(recipe, tmp_path / "run")["micro_batch"] == 5
    assert asked == [5]
