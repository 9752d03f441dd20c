"""Where memory runs out, and that none is used up by the number of images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from processes import run_script
from toughen.evaluation import Evaluation, evaluate
from toughen.evaluation.plan import Stage
from toughen.evaluation.result import RESULT
from toughen.evaluation.work_unit import EvaluationTask, UnitResult
from toughen.threat import Linf
from toys import labels, network, photographs, spec

N = 90
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "memory.py"
SUITE: dict[str, Any] = {
    "fgsm": spec("fgsm"),
    "pgd": spec("pgd", steps=3, restarts=2),
    "own": lambda model, x, y, threat: own(model, x, y, threat.eps),
}


def own(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """A user's attack, which runs the model on all that it is given."""
    leaf = x.detach().requires_grad_()
    (grad,) = torch.autograd.grad(nn.functional.cross_entropy(model(leaf), y, reduction="sum"), leaf)
    return (x + eps * grad.sign()).clamp(0, 1)


class Cramped(nn.Module):
    """Has memory for so many examples."""

    def __init__(self, most: int, *, backwards: bool = False) -> None:
        super().__init__()
        self.model = network(dtype=torch.float64)
        self.most, self.backwards, self.largest = most, backwards, 0

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most and (x.requires_grad or not self.backwards):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.largest = max(self.largest, len(x))
        return self.model(x)


def run(model: nn.Module, **changes: Any) -> Evaluation:
    x = photographs(N)
    y = labels(network(dtype=torch.float64), x.double() / 255)
    given = {"threat": Linf(2 / 255), "suite": SUITE, "batch_size": 64, "chunk_size": 50, "audit": False} | changes
    return evaluate(model, x, y, **given)


@pytest.mark.parametrize(("most", "left"), [(50, 64), (9, 8), (1, 1)])
@pytest.mark.parametrize("backwards", [False, True])
def test_out_of_memory_the_evaluation_goes_on_with_fewer_in_a_pass(most, left, backwards):
    roomy, cramped = run(Cramped(999)), Cramped(most, backwards=backwards)
    found = run(cramped)
    assert roomy.notes == ()
    note = (
        f"EV241 Out of memory with 64 examples in a pass; continued with {left}. "
        "Logits may differ by 1e-6 from those of an undisturbed evaluation."
    )
    assert found.notes == ((note,) if left < 64 else ())
    assert backwards or cramped.largest <= most
    for column in ("attack", "index", "prediction", "survived", "marginal", "label"):
        np.testing.assert_array_equal(getattr(found.outcomes, column), getattr(roomy.outcomes, column))
    assert 0 < found.robust_accuracy < 1
    assert found.summary()["notes"] == list(found.notes)


def test_the_note_outlives_the_process_that_ran_out(monkeypatch, tmp_path):
    class Stopped(Exception):
        pass

    def stop(self: EvaluationTask, stage: Stage, some: Tensor) -> UnitResult:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(EvaluationTask, "run", stop)
        with pytest.raises(Stopped):
            run(Cramped(20), folder=tmp_path)
    resumed = run(Cramped(20), folder=tmp_path, batch_size=16)
    assert [note[:70] for note in resumed.notes] == [
        "EV241 Out of memory with 64 examples in a pass; continued with 16. Log"
    ]
    assert json.loads((tmp_path / RESULT).read_text())["notes"] == list(resumed.notes)
    np.testing.assert_array_equal(resumed.outcomes.survived, run(Cramped(999)).outcomes.survived)


@pytest.mark.parametrize("batch_size", [1, 64])
def test_a_single_example_that_does_not_fit_is_said_in_a_sentence(batch_size):
    for backwards in (False, True):
        with pytest.raises(ValueError, match=r"EV242 Out of memory, .*: give a smaller chunk_size, a smaller model or"):
            run(Cramped(0, backwards=backwards), batch_size=batch_size)


def test_other_errors_of_a_model_are_its_own():
    class Faulty(nn.Module):
        def __init__(self, takes: int) -> None:
            super().__init__()
            self.takes = takes

        def forward(self, x: Tensor) -> Tensor:
            if len(x) > self.takes:
                raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
            return x.flatten(1)[:, :5]

    said = r"^the model raises RuntimeError: mat1 and mat2 shapes cannot be multiplied \(test_memory\.py, line \d+\)$"
    with pytest.raises(ValueError, match=said):
        run(Faulty(1))
    # With a single image it is the image that does not suit.
    with pytest.raises(ValueError, match=r"EV226 the model raises on images of 3x8x8, .*: mat1 and mat2") as caught:
        run(Faulty(0))
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel does not say what a process has used")
def test_memory_does_not_grow_with_the_number_of_images():
    """In a process of its own: three times the images, each 3 KB, of which 192 are attacked at a time."""
    given = ["--model", "linear", "--batch-size", "128", "--chunk-size", "192", "--short", "--json", "--images"]
    grown: list[float] = []
    for images in (192, 576):
        done = run_script(BENCHMARK, *given, images)
        assert done.returncode == 0, done.stderr
        grown.append(json.loads(done.stdout)["above_model_mib"])
    # About 90, and 210 for the second if all its images were attacked at once.
    assert grown[0] < 200
    assert grown[1] - grown[0] < 80
