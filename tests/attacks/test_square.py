"""Square Attack against the exact truth about linear models, its schedule and its steps by hand, and exact counts."""

import sys

import pytest
import torch
from torch import Tensor, nn

from conftest import few
from oracles import EPS, LinearProblem, RowByRow, linear_problem
from toughen.attacks.square import MOVES, bumps, share, square
from toughen.losses import margin
from toughen.models.batched import Batched
from toughen.models.cost import counted
from toughen.noise import Stream, fixed
from toughen.threat import L2, Linf, Threat

BOTH = [Linf(0.05), L2(0.4)]


class Recorder(nn.Module):
    """A model that keeps what it is asked."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.clone())
        return self.model(x)


class Constant(nn.Module):
    """Logits that no image changes: nothing breaks, nothing is accepted."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.0], dtype=x.dtype).expand(len(x), 2)


def gains(problem: LinearProblem, x: Tensor) -> Tensor:
    with torch.no_grad():
        return margin(problem.model(x), problem.y)


# --- strength, against the truth


@pytest.mark.parametrize("seed", few(0, 1, 2))
def test_500_queries_break_56_of_100_breakable_examples(seed):
    problem = linear_problem(seed)
    found = square(problem.model, problem.x, problem.y, threat=Linf(EPS), queries=500)
    gain, best = gains(problem, found), problem.best_linf()
    assert not (gain > best + 1e-5).any()
    assert ((gain > 0) & (best > 0)).sum() >= 0.56 * (best > 0).sum()


@pytest.mark.parametrize(("seed", "least"), [(0, 0.2), (1, 0.69)])
def test_l2_breaks_more_than_the_port_of_autoattack_and_nothing_impossible(seed, least):
    """Which breaks 0.18 and 0.68 here with its schedule stretched, and 0.13 and 0.58 without."""
    problem = linear_problem(seed, inner=True)
    distance = problem.distance_l2()
    found = square(problem.model, problem.x, problem.y, threat=L2(0.4), queries=500)
    broken, size = gains(problem, found) > 0, (found.double() - problem.x.double()).flatten(1).norm(dim=1)
    assert (size <= 0.4 * (1 + 1e-6)).all()
    assert (size[broken] >= distance[broken] * (1 - 1e-6)).all()
    assert broken.float().mean() >= least
    near = square(problem.model, problem.x, problem.y, threat=L2(0.999 * distance), queries=50)
    assert not (gains(problem, near) > 0).any()


def test_more_queries_reach_the_optimum_of_a_linear_model(linear, inner, y):
    """Two classes and 32 numbers: single pixels find every sign."""
    best = inner + 0.1 * linear.uphill(y).sign()
    own = linear(best).detach().argmax(1)
    found = square(linear, inner, y, threat=Linf(0.1), queries=1500)
    with torch.no_grad():
        reached, fooled = margin(linear(found), y), linear(found).argmax(1) != y
    standing = own == y
    torch.testing.assert_close(reached[standing], margin(linear(best), y)[standing], rtol=0, atol=1e-9)
    assert torch.equal(fooled, ~standing)


# --- the algorithm by hand


def test_the_schedule_by_hand():
    marks = [0, 10, 11, 50, 51, 200, 201, 500, 501, 1000, 1001, 2000, 2001, 4000, 4001, 6000, 6001, 8000, 8001, 9999]
    halved = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9]
    assert [share(query, 10_000, 0.8) for query in marks] == [0.8 / 2**k for k in halved]
    # a tenth of the queries: every mark comes ten times as early, and is passed by at least one in 10,000
    assert [share(query, 1000, 0.8) for query in (1, 2, 5, 6, 20, 21)] == [0.8, 0.4, 0.4, 0.2, 0.2, 0.1]
    assert [share(query, 5000, 0.3) for query in (5, 6, 25, 26)] == [0.3, 0.15, 0.15, 0.075]


def test_the_sides_by_hand():
    linf, l2 = MOVES["linf"].side, MOVES["l2"].side
    assert [linf(pixels) for pixels in (0, 0.1, 1.6, 2.5, 6.25, 12.3, 820)] == [1, 1, 1, 2, 2, 4, 29]
    assert [l2(pixels) for pixels in (0, 4, 12.3, 25, 26, 820)] == [3, 3, 5, 5, 5, 29]


def test_the_bump_by_hand():
    """Ring r of a rectangle has 1/(r+1)^2 + 1/(r+2)^2 + ... to the outermost ring's number plus one."""
    upper = torch.tensor([[0.25, 1.25, 0.25]]).double()
    lower = torch.tensor([[0.25, 0.25, 0.25], [0.25, 1.25, 0.25]]).double()[:2]
    pattern = torch.cat([upper / upper.norm(), -lower / lower.norm()]) / 2**0.5
    torch.testing.assert_close(bumps(3)[0], pattern, rtol=0, atol=1e-12)
    torch.testing.assert_close(bumps(3)[1], pattern.T, rtol=0, atol=1e-12)
    for side in (1, 2, 5, 6, 7):
        torch.testing.assert_close(bumps(side).flatten(1).norm(dim=1), torch.ones(2).double(), rtol=0, atol=1e-12)


def asked(threat: Threat, queries: int, x: Tensor, noise: Stream | None = None) -> list[Tensor]:
    model = Recorder(Constant())
    square(model, x, torch.zeros(len(x), dtype=torch.int64), threat=threat, queries=queries, noise=noise)
    return model.seen


def test_linf_starts_with_stripes_at_the_balls_corners(inner):
    (start,) = asked(Linf(0.05), 1, inner)
    signs = (start - inner) / 0.05
    torch.testing.assert_close(signs.abs(), torch.ones_like(signs), rtol=0, atol=1e-12)
    assert torch.equal(signs.sign(), signs.sign()[:, :, :1].expand_as(signs))
    assert len(signs.sign()[:, :, 0].flatten(1).unique(dim=0)) > 1


def test_every_linf_query_is_one_square_inside_the_image_at_the_balls_corners():
    x = torch.rand(6, 3, 9, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    queries, eps = 300, 0.2
    start, *seen = asked(Linf(eps), queries, x)
    assert len(seen) == queries - 1
    for tried, image in enumerate(seen):
        at_corner = (image == (x + eps).clamp(0, 1)) | (image == (x - eps).clamp(0, 1))
        assert at_corner.all()
        side = min(MOVES["linf"].side(share(tried, queries, 0.8) * 63), 7)
        changed = image != start
        # no query is idle: a square that would change nothing is put with the opposite signs
        assert changed.flatten(1).any(1).all()
        rows, columns = changed.any(3).any(1), changed.any(2).any(1)
        for some in (rows, columns):
            first, last = some.int().argmax(1), some.shape[1] - 1 - some.flip(1).int().argmax(1)
            assert (last - first < side).all()
        # one sign per channel
        for i in range(6):
            up = (image - start)[i][changed[i]].sign()
            assert up.unique().numel() <= 2
            for channel in range(3):
                assert (image - x)[i, channel][changed[i, channel]].sign().unique().numel() <= 1


def test_single_pixels_try_every_place_before_one_twice():
    """p = 0 asks for one pixel at a time: 20 places, 20 queries, each once, in an order of each example's own."""
    x = torch.full((5, 1, 4, 5), 0.5, dtype=torch.float64)
    model = Recorder(Constant())
    square(model, x, torch.zeros(5, dtype=torch.int64), threat=Linf(0.1), queries=41, p_init=0)
    start, *seen = model.seen
    places = torch.stack([(image != start).flatten(1).int().argmax(1) for image in seen], 1)
    for half in (places[:, :20], places[:, 20:]):
        assert torch.equal(half.sort(1).values, torch.arange(20).expand(5, 20))
    assert len(places.unique(dim=0)) == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_l2_query_reaches_eps_and_stays_within(dtype):
    """Far from 0 and 1 no clipping takes anything away, through hundreds of accepted queries."""
    problem = linear_problem(0, n=40, inner=True, dtype=dtype)
    model, eps = Recorder(problem.model), 0.9 * problem.distance_l2()
    square(model, problem.x, problem.y, threat=L2(eps), queries=400)
    rounding = 5e-7 if dtype == torch.float32 else 1e-14
    assert len(model.seen) == 400
    for image in model.seen:
        size = (image.double() - problem.x.double()).flatten(1).norm(dim=1)
        torch.testing.assert_close(size, eps, rtol=rounding, atol=rounding)
        assert (size <= eps * (1 + 1e-6) + 1e-7).all()


def test_an_l2_query_changes_two_windows_and_keeps_the_rest():
    x = torch.full((6, 3, 12, 12), 0.5, dtype=torch.float64)
    start, *seen = asked(L2(0.3), 200, x)
    side = [MOVES["l2"].side(share(tried, 200, 0.8) * 144) for tried in range(199)]
    for tried, image in enumerate(seen):
        changed = (image != start).any(1)
        emptied = ((image == x).all(1) & (start != x).any(1)).flatten(1).sum(1)
        assert (changed.flatten(1).sum(1) <= 2 * min(side[tried], 12) ** 2).all()
        assert (emptied <= min(side[tried], 12) ** 2).all()
    assert side[-1] == 3


def test_clipped_l2_images_stay_within(smooth, x, y):
    model = Recorder(smooth)
    square(model, (x * 2 - 0.5).clamp(0, 1), y, threat=L2(1.5), queries=60)
    clean = (x * 2 - 0.5).clamp(0, 1)
    for image in model.seen:
        if len(image) == 8:
            assert image.min() >= 0
            assert image.max() <= 1
            assert ((image - clean).flatten(1).norm(dim=1) <= 1.5 + 1e-9).all()


@pytest.mark.parametrize("threat", BOTH, ids=str)
def test_the_result_is_the_best_point_asked(smooth, x, threat):
    with torch.no_grad():
        y = smooth(x).argmax(1)
    model = Recorder(smooth)
    found = square(model, x, y, threat=type(threat)(threat.eps / 10), queries=50)
    with torch.no_grad():
        every = torch.stack([margin(smooth(image), y) for image in model.seen if len(image) == 8])
        reached = margin(smooth(found), y)
    assert len(every) == 50
    torch.testing.assert_close(reached, every.amax(0), rtol=0, atol=1e-12)
    assert (every.amax(0) > every[0] + 1e-4).all()


# --- cost


@pytest.mark.parametrize("threat", BOTH, ids=str)
def test_queries_are_counted_exactly_and_stop_when_an_example_breaks(threat):
    problem = linear_problem(0, n=60)
    model = Recorder(problem.model)
    threat = Linf(EPS) if threat.norm == "linf" else L2(0.4)
    with counted(model) as passes:
        found = square(model, problem.x, problem.y, threat=threat, queries=80)
    broken = int((gains(problem, found) > 0).sum())
    sizes = [len(image) for image in model.seen]
    assert passes.forwards == len(sizes) == 80
    assert passes.backwards == 0
    assert sizes[0] == 60
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] >= 60 - broken > 0
    assert broken >= 5
    # who is asked no more is broken: each query's misclassified examples are gone from the next
    with torch.no_grad():
        alive = torch.arange(60)
        for image, following in zip(model.seen, [*sizes[1:], None], strict=True):
            fooled = problem.model(image).argmax(1) != problem.y[alive]
            alive = alive[~fooled]
            assert following in (len(alive), None)


def test_restarts_attack_what_still_stands_and_keep_the_best():
    problem = linear_problem(0, n=60)
    settings = {"threat": Linf(EPS), "queries": 40}
    model = Recorder(problem.model)
    one = square(problem.model, problem.x, problem.y, **settings)
    two = square(model, problem.x, problem.y, restarts=2, **settings)
    first, second = gains(problem, one), gains(problem, two)
    broken = first > 0
    assert torch.equal(two[broken], one[broken])
    assert len(model.seen[40]) == int((~broken).sum())
    assert len(model.seen) == 80
    assert (second >= first).all()
    assert (second > first).any()


def test_no_room_costs_nothing(linear, x, y):
    eps = torch.tensor([0.0, 0.1] * 4, dtype=torch.float64)
    model = Recorder(Constant())
    found = square(model, x, torch.zeros(8, dtype=torch.int64), threat=Linf(eps), queries=3)
    assert [len(image) for image in model.seen] == [4, 4, 4]
    assert torch.equal(found[::2], x[::2])
    with counted(linear) as passes:
        assert torch.equal(square(linear, x, y, threat=L2(0), queries=3), x)
        assert square(linear, x[:0], y[:0], threat=L2(1), queries=3).shape == (0, 2, 4, 4)
    assert passes.forwards == 0


# --- one example, whatever the others


@pytest.mark.parametrize("threat", BOTH, ids=str)
def test_an_example_does_not_depend_on_its_batch_mates(threat):
    """300 queries cross the block of random numbers that is drawn at once."""
    model = RowByRow()
    x, y = model.images(16)
    eps = torch.linspace(0.2, 2, 16, dtype=torch.float64) * (EPS if threat.norm == "linf" else 0.2)
    noise, order = Stream(("run",), 10 + torch.arange(16)), torch.randperm(16, generator=torch.Generator())
    ball = type(threat)(eps)
    whole = square(model, x, y, threat=ball, queries=300, noise=noise)
    mixed = square(model, x[order], y[order], threat=ball[order], queries=300, noise=noise[order])
    assert torch.equal(mixed, whole[order])
    parts = [
        square(model, x[p], y[p], threat=ball[p], queries=300, noise=noise[p])
        for p in torch.arange(16).split([1, 4, 11])
    ]
    assert torch.equal(torch.cat(parts), whole)
    small = square(Batched(model, size=5), x, y, threat=ball, queries=300, noise=noise)
    assert torch.equal(small, whole)
    assert not torch.equal(square(model, x, y, threat=ball, queries=300, noise=noise.child(1)), whole)
    assert torch.equal(
        square(model, x, y, threat=ball, queries=20), square(model, x, y, threat=ball, queries=20, noise=fixed(16))
    )


# --- odd cases


def test_ties_are_not_called_broken_and_nan_is_no_gain(x):
    """Equal logits are class 0 to argmax, so label 0 stands and label 1 falls; NaN margins lose to any number."""
    zero = nn.Sequential(nn.Flatten(), nn.Linear(32, 2)).double()
    for parameter in zero.parameters():
        nn.init.zeros_(parameter)
    model = Recorder(zero)
    square(model, x, torch.tensor([0, 1] * 4), threat=Linf(0.1), queries=5)
    assert [len(image) for image in model.seen] == [8, 4, 4, 4, 4]

    class FirstIsNaN(Recorder):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            return logits * torch.nan if len(self.seen) == 1 else logits

    recorder = FirstIsNaN(Constant())
    found = square(recorder, x, torch.zeros(8, dtype=torch.int64), threat=Linf(0.1), queries=5)
    # argmax of NaN is the first class, so all stand; the first number there is counts as higher
    assert torch.equal(found, recorder.seen[1])


@pytest.mark.parametrize(("h", "w"), [(1, 1), (2, 2), (3, 8), (8, 3), (11, 6)])
@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.1)], ids=str)
def test_images_of_any_shape(threat, h, w):
    x = torch.full((3, 2, h, w), 0.5, dtype=torch.float64)
    for image in asked(threat, 60, x):
        size = threat.size(image - x)
        torch.testing.assert_close(size, torch.full_like(size, 0.1), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("setting", "value"), [("queries", 0), ("p_init", 1.5), ("p_init", -0.1), ("restarts", 0), ("queries", True)]
)
def test_settings_out_of_range_are_refused(linear, x, y, setting, value):
    with pytest.raises(ValueError, match=setting):
        square(linear, x, y, threat=Linf(0.1), **{setting: value})


def test_probabilities_count_by_their_most_probable_class(smooth, x, y):
    soft = nn.functional.one_hot(y, 4).double() * 0.6 + 0.1
    settings = {"threat": Linf(0.1), "queries": 20}
    assert torch.equal(square(smooth, x, soft, **settings), square(smooth, x, y, **settings))


@pytest.mark.parametrize(("stretch", "horizon"), [(True, 30), (False, 10_000)])
def test_the_schedule_is_that_of_the_budget_or_of_ten_thousand(monkeypatch, stretch, horizon):
    asked = []
    module = sys.modules["toughen.attacks.square"]
    monkeypatch.setattr(module, "share", lambda *given: asked.append(given) or share(*given))
    problem = linear_problem(0, n=8)
    safe = problem.best_linf(1e-4) < 0
    square(problem.model, problem.x[safe], problem.y[safe], threat=Linf(1e-4), queries=30, stretch=stretch)
    assert asked == [(tried, horizon, 0.8) for tried in range(29)]
