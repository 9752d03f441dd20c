"""The balls: their projections, dual norms and uniform draws against closed forms."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from torch import Tensor

from toughen.noise import Stream, fixed
from toughen.threat import L2, THREATS, Linf, Threat, parse, per_example, safe_norm

BALLS = [Linf, L2]
DTYPES = [torch.float32, torch.float64]
SHAPES = st.sampled_from([(1, 1, 1, 1), (2, 3, 4, 4), (5, 1, 7, 3), (3, 10), (4, 1)])
EPS = st.sampled_from([0.0, 1e-30, 1e-3, 8 / 255, 0.5, 3.0, 1e10])
SCALE = st.sampled_from([0.0, 1e-30, 1e-4, 0.03, 1.0, 100.0, 1e30])
SOME = settings(max_examples=60, deadline=None)


def images(seed: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def true_size(norm: str, delta: Tensor) -> Tensor:
    """In float64, where neither 1e30 squared nor 1e-30 squared leaves the range."""
    return torch.linalg.vector_norm(delta.double().flatten(1), ord=math.inf if norm == "linf" else 2, dim=1)


def nearest_point(norm: str, delta: Tensor, eps: float) -> Tensor:
    """The projection by its formula, in float64."""
    exact = delta.double()
    if norm == "linf":
        return exact.clamp(-eps, eps)
    length = true_size("l2", delta).reshape(-1, *[1] * (delta.ndim - 1))
    return exact * (eps / length.clamp(min=1e-300)).clamp(max=1)


def slack(dtype: torch.dtype) -> float:
    return 1e-6 if dtype == torch.float32 else 1e-14


@SOME
@given(
    ball=st.sampled_from(BALLS),
    shape=SHAPES,
    eps=EPS,
    scale=SCALE,
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_the_projection_is_the_nearest_point_of_the_ball(ball, shape, eps, scale, dtype, seed):
    threat, delta = ball(eps), images(seed, shape, dtype) * scale
    found = threat.project(delta)
    assert found.dtype == dtype
    assert found.shape == delta.shape
    assert torch.isfinite(found).all()
    assert (true_size(ball.norm, found) <= eps * (1 + slack(dtype))).all()
    torch.testing.assert_close(
        found.double(), nearest_point(ball.norm, delta, eps), rtol=4 * slack(dtype), atol=1e-44 if eps else 0
    )
    again = threat.project(found)
    torch.testing.assert_close(again, found, rtol=2 * slack(dtype), atol=1e-44)


@SOME
@given(ball=st.sampled_from(BALLS), shape=SHAPES, dtype=st.sampled_from(DTYPES), seed=st.integers(0, 99))
def test_inside_the_projection_is_the_identity_bit_for_bit(ball, shape, dtype, seed):
    delta = images(seed, shape, dtype)
    threat = ball(1.001 * true_size(ball.norm, delta).max().item())
    assert torch.equal(threat.project(delta), delta)
    assert torch.equal(threat.project(delta * 1e-30), delta * 1e-30)


@SOME
@given(ball=st.sampled_from(BALLS), shape=SHAPES, eps=EPS, seed=st.integers(0, 99))
def test_the_projection_does_not_expand(ball, shape, eps, seed):
    a, b = images(seed, shape), images(seed + 1000, shape)
    near, far = true_size("l2", ball(eps).project(a) - ball(eps).project(b)), true_size("l2", a - b)
    assert (near <= far * (1 + 1e-12)).all()


@pytest.mark.parametrize("ball", BALLS)
def test_on_the_surface_nothing_moves(ball):
    delta = torch.tensor([[3.0, -4.0], [0.0, 5.0]])
    eps = {"linf": torch.tensor([4.0, 5.0]), "l2": torch.tensor([5.0, 5.0])}[ball.norm]
    assert torch.equal(ball(eps).project(delta), delta)


def test_projections_by_hand():
    delta = torch.tensor([[3.0, -4.0], [0.3, 0.4], [0.0, 0.0], [-3.0, 4.0]])
    assert torch.equal(Linf(1).project(delta), torch.tensor([[1, -1], [0.3, 0.4], [0, 0], [-1, 1]]))
    torch.testing.assert_close(L2(1).project(delta), torch.tensor([[0.6, -0.8], [0.3, 0.4], [0, 0], [-0.6, 0.8]]))
    assert torch.equal(Linf(1).size(delta), torch.tensor([4, 0.4, 0, 4]))
    torch.testing.assert_close(L2(1).size(delta), torch.tensor([5, 0.5, 0, 5]))


@pytest.mark.parametrize("ball", BALLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_radius_per_example_is_each_example_alone(ball, dtype):
    delta, eps = images(0, (5, 3, 4, 4), dtype), torch.tensor([0.0, 1e-3, 0.3, 2.0, 1e6], dtype=torch.float64)
    together = ball(eps).project(delta)
    start = ball(eps).sample(delta, fixed(5))
    for i, radius in enumerate(eps.to(dtype).tolist()):
        torch.testing.assert_close(together[i : i + 1], ball(radius).project(delta[i : i + 1]), rtol=1e-7, atol=0)
        alone = ball(radius).sample(delta[i : i + 1], fixed(5)[i : i + 1])
        torch.testing.assert_close(start[i : i + 1], alone, rtol=3e-7, atol=0)
    assert together.dtype == start.dtype == dtype


@pytest.mark.parametrize("eps", [0.25, torch.tensor(0.25), torch.full((3,), 0.25)])
@pytest.mark.parametrize("ball", BALLS)
def test_one_radius_for_all_may_be_a_number_or_a_tensor(ball, eps):
    delta = images(1, (3, 2, 2, 2), torch.float32)
    torch.testing.assert_close(ball(eps).project(delta), ball(0.25).project(delta), rtol=0, atol=0)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_norms_neither_overflow_nor_vanish(scale):
    torch.testing.assert_close(safe_norm(torch.tensor([[3.0, 4.0], [0, 0]]) * scale), torch.tensor([5.0, 0]) * scale)
    torch.testing.assert_close(L2(1).size(torch.ones(1, 4, 5, 5) * scale), torch.tensor([10.0]) * scale)
    assert Linf(1).size(torch.tensor([[3.0, -4.0]]) * scale).item() == pytest.approx(4 * scale)


@SOME
@given(
    ball=st.sampled_from(BALLS),
    shape=SHAPES,
    scale=st.sampled_from([1e-40, 1e-30, 1.0, 1e30]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_the_steepest_direction_attains_the_dual_norm(ball, shape, scale, dtype, seed):
    grad = images(seed, shape, dtype) * scale
    v = ball(1).steepest(grad)
    assert v.dtype == dtype
    torch.testing.assert_close(true_size(ball.norm, v), torch.ones(shape[0]).double(), rtol=slack(dtype), atol=0)
    dual = torch.linalg.vector_norm(grad.double().flatten(1), ord=1 if ball.norm == "linf" else 2, dim=1)
    torch.testing.assert_close((v.double() * grad.double()).flatten(1).sum(1), dual, rtol=1e-4, atol=0)


@pytest.mark.parametrize("ball", BALLS)
def test_a_zero_gradient_has_no_direction(ball):
    grad = torch.zeros(2, 3, 2, 2)
    grad[1] = 2
    v = ball(1).steepest(grad)
    assert torch.equal(v[0], torch.zeros(3, 2, 2))
    assert (v[1] > 0).all()


def many(n: int, key: str = "draws") -> Stream:
    return Stream((key,), torch.arange(n), block=n)


@pytest.mark.parametrize("d", [1, 2, 12])
def test_l2_draws_fill_the_ball(d):
    n, eps = 40_000, 0.5
    delta = L2(eps).sample(torch.zeros(n, d, 1, 1, dtype=torch.float64), many(n)).flatten(1)
    radius = delta.norm(dim=1)
    assert radius.max() <= eps * (1 + 1e-12)
    assert radius.mean().item() == pytest.approx(eps * d / (d + 1), rel=0.01)
    # P(radius <= r) = (r / eps)^d
    for share in (0.1, 0.5, 0.9):
        assert (radius <= eps * share ** (1 / d)).double().mean().item() == pytest.approx(share, abs=0.01)
    torch.testing.assert_close(delta.mean(0), torch.zeros(d).double(), rtol=0, atol=0.01)
    torch.testing.assert_close(delta.T @ delta / n, torch.eye(d).double() * eps**2 / (d + 2), rtol=0, atol=0.003)


@pytest.mark.parametrize(("n", "shape"), [(2000, (1, 1, 1)), (2000, (1, 3, 3)), (200, (2, 5, 7)), (4, (3, 105, 105))])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ball", BALLS)
def test_a_draw_does_not_depend_on_the_place_in_the_batch(ball, dtype, n, shape):
    """Bit for bit, wherever the batch is cut: what fills a processor's vectors, and what is left over, changes then."""
    x, eps = torch.zeros(n, *shape, dtype=dtype), torch.linspace(0.1, 3, n)
    whole = ball(eps).sample(x, many(n))
    for start in range(min(n, 18)):
        for end in (start + 1, start + 2, start + 7, n):
            rows = slice(start, end)
            assert torch.equal(ball(eps[rows]).sample(x[rows], many(n)[rows]), whole[rows]), rows


def test_linf_draws_fill_the_cube():
    n, d, eps = 20_000, 4, 8 / 255
    delta = Linf(eps).sample(torch.zeros(n, d, 1, 1), many(n)).flatten(1).double() / eps
    assert delta.abs().max() <= 1
    torch.testing.assert_close(delta.abs().mean(0), torch.full((d,), 0.5).double(), rtol=0, atol=0.01)
    torch.testing.assert_close(delta.mean(0), torch.zeros(d).double(), rtol=0, atol=0.02)
    torch.testing.assert_close(delta.T @ delta / n, torch.eye(d).double() / 3, rtol=0, atol=0.015)
    assert delta.amin() < -0.999
    assert delta.amax() > 0.999


@pytest.mark.parametrize("ball", BALLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_draws_are_a_function_of_the_stream_alone(ball, dtype):
    x, before = images(3, (3, 2, 4, 4), dtype), torch.get_rng_state()
    first = ball(0.1).sample(x, fixed(3))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(ball(0.1).sample(torch.zeros_like(x), fixed(3)), first)
    assert not torch.equal(ball(0.1).sample(x, fixed(3).child(1)), first)
    assert len(first.flatten(1).unique(dim=0)) == 3
    torch.testing.assert_close(ball(0.2).sample(x, fixed(3)), 2 * first)
    assert torch.equal(ball(0).sample(x, fixed(3)), torch.zeros_like(x))
    assert ball(0.1).sample(x[:0], fixed(0)).shape == (0, 2, 4, 4)
    assert first.dtype == dtype


def test_a_part_of_a_threat_has_its_examples_radii():
    threat = L2(torch.tensor([1.0, 2.0, 3.0]))
    assert threat[1:] == L2(torch.tensor([2.0, 3.0]))
    assert threat[torch.tensor([True, False, True])] == L2(torch.tensor([1.0, 3.0]))
    assert threat[torch.tensor([2, 0])] == L2(torch.tensor([3.0, 1.0]))
    assert Linf(0.1)[1:] == Linf(0.1)
    assert Linf(torch.tensor(0.1))[torch.tensor([0])] == Linf(torch.tensor(0.1))


def test_scaled_radii():
    assert Linf(0.5).scaled(1.5) == Linf(0.75)
    assert L2(torch.tensor([1.0, 2.0])).scaled(0.5) == L2(torch.tensor([0.5, 1.0]))


def test_per_example_values_broadcast_over_images():
    x = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    assert per_example(0.5, x) == 0.5
    radii = per_example(torch.tensor([1.0, 2.0]), x)
    assert isinstance(radii, Tensor)
    assert radii.shape == (2, 1, 1, 1)
    assert radii.dtype == torch.float64


# --- text


@pytest.mark.parametrize(
    ("text", "threat"),
    [
        ("linf:8/255", Linf(8 / 255)),
        (" Linf : 8/255 ", Linf(8 / 255)),
        ("l2:0.5", L2(0.5)),
        ("L2:128/255", L2(128 / 255)),
        ("linf:0", Linf(0)),
        ("l2:1e-3", L2(0.001)),
    ],
)
def test_text_is_read(text, threat):
    found = parse(text)
    assert type(found) is type(threat)
    assert found.eps == threat.eps


@pytest.mark.parametrize(
    ("threat", "text"),
    [
        (Linf(8 / 255), "linf:8/255"),
        (L2(0.2), "l2:0.2"),
        (Linf(8.8 / 255), "linf:8.8/255"),
        (Linf(0.3), "linf:0.3"),
        (L2(128 / 255), "l2:128/255"),
        (Linf(0), "linf:0.0"),
        (L2(1), "l2:1.0"),
    ],
)
def test_text_is_written_as_the_field_writes_it(threat, text):
    assert str(threat) == text
    assert parse(text).eps == threat.eps


@SOME
@given(norm=st.sampled_from(list(THREATS)), eps=st.floats(0, 1e6))
def test_every_radius_survives_its_text(norm, eps):
    found = parse(str(THREATS[norm](eps)))
    assert found.norm == norm
    assert found.eps == eps


@pytest.mark.parametrize("text", ["", "8/255", "linf", "linf:", "l1:0.3", "linf 8/255", "linf:8 / 255", "linf:1 l2:1"])
def test_what_is_no_threat_model_is_refused(text):
    with pytest.raises(ValueError, match="is not a threat model; write linf:RADIUS or l2:RADIUS, like linf:8/255"):
        parse(text)


@pytest.mark.parametrize("text", ["linf:eight", "linf:8/0", "l2:1/2/3", "linf:/255", "linf:8/255:2"])
def test_what_is_no_radius_is_refused(text):
    with pytest.raises(ValueError, match="is not a number; write it like"):
        parse(text)


@pytest.mark.parametrize(
    "eps", [-0.1, math.nan, math.inf, torch.tensor(-1.0), torch.tensor([0.1, -0.1]), torch.tensor([0.1, math.nan])]
)
@pytest.mark.parametrize("ball", BALLS)
def test_a_radius_is_finite_and_not_negative(ball, eps):
    with pytest.raises(ValueError, match=f"must be finite and not negative, like {ball.norm}:8/255"):
        ball(eps)


def test_a_radius_per_pixel_is_refused():
    with pytest.raises(ValueError, match=r"eps has shape \(2, 1\); give a number or a tensor \(N,\)"):
        Linf(torch.ones(2, 1))


class Holder(BaseModel):
    threat: Threat


def test_pydantic_reads_and_writes_text():
    holder = Holder.model_validate({"threat": "linf:8.8/255"})
    assert isinstance(holder.threat, Linf)
    assert holder.threat.eps == 8.8 / 255
    assert holder.model_dump_json() == '{"threat":"linf:8.8/255"}'
    assert Holder.model_validate_json(holder.model_dump_json()) == holder
    kept = L2(0.5)
    assert Holder(threat=kept).threat is kept
    with pytest.raises(ValidationError, match=r"'l3:1' is not a threat model"):
        Holder.model_validate({"threat": "l3:1"})


def test_equality_is_of_norm_and_radius():
    assert Linf(0.1) == Linf(0.1)
    assert hash(Linf(0.1)) == hash(Linf(0.1))
    assert Linf(0.1) != L2(0.1)
    assert Linf(0.1) != Linf(0.2)
    assert Linf(0.1) != 0.1
    assert L2(torch.tensor([1.0, 2.0])) == L2(torch.tensor([1.0, 2.0]))
    assert L2(torch.tensor([1.0, 2.0])) != L2(torch.tensor([1.0, 2.5]))
    assert L2(torch.tensor([1.0, 2.0])) != L2(1.0)
    assert {Linf(0.1): 1}[Linf(0.1)] == 1


def test_equal_threats_have_equal_hashes():
    """0.1 and its float32 neighbour are different radii: written and hashed apart, so not equal either."""
    rounded = torch.tensor(0.1).item()
    assert rounded != 0.1
    assert Linf(0.1) != Linf(rounded)


@pytest.mark.parametrize("ball", BALLS)
def test_threats_are_frozen(ball):
    threat = ball(0.1)
    with pytest.raises(AttributeError):
        threat.eps = 0.2
