"""Which kernels a run asks torch for: tried out in training batches alone; with `fast: off` those that sum alike."""

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from method_cases import CASES, FIRST
from tiny_runs import Said, tiny_job, tiny_recipe
from toughen import models
from toughen.modes import deterministic
from toughen.training import catastrophic_overfitting, early_stopping, run, train
from toughen.training.loop import train_batch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def asked() -> dict[str, Any]:
    """What torch is asked for now."""
    return {
        "benchmark": torch.backends.cudnn.benchmark,
        "cudnn": torch.backends.cudnn.deterministic,
        "exact": torch.are_deterministic_algorithms_enabled(),
        "lenient": torch.is_deterministic_algorithms_warn_only_enabled(),
        "filled": torch.utils.deterministic.fill_uninitialized_memory,  # pyright: ignore[reportAttributeAccessIssue]
        "workspace": os.environ.get(WORKSPACE),
    }


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, Any]]]:
    """What is asked for in batches, in validations and in looks for catastrophic overfitting."""
    found: dict[str, list[dict[str, Any]]] = {}

    def watch(module: Any, name: str) -> None:
        real = getattr(module, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            found.setdefault(name, []).append(asked())
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, watched)

    watch(run, "train_batch")
    watch(early_stopping, "evaluate")
    watch(catastrophic_overfitting, "withstood")
    return found


def small(**changes: object) -> Any:
    """Three batches, a look at overfitting after each, and a validation at the end."""
    return tiny_recipe(
        method={"name": "adversarial", "attack": {"name": "fgsm"}}, steps=3, averages=[], overfitting_every=1, **changes
    )


def test_kernels_are_tried_out_in_training_batches_alone(tiny: str, tmp_path: Path, seen: Any):
    before = asked()
    train(small(), tmp_path / "run")
    assert {name: {each["benchmark"] for each in every} for name, every in seen.items()} == {
        "train_batch": {True},
        "evaluate": {False},
        "withstood": {False},
    }
    assert asked() == before


@pytest.mark.parametrize("mine", [None, ":16:8"])
def test_with_fast_off_a_run_asks_for_sums_that_are_alike(
    tiny: str, tmp_path: Path, seen: Any, monkeypatch: pytest.MonkeyPatch, mine: str | None
):
    if mine:
        monkeypatch.setenv(WORKSPACE, mine)
    else:
        monkeypatch.delenv(WORKSPACE, raising=False)
    before, said = asked(), Said()
    train(small(fast="off"), tmp_path / "run", display=said)
    exact = {"benchmark": False, "cudnn": True, "exact": True, "lenient": True, "filled": False}
    assert len(seen) == 3
    assert all(each == {**exact, "workspace": mine or ":4096:8"} for every in seen.values() for each in every)
    assert asked() == before
    assert not [note for note in said.notes if "same bits" in note]


def test_cublas_is_told_before_the_device_is_used(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(WORKSPACE, raising=False)
    found: list[str | None] = []
    real = run.set_up
    monkeypatch.setattr(
        run, "set_up", lambda *args, **given: found.append(asked()["workspace"]) or real(*args, **given)
    )
    train(small(fast="off"), tmp_path / "run")
    assert found == [":4096:8"]


INEXACT = {
    "_adaptive_avg_pool2d_backward",
    "adaptive_max_pool2d_backward",
    "bincount",
    "cumsum",
    "embedding_dense_backward",
    "fractional_max_pool2d_backward",
    "grid_sampler_2d_backward",
    "histc",
    "kthvalue",
    "max_unpool2d",
    "median",
    "nll_loss2d_forward",
    "put_",
    "reflection_pad2d_backward",
    "scatter_reduce",
    "upsample_bicubic2d_backward",
    "upsample_bilinear2d_backward",
    "upsample_linear1d_backward",
}
"""What torch cannot compute on GPUs so that sums are always alike, by its documentation."""


class Looking(TorchDispatchMode):
    """Sees what is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", sorted(FIRST))
def test_no_method_of_ours_does_what_has_no_such_kernel(tiny: str, name: str):
    job, batches = tiny_job(tiny_recipe(method=CASES[name].settings, **CASES[name].recipe))
    with Looking() as looking:
        train_batch(job, batches[0])
    assert "convolution_backward" in looking.seen
    assert not looking.seen & INEXACT


@pytest.mark.parametrize("name", ["small_cnn", "preact_resnet18", "resnet18", "resnet50", "wrn-10-1", "madry-w32-10"])
def test_no_network_of_ours_does_what_has_no_such_kernel(name: str):
    width: dict[str, Any] = {} if name.startswith("wrn") else {"width": 2}
    model = models.build(name, num_classes=3, in_channels=3, **width)
    with Looking() as looking:
        model(torch.rand(2, 3, 32, 32, requires_grad=True)).sum().backward()
    assert "convolution_backward" in looking.seen
    assert not looking.seen & INEXACT


class Putting(nn.Module):
    """Makes use of what torch sums in any order: `put_`, which it says of CPUs too."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.last = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3))
        zeros = torch.zeros_like(mean).put_(torch.zeros(1, dtype=torch.int64), torch.zeros(1))
        return self.last(mean + zeros)


def test_what_has_no_such_kernel_is_named_once_and_the_run_goes_on(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(models.MODELS, "putting", Putting)
    said, before = Said(), asked()
    summary = train(small(fast="off", model={"name": "putting"}), tmp_path / "run", display=said)
    assert summary["steps"] == 3
    notes = [note for note in said.notes if "fast: off" in note]
    assert notes == [
        "fast: off cannot promise the same bits at every run of this network: torch has no kernel that always sums "
        "alike for put_"
    ]
    assert asked() == before


def test_a_user_who_has_torch_refuse_such_kernels_has_them_refused():
    torch.use_deterministic_algorithms(True)
    try:
        with deterministic(), pytest.raises(RuntimeError, match="put_ does not have a deterministic implementation"):
            torch.zeros(2).put_(torch.zeros(1, dtype=torch.int64), torch.ones(1))
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    with deterministic(), warnings.catch_warnings(record=True) as told:
        torch.zeros(2).put_(torch.zeros(1, dtype=torch.int64), torch.ones(1))
    assert not told
