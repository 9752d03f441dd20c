"""Images beside adversarial examples that 256 grey levels can hold: in the ball, and what the model says of them."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from toughen.evaluation.analyses.image_grid import Pictures, grey_levels, pictures
from toughen.threat import L2, Linf, Threat
from toys import Linear, labels, network, photographs

CLASSES = ("ant", "bee", "cat", "dog", "eel")


def says(model: torch.nn.Module, levels: np.ndarray) -> list[int]:
    with torch.no_grad():
        return model(torch.from_numpy(levels.copy()).float() / 255).argmax(1).tolist()


def levels_moved(found: Pictures, variant: int = 0) -> np.ndarray:
    return found.adversarial[variant].astype(int) - found.image.astype(int)


def test_what_is_kept_is_what_was_classified():
    model, x = network().eval(), photographs(7)
    y, index = labels(model, x.float() / 255), torch.tensor([9, 4, 30, 2, 1, 0, 8])
    y[2] = (y[2] + 1) % 5
    balls: dict[str, Threat] = {"linf:8/255": Linf(8 / 255), "l2:0.3": L2(0.3)}
    found = pictures(model, x, y, threats=balls, title="some", classes=CLASSES, index=index)
    assert (found.title, found.variants, found.classes) == ("some", list(balls), list(CLASSES))
    assert found.index.tolist() == index.tolist()
    assert found.label.tolist() == y.tolist()
    assert found.radius.tolist() == [0.0] * 7
    assert np.array_equal(found.image, x.numpy())
    assert found.clean_prediction.tolist() == says(model, found.image)
    for variant in (0, 1):
        assert found.prediction[variant].tolist() == says(model, found.adversarial[variant])
    assert np.abs(levels_moved(found)).max(axis=(1, 2, 3)).tolist() == [8] * 7
    lengths = np.sqrt((levels_moved(found, 1) ** 2).sum((1, 2, 3))) / 255
    assert (lengths <= 0.3).all()
    assert (lengths > 0.29).all()
    wrong = [int((prediction != found.label).sum()) for prediction in found.prediction]
    assert wrong[0] >= 4
    counts = {"clean": 1, "linf:8/255": wrong[0], "l2:0.3": wrong[1]}
    assert found.summary() == {"n": 7, "misclassified": counts}


def test_a_linear_model_is_attacked_along_its_signs():
    # The example that PGD must find is known: each pixel at the rim, against the label's logit.
    w = torch.tensor([1.0, -2.0, 3.0, -0.5]).repeat(4)
    model, x = Linear(w, -3.0), torch.full((3, 1, 4, 4), 128, dtype=torch.uint8)
    y = torch.tensor([1, 0, 1])
    found = pictures(model, x, y, threats={"ball": Linf(8 / 255)}, title="", classes=("a", "b"))
    signs = w.sign().reshape(1, 4, 4).int().numpy()
    for row, label in enumerate(y.tolist()):
        assert np.array_equal(levels_moved(found)[row], signs * (-8 if label else 8))


def test_every_image_has_its_own_radius():
    model, x = network().eval(), photographs(5)
    radius = torch.tensor([0.0, 0.3, 2.0, 3.6, 8.0], dtype=torch.float64) / 255
    threats: dict[str, Threat] = {"linf:16/255": Linf(16 / 255), "own radius": Linf(radius)}
    y = labels(model, x.float() / 255)
    found = pictures(model, x, y, threats=threats, title="", classes=CLASSES, radius=radius)
    assert found.radius.tolist() == radius.tolist()
    # A ball that holds no further level holds the image alone.
    assert np.abs(levels_moved(found, 1)).max(axis=(1, 2, 3)).tolist() == [0, 0, 2, 3, 8]


def test_company_and_batch_size_change_nothing():
    model, x = network(dtype=torch.float64).eval(), photographs(6)
    y = labels(model, x.double() / 255)
    given = {"threats": {"ball": Linf(8 / 255)}, "title": "", "classes": CLASSES}
    whole = pictures(model, x, y, **given)
    rows = torch.tensor([4, 1])
    some = pictures(model, x[rows], y[rows], index=rows, batch_size=1, **given)
    assert np.array_equal(some.adversarial[0], whole.adversarial[0, rows.numpy()])
    assert not np.array_equal(pictures(model, x, y, seed=1, **given).adversarial, whole.adversarial)


def test_a_file_holds_all_of_it(tmp_path: Path):
    model, x, seen = network().eval(), photographs(5), []
    balls: dict[str, Threat] = {"a": Linf(2 / 255), "b": Linf(4 / 255)}
    found = pictures(
        model,
        x,
        labels(model, x.float() / 255),
        threats=balls,
        title="<b>",
        classes=CLASSES,
        batch_size=2,
        progress=lambda *now: seen.append(now),
    )
    assert seen == [(name, done, 5) for name in "ab" for done in (2, 4, 5)]
    found.write(tmp_path / "pictures.npz")
    again = Pictures.read(tmp_path / "pictures.npz")
    assert again.to_json() == found.to_json()
    assert (again.image.dtype, again.adversarial.dtype) == (np.uint8, np.uint8)


def test_rounding_in_l2_moves_as_few_pixels_inwards_as_it_must():
    draw = torch.Generator().manual_seed(3)
    x = torch.full((20, 3, 8, 8), 128, dtype=torch.uint8)
    delta = torch.randn(x.shape, generator=draw, dtype=torch.float64)
    eps = torch.linspace(0.02, 0.6, 20, dtype=torch.float64)
    ball = L2(eps)
    found = x.double() / 255 + ball.project(delta)
    moved = grey_levels(found, x, ball).double() - x.double()
    exact = (found - x.double() / 255) * 255
    squares, bound = moved.square().sum((1, 2, 3)), (eps * 255) ** 2
    assert (squares <= bound * (1 + 1e-9)).all()
    nearest = exact.round()
    back = moved != nearest
    # Only inwards, only what had been rounded outwards, and none where the nearest levels fit.
    assert ((nearest - moved)[back].abs() == 1).all()
    assert (moved.abs() < exact.abs())[back].all()
    fits = nearest.square().sum((1, 2, 3)) <= bound
    assert 0 < fits.sum() < 20
    assert not back[fits].any()
    for row in (~fits).nonzero().squeeze(1).tolist():
        # Without the last of them, the one that was rounded the least far, it would not fit.
        outwards = (nearest.abs() - exact.abs())[row][back[row]]
        last = 2 * nearest[row].abs()[back[row]][outwards.argmin()] - 1
        assert squares[row] + last > bound[row]


def test_what_does_not_fit_is_said():
    model, x = network().eval(), photographs(3)
    y = torch.tensor([0, 1, 2])
    given = {"title": "", "classes": CLASSES}
    with pytest.raises(ValueError, match="give uint8"):
        pictures(model, x.float() / 255, y, threats={"a": Linf(0.1)}, **given)
    with pytest.raises(ValueError, match="no ball"):
        pictures(model, x, y, threats={}, **given)
    with pytest.raises(ValueError, match="2 radii for 3 images"):
        pictures(model, x, y, threats={"a": Linf(torch.tensor([0.1, 0.2]))}, **given)
    found = pictures(model, x, y, threats={"a": Linf(0.1), "b": Linf(0.2)}, **given)
    for variants in (["a"], ["a", "a"], ["a", "clean"], ["a", "b", "b"]):
        with pytest.raises(ValueError, match="give 2 names, each once and none 'clean'"):
            replace(found, variants=variants)
    with pytest.raises(ValueError, match="'radius' has shape"):
        replace(found, radius=np.zeros(2))


def test_the_model_is_left_as_found():
    model, x = network(), photographs(2)
    before: list[Tensor] = [value.clone() for value in model.state_dict().values()]
    pictures(model, x, torch.tensor([0, 1]), threats={"a": L2(math.sqrt(0.1))}, title="", classes=CLASSES)
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
