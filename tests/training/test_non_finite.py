"""NaN or infinity, wherever it enters a step: the weights stay, the user is told where, nothing broken is saved."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import Faults
from toughen.data import Batch, load
from toughen.recipes import Recipe
from toughen.recipes.text import build
from toughen.storage.checkpoint import latest_checkpoint
from toughen.threat import Linf
from toughen.training import loop, train
from toughen.training.loop import Job, train_batch
from toughen.training.monitors import NonFinite
from toughen.training.setup import set_up, splits

PGD = {"name": "pgd", "steps": 2}
METHODS: dict[str, dict[str, Any]] = {
    "natural": {"name": "natural"},
    "pgd": {"name": "adversarial", "attack": PGD},
    "one step": {"name": "adversarial", "attack": {"name": "rs_fgsm"}},
    "free": {"name": "free", "replays": 3},
    "trades": {"name": "trades", "attack": PGD},
    "mart": {"name": "mart", "attack": PGD},
    "instance_adaptive": {"name": "instance_adaptive", "attack": PGD, "warmup": 1},
    "bilateral": {"name": "bilateral"},
    "interpolated": {"name": "interpolated", "attack": PGD},
}
ROW = 5


def recipe(method: dict[str, Any], **changes: Any) -> Recipe:
    return build(
        {
            "data": "tiny",
            "model": {"name": "small_cnn", "width": 2, "norm": "batch"},
            "method": method,
            "threat": "linf:0.1",
            "batch_size": 32,
            "steps": 12,
            "optimizer": {"lr": 0.05},
            "averages": [0.9],
            "selection": {"suite": "pgd-2", "every": 100},
            "save_every": 1,
            "log_every": 1,
            **changes,
        }
    )


def in_batch(job: Job, batch: Batch, value: float) -> Batch:
    x = batch.x.clone()
    x[ROW, 0, 3, 3] = value
    return replace(batch, x=x)


def in_parameter(job: Job, batch: Batch, value: float) -> Batch:
    with torch.no_grad():
        next(job.model.parameters()).view(-1)[1] = value
    return batch


def in_gradient(job: Job, batch: Batch, value: float) -> Batch:
    next(job.model.parameters()).register_hook(lambda gradient: gradient * value)
    return batch


def in_logits(job: Job, batch: Batch, value: float) -> Batch:
    def broken(_module: object, _given: object, logits: Tensor) -> Tensor:
        mask = torch.zeros_like(logits)
        mask[ROW] = value
        return logits + mask

    job.model.register_forward_hook(broken, prepend=True)
    return batch


@contextmanager
def no_patch() -> Iterator[None]:
    yield


@contextmanager
def in_delta(value: float) -> Iterator[None]:
    """What the ball's projection gives, as every perturbation is projected."""
    original = Linf.project

    def broken(self: Linf, delta: Tensor) -> Tensor:
        found = original(self, delta).clone()
        found.view(len(found), -1)[ROW, 1] = value
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Linf, "project", broken)
        yield


def added(objective: Callable[[], Tensor], to: Tensor) -> Tensor:
    return objective() + to


@contextmanager
def in_loss(value: float) -> Iterator[None]:
    original = loop.objectives_of

    def broken(job: Job, parts: Any) -> Iterator[list[Callable[[], Tensor]]]:
        for objectives in original(job, parts):
            add = torch.zeros(32)
            add[ROW] = value
            yield [partial(added, objective, add) for objective in objectives]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "objectives_of", broken)
        yield


ON_JOB = {"batch": in_batch, "parameter": in_parameter, "gradient": in_gradient, "logits": in_logits}
PATCHED = {"delta": in_delta, "loss": in_loss}


def moved(job: Job) -> list[Tensor]:
    momentum = [state["momentum_buffer"].clone() for state in job.optimizer.state.values()]
    return [p.detach().clone() for p in job.model.parameters()] + momentum


@pytest.mark.faults
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_step_is_not_taken_and_the_user_is_told_where(value: float, tiny: str, faults: Faults):
    cases = 0
    for name, method in METHODS.items():
        for point in (*ON_JOB, *PATCHED):
            # A finite bound clips infinity, and natural training has no perturbation.
            if point == "delta" and (name == "natural" or value == float("inf")):
                continue
            found = recipe(method)
            data = load("tiny")
            split, _, index = splits(found, data)
            job, batches = set_up(found, data, split, index, torch.device("cpu"))
            train_batch(job, batches[0])
            step, batch = job.step, batches[1]
            if point in ON_JOB:
                batch = ON_JOB[point](job, batch, value)
            if point == "delta" and name == "free":
                # What it projects is for the next replay.
                job.state["delta"][ROW, 0, 3, 3] = value
            before = moved(job)
            with PATCHED[point](value) if point in PATCHED else no_patch():
                train_batch(job, batch)
                train_batch(job, batches[2])
            same = [torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(before, moved(job), strict=True)]
            assert all(same), (name, point)
            with pytest.raises(NonFinite) as caught:
                job.finite.check()
            told = f"AT111 The loss or its gradient is not finite at step {step} on rank 0 ("
            assert str(caught.value).startswith(told), (name, point)
            if point in ("batch", "loss"):
                assert f"(examples {int(batch.index[ROW])})" in str(caught.value), (name, point)
            cases += 1
    faults.tell(
        "8 non-finite values", f"{value} at {len(ON_JOB | PATCHED)} points of 9 methods, {cases} cases: all stop"
    )


@pytest.mark.parametrize("group", ["average-0.9", "weights"])
def test_no_checkpoint_is_written_from_a_broken_average_or_statistic(
    group: str, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    original = loop.train_batch

    def broken(job: Job, batch: Batch) -> None:
        original(job, batch)
        if job.number == 3:
            model = job.model if group == "weights" else job.averages.models()[group]
            for name, buffer in model.named_buffers():
                if name.endswith("running_var"):
                    buffer[0] = float("nan")

    monkeypatch.setattr("toughen.training.run.train_batch", broken)
    with pytest.raises(ValueError, match=f"CK322 {group}: .*running_var holds NaN or infinity"):
        train(recipe(METHODS["pgd"]), tmp_path / "run")
    newest = latest_checkpoint(tmp_path / "run", warn=print)
    assert newest is not None
    assert newest.step == 2
