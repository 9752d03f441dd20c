"""Labels in the forms that files and frameworks give them, through every door: one reading, or one sentence."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from toughen.attacks import AttackSpec, pgd
from toughen.data.sources.in_memory import from_pairs
from toughen.evaluation import check, corruption_accuracy, evaluate
from toughen.evaluation.analyses.gradients import gradient_magnitude
from toughen.evaluation.analyses.sweeps import step_sweep
from toughen.evaluation.analyses.transfer import transfer
from toughen.evaluation.audit.audit import audit
from toughen.threat import Linf

K, BALL = 3, Linf(0.1)
X = torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(2))
Y = torch.arange(9) % K
PIXELS = (255 * X).round().to(torch.uint8)


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, K)).eval()


DOORS: dict[str, Callable[[Any], Any]] = {
    "evaluate": lambda y: evaluate(model(), X, y, threat=BALL, suite="pgd-2", audit=False).outcomes.survived.tolist(),
    "audit": lambda y: audit(model(), X, y, threat=BALL),
    "check": lambda y: check(model(), X, y).items,
    "attack": lambda y: pgd(model(), X, y, threat=BALL, steps=2).tolist(),
    "corruptions": lambda y: corruption_accuracy(
        model(), PIXELS, y, corruptions=["contrast"], severities=[1]
    ).label.tolist(),
    "step sweep": lambda y: step_sweep(model(), X, y, threat="linf:0.1", steps=[1]).survived.tolist(),
    "gradient magnitude": lambda y: gradient_magnitude(model(), X, y).norm.tolist(),
    "transfer": lambda y: transfer(
        model(), model(), X, y, threat="linf:0.1", attack=AttackSpec(name="pgd", steps=2)
    ).survived.tolist(),
    "data of Python": lambda y: from_pairs("mine", (PIXELS, y), (PIXELS, y)).test.labels.tolist(),
}

READ: dict[str, Any] = {
    "int32": Y.int(),
    "uint8": Y.to(torch.uint8),
    "uint16": Y.to(torch.uint16),
    "an array": Y.numpy(),
    "an array of the other byte order": Y.numpy().astype(">i4"),
    "every second of an array": np.stack([Y.numpy(), Y.numpy()], 1).reshape(-1)[::2],
    "a list": Y.tolist(),
    "a list of tensors": list(Y),
    "a column": Y[:, None],
    "one-hot rows of whole numbers": nn.functional.one_hot(Y, K),
    "one-hot rows of bool": nn.functional.one_hot(Y, K).bool(),
}

TWICE = nn.functional.one_hot(Y, K) + nn.functional.one_hot((Y + 1) % K, K)

REFUSED: dict[str, tuple[Any, str]] = {
    "floats": (Y.float(), r"labels are torch\.float32 of shape \(9,\) .* y\.long\(\), if that is what they mean"),
    "a column of floats": (Y[:, None].float(), r"labels are torch\.float32 of shape \(9, 1\) .* y\.long\(\)"),
    "several classes an image": (TWICE, r"of shape \(9, 3\), whose rows do not name one class each; give class number"),
    "too few": (Y[:8], r"labels are torch\.int64 of shape \(8,\) for 9 images"),
    "texts": (["cat"] * 9, r"which is no array of numbers; give class numbers \(N,\), from 0"),
    "rows of several lengths": ([[0], *[[0, 1]] * 8], r"which is no array of numbers"),
    "one number": (torch.tensor(1), r"labels are torch\.int64 of shape \(\) for 9 images"),
    "a map": (Y[:, None, None], r"labels are torch\.int64 of shape \(9, 1, 1\) for 9 images"),
}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_labels_of_any_form_mean_the_same_at_every_door(door: Callable[[Any], Any]):
    expected = door(Y)
    for name, given in READ.items():
        assert door(given) == expected, name
    for name, (given, says) in REFUSED.items():
        with pytest.raises(ValueError, match=says) as caught:
            door(given)
        assert "\n" not in str(caught.value), name


def rows(first: Tensor) -> Tensor:
    return torch.cat([first.expand(1, K), torch.full((8, K), 1 / K)])


@pytest.mark.parametrize(
    "row", [torch.tensor([1.0, 1, 0]), torch.tensor([1.5, -0.5, 0]), torch.tensor([torch.nan, 0, 1]), torch.zeros(3)]
)
def test_rows_that_are_no_probabilities_are_refused(row: Tensor):
    with pytest.raises(ValueError, match=r"of which row 0 is no probabilities .* rows that sum to 1: an image has one"):
        pgd(model(), X, rows(row), threat=BALL, steps=1)


def test_probabilities_are_for_attacks_alone():
    soft = rows(torch.tensor([0.2, 0.3, 0.5]))
    for given in (soft, soft.half(), soft.double()):
        assert pgd(model(), X, given, threat=BALL, steps=1).shape == X.shape
    with pytest.raises(ValueError, match=r"give class numbers \(N,\): y\.argmax\(1\), if that is what they mean"):
        evaluate(model(), X, soft, threat=BALL, suite="pgd-1")


def test_images_that_are_no_tensor_are_refused_with_the_way():
    for door in (
        lambda x: evaluate(model(), x, Y, threat=BALL, suite="pgd-1"),
        lambda x: pgd(model(), x, Y, threat=BALL),
        lambda x: audit(model(), x, Y, threat=BALL),
        lambda x: check(model(), x, Y),
        lambda x: gradient_magnitude(model(), x, Y),
    ):
        with pytest.raises(ValueError, match=r"images are of type ndarray; give a tensor .* torch\.from_numpy\(x\)"):
            door(X.numpy())
