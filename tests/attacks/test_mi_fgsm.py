"""MI-FGSM against two steps by hand, against a loop written out once more, and against BIM."""

import pytest
import torch
from torch import Tensor, nn

from toughen.attacks import bim, mi_fgsm
from toughen.models.cost import Passes, counted
from toughen.threat import L2, Linf


class Bowl(nn.Module):
    """Two pixels a, b, both from 0.5: the first logit is scale (a - 10 a^2 + 3 b + 30 b^2), the second 0."""

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        a, b = (x.flatten(1) - 0.5).unbind(1)
        rise = self.scale * (a - 10 * a**2 + 3 * b + 30 * b**2)
        return torch.stack([rise, torch.zeros_like(rise)], 1)


def rise(logits: Tensor, y: Tensor) -> Tensor:
    return logits[:, 0]


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        (1.0, [0.7, 0.7]),  # g = (0.25, 0.75), then + (-0.1, 0.9) = (0.15, 1.65): on in both
        (0.5, [0.7, 0.7]),  # (0.125 - 0.1, 0.375 + 0.9)
        (0.3, [0.5, 0.7]),  # (0.075 - 0.1, ...): the first pixel turns back
        (0.0, [0.5, 0.7]),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e20])
def test_two_steps_by_hand(decay, expected, scale):
    """The gradient is (1, 3) at the image and (-1, 9) after a step of 0.1 in both pixels, times the scale."""
    x, y = torch.full((1, 1, 1, 2), 0.5), torch.zeros(1, dtype=torch.int64)
    found = mi_fgsm(Bowl(scale), x, y, threat=Linf(0.4), steps=2, step_size=0.1, decay=decay, loss=rise)
    torch.testing.assert_close(found.flatten(), torch.tensor(expected), rtol=0, atol=1e-6)


def test_an_l2_step_goes_along_the_momentum():
    x, y = torch.full((1, 1, 1, 2), 0.5, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    found = mi_fgsm(Bowl().double(), x, y, threat=L2(0.4), steps=2, step_size=10**0.5 / 10, loss=rise)
    # 0.5 + (0.1, 0.3) first; there the gradient is (1 - 2, 3 + 18), so that g = (0.25 - 1 / 22, 0.75 + 21 / 22)
    g = torch.tensor([0.25 - 1 / 22, 0.75 + 21 / 22], dtype=torch.float64)
    moved = torch.tensor([0.1, 0.3], dtype=torch.float64) + 10**0.5 / 10 * g / g.norm()
    expected = 0.5 + moved * 0.4 / moved.norm()
    torch.testing.assert_close(found.flatten(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.4)], ids=str)
@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_the_loop_by_hand(smooth, x, y, threat, decay):
    rows = []
    for image, label in zip(x, y, strict=True):
        at, g = image, torch.zeros_like(image)
        for _ in range(6):
            at = at.detach().requires_grad_()
            (grad,) = torch.autograd.grad(torch.nn.functional.cross_entropy(smooth(at[None]), label[None]), at)
            g = decay * g + grad / grad.abs().sum()
            step = g.sign() if threat.norm == "linf" else g / g.norm()
            at = image + threat.project((at.detach() + 0.03 * step - image)[None])[0]
            at = at.clamp(0, 1)
        rows.append(at)
    found = mi_fgsm(smooth, x, y, threat=threat, steps=6, step_size=0.03, decay=decay)
    torch.testing.assert_close(found, torch.stack(rows), rtol=0, atol=1e-12)
    assert not torch.equal(found, bim(smooth, x, y, threat=threat, steps=6, step_size=0.03))


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.4), Linf(torch.linspace(0, 0.2, 8))], ids=["linf", "l2", "each"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_momentum_it_is_bim(smooth, x, y, threat, dtype):
    model, images = smooth.to(dtype), x.to(dtype)
    expected = bim(model, images, y, threat=threat, steps=5)
    assert torch.equal(mi_fgsm(model, images, y, threat=threat, steps=5, decay=0), expected)


def test_without_a_gradient_it_stays(smooth, x, y):
    found = mi_fgsm(smooth, x, y, threat=Linf(0.1), loss=lambda logits, y: 0 * logits.sum(1))
    assert torch.equal(found, x)


def test_it_costs_a_pass_a_step(smooth, x, y):
    with counted(smooth) as found:
        mi_fgsm(smooth, x, y, threat=Linf(0.1))
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
        mi_fgsm(linear, x, y, threat=Linf(0.1), **settings)
