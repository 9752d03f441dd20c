"""What attacks cost, to the pass, and what restarts keep."""

import pytest
import torch
from torch import Tensor, nn

from toughen.attacks import ascend, bim, fgsm, pgd, r_fgsm
from toughen.losses import cross_entropy, margin, targeted
from toughen.models.cost import Passes, counted
from toughen.noise import fixed
from toughen.threat import L2, Linf

K, R = 5, 3


class Sure(nn.Module):
    """Right about class 0 by `lead` logits, and wrong nowhere in the ball where the lead is large."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        lead = self.weight * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([lead, -lead], 1)


def passes(attack, model: nn.Module, x: Tensor, y: Tensor, **settings) -> Passes:
    with counted(model) as found:
        attack(model, x, y, threat=settings.pop("threat", Linf(0.1)), **settings)
    return found


@pytest.mark.parametrize(
    ("attack", "settings", "forwards", "backwards"),
    [
        (fgsm, {}, 1, 1),
        (r_fgsm, {}, 1, 1),
        (bim, {"steps": K}, K, K),
        (bim, {}, 10, 10),
        (pgd, {"steps": K}, K, K),
        (pgd, {"steps": K, "random_start": False}, K, K),
        (pgd, {"steps": K, "loss": "margin"}, K, K),
        (pgd, {}, 20, 20),
        (pgd, {"steps": K, "loss": "kl"}, K + 1, K),
        (pgd, {"steps": K, "restarts": R}, R * (K + 1), R * K),
        (pgd, {"steps": K, "restarts": R, "loss": "kl"}, R * (K + 2), R * K),
    ],
)
def test_an_attack_costs_exactly(attack, settings, forwards, backwards):
    x, y = torch.full((4, 1, 2, 2), 0.9, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    found = passes(attack, Sure(), x, y, **settings)
    assert found == Passes(forwards, backwards, 0, 4 * forwards, 4 * backwards)


def test_broken_examples_leave():
    """Two of six are broken by the first restart: they cost one restart, the others three."""
    x, y = torch.full((6, 1, 2, 2), 0.9, dtype=torch.float64), torch.zeros(6, dtype=torch.int64)
    x[[1, 4]] = 0.55
    found = passes(pgd, Sure(), x, y, steps=K, restarts=R)
    assert found == Passes(R * (K + 1), R * K, 0, (6 + 4 + 4) * (K + 1), (6 + 4 + 4) * K)


def test_when_all_are_broken_the_attack_ends():
    x, y = torch.full((6, 1, 2, 2), 0.55, dtype=torch.float64), torch.zeros(6, dtype=torch.int64)
    assert passes(pgd, Sure(), x, y, steps=K, restarts=R) == Passes(K + 1, K, 0, 6 * (K + 1), 6 * K)


@pytest.mark.parametrize("attack_bn", ["batch", "train"])
def test_under_batch_statistics_nobody_leaves(attack_bn):
    x, y = torch.full((6, 1, 2, 2), 0.55, dtype=torch.float64), torch.zeros(6, dtype=torch.int64)
    found = passes(pgd, Sure(), x, y, steps=K, restarts=R, attack_bn=attack_bn)
    assert found == Passes(R * (K + 1), R * K, 0, 6 * R * (K + 1), 6 * R * K)


# --- which restart is kept: the losses here have no gradient, so that an attack ends where it starts


def starts(x: Tensor, threat, restarts: int) -> list[Tensor]:
    return [(x + threat.sample(x, fixed(len(x)).child("pgd", r))).clamp(0, 1) for r in range(restarts)]


def scored(sign: float):
    """A loss that is `sign` times the margin but does not say which way is up."""
    return lambda logits, y: 0 * logits.sum(1) + sign * margin(logits, y).detach()


@pytest.fixture
def edge() -> Tensor:
    """40 images near the decision: half of the starts are misclassified for those in the middle, none at the end."""
    means = torch.linspace(0.5, 0.65, 40, dtype=torch.float64)
    return means.reshape(-1, 1, 1, 1) * torch.ones(40, 1, 2, 2, dtype=torch.float64)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("attack_bn", ["eval", "batch"])
def test_the_first_success_is_kept_else_the_highest_loss(edge, sign, attack_bn):
    """With -1 the loss is lowest where the attack succeeds: success counts all the same."""
    model, y, threat = Sure(), torch.zeros(40, dtype=torch.int64), Linf(0.2)
    ends = starts(edge, threat, 5)
    margins = torch.stack([margin(model(end), y) for end in ends]).detach()
    fooled = margins > 0
    kept = torch.where(fooled.any(0), fooled.int().argmax(0), (sign * margins).argmax(0))
    assert len(kept[fooled.any(0)].unique()) >= 4
    assert len(kept[~fooled.any(0)].unique()) >= 4
    found = pgd(model, edge, y, threat=threat, steps=1, restarts=5, loss=scored(sign), attack_bn=attack_bn)
    expected = torch.stack([ends[restart][i] for i, restart in enumerate(kept.tolist())])
    assert torch.equal(found, expected)


def test_more_restarts_never_lose_a_success(edge):
    model, y, threat = Sure(), torch.zeros(40, dtype=torch.int64), L2(0.3)
    before = torch.zeros(40, dtype=torch.bool)
    for restarts in range(1, 6):
        found = pgd(model, edge, y, threat=threat, steps=1, restarts=restarts, loss=scored(-1))
        broken = margin(model(found), y) > 0
        assert (broken | ~before).all()
        own = margin(model(starts(edge, threat, restarts)[-1]), y) > 0
        assert torch.equal(broken, before | own)
        # the last restart alone is worse: it fails where an earlier one succeeded
        assert restarts == 1 or (before & ~own).any()
        before = broken


def test_the_best_of_several_ascents(smooth, x):
    y, noise = smooth(x).argmax(1), fixed(8)
    settings = {"threat": L2(0.1), "steps": 2, "step_size": 0.02}
    ends = [
        ascend(smooth, x, lambda logits, rows: cross_entropy(logits, y[rows]), start=start, **settings)
        for start in starts(x, L2(0.1), 4)
    ]
    losses = torch.stack([cross_entropy(smooth(end), y) for end in ends])
    wrong = torch.stack([smooth(end).argmax(1) != y for end in ends])
    kept = torch.where(wrong.any(0), wrong.int().argmax(0), losses.argmax(0))
    assert len(kept.unique()) >= 3
    found = pgd(smooth, x, y, restarts=4, noise=noise, **settings)
    expected = torch.stack([ends[restart][i] for i, restart in enumerate(kept.tolist())])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_soft_labels_are_broken_where_their_class_is(edge):
    y = torch.tensor([[0.8, 0.2]], dtype=torch.float64).expand(40, 2)
    hard = pgd(Sure(), edge, y.argmax(1), threat=Linf(0.2), steps=2, restarts=3)
    soft = pgd(Sure(), edge, y, threat=Linf(0.2), steps=2, restarts=3)
    torch.testing.assert_close(soft, hard, rtol=0, atol=1e-12)


def test_a_targeted_attack_may_restart(edge):
    y, target = torch.zeros(40, dtype=torch.int64), torch.ones(40, dtype=torch.int64)
    loss = targeted(cross_entropy, target)
    found = pgd(Sure(), edge, y, threat=Linf(0.1), steps=5, restarts=3, loss=loss)
    expected = pgd(Sure(), edge, y, threat=Linf(0.1), steps=5, restarts=3, loss="cross_entropy")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


# --- keep="highest_loss"


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("attack_bn", ["eval", "batch"])
def test_the_highest_loss_is_kept_even_where_it_loses_a_success(edge, sign, attack_bn):
    model, y, threat = Sure(), torch.zeros(40, dtype=torch.int64), Linf(0.2)
    ends = starts(edge, threat, 5)
    margins = torch.stack([margin(model(end), y) for end in ends]).detach()
    kept = (sign * margins).argmax(0)
    lost = (margins > 0).any(0) & (margins.gather(0, kept[None])[0] <= 0)
    assert lost.any() == (sign < 0)
    settings = {"threat": threat, "steps": 1, "restarts": 5, "keep": "highest_loss", "attack_bn": attack_bn}
    found = pgd(model, edge, y, loss=scored(sign), **settings)
    assert torch.equal(found, torch.stack([ends[restart][i] for i, restart in enumerate(kept.tolist())]))


def test_by_the_highest_loss_nobody_leaves():
    x, y = torch.full((6, 1, 2, 2), 0.55, dtype=torch.float64), torch.zeros(6, dtype=torch.int64)
    found = passes(pgd, Sure(), x, y, steps=K, restarts=R, keep="highest_loss")
    assert found == Passes(R * (K + 1), R * K, 0, 6 * R * (K + 1), 6 * R * K)


def test_of_one_start_there_is_nothing_to_keep(smooth, x):
    y, settings = smooth(x).argmax(1), {"threat": Linf(0.1), "steps": 3}
    expected = pgd(smooth, x, y, **settings)
    assert torch.equal(pgd(smooth, x, y, keep="highest_loss", **settings), expected)
