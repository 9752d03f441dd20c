"""Images and balls as strangers give them: what they hold is named, and units that are not meant are noticed."""

from typing import Any

import pytest
import torch
from torch import nn

from toughen.attacks import pgd
from toughen.evaluation import evaluate
from toughen.threat import L2, Linf

MODEL = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).eval()
X = torch.linspace(0, 1, 4 * 48).reshape(4, 3, 4, 4)
Y = torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_pixels_that_are_no_numbers_are_named_with_their_image(value: float):
    x = X.clone()
    x[2, 0, 1, 1] = value
    says = "^image 2 of 4 holds NaN or infinity; mend or leave out such images$"
    with pytest.raises(ValueError, match=says):
        evaluate(MODEL, x, Y, threat=Linf(0.1), suite="pgd-1")
    with pytest.raises(ValueError, match=says):
        pgd(MODEL, x, Y, threat=Linf(0.1))


def test_an_l2_radius_in_other_units_is_noticed():
    given: dict[str, Any] = {"suite": "pgd-1", "audit": False}
    says = r"the L2 radius 128 reaches every image of 3x4x4 .* diagonal is 6\.928; .* write 128/255$"
    with pytest.raises(ValueError, match=says):
        evaluate(MODEL, X, Y, threat=L2(128), **given)
    with pytest.raises(ValueError, match="the L2 radius 7 reaches every image"):
        evaluate(MODEL, X, Y, threat=L2(torch.tensor([0.1, 7, 0.1, 0.1])), **given)
    # 0.5 on CIFAR-10 is 1 / 110.9 of the diagonal; ten times that are 0.625 here.
    found = evaluate(MODEL, X, Y, threat=L2(0.63), **given)
    assert found.notes == ("the L2 radius 0.63 is far above the customary 0.062; in units of 0 to 255 write 0.63/255",)
    for usual in (L2(0.62), Linf(0.9)):
        assert evaluate(MODEL, X, Y, threat=usual, **given).notes == ()
