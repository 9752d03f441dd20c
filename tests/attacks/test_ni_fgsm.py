"""NI-FGSM against two steps by hand, against a loop written out once more, and against BIM and MI-FGSM."""

import pytest
import torch
from torch import Tensor, nn

from toughen.attacks import bim, fgsm, mi_fgsm, ni_fgsm
from toughen.models.cost import Passes, counted
from toughen.threat import L2, Linf

EXACT = {"rtol": 0, "atol": 1e-9}


class Ridge(nn.Module):
    """Two pixels a, b, both from 0.5: the first logit is scale (a - 7.5 a^2 + 3 b), the second 0."""

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        a, b = (x.flatten(1) - 0.5).unbind(1)
        rise = self.scale * (a - 7.5 * a**2 + 3 * b)
        return torch.stack([rise, torch.zeros_like(rise)], 1)


def rise(logits: Tensor, y: Tensor) -> Tensor:
    return logits[:, 0]


def on_ridge(attack, model: nn.Module, dtype: torch.dtype = torch.float32, **settings) -> Tensor:
    """Where two steps from the middle end."""
    x, y = torch.full((1, 1, 1, 2), 0.5, dtype=dtype), torch.zeros(1, dtype=torch.int64)
    return attack(model.to(dtype), x, y, steps=2, loss=rise, **settings).flatten()


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        # The gradient is (1, 3) at the image, so g = (0.5, 1.5) and both pixels go up by 0.1.
        (1.0, [0.5, 0.7]),  # a = 0.15: (-1.25, 3) / 2.125, so that g = (0.5 - 0.588, ...): the first turns back
        (0.8, [0.5, 0.7]),  # a = 0.14: (-1.1, 3) / 2.05, and 0.4 - 0.537
        (2.0, [0.7, 0.7]),  # a = 0.2: (-2, 3) / 2.5, and 1 - 0.8
        (0.0, [0.5, 0.7]),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e20])
def test_two_steps_by_hand(decay, expected, scale):
    found = on_ridge(ni_fgsm, Ridge(scale), threat=Linf(0.4), step_size=0.1, decay=decay)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-6)


def test_it_looks_ahead_where_mi_fgsm_does_not():
    """At a = 0.1 itself the gradient is (-0.5, 3) / 1.75, and MI-FGSM goes on: 0.5 - 0.286 > 0."""
    found = on_ridge(mi_fgsm, Ridge(), threat=Linf(0.4), step_size=0.1)
    torch.testing.assert_close(found, torch.tensor([0.7, 0.7]), rtol=0, atol=1e-6)


def test_two_l2_steps_by_hand():
    length = 10**0.5 / 10  # the first step is (0.1, 0.3)
    found = on_ridge(ni_fgsm, Ridge(), torch.float64, threat=L2(1), step_size=length)
    a = 0.1 + length * 0.5 / 2**0.5
    slope = torch.tensor([1 - 15 * a, 3], dtype=torch.float64)
    g = torch.tensor([0.5, 1.5], dtype=torch.float64) + slope / slope.abs().mean()
    expected = torch.tensor([0.6, 0.8], dtype=torch.float64) + length * g / g.norm()
    torch.testing.assert_close(found, expected.clamp(0, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.4)], ids=str)
@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_the_loop_by_hand(smooth, x, y, threat, decay):
    rows = []
    for image, label in zip(x, y, strict=True):
        at, g = image, torch.zeros_like(image)
        for _ in range(6):
            ahead = at + 0.03 * decay * g / (1 if threat.norm == "linf" else g.numel() ** 0.5)
            ahead.requires_grad_()
            (grad,) = torch.autograd.grad(torch.nn.functional.cross_entropy(smooth(ahead[None]), label[None]), ahead)
            g = decay * g + grad / grad.abs().mean()
            step = g.sign() if threat.norm == "linf" else g / g.norm()
            at = image + threat.project((at + 0.03 * step - image)[None])[0]
            at = at.clamp(0, 1)
        rows.append(at)
    found = ni_fgsm(smooth, x, y, threat=threat, steps=6, step_size=0.03, decay=decay)
    torch.testing.assert_close(found, torch.stack(rows), rtol=0, atol=1e-12)
    assert not torch.equal(found, mi_fgsm(smooth, x, y, threat=threat, steps=6, step_size=0.03, decay=decay))


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.4), Linf(torch.linspace(0, 0.2, 8))], ids=["linf", "l2", "each"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_it_reduces_to(smooth, x, y, threat, dtype):
    """Without momentum BIM, with one step MI-FGSM, to the last bit; and that is FGSM."""
    model, images = smooth.to(dtype), x.to(dtype)
    expected = bim(model, images, y, threat=threat, steps=5)
    assert torch.equal(ni_fgsm(model, images, y, threat=threat, steps=5, decay=0), expected)
    assert not torch.equal(ni_fgsm(model, images, y, threat=threat, steps=5), expected)
    one = ni_fgsm(model, images, y, threat=threat, steps=1)
    assert torch.equal(one, mi_fgsm(model, images, y, threat=threat, steps=1))
    torch.testing.assert_close(one, fgsm(model, images, y, threat=threat), rtol=0, atol=1e-6)


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.25)], ids=str)
def test_the_optimum_of_a_linear_model(linear, inner, y, threat):
    """The gradient is the same everywhere, so that looking ahead changes nothing."""
    best = inner + threat.eps * threat.steepest(linear.uphill(y))
    torch.testing.assert_close(ni_fgsm(linear, inner, y, threat=threat), best, **EXACT)
    spread = torch.linspace(0, float(threat.eps), 8, dtype=torch.float64)
    each = inner + spread.reshape(-1, 1, 1, 1) * threat.steepest(linear.uphill(y))
    torch.testing.assert_close(ni_fgsm(linear, inner, y, threat=type(threat)(spread)), each, **EXACT)


def test_the_gradient_is_taken_ahead_of_the_image_unclipped(linear, y):
    """From a white image: a step goes up or down by eps / 2, and what lies ahead of it neither ends at 1 nor at eps."""
    white, seen = torch.ones(8, 2, 4, 4, dtype=torch.float64), []
    linear.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    found = ni_fgsm(linear, white, y, threat=Linf(0.2), steps=2)
    up = linear.uphill(y)
    unit = up / up.abs().mean((1, 2, 3), keepdim=True)
    assert torch.equal(seen[0], white)
    torch.testing.assert_close(seen[1], (white + 0.1 * up.sign()).clamp(0, 1) + 0.1 * unit, **EXACT)
    assert seen[1].max() > 1
    assert (seen[1] - white).abs().max() > 0.2
    torch.testing.assert_close(found, (white + 0.2 * up.sign()).clamp(0, 1), **EXACT)


def test_without_a_gradient_it_stays(smooth, x, y):
    found = ni_fgsm(smooth, x, y, threat=Linf(0.1), loss=lambda logits, y: 0 * logits.sum(1))
    assert torch.equal(found, x)


def test_it_costs_a_pass_a_step(smooth, x, y):
    with counted(smooth) as found:
        ni_fgsm(smooth, x, y, threat=Linf(0.1))
    assert found == Passes(10, 10, 0, 80, 80)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"decay": -0.1}, "decay\n.*greater than or equal to 0"),
        ({"loss": "kl"}, "kl has a zero gradient at the clean image"),
        ({"random_start": True}, "unknown; allowed: steps, step_size, decay, loss, attack_bn"),
    ],
)
def test_settings_that_are_refused(linear, x, y, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        ni_fgsm(linear, x, y, threat=Linf(0.1), **settings)
