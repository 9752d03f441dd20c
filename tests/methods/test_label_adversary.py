"""The label adversary against its algebra, written out here in float64 one example at a time."""

import math

import pytest
import torch
from torch import Tensor

from toughen.losses import cross_entropy
from toughen.methods.label_adversary import Heuristic, adversarial_labels

K, BETA, GAMMA = 10, 9.0, 0.01
HEURISTICS: tuple[Heuristic, ...] = ("main", "supplement")


def logits_of(kind: str, n: int = 200) -> tuple[Tensor, Tensor]:
    """Random logits and classes: of three scales, and confidently wrong, confidently right and uniform ones."""
    source = torch.Generator().manual_seed(0)
    logits = torch.randn(n, K, generator=source, dtype=torch.float64)
    y = torch.randint(K, (n,), generator=source)
    if kind == "wrong":
        logits[torch.arange(n), (y + 3) % K] += 60
    elif kind == "right":
        logits[torch.arange(n), y] += 60
    elif kind == "uniform":
        logits[:] = 1.5
    else:
        logits *= float(kind)
    return logits, y


KINDS = ("1", "0.001", "100", "wrong", "right", "uniform")


def losses_of(row: Tensor) -> list[float]:
    """v_k = -log p_k of one example, in Python's own arithmetic."""
    values = row.tolist()
    top = max(values)
    log_sum = top + math.log(sum(math.exp(value - top) for value in values))
    return [log_sum - value for value in values]


def by_hand(row: Tensor, c: int, heuristic: str, beta: float, largest: int | None = None) -> list[float]:
    """The equations of docs/methods/bilateral.md as they stand there: main, and supplement (equations 2 and 4)."""
    v = losses_of(row)
    wrong = sorted((k for k in range(len(v)) if k != c), key=lambda k: v[k], reverse=True)
    wrong = wrong[: len(wrong) if largest is None else largest]
    total, v_mc, v_ll = sum(v[k] for k in wrong), min(v[k] for k in wrong), max(v[k] for k in wrong)
    y = [0.0] * len(v)
    if heuristic == "main":
        denominator = total - len(wrong) * (v_mc - GAMMA)
        eps = 1 / (1 + beta * (v_ll - v_mc + GAMMA) / denominator)
        for k in wrong:
            y[k] = eps / denominator * (v[k] - v_mc + GAMMA)
    else:
        eps = 1 / (1 + beta * v_ll / total)
        for k in wrong:
            y[k] = eps * v[k] / total
    y[c] = 1 - eps
    return y


@pytest.mark.parametrize("heuristic", HEURISTICS)
@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_the_equations(kind: str, heuristic: Heuristic):
    logits, y = logits_of(kind, 40)
    for beta, largest in ((9.0, None), (11.0, 4), (0.5, 1), (9.0, K - 1)):
        found = adversarial_labels(logits, y, heuristic=heuristic, beta=beta, largest=largest)
        hand = [by_hand(row, int(c), heuristic, beta, largest) for row, c in zip(logits, y, strict=True)]
        expected = torch.tensor(hand, dtype=torch.float64)
        if kind == "uniform" and largest not in (None, K - 1):
            # Any of the equal classes may be among those that receive.
            found, expected = found.sort(1).values, expected.sort(1).values
        assert torch.allclose(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("heuristic", HEURISTICS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("largest", [None, 4, 1])
def test_algebra(kind: str, heuristic: Heuristic, largest: int | None):
    logits, y = logits_of(kind)
    n = K - 1 if largest is None else largest
    for beta in (0.5, 9.0, 11.0):
        labels = adversarial_labels(logits, y, heuristic=heuristic, beta=beta, gamma=GAMMA, largest=largest)
        assert torch.allclose(labels.sum(1), torch.ones(len(y), dtype=torch.float64), rtol=0, atol=1e-12)
        assert ((labels >= 0) & (labels <= 1)).all()
        true = labels.gather(1, y.unsqueeze(1)).squeeze(1)
        others = labels.scatter(1, y.unsqueeze(1), -1.0)
        assert torch.allclose(true, beta * others.amax(1), rtol=0, atol=1e-12)
        budget = 1 - true
        assert (budget >= 1 / (1 + beta) - 1e-12).all()
        assert (budget <= 1 / (1 + beta / n) + 1e-12).all()
        if kind in ("1", "0.001") and n > 1:
            assert (budget > 1 / (1 + beta)).all()
        if kind == "uniform":
            assert torch.allclose(budget, torch.full_like(budget, 1 / (1 + beta / n)), rtol=0, atol=1e-12)
        # What is no loss to the model gets none of the mass: the most confusing class has the least of all.
        wrong = logits.scatter(1, y.unsqueeze(1), -torch.inf)
        of_confusing = labels.gather(1, wrong.argmax(1, keepdim=True)).squeeze(1)
        least = labels.scatter(1, y.unsqueeze(1), 2.0).amin(1)
        if kind != "uniform" or largest is None:
            assert torch.equal(of_confusing, least)
        # The least likely class has the most.
        of_least = labels.gather(1, logits.scatter(1, y.unsqueeze(1), torch.inf).argmin(1, keepdim=True)).squeeze(1)
        if kind != "uniform" or largest is None:
            assert torch.equal(of_least, others.amax(1))
        assert ((others > 0).sum(1) <= n).all()
        if largest is None and heuristic == "main":
            assert (others.scatter(1, y.unsqueeze(1), 1.0) > 0).all()


def test_cifar10_budgets_run_from_a_tenth_to_a_half_and_the_limits_are_approached():
    # One class far above equal ones: shares tend to 1 / 8 each. One far below equal ones: its share tends to 1.
    logits = torch.zeros(2, K, dtype=torch.float64)
    logits[0, 1], logits[1, 1] = 1e6, -1e6
    y = torch.zeros(2, dtype=torch.long)
    budget = 1 - adversarial_labels(logits, y)[:, 0]
    assert budget[0].item() == pytest.approx(1 / (1 + 9 / 8), abs=1e-6)
    assert budget[1].item() == pytest.approx(0.1, abs=1e-6)
    assert budget[1] > 0.1
    assert (1 - adversarial_labels(torch.zeros(1, K), y[:1])[0, 0]).item() == pytest.approx(0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_supplement_is_one_step_of_gradient_ascent_in_the_labels(kind: str):
    logits, c = logits_of(kind)
    y = torch.nn.functional.one_hot(c, K).double().requires_grad_()
    (v,) = torch.autograd.grad(cross_entropy(logits, y).sum(), y)
    v = v.scatter(1, c.unsqueeze(1), 0.0)
    alpha = 1 / (v.sum(1) + BETA * v.amax(1))
    stepped = y.detach() + alpha.unsqueeze(1) * v
    budget = alpha * v.sum(1)
    stepped = stepped.scatter(1, c.unsqueeze(1), (1 - budget).unsqueeze(1))
    assert torch.allclose(adversarial_labels(logits, c, heuristic="supplement", beta=BETA), stepped, rtol=0, atol=1e-12)


def test_main_leaves_the_confusing_class_less_than_the_supplement_unless_the_model_is_sure_of_it():
    y = torch.zeros(400, dtype=torch.long)
    logits = logits_of("1", 400)[0]
    # p_MC from about 0.1 to 1 - 1e-8, on both sides of exp(-gamma).
    logits[:, 1] = logits[:, 2:].amax(1) + torch.linspace(0.1, 20, 400, dtype=torch.float64)
    logits[:, 0] = 0
    main, other = (adversarial_labels(logits, y, heuristic=h)[:, 1] for h in HEURISTICS)
    sure = logits.softmax(1)[:, 1] > math.exp(-GAMMA)
    assert 50 < sure.sum() < 350
    assert (main[~sure] < other[~sure]).all()
    assert (main[sure] > other[sure]).all()


@pytest.mark.parametrize("heuristic", HEURISTICS)
def test_two_classes_leave_no_choice(heuristic: Heuristic):
    logits = torch.tensor([[0.0, 1.0], [5.0, -5.0], [0.0, 1000.0]])
    labels = adversarial_labels(logits, torch.zeros(3, dtype=torch.long), heuristic=heuristic)
    assert torch.allclose(labels, torch.tensor([[0.9, 0.1]]).expand(3, 2))


@pytest.mark.parametrize("heuristic", HEURISTICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_and_extreme_logits_stay_probabilities(heuristic: Heuristic, dtype: torch.dtype):
    for kind in (*KINDS, "1e6"):
        logits, y = logits_of(kind)
        labels = adversarial_labels(logits.to(dtype), y, heuristic=heuristic)
        assert labels.dtype == torch.float32
        assert ((labels >= 0) & (labels <= 1)).all()
        assert torch.allclose(labels.sum(1), torch.ones(len(y)), rtol=0, atol=1e-5)


def test_losses_beyond_the_official_constant_go_on_growing():
    # -log(p + 1e-8) would hold both small classes at 18.4 and give them equal shares.
    logits = torch.tensor([[0.0, 0.0, -30.0, -60.0]], dtype=torch.float64)
    labels = adversarial_labels(logits, torch.tensor([0]))
    assert (labels[0, 3] / labels[0, 2]).item() == pytest.approx(60.01 / 30.01)


def test_missing_labels_are_rows_of_zeros_and_labels_carry_no_gradient():
    logits = torch.randn(3, K, requires_grad=True)
    labels = adversarial_labels(logits, torch.tensor([2, -1, 0]))
    assert not labels.requires_grad
    assert not labels[1].any()
    assert cross_entropy(logits, labels)[1] == 0
    assert torch.equal(labels[[0, 2]], adversarial_labels(logits[[0, 2]], torch.tensor([2, 0])))


@pytest.mark.parametrize("heuristic", HEURISTICS)
def test_empty_batch(heuristic: Heuristic):
    for largest in (None, 2):
        found = adversarial_labels(
            torch.zeros(0, K), torch.zeros(0, dtype=torch.long), heuristic=heuristic, largest=largest
        )
        assert found.shape == (0, K)


def test_more_receiving_classes_than_there_are_is_refused():
    y = torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match=r"the 10 of the largest loss, .* 10 classes.*give largest from 1 to 9"):
        adversarial_labels(torch.zeros(1, K), y, largest=10)
    with pytest.raises(ValueError, match=r"give largest from 1 to 9"):
        adversarial_labels(torch.zeros(1, K), y, largest=0)
    with pytest.raises(ValueError, match="at least 2 classes"):
        adversarial_labels(torch.zeros(1, 1), y)
