import numpy as np
import pytest
import torch
from torch import nn

from oracles import Affine
from toughen.evaluation.analyses.gradients import gradient_magnitude
from toughen.models.cost import counted

W = torch.tensor([[1.0, -2.0, 0.0, 3.0], [0.5, 0.5, -1.0, 0.0], [-1.0, 0.0, 2.0, 1.0]], dtype=torch.float64)
B = torch.tensor([0.1, 0.0, -0.3], dtype=torch.float64)


def problem(n: int = 5):
    x = torch.rand(n, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Affine(W, B), x, torch.arange(n) % 3


def test_the_norm_is_that_of_softmax_regression_by_hand():
    model, x, y = problem()
    logits = x.flatten(1).numpy() @ W.numpy().T + B.numpy()
    share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    by_hand = np.sqrt((((share - np.eye(3)[y]) @ W.numpy()) ** 2).sum(1))
    found = gradient_magnitude(model, x, y, batch_size=2)
    np.testing.assert_allclose(found.norm, by_hand, rtol=1e-13)
    rows = {(row["pixel_range"], row["squared"]): row for row in found.summary()["magnitudes"]}
    assert list(rows) == [(1, False), (1, True), (255, False), (255, True)]
    assert rows[1, False]["max"] == pytest.approx(by_hand.max(), rel=1e-13)
    assert rows[1, True]["mean"] == pytest.approx((by_hand**2).mean(), rel=1e-13)
    assert rows[255, False]["mean"] == pytest.approx(by_hand.mean() / 255, rel=1e-13)
    assert rows[255, True]["max"] == pytest.approx(by_hand.max() ** 2 / 65025, rel=1e-13)


def test_the_scale_of_255_is_the_gradient_of_a_model_that_takes_such_pixels():
    model, x, y = problem()
    pixels = (x * 255).requires_grad_()
    loss = nn.functional.cross_entropy(model(pixels / 255), y, reduction="sum")
    (grad,) = torch.autograd.grad(loss, pixels)
    found = gradient_magnitude(model, x, y)
    np.testing.assert_allclose(found.values(pixel_range=255), grad.flatten(1).norm(dim=1), rtol=1e-13)
    np.testing.assert_allclose(found.values(pixel_range=255, squared=True), grad.flatten(1).square().sum(1), rtol=1e-13)


def test_tiny_gradients_do_not_vanish():
    _, x, y = problem()
    found = gradient_magnitude(Affine(W * 1e-200, B), x, y)
    assert (found.norm > 1e-201).all()


def test_one_pass_of_each_example_and_one_to_look_at_the_model():
    model, x, y = problem()
    with counted(model) as passes:
        gradient_magnitude(model, x, y, batch_size=2)
    assert (passes.example_forwards, passes.example_backwards, passes.full_backwards) == (1 + 5, 5, 0)


def test_a_gradient_that_is_no_number_stops_and_names_the_example():
    class Broken(Affine):
        def forward(self, x):
            # The square root's slope at 0 is infinite, its value is not.
            return super().forward(x) + (x.flatten(1)[:, :1] - 0.5).abs().sqrt()

    _, x, y = problem()
    x[3, 0, 0, 0] = 0.5
    with pytest.raises(ValueError, match=r"EV202 .* 1 of 5 .*ids 13"):
        gradient_magnitude(Broken(W, B), x, y, index=torch.arange(10, 15))
