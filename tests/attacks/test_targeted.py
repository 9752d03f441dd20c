"""PGD towards a class: where it ends on a linear model, which class it takes, what it keeps and costs."""

import pytest
import torch
from torch import Tensor, nn

from oracles import EPS, linear_problem
from toughen.attacks import AttackSpec, pgd, targeted_pgd
from toughen.losses import cross_entropy, dlr, margin, targeted
from toughen.models.cost import Passes, counted
from toughen.noise import Stream, fixed
from toughen.threat import Linf

KINDS = ["random", "least_likely", "most_confusing"]


@pytest.fixture
def labels(smooth, x) -> Tensor:
    return smooth(x).argmax(1)


def others(logits: Tensor, y: Tensor, kind: str) -> Tensor:
    """The target written out example by example."""
    ranked = [
        [k for k in row.argsort(descending=True).tolist() if k != label]
        for row, label in zip(logits, y.tolist(), strict=True)
    ]
    return torch.tensor([row[0 if kind == "most_confusing" else -1] for row in ranked])


@pytest.mark.parametrize("kind", ["least_likely", "most_confusing"])
@pytest.mark.parametrize(("loss", "function"), [("cross_entropy", cross_entropy), ("margin", margin), ("dlr", dlr)])
def test_it_is_pgd_on_the_targeted_loss(smooth, x, labels, kind, loss, function):
    target = others(smooth(x), labels, kind)
    settings = {"threat": Linf(0.02), "steps": 5, "random_start": False}
    expected = pgd(smooth, x, labels, loss=targeted(function, target), **settings)
    assert torch.equal(targeted_pgd(smooth, x, labels, target=kind, loss=loss, **settings), expected)
    assert torch.equal(targeted_pgd(smooth, x, labels, target=target, loss=function, **settings), expected)


def test_it_ends_at_the_targets_optimum():
    """Towards a given class a linear model's margin z_t - z_y rises the same way everywhere."""
    problem = linear_problem(0, n=40, dtype=torch.float64)
    target = (problem.y + 3) % 10
    found = targeted_pgd(problem.model, problem.x, problem.y, threat=Linf(EPS), target=target, loss=gap(problem.y))
    weight = problem.model.weight.detach()
    way = (weight[target] - weight[problem.y]).reshape(problem.x.shape)
    torch.testing.assert_close(found, (problem.x + EPS * way.sign()).clamp(0, 1), rtol=0, atol=1e-12)


def gap(y: Tensor):
    """z_y - z_target, to be descended."""
    return lambda logits, target: (logits.gather(1, y[:, None]) - logits.gather(1, target[:, None])).squeeze(1)


class Free(nn.Module):
    """Logits that are the first 10 pixels: the target of every example can be read off the result."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x.flatten(1)


def aimed_at(x_adv: Tensor, x: Tensor) -> Tensor:
    """The pixel that rose: the target's, as its cross-entropy falls with that logit alone."""
    return (x_adv - x).flatten(1).argmax(1)


def test_random_targets_are_uniform_over_the_other_classes():
    n = 3000
    x, y = torch.full((n, 1, 2, 5), 0.5), torch.arange(n) % 10
    settings = {"threat": Linf(0.1), "steps": 1, "random_start": False}
    target = aimed_at(targeted_pgd(Free(), x, y, **settings), x)
    assert (target != y).all()
    count = torch.bincount(10 * y + target, minlength=100).reshape(10, 10)
    expected = n / 90
    spread = ((count - expected) ** 2 / expected)[~torch.eye(10, dtype=torch.bool)].sum()
    # chi squared with 80 degrees of freedom: its mean is 80, its 99.9 % point 124.8
    assert 40 < spread < 124.8
    again = targeted_pgd(Free(), x[100:110], y[100:110], noise=fixed(n)[100:110], **settings)
    assert torch.equal(aimed_at(again, x[100:110]), target[100:110])
    other = targeted_pgd(Free(), x, y, noise=Stream(("other",), torch.arange(n)), **settings)
    assert (aimed_at(other, x) == target).float().mean() < 0.2


def test_every_restart_draws_its_own_target():
    """With logits this far apart nothing breaks, so that every restart has all the examples."""
    x, y = torch.full((200, 1, 2, 5), 0.2), torch.zeros(200, dtype=torch.int64)
    x[:, 0, 0, 0] = 0.9
    seen: list[Tensor] = []

    def watch(logits: Tensor, target: Tensor) -> Tensor:
        seen.append(target.clone())
        return cross_entropy(logits, target)

    targeted_pgd(Free(), x, y, threat=Linf(0.1), steps=2, restarts=3, loss=watch)
    assert len(seen) == 6
    assert torch.equal(seen[0], seen[1])
    assert all((a == b).float().mean() < 0.3 for a, b in [(seen[0], seen[2]), (seen[2], seen[4]), (seen[0], seen[4])])


def test_labels_as_probabilities(smooth, x, labels):
    soft = torch.nn.functional.one_hot(labels, 4).double() * 0.6 + 0.1
    for kind in KINDS:
        expected = targeted_pgd(smooth, x, labels, threat=Linf(0.1), target=kind, restarts=2)
        assert torch.equal(targeted_pgd(smooth, x, soft, threat=Linf(0.1), target=kind, restarts=2), expected)


def test_any_misclassification_counts_and_the_highest_margin_else(smooth, x, labels):
    threat, noise, restarts = Linf(0.08), fixed(8), 6
    settings = {"threat": threat, "steps": 2, "noise": noise}
    seen = [targeted_pgd(smooth, x, labels, restarts=1 + r, **settings) for r in range(restarts)]
    margins = torch.stack([margin(smooth(found), labels) for found in seen]).detach()
    broken = margins > 0
    assert broken[-1].any()
    assert not broken[-1].all()
    for before, after, a, b in zip(broken[:-1], broken[1:], margins[:-1], margins[1:], strict=True):
        assert (after | ~before).all()
        assert (before | (b >= a)).all()


@pytest.mark.parametrize(
    ("settings", "forwards", "backwards"),
    [
        ({"target": "random"}, 5, 5),
        ({"target": "least_likely"}, 6, 5),
        ({"target": "most_confusing"}, 6, 5),
        ({"target": torch.full((8,), 3)}, 5, 5),
        ({"target": "random", "restarts": 3}, 18, 15),
        ({"target": "most_confusing", "restarts": 3}, 19, 15),
    ],
)
def test_it_costs_exactly(smooth, x, settings, forwards, backwards):
    y = smooth(x).argmax(1)
    assert (y != 3).all()
    with counted(smooth) as found:
        targeted_pgd(smooth, x, y, threat=Linf(1e-4), steps=5, **settings)
    assert found == Passes(forwards, backwards, 0, 8 * forwards, 8 * backwards)


def test_random_targets_may_restart_from_the_image(smooth, x, labels):
    found = targeted_pgd(smooth, x, labels, threat=Linf(0.1), random_start=False, restarts=3)
    assert found.shape == x.shape
    for kind in ("least_likely", torch.remainder(labels + 1, 4)):
        with pytest.raises(ValueError, match="3 restarts without a random start would be equal"):
            targeted_pgd(smooth, x, labels, threat=Linf(0.1), target=kind, random_start=False, restarts=3)


def test_a_spec_takes_given_targets(smooth, x, labels):
    target = torch.remainder(labels + 1, 4)
    spec = AttackSpec(name="targeted_pgd", target=target, steps=3)
    expected = targeted_pgd(smooth, x, labels, threat=Linf(0.1), target=target, steps=3)
    assert torch.equal(spec(smooth, x, labels, threat=Linf(0.1)), expected)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"target": torch.tensor([1, 1, 1, 1, 1, 1, 0, 1])}, "the target of example 6 is its label, 0; give another"),
        ({"target": torch.full((8,), 4)}, "targets run from 4 to 4 but the model has classes 0 to 3"),
        ({"target": torch.full((8,), -1)}, "targets run from -1 to -1 but the model has classes 0 to 3"),
        (
            {"target": torch.ones(7, dtype=torch.int64)},
            r"target is torch.int64 of shape \(7,\) for 8 images; give class",
        ),
        ({"target": torch.ones(8)}, "target is torch.float32 of shape"),
        ({"target": "likely"}, "'random', 'least_likely' or 'most_confusing'"),
        ({"loss": "kl"}, "loss kl has no targeted form; use loss: cross_entropy, margin or dlr"),
        ({"loss": "margin-50"}, "loss margin-50 has no targeted form"),
        ({"keep": "highest_loss"}, "unknown; allowed: target, steps"),
    ],
)
def test_settings_that_are_refused(smooth, x, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        targeted_pgd(smooth, x, torch.zeros(8, dtype=torch.int64), threat=Linf(0.1), **settings)


@pytest.mark.parametrize("target", KINDS)
def test_one_class_is_too_few(x, target):
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 1)).double()
    with pytest.raises(ValueError, match="the model returned one number z for each image"):
        targeted_pgd(model, x, torch.zeros(8, dtype=torch.int64), threat=Linf(0.1), target=target)
