"""The losses against their formulas, written out in float64."""

import math

import pytest
import torch
from torch import Tensor

from toughen.losses import LOSSES, cross_entropy, full_precision, hard, kl, margin, targeted, targeted_dlr

DTYPES = [torch.float32, torch.float64]


@pytest.fixture
def logits() -> Tensor:
    return 3 * torch.randn(50, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def y() -> Tensor:
    return torch.arange(50) % 7


@pytest.fixture
def soft() -> Tensor:
    return torch.rand(50, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(1)


def log_probability(row: list[float], k: int) -> float:
    """log softmax(row)_k by hand."""
    return row[k] - math.log(sum(math.exp(value) for value in row))


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_of_classes(logits, y, dtype):
    expected = torch.tensor(
        [-log_probability(row, k) for row, k in zip(logits.tolist(), y.tolist(), strict=True)], dtype=torch.float64
    )
    found = cross_entropy(logits.to(dtype), y)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=1e-5 if dtype == torch.float32 else 1e-13, atol=1e-6)
    torch.testing.assert_close(cross_entropy(logits, y), expected, rtol=1e-13, atol=1e-13)


def test_cross_entropy_of_probabilities(logits, soft):
    expected = [
        -sum(share * log_probability(row, k) for k, share in enumerate(shares))
        for row, shares in zip(logits.tolist(), soft.tolist(), strict=True)
    ]
    torch.testing.assert_close(
        cross_entropy(logits, soft), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-13
    )


@pytest.mark.parametrize("name", ["cross_entropy", "margin"])
def test_one_hot_labels_are_hard_labels(logits, y, name):
    one_hot = torch.nn.functional.one_hot(y, 7)
    torch.testing.assert_close(LOSSES[name](logits, one_hot.double()), LOSSES[name](logits, y), rtol=1e-14, atol=1e-14)
    # the dtype of the probabilities is not that of the logits
    torch.testing.assert_close(LOSSES[name](logits, one_hot.float()), LOSSES[name](logits, y), rtol=1e-14, atol=1e-14)


def test_hard_labels(soft, y):
    assert torch.equal(hard(y), y)
    assert hard(torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]])).tolist() == [1, 0]


def test_margin_by_hand(logits, y):
    expected = [
        max(value for k, value in enumerate(row) if k != label) - row[label]
        for row, label in zip(logits.tolist(), y.tolist(), strict=True)
    ]
    assert margin(logits, y).tolist() == expected


def test_margin_is_positive_exactly_where_the_classifier_is_wrong(logits, y):
    wrong = logits.argmax(1) != y
    assert 5 < wrong.sum() < 49
    assert torch.equal(margin(logits, y) > 0, wrong)
    assert torch.equal(margin(logits, y) < 0, ~wrong)


def test_margin_goes_on_rising_and_takes_negative_logits():
    assert margin(torch.tensor([[-9.0, -1.0], [-1.0, -9.0]]), torch.tensor([0, 0])).tolist() == [8, -8]


def test_kl_by_hand(logits, soft):
    expected = [
        sum(share * (math.log(share) - log_probability(row, k)) for k, share in enumerate(shares))
        for row, shares in zip(logits.tolist(), soft.tolist(), strict=True)
    ]
    torch.testing.assert_close(kl(logits, soft), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-13)


def test_kl_is_zero_at_equality_and_positive_elsewhere(logits):
    p = logits.softmax(1)
    assert kl(logits, p).abs().max() < 1e-14
    moved = logits.clone()
    moved[:, 0] += 0.1
    assert (kl(moved, p) > 0).all()
    at = logits.clone().requires_grad_()
    kl(at, p).sum().backward()
    assert at.grad is not None
    assert at.grad.abs().max() < 1e-14


def test_kl_of_certain_labels_is_cross_entropy(logits, y):
    one_hot = torch.nn.functional.one_hot(y, 7).double()
    torch.testing.assert_close(kl(logits, one_hot), cross_entropy(logits, y), rtol=1e-13, atol=1e-13)


def test_gradients_of_cross_entropy_and_kl_are_the_difference_of_probabilities(logits, soft):
    for loss in (cross_entropy, kl):
        at = logits.clone().requires_grad_()
        loss(at, soft).sum().backward()
        torch.testing.assert_close(at.grad, logits.softmax(1) - soft, rtol=1e-12, atol=1e-13)


def test_a_targeted_loss_ignores_the_label_and_changes_the_sign(logits, y):
    target = (y + 3) % 7
    assert torch.equal(targeted(cross_entropy, target)(logits, y), -cross_entropy(logits, target))
    assert torch.equal(targeted(margin, target)(logits, y), -margin(logits, target))


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32(logits, soft, name, dtype):
    rough = logits.to(dtype)
    found = LOSSES[name](rough, soft)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), LOSSES[name](rough.double(), soft), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_full_precision_leaves_the_rest_alone(dtype):
    value = torch.ones(2, dtype=dtype)
    assert full_precision(value) is value


@pytest.mark.parametrize("name", list(LOSSES))
def test_losses_are_per_example(logits, soft, name):
    together = LOSSES[name](logits, soft)
    assert together.shape == (50,)
    alone = torch.cat([LOSSES[name](logits[i : i + 1], soft[i : i + 1]) for i in range(50)])
    torch.testing.assert_close(together, alone, rtol=1e-14, atol=1e-14)
    assert LOSSES[name](logits[:0], soft[:0]).shape == (0,)


@pytest.mark.parametrize("name", list(LOSSES))
def test_losses_stay_finite_far_out(name):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]])
    found = LOSSES[name](logits, torch.tensor([[1.0, 0, 0], [1.0, 0, 0]]))
    expected = {"margin": [-1e4, 2e4], "margin-0": [-1e4, 0], "margin-50": [-1e4, 50], "dlr": [-0.5, 1.0]}
    expected["probability_margin"] = [-1.0, 1.0]
    torch.testing.assert_close(found, torch.tensor(expected.get(name, [0, 2e4])))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dlr_by_hand(dtype):
    logits = torch.tensor([[4.0, 1.0, 3.0, -2.0]], dtype=dtype)
    assert LOSSES["dlr"](logits, torch.tensor([0])).item() == pytest.approx(-(4 - 3) / (4 - 1))
    assert LOSSES["dlr"](logits, torch.tensor([1])).item() == pytest.approx(-(1 - 4) / (4 - 1))
    found = targeted_dlr(logits, torch.tensor([0]), torch.tensor([3]))
    assert found.item() == pytest.approx(-(4 + 2) / (4 - (1 - 2) / 2))


def test_dlr_does_not_feel_a_shift_or_a_scale(logits, y):
    for loss in (LOSSES["dlr"], lambda z, y: targeted_dlr(z, y, (y + 3) % 7)):
        torch.testing.assert_close(loss(1e3 * logits - 7, y), loss(logits, y))


def test_too_few_classes_for_dlr():
    with pytest.raises(ValueError, match="needs at least 3 classes, the model has 2; use loss: margin"):
        LOSSES["dlr"](torch.zeros(1, 2), torch.tensor([0]))
    with pytest.raises(ValueError, match="needs at least 4 classes"):
        targeted_dlr(torch.zeros(1, 3), torch.tensor([0]), torch.tensor([1]))


def test_the_clipped_margin_stops_at_its_confidence():
    logits = torch.tensor([[0.0, 70.0], [0.0, 20.0], [5.0, 0.0]])
    y = torch.zeros(3, dtype=torch.long)
    assert LOSSES["margin-50"](logits, y).tolist() == [50, 20, -5]
    assert LOSSES["margin-0"](logits, y).tolist() == [0, 0, -5]
