"""Auto-PGD against the algorithm written out one example at a time, closed forms, and exact counts of passes."""

import math

import pytest
import torch
from torch import Tensor, nn

from conftest import few
from oracles import EPS, LinearProblem, linear_problem
from toughen.attacks.apgd import apgd, apgd_targeted, checkpoints, log_odds
from toughen.losses import cross_entropy, dlr, margin, targeted, targeted_dlr
from toughen.models.batched import Batched
from toughen.models.cost import Passes, counted
from toughen.noise import Stream, fixed
from toughen.threat import L2, Linf, Threat

# --- strength against closed forms


def exact_margin(problem: LinearProblem, x_adv: Tensor) -> Tensor:
    weight, bias = problem.model.weight.detach().double(), problem.model.bias.detach().double()
    return margin(x_adv.double().flatten(1) @ weight.T + bias, problem.y)


@pytest.mark.parametrize("seed", few(0, 1, 2))
@pytest.mark.parametrize(("loss", "share"), [("cross_entropy", 0.959), ("dlr", 0.994), ("targeted", 1.0)])
def test_breaks_what_a_linf_ball_can_break(seed, loss, share):
    problem = linear_problem(seed)
    if loss == "targeted":
        x_adv = apgd_targeted(problem.model, problem.x, problem.y, threat=Linf(EPS), steps=50)
    else:
        x_adv = apgd(problem.model, problem.x, problem.y, threat=Linf(EPS), steps=50, loss=loss)
    found, best = exact_margin(problem, x_adv), problem.best_linf()
    assert (found <= best + 1e-4).all()
    assert not ((found > 0) & ~problem.breakable()).any()
    assert (found > 0).sum() >= share * problem.breakable().sum()


@pytest.mark.faults
def test_breaks_what_an_l2_ball_can_break(faults):
    broken_by_dlr = near = 0
    for seed in range(faults.trials(small=1, full=3)):
        problem = linear_problem(seed, inner=True)
        distance = problem.distance_l2()
        eps = distance.quantile(0.6).item()
        tried = distance < 1.1 * eps
        problem, distance = LinearProblem(problem.model, problem.x[tried], problem.y[tried]), distance[tried]
        given = {"threat": L2(eps), "steps": 50}
        by_dlr = exact_margin(problem, apgd(problem.model, problem.x, problem.y, loss="dlr", **given)) > 0
        by_target = exact_margin(problem, apgd_targeted(problem.model, problem.x, problem.y, **given)) > 0
        assert (distance > eps).any()
        assert not ((by_dlr | by_target) & (distance > eps)).any()
        reachable = distance < 0.99 * eps
        assert by_target[reachable].all()
        broken_by_dlr, near = broken_by_dlr + int(by_dlr[reachable].sum()), near + int(reachable.sum())
    assert broken_by_dlr >= 0.99 * near


def test_cross_entropy_does_not_saturate():
    """Logits a hundred times as large: cross-entropy itself is 0 almost everywhere in float32, with no gradient."""
    problem = linear_problem(0, n=100)
    with torch.no_grad():
        problem.model.weight.mul_(100)
        problem.model.bias.mul_(100)
    given = {"threat": Linf(EPS), "steps": 20}
    found = exact_margin(problem, apgd(problem.model, problem.x, problem.y, **given)) > 0
    blind = exact_margin(problem, apgd(problem.model, problem.x, problem.y, loss=cross_entropy, **given)) > 0
    breakable = int(problem.breakable().sum())
    assert found.sum() >= 0.959 * breakable
    assert blind.sum() < 0.8 * breakable


def test_log_odds_is_a_rising_function_of_cross_entropy():
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).mul_(3)
    y = torch.arange(50) % 7
    torch.testing.assert_close(torch.log1p(log_odds(logits, y).exp()), cross_entropy(logits, y), rtol=0, atol=1e-12)
    sure = torch.tensor([[60.0, 0.0, 1.0]], requires_grad=True)
    (grad,) = torch.autograd.grad(log_odds(sure, torch.tensor([0])).sum(), sure)
    p = 1 / (1 + math.e)
    torch.testing.assert_close(grad, torch.tensor([[-1.0, p, 1 - p]]), rtol=0, atol=1e-6)


# --- the algorithm, written out


def test_checkpoints():
    # The paper's for multiples of 100; of others the authors' code's.
    assert list(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(checkpoints(100).values()) == [22, 19, 16, 13, 10, 7, 6, 6]
    assert checkpoints(50) == {11: 11, 21: 10, 30: 9, 38: 8, 45: 7}
    assert list(checkpoints(200)) == [2 * at for at in checkpoints(100)]
    assert checkpoints(5) == {1: 1, 2: 1, 3: 1, 4: 1}
    assert checkpoints(1) == {}


def project(point: Tensor, image: Tensor, eps: float, norm: str) -> Tensor:
    delta = point - image
    delta = delta.clamp(-eps, eps) if norm == "linf" else delta * min(1.0, eps / max(float(delta.norm()), 1e-30))
    return (image + delta).clamp(0, 1)


def by_hand(model, image: Tensor, label: int, eps: float, norm: str, steps: int, draw: Tensor, f):
    """Algorithm 1 of the paper for one image: (point, f there, misclassified, points evaluated, halvings)."""

    def look(point: Tensor) -> tuple[float, Tensor, bool]:
        point = point.clone().requires_grad_()
        logits = model(point[None])
        value = f(logits)
        (grad,) = torch.autograd.grad(value.sum(), point)
        return value.item(), grad, int(logits.argmax(1)) != label

    def up(grad: Tensor) -> Tensor:
        return grad.sign() if norm == "linf" else grad / grad.norm()

    at = project(image + eps * draw / (draw.abs().max() if norm == "linf" else draw.norm()), image, eps, norm)
    value, grad, wrong = look(at)
    if wrong:
        return at, value, True, 1, 0
    before, step, halvings = at, 2 * eps, 0
    best = (value, at, grad)
    trail, window, at_check, was_halved = [value], 0, value, False
    marks = checkpoints(steps)
    for k in range(1, steps + 1):
        z = project(at + step * up(grad), image, eps, norm)
        new = z if k == 1 else project(at + 0.75 * (z - at) + 0.25 * (at - before), image, eps, norm)
        before, at = at, new
        value, grad, wrong = look(at)
        if wrong:
            return at, value, True, k + 1, halvings
        window += value > trail[-1]
        trail.append(value)
        if value > best[0]:
            best = (value, at, grad)
        if k in marks:
            halve = window < 0.75 * marks[k] or (not was_halved and best[0] == at_check)
            at_check, was_halved, window = best[0], halve, 0
            if halve:
                step, halvings = step / 2, halvings + 1
                value, at, grad = best
                trail.append(value)
    return best[1], best[0], False, steps + 1, halvings


@pytest.fixture
def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(10)
        model = nn.Sequential(nn.Flatten(), nn.Linear(32, 24), nn.SiLU(), nn.Linear(24, 6)).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3)
    return model.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(12, 2, 4, 4, generator=torch.Generator().manual_seed(8), dtype=torch.float64)


@pytest.fixture
def y(network, images) -> Tensor:
    return network(images).argmax(1)


def draws(noise: Stream, threat: Threat) -> Tensor:
    kind = noise.uniform if threat.norm == "linf" else noise.normal
    return kind((2, 4, 4), dtype=torch.float64)


LOSSES = {"cross_entropy": cross_entropy, "dlr": dlr, "margin": margin}


@pytest.mark.parametrize("threat", [Linf(0.03), L2(0.15)], ids=["linf", "l2"])
@pytest.mark.parametrize("loss", [*LOSSES, dlr])
def test_apgd_is_the_paper_by_hand(network, images, y, threat, loss):
    noise, steps, runs = Stream(("by hand",), torch.arange(12) + 5), 40, 2
    starts = [draws(noise.child("apgd", r), threat) for r in range(runs)]
    expected, evaluated, halvings, broken = [], 0, 0, 0
    for i, (image, label) in enumerate(zip(images, y.tolist(), strict=True)):
        results = []
        for r in range(runs):
            f = LOSSES[loss] if isinstance(loss, str) else loss
            one = by_hand(
                network,
                image,
                label,
                threat.eps,
                threat.norm,
                steps,
                starts[r][i],
                lambda z, f=f, i=i: f(z, y[i, None]),
            )
            results.append(one)
            evaluated, halvings = evaluated + one[3], halvings + one[4]
            if one[2]:
                break
        broken += results[-1][2]
        expected.append(results[-1][0] if results[-1][2] else max(results, key=lambda one: one[1])[0])
    assert 2 <= broken <= 10
    assert halvings > 20
    with counted(network) as passes:
        found = apgd(network, images, y, threat=threat, steps=steps, restarts=runs, loss=loss, noise=noise)
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-7)
    assert passes.example_forwards == evaluated


@pytest.mark.parametrize("threat", [Linf(0.03), L2(0.15)], ids=["linf", "l2"])
def test_apgd_targeted_is_the_paper_by_hand(network, images, y, threat):
    noise, steps, targets = fixed(12), 25, 3
    clean = network(images).detach()
    order = clean.argsort(1, descending=True)[:, 1:]
    expected, broken, chosen = [], 0, set()
    for i, (image, label) in enumerate(zip(images, y.tolist(), strict=True)):
        results = []
        for t in range(targets):
            draw = draws(noise.child("apgd_targeted", t, 0), threat)[i]

            def f(logits: Tensor, i: int = i, t: int = t) -> Tensor:
                return targeted_dlr(logits, y[i, None], order[i, t, None])

            results.append(by_hand(network, image, label, threat.eps, threat.norm, steps, draw, f))
            if results[-1][2]:
                break
        broken += results[-1][2]
        margins = [margin(network(one[0][None]), y[i, None]).item() for one in results]
        pick = len(results) - 1 if results[-1][2] else max(range(targets), key=margins.__getitem__)
        chosen.add(pick)
        expected.append(results[pick][0])
    assert 2 <= broken <= 10
    assert len(chosen) > 1
    found = apgd_targeted(network, images, y, threat=threat, steps=steps, targets=targets)
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-7)


# --- what it costs


class Sure(nn.Module):
    """Five classes, right about class 0 by the mean pixel less a half; the others follow it closely."""

    def forward(self, x: Tensor) -> Tensor:
        lead = x.flatten(1).mean(1, keepdim=True) - 0.5
        return torch.cat([lead, -lead * torch.tensor([1.0, 1.1, 1.2, 1.3], dtype=x.dtype)], 1)


def flat(*means: float) -> tuple[Tensor, Tensor]:
    x = torch.tensor(means, dtype=torch.float64).reshape(-1, 1, 1, 1) * torch.ones(len(means), 1, 2, 2).double()
    return x, torch.zeros(len(means), dtype=torch.int64)


@pytest.mark.parametrize("steps", [1, 4, 25])
@pytest.mark.parametrize("loss", ["cross_entropy", "dlr"])
def test_one_that_stands_costs_exactly(steps, loss):
    x, y = flat(0.9, 0.9, 0.9)
    model = Sure()
    with counted(model) as passes:
        apgd(model, x, y, threat=Linf(0.1), steps=steps, restarts=2, loss=loss)
    forwards, backwards = 2 * (steps + 1), 2 * steps
    assert passes == Passes(forwards, backwards, 0, 3 * forwards, 3 * backwards)


@pytest.mark.parametrize(("targets", "runs"), [(1, 1), (3, 3), (4, 4), (9, 4)])
def test_one_that_stands_costs_exactly_for_each_target(targets, runs):
    x, y = flat(0.9, 0.9, 0.9)
    model = Sure()
    with counted(model) as passes:
        apgd_targeted(model, x, y, threat=Linf(0.1), steps=7, targets=targets, restarts=2)
    forwards, backwards = 1 + 2 * runs * 8, 2 * runs * 7
    assert passes == Passes(forwards, backwards, 0, 3 * forwards, 3 * backwards)


def test_the_broken_leave_at_once():
    """Of four, one is wrong from the start, two break at the first step at the latest, one stands."""
    x, y = flat(0.3, 0.55, 0.9, 0.55)
    model = Sure()
    with counted(model) as passes:
        found = apgd_targeted(model, x, y, threat=Linf(0.1), steps=7, targets=4)
    assert torch.equal(found[0], x[0])
    assert (model(found).argmax(1) != y).tolist() == [True, True, False, True]
    # The start of those two may be right or wrong, so that they leave after one pass or two.
    assert 2 <= passes.example_forwards - 4 - 4 * 8 <= 4
    assert passes.forwards == 1 + 4 * 8
    assert passes.example_backwards == passes.example_forwards - 4 - 4


def test_when_all_are_broken_nothing_more_is_done():
    x, y = flat(0.3, 0.2)
    model = Sure()
    with counted(model) as passes:
        found = apgd(model, x, y, threat=Linf(0.1), steps=30, restarts=4)
        assert passes == Passes(1, 1, 0, 2, 2)
        assert torch.equal(apgd_targeted(model, x, y, threat=Linf(0.1)), x)
    assert passes.backwards == 1
    assert (model(found).argmax(1) == 4).all()


# --- whose result depends on what


class RowWise(nn.Module):
    """A network whose arithmetic on an image is the same to the bit in any batch."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(4)
        self.first = torch.randn(10, 32, generator=draw, dtype=torch.float64)
        self.second = torch.randn(5, 10, generator=draw, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        hidden = (x.flatten(1).unsqueeze(1) * self.first).sum(2).tanh()
        return (hidden.unsqueeze(1) * self.second).sum(2)


@pytest.mark.parametrize("norm", [Linf, L2])
@pytest.mark.parametrize("attack", [apgd, apgd_targeted])
def test_batch_mates_do_not_matter(images, norm, attack):
    model, y = RowWise(), RowWise()(images).argmax(1)
    threat, noise = norm(torch.linspace(0, 0.1 if norm is Linf else 0.5, 12, dtype=torch.float64)), fixed(12)
    given = {"steps": 12, "restarts": 2}
    whole = attack(model, images, y, threat=threat, noise=noise, **given)
    broken = model(whole).argmax(1) != y
    assert 0 < broken.sum() < 12
    mixed = torch.tensor([7, 3, 11, 0, 5, 1, 9, 2, 10, 4, 8, 6])
    for rows in (mixed, torch.arange(5), torch.tensor([11])):
        part = attack(model, images[rows], y[rows], threat=threat[rows], noise=noise[rows], **given)
        assert torch.equal(part, whole[rows])
    assert torch.equal(attack(Batched(model, 5), images, y, threat=threat, noise=noise, **given), whole)


def test_a_callers_loss_may_hold_a_row_for_each_example(images):
    """Rows leave, yet a targeted loss still finds its own targets."""
    model, threat = RowWise(), Linf(0.05)
    y = model(images).argmax(1)
    target = (y + 1 + torch.arange(12) % 4) % 5
    whole = apgd(model, images, y, threat=threat, steps=12, loss=targeted(cross_entropy, target))
    assert (model(whole).argmax(1) != y).any()
    for i in range(12):
        rows = torch.tensor([i])
        one = apgd(
            model, images[rows], y[rows], threat=threat, steps=12, loss=targeted(cross_entropy, target[rows]),
            noise=fixed(12)[rows],
        )  # fmt: skip
        assert torch.equal(one, whole[rows])


# --- the edges


@pytest.mark.parametrize("threat", [Linf(8 / 255), L2(0.5), Linf(0.0), L2(torch.zeros(300))], ids=str)
@pytest.mark.parametrize("attack", [apgd, apgd_targeted])
def test_in_the_ball_and_in_the_box(threat, attack):
    problem = linear_problem(3)
    x = (problem.x * 1.6 - 0.3).clamp(0, 1)
    found = attack(problem.model, x, problem.model(x).argmax(1), threat=threat, steps=3)
    assert found.dtype == torch.float32
    assert (found >= 0).all()
    assert (found <= 1).all()
    room = torch.as_tensor(threat.eps) * (1 + 1e-6 * (threat.norm == "l2")) + (6e-8 if threat.norm == "linf" else 1e-7)
    assert (threat.size(found.double() - x.double()) <= room * (torch.as_tensor(threat.eps) > 0)).all()


@pytest.mark.parametrize("attack", [apgd, apgd_targeted])
def test_no_images_and_probabilities(network, images, y, attack):
    assert attack(network, images[:0], y[:0], threat=Linf(0.1), steps=2).shape == (0, 2, 4, 4)
    soft = torch.nn.functional.one_hot(y, 6).double()
    from_soft = attack(network, images, soft, threat=L2(0.1), steps=6)
    torch.testing.assert_close(from_soft, attack(network, images, y, threat=L2(0.1), steps=6), rtol=0, atol=1e-9)


def test_too_few_classes_are_said_before_any_work(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 3)).double()
    y = torch.zeros(12, dtype=torch.int64)
    with counted(model) as passes, pytest.raises(ValueError, match="at least 4 classes, the model has 3; use loss: ma"):
        apgd_targeted(model, images, y, threat=Linf(0.1))
    assert passes == Passes(1, 0, 0, 12, 0)
    assert apgd_targeted(model, images, y, threat=Linf(0.1), loss="margin").shape == images.shape
    two = nn.Sequential(nn.Flatten(), nn.Linear(32, 2)).double()
    with pytest.raises(ValueError, match="dlr needs at least 3 classes"):
        apgd(two, images, y, threat=Linf(0.1), loss="dlr")


@pytest.mark.parametrize(
    ("attack", "settings", "sentence"),
    [
        (apgd, {"loss": "kl"}, "loss kl belongs to training"),
        (apgd, {"loss": "dlrr"}, "did you mean 'dlr'"),
        (apgd, {"steps": 0}, "greater than or equal to 1"),
        (apgd_targeted, {"targets": 0}, "greater than or equal to 1"),
        (apgd_targeted, {"loss": "cross_entropy"}, "'dlr' or 'margin'"),
    ],
)
def test_bad_settings(network, images, y, attack, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        attack(network, images, y, threat=Linf(0.1), **settings)
