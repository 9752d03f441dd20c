"""Attacks that are wrong, each by itself: the evaluation stops and names the example."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from toughen.attacks.contract import minimal_norm
from toughen.evaluation import Evaluation, Unsound, evaluate
from toughen.threat import L2, Linf, Threat
from toys import EPS, labels, linear

N = 60
IDS = torch.arange(N) * 10 + 1


def judged(attack: object, threat: Threat | None = None, model: nn.Module | None = None, **given: object) -> Evaluation:
    """An attack on 60 images in float64 that are classified correctly, all of them interior to [0, 1]."""
    toy, x, _ = linear(N)
    model = toy if model is None else model
    arguments = {"x": x, "y": labels(toy, x), "index": IDS, "batch_size": 16, "chunk_size": 24} | given
    return evaluate(model, threat=threat or Linf(EPS), suite={"mine": attack}, **arguments)  # pyright: ignore[reportArgumentType]


def uphill(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    """The most damaging example of the linear model."""
    w = model.get_parameter("w").detach().reshape(1, 1, 4, 4)
    return x + threat.eps * away(y) * threat.steepest(w)


def away(y: Tensor) -> Tensor:
    """The sign of the score's change that hurts, (n, 1, 1, 1), in float64."""
    return (1 - 2 * y).double().reshape(-1, 1, 1, 1)


def at(rows: Tensor, wanted: int) -> Tensor:
    """A mask (n, 1, 1, 1) of the example with that id."""
    return (rows == wanted).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("wanted", [1, 291, 591])
@pytest.mark.parametrize("threat", [Linf(EPS), L2(0.3)])
def test_one_example_outside_the_ball_by_a_millionth(threat, wanted):
    def slip(model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, noise) -> Tensor:
        longer = type(threat)(threat.eps + 1e-6)
        return torch.where(at(noise.rows, wanted), uphill(model, x, y, longer), uphill(model, x, y, threat))

    judged(lambda model, x, y, threat: uphill(model, x, y, threat), threat)
    with pytest.raises(Unsound, match=rf"'mine' left the ball on example {wanted}: .* distance is .*, 1e-06 more than"):
        judged(slip, threat)


@pytest.mark.parametrize("value", [1.0000001, -1e-9, float("nan"), float("inf"), -float("inf")])
def test_one_pixel_outside_the_box(value):
    toy, x, _ = linear(N)

    def leak(model: nn.Module, x: Tensor, y: Tensor, *, noise) -> Tensor:
        found = x.clone()
        found[(noise.rows == 311), 0, 2, 3] = value
        return found

    # 0.9999999 and 0.00000001 are near enough to leave only the box.
    x[:, 0, 2, 3] = 1.0 if value > 0.5 else 0.0
    with pytest.raises(Unsound, match=r"'mine' left (the ball|\[0, 1\]) on example 311"):
        judged(leak, x=x, y=labels(toy, x))


@pytest.mark.parametrize("find", [lambda x: x.flatten(1), lambda x: x[:, :, :3], lambda x: x[1:], lambda x: [x]])
def test_another_shape(find):
    with pytest.raises(Unsound, match=r"attack 'mine' returned .* for images of shape \(16, 1, 4, 4\)"):
        judged(lambda model, x, y: find(x))


def test_a_minimal_norm_attack_must_stay_in_the_box_all_the_same():
    @minimal_norm
    def far(model: nn.Module, x: Tensor, y: Tensor, *, noise) -> Tensor:
        return torch.where(at(noise.rows, 21), x + 1, x)

    with pytest.raises(Unsound, match=r"left \[0, 1\] on example 21"):
        judged(far)


class Company(nn.Module):
    """Swaps its answers on images of which an attack has moved the corner, where `swaps` says so of the batch."""

    def __init__(self, model: nn.Module, swaps) -> None:
        super().__init__()
        self.model, self.swaps = model, swaps

    def forward(self, x: Tensor) -> Tensor:
        logits, moved = self.model(x), (x[:, 0, 0, 0] - 0.2).abs() < 0.02
        return torch.where(moved.unsqueeze(1) & self.swaps(x), logits.flip(1), logits)


def corner(model: nn.Module, x: Tensor, y: Tensor, *, noise) -> Tensor:
    found = x.clone()
    found[torch.isin(noise.rows, torch.tensor([31, 41])), 0, 0, 0] = 0.2
    return found


def in_company(swaps, batch_size: int = 16) -> Evaluation:
    toy, x, _ = linear(N)
    x[:, 0, 0, 0], x[:, 0, 3, 3] = 0.24, torch.linspace(0.3, 0.7, N)
    return judged(corner, model=Company(toy, swaps), x=x, y=labels(toy, x), batch_size=batch_size)


@pytest.mark.parametrize(
    "swaps",
    [
        lambda x: torch.tensor(len(x) >= 16),
        lambda x: torch.tensor(len(x) > 2),
        lambda x: ((x[:, 0, 0, 0] - 0.2).abs() < 0.02).double().mean() < 0.5,
        lambda x: (torch.arange(len(x)) > 1).unsqueeze(1),
        # The first image of a batch swaps, and each that is brighter in one pixel than the one before it: all do.
        lambda x: torch.cat([torch.ones(1) > 0, x[1:, 0, 3, 3] > x[:-1, 0, 3, 3]]).unsqueeze(1),
    ],
    ids=["a full batch", "a batch", "others in the batch", "the place in the batch", "the order of the batch"],
)
def test_an_example_that_fools_only_in_its_company(swaps):
    with pytest.raises(
        Unsound, match=r"EV261 \d of \d adversarial examples of attack 'mine' no longer fool .*\(ids \d+"
    ):
        in_company(swaps)


def evaluations(n: int, swaps) -> None:
    for _ in range(n):
        in_company(swaps)


def test_an_example_that_fools_by_chance():
    draw = torch.Generator().manual_seed(0)
    says = r"EV261 .*\(ids (31|41).*: its answers depend on chance or on the other images"
    # One evaluation may be lucky; the draws are fixed.
    with pytest.raises(Unsound, match=says):
        evaluations(20, lambda x: torch.rand(1, generator=draw) < 0.5)


def test_an_example_that_always_fools_is_counted():
    evaluation = in_company(lambda x: torch.tensor(True))
    attacked = evaluation.outcomes.attack == "mine"
    assert set(evaluation.outcomes.index[attacked & ~evaluation.outcomes.survived]) == {31, 41}
    assert evaluation.robust_accuracy == (N - 2) / N


def test_company_of_one_is_confirmed_in_company():
    """A batch size of 1 is judged again in pairs."""
    with pytest.raises(Unsound, match="EV261"):
        in_company(lambda x: torch.tensor(len(x) == 1), batch_size=1)


def test_marginal_pairs_are_counted_and_shown_and_no_error():
    """Of two nearly equal logits rounding may make either the higher: no verdict hangs on it."""

    class Rough(nn.Module):
        """Logits (0, v) whose last digits depend on the batch size, as a fast kernel's do."""

        def forward(self, x: Tensor) -> Tensor:
            v = x.mean((1, 2, 3)) - 0.5 + (2e-6 if len(x) > 16 else 0)
            return torch.stack([torch.zeros_like(v), v], 1)

    x = torch.full((40, 1, 2, 2), 0.4, dtype=torch.float64)

    def rise(model: nn.Module, x: Tensor, y: Tensor, *, noise) -> Tensor:
        goal = torch.tensor([0.45, 0.5 - 1e-6, 0.5 + 1e-3, 0.5 - 5e-6], dtype=x.dtype)[noise.rows % 4]
        return goal.reshape(-1, 1, 1, 1).expand_as(x)

    model, y = Rough(), torch.zeros(40, dtype=torch.int64)
    evaluation = evaluate(model, x, y, threat=Linf(0.2), suite={"rise": rise}, batch_size=32)
    o = evaluation.outcomes
    rise_rows = o.attack == "rise"
    kind = o.index[rise_rows] % 4
    np.testing.assert_array_equal(o.marginal[rise_rows], (kind == 1) | (kind == 3))
    # In batches of 32 the second kind is broken, in the 8 that are left over it is not.
    np.testing.assert_array_equal(~o.survived[rise_rows], (kind == 2) | ((kind == 1) & (o.index[rise_rows] < 32)))
    assert evaluation.summary()["marginal"] == o.marginal_examples == 20
    assert np.isclose(o.margin[rise_rows][kind == 2], 1e-3, atol=1e-5).all()


def test_what_a_minimal_norm_attack_finds_outside_has_survived_at_its_distance():
    toy, x, _ = linear(N)
    y = labels(toy, x)
    with torch.no_grad():
        score = (x.flatten(1) @ toy.w + toy.b).abs()
    # The exact distance in L2; a little further lies the example.
    reach = score / toy.w.detach().norm() * 1.001

    @minimal_norm
    def outward(model: nn.Module, x: Tensor, y: Tensor, *, noise) -> Tensor:
        w = model.get_parameter("w").detach().reshape(1, 1, 4, 4)
        length = (reach[(noise.rows - 1) // 10] / w.norm()).reshape(-1, 1, 1, 1)
        return x + length * away(y) * w

    eps = float(reach.median())
    inside = (reach <= eps).numpy()
    o = judged(outward, L2(eps)).outcomes
    rows = o.attack == "mine"
    np.testing.assert_array_equal(o.survived[rows], ~inside)
    np.testing.assert_allclose(o.distance[rows], reach.numpy(), rtol=1e-9)
    np.testing.assert_array_equal(o.prediction[rows], 1 - y.numpy())
    assert (o.margin[rows] > 0).all()
    assert o.robust_correct == int((~inside).sum())

    def plain(model: nn.Module, x: Tensor, y: Tensor, *, noise) -> Tensor:
        return outward(model, x, y, noise=noise)

    with pytest.raises(Unsound, match=f"left the ball on example {int(IDS[np.flatnonzero(~inside)[0]])}"):
        judged(plain, L2(eps))


def test_per_example_radii_are_the_judges_measure():
    radii = torch.where(torch.arange(N) % 2 == 0, 0.02, EPS).double()

    def furthest(model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat) -> Tensor:
        return uphill(model, x, y, Linf(EPS))

    with pytest.raises(Unsound, match=r"left the ball on example 1: its linf distance is 0.05, 0.03 more than .* 0.02"):
        judged(furthest, Linf(radii))
