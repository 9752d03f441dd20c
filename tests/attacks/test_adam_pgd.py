"""Adam-PGD against Adam's update written out once more, against torch's own, and by its schedule."""

import pytest
import torch
from torch import Tensor, nn

from toughen.attacks import AttackSpec, adam_pgd
from toughen.models.cost import Passes, counted
from toughen.noise import Stream, fixed
from toughen.threat import L2, Linf, Threat

BALLS = [Linf(0.1), L2(0.4)]
each_ball = pytest.mark.parametrize("threat", BALLS, ids=str)
NOISE = Stream(("adam",), torch.arange(8))


def gradient(model: nn.Module, at: Tensor, label: Tensor) -> Tensor:
    at = at.detach().requires_grad_()
    return torch.autograd.grad(nn.functional.cross_entropy(model(at[None]), label[None]), at)[0]


def into(delta: Tensor, threat: Threat) -> Tensor:
    eps = float(threat.eps)
    return delta.clamp(-eps, eps) if isinstance(threat, Linf) else delta * min(1.0, eps / delta.norm().item())


def by_hand(model: nn.Module, x: Tensor, y: Tensor, start: Tensor, threat: Threat, sizes: list[float]) -> Tensor:
    """Kingma & Ba's algorithm 1, uphill, projected after each step; one example at a time."""
    rows = []
    for image, label, at in zip(x, y, start, strict=True):
        m = v = torch.zeros_like(image)
        for t, size in enumerate(sizes, start=1):
            g = gradient(model, at, label)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            moved = at + size * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-9)
            at = (image + into(moved - image, threat)).clamp(0, 1)
        rows.append(at)
    return torch.stack(rows)


@each_ball
@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({}, [0.1] * 5 + [0.01] * 5),
        ({"steps": 3}, [0.1, 0.1, 0.01]),
        ({"steps": 4, "drops": (0.5, 0.75), "step_size": 0.04}, [0.04, 0.04, 0.004, 0.0004]),
        ({"steps": 4, "drops": (0.5, 0.75, 0.75)}, [0.1, 0.1, 0.01, 0.0001]),
        ({"steps": 2, "drops": ()}, [0.1, 0.1]),
    ],
    ids=str,
)
def test_the_update_by_hand(smooth, x, y, threat, settings, sizes):
    start = (x + threat.sample(x, NOISE.child("adam_pgd", 0))).clamp(0, 1)
    expected = by_hand(smooth, x, y, start, threat, sizes)
    found = adam_pgd(smooth, x, y, threat=threat, noise=NOISE, **settings)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_each_pixel_moves_as_torchs_adam_would_move_a_weight(smooth, inner, y):
    """Where neither the ball nor the box is in reach."""
    weight = inner.clone().requires_grad_()
    adam = torch.optim.Adam([weight], lr=0.002, eps=1e-9, maximize=True)
    for _ in range(6):
        adam.zero_grad()
        nn.functional.cross_entropy(smooth(weight), y, reduction="sum").backward()
        adam.step()
    found = adam_pgd(smooth, inner, y, threat=Linf(0.25), steps=6, step_size=0.002, drops=(), random_start=False)
    torch.testing.assert_close(found, weight.detach(), rtol=0, atol=1e-12)


def test_the_gradient_is_not_normalised(smooth, inner, y):
    """A loss of 1e-7 of its size has gradients near Adam's 1e-9, which then shortens the step."""

    def small(logits: Tensor, label: Tensor) -> Tensor:
        return 1e-7 * nn.functional.cross_entropy(logits, label, reduction="none")

    settings = {"threat": Linf(0.25), "steps": 1, "random_start": False, "drops": ()}
    g = torch.stack([gradient(smooth, at, label) for at, label in zip(inner, y, strict=True)])
    whole = adam_pgd(smooth, inner, y, **settings) - inner
    torch.testing.assert_close(whole, 0.1 * g / (g.abs() + 1e-9), rtol=0, atol=1e-12)
    found = adam_pgd(smooth, inner, y, loss=small, **settings) - inner
    torch.testing.assert_close(found, 0.1 * 1e-7 * g / (1e-7 * g.abs() + 1e-9), rtol=0, atol=1e-12)
    assert (found.abs() < 0.09).any()


@pytest.mark.parametrize(
    ("steps", "drops", "rates"),
    [
        (10, (0.5,), [1] * 5 + [0.1] * 5),
        (10, (0.3, 0.7), [1] * 3 + [0.1] * 4 + [0.01] * 3),
        (7, (0.5,), [1] * 4 + [0.1] * 3),
        (40, (0.5, 0.75), [1] * 20 + [0.1] * 10 + [0.01] * 10),
        (1, (0.9,), [1]),
    ],
)
def test_a_drop_comes_after_its_share_of_the_steps(steps, drops, rates):
    """On a line every one of Adam's steps has the length of the schedule: the end tells their sum."""

    class Line(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            rise = self.weight * x.flatten(1).sum(1)
            return torch.stack([-rise, rise], 1)

    x, y = torch.full((1, 1, 1, 1), 0.01, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    found = adam_pgd(
        Line(),
        x,
        y,
        threat=Linf(0.9),
        steps=steps,
        step_size=0.01,
        drops=drops,
        random_start=False,
        loss=lambda logits, label: logits[:, 1],
    )
    expected = 0.01 + 0.01 * sum(rates)
    assert abs(found.item() - expected) < 1e-9


@each_ball
def test_an_example_does_not_depend_on_its_batch_mates(smooth, x, y, threat):
    """Moments are each row's own, in restarts too."""
    order = torch.tensor([5, 2, 7, 0])
    for restarts in (1, 3):
        whole = adam_pgd(smooth, x, y, threat=threat, restarts=restarts, noise=NOISE)
        part = adam_pgd(smooth, x[order], y[order], threat=threat, restarts=restarts, noise=NOISE[order])
        torch.testing.assert_close(part, whole[order], rtol=0, atol=1e-12)
    assert not torch.equal(adam_pgd(smooth, x, y, threat=threat, noise=NOISE.child(1)), whole)


def test_restarts_begin_with_fresh_moments(smooth, x):
    """The best of three is one of the three, each run alone from its own start."""
    y = smooth(x).argmax(1)
    threat, settings = Linf(0.02), {"steps": 3, "step_size": 0.01}
    found = adam_pgd(smooth, x, y, threat=threat, restarts=3, noise=NOISE, **settings)
    sizes = [0.01, 0.01, 0.001]
    alone = torch.stack(
        [
            by_hand(smooth, x, y, (x + threat.sample(x, NOISE.child("adam_pgd", r))).clamp(0, 1), threat, sizes)
            for r in range(3)
        ]
    )
    gap = (alone - found).abs().flatten(2).amax(2)
    assert (gap.amin(0) < 1e-12).all()
    assert (gap.argmin(0) > 0).any()


def test_linf_optimum_of_a_linear_model(linear, inner, y):
    found = adam_pgd(linear, inner, y, threat=Linf(0.1))
    torch.testing.assert_close(found, inner + 0.1 * linear.uphill(y).sign(), rtol=0, atol=1e-9)


def test_without_a_gradient_it_stays(smooth, x, y):
    found = adam_pgd(smooth, x, y, threat=Linf(0.1), random_start=False, loss=lambda logits, label: 0 * logits.sum(1))
    assert torch.equal(found, x)


@pytest.mark.parametrize(
    ("settings", "forwards", "backwards"),
    [({}, 10, 10), ({"steps": 40}, 40, 40), ({"loss": "kl"}, 11, 10), ({"steps": 4, "restarts": 2}, 10, 8)],
)
def test_it_costs_a_pass_a_step(linear, inner, y, settings, forwards, backwards):
    y = linear(inner).argmax(1)
    with counted(linear) as found:
        adam_pgd(linear, inner, y, threat=Linf(1e-4), step_size=1e-4, **settings)
    assert found == Passes(forwards, backwards, 0, 8 * forwards, 8 * backwards)


def test_a_spec_comes_back_from_text(smooth, x, y):
    spec = AttackSpec.model_validate({"name": "adam_pgd", "steps": 4, "drops": [0.5, "3/4"], "step_size": "8/255"})
    assert spec.settings["drops"] == (0.5, 0.75)
    assert AttackSpec.model_validate_json(spec.model_dump_json()) == spec
    expected = adam_pgd(smooth, x, y, threat=Linf(0.1), steps=4, drops=(0.5, 0.75), step_size=8 / 255, noise=fixed(8))
    assert torch.equal(spec(smooth, x, y, threat=Linf(0.1)), expected)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"drops": (0.5, 1)}, "drops.*1\n.*less than 1"),
        ({"drops": (0,)}, "drops.*0\n.*greater than 0"),
        ({"drops": 0.5}, "drops\n"),
        ({"step_size": 0}, "step_size\n.*greater than 0"),
        ({"loss": "kl", "random_start": False}, "kl has a zero gradient at the clean image"),
        ({"restarts": 2, "random_start": False}, "2 restarts without a random start would be equal"),
        ({"decay": 0.9}, "unknown; allowed: steps, step_size, drops, random_start, restarts, loss, attack_bn"),
    ],
)
def test_settings_that_are_refused(linear, x, y, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        adam_pgd(linear, x, y, threat=Linf(0.1), **settings)
