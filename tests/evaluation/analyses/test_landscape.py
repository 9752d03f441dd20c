import numpy as np
import pytest
import torch
from torch import nn

from oracles import Affine, linear_problem
from toughen.attacks import fgsm
from toughen.evaluation.analyses.landscape import loss_surface, weakly_bounded
from toughen.losses import cross_entropy
from toughen.models.cost import counted
from toughen.threat import Linf

RADIUS = 8 / 255


@pytest.mark.parametrize("directions", ["adversarial", "rademacher"])
def test_the_surface_of_a_linear_model_is_its_formula(directions):
    problem = linear_problem(n=3, dtype=torch.float64)
    found = loss_surface(problem.model, problem.x, problem.y, radius=RADIUS, directions=directions, points=5)
    weight, bias = problem.model.weight.detach().numpy(), problem.model.bias.detach().numpy()
    np.testing.assert_allclose(found.offsets, [-RADIUS, -RADIUS / 2, 0, RADIUS / 2, RADIUS], rtol=1e-15)
    assert found.offsets[2] == 0
    for n in range(3):
        at, d1, d2 = (values[n].reshape(-1).astype(float) for values in (problem.x.numpy(), found.first, found.second))
        assert set(d1) == {-1, 1}
        for i, e1 in enumerate(found.offsets):
            for j, e2 in enumerate(found.offsets):
                logits = weight @ at + bias + e1 * (weight @ d1) + e2 * (weight @ d2)
                loss = np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[problem.y[n]]
                assert found.loss[n, i, j] == pytest.approx(loss, rel=1e-9, abs=1e-12)
                assert found.prediction[n, i, j] == logits.argmax()


def test_along_the_adversarial_direction_lies_the_example_of_fgsm():
    problem = linear_problem(n=4, dtype=torch.float64, inner=True)
    model, x, y = problem.model, problem.x, problem.y
    found = loss_surface(model, x, y, radius=RADIUS, points=3)
    x_adv = fgsm(model, x, y, threat=Linf(RADIUS))
    np.testing.assert_allclose(found.loss[:, 1, 2], cross_entropy(model(x_adv), y).detach(), rtol=1e-10)
    np.testing.assert_allclose(found.loss[:, 1, 1], cross_entropy(model(x), y).detach(), rtol=1e-12)
    assert [row["middle"] for row in found.summary()["images"]] == found.loss[:, 1, 1].tolist()


def test_random_directions_are_balanced_and_not_the_same():
    problem = linear_problem(n=8)
    found = loss_surface(problem.model, problem.x, problem.y, radius=RADIUS, directions="rademacher", points=3)
    signs = np.concatenate([found.first, found.second]).reshape(16, -1).astype(float)
    correlation = signs @ signs.T / 768
    assert np.abs(correlation - np.eye(16)).max() < 5 / 768**0.5
    assert np.abs(signs.mean(1)).max() < 5 / 768**0.5


def test_points_are_not_clipped_to_the_box():
    model = Affine(torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    found = loss_surface(model, torch.ones(1, 1, 1, 2), torch.tensor([0]), radius=0.5, points=3)
    # The gradient lowers the first logit and raises the second, which is at its bound.
    assert found.second.tolist() == [[[[-1, 1]]]]
    assert found.loss[0, 1, 2] == pytest.approx(np.log1p(np.exp(1.0)))


@pytest.mark.parametrize(("directions", "gradients"), [("adversarial", 1), ("rademacher", 0)])
def test_the_passes_of_a_surface(directions, gradients):
    problem = linear_problem(n=2)
    with counted(problem.model) as passes:
        loss_surface(problem.model, problem.x, problem.y, radius=0.1, directions=directions, points=5, batch_size=4)
    # The look at the model, and for each image the gradient and 25 points in passes of 4.
    assert passes.example_forwards == 1 + 2 * (gradients + 25)
    assert passes.forwards == 1 + 2 * (gradients + 7)
    assert (passes.example_backwards, passes.full_backwards) == (2 * gradients, 0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"radius": 0.0}, "radius is 0.0"),
        ({"radius": 0.1, "points": 4}, "odd number"),
        ({"radius": 0.1, "directions": "random"}, "adversarial, rademacher"),
    ],
)
def test_impossible_surfaces_are_refused(settings, said):
    problem = linear_problem(n=1)
    with pytest.raises(ValueError, match=said):
        loss_surface(problem.model, problem.x, problem.y, **settings)


def two_classes(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    direction = torch.randn(27, generator=draw, dtype=torch.float64).to(dtype)
    return Affine(torch.stack([-direction, direction]), torch.zeros(2, dtype=dtype)), direction


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weakly_bounded_examples_of_a_linear_model_in_whole_grey_levels(dtype):
    model, direction = two_classes(dtype)
    levels = torch.randint(256, (4, 3, 3, 3), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)
    y = torch.tensor([0, 1, 0, 1])
    found = weakly_bounded(model, levels, y, batch_size=3)
    # Each pixel goes 30 levels uphill, however far the box lets it.
    uphill = direction.sign().reshape(3, 3, 3).int() * torch.tensor([1, -1, 1, -1]).reshape(4, 1, 1, 1)
    expected = (levels.int() + 30 * uphill).clamp(0, 255)
    assert np.array_equal(found.images_uint8, expected.numpy())
    np.testing.assert_allclose(found.images, expected.numpy() / 255, atol=1e-6)
    assert found.images.dtype == np.float32
    np.testing.assert_allclose(found.distance_uint8, 30 / 255, atol=6e-8)
    score = (expected.double() / 255).flatten(1) @ direction.double()
    assert found.prediction_uint8.tolist() == (score > 0).long().tolist()
    assert found.summary()["misclassified"]["images_uint8"] == int(((score > 0) != (y == 1)).sum())


def test_grey_levels_of_an_image_between_them_lie_in_the_ball():
    model, _ = two_classes()
    x = torch.rand(6, 3, 3, 3, generator=torch.Generator().manual_seed(5))
    for eps in (0.5 / 255, 1.3 / 255, 0.1):
        found = weakly_bounded(model, x, torch.zeros(6).long(), eps=eps)
        assert (found.distance_uint8 <= eps + 6e-8).all()
        # A grey level that lies between the image and the example was within reach.
        assert (np.abs(found.images_uint8 / 255 - found.images) < 1 / 255 + 1e-6).all()
    with pytest.raises(ValueError, match=r"at least 0\.5/255"):
        weakly_bounded(model, x, torch.zeros(6).long(), eps=0.4 / 255)


def test_the_passes_of_weakly_bounded_examples():
    model, _ = two_classes()
    with counted(model) as passes:
        weakly_bounded(model, torch.full((4, 3, 3, 3), 0.5), torch.zeros(4).long(), steps=7, batch_size=3)
    # The look at the model; the image, 7 steps and both kinds of example.
    assert passes.example_forwards == 1 + 4 * (1 + 7 + 2)
    assert (passes.example_backwards, passes.full_backwards) == (4 * 7, 0)
