"""The sentences that every attack in the registry gives to bad input; images and shapes of labels: `test_spec`."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from attack_cases import CASES
from toughen.attacks import ATTACKS, AttackSpec
from toughen.models.cost import counted
from toughen.threat import L2, Linf

BALLS = {name: Linf(0.1) if "linf" in CASES[name].norms else L2(0.1) for name in ATTACKS if name in CASES}
every_attack = pytest.mark.parametrize("name", list(BALLS))


@every_attack
@pytest.mark.parametrize(
    ("label", "sentence"),
    [(4, "labels run from 0 to 4 but the model has classes 0 to 3"), (-1, "labels run from -1 to 0 but the model")],
)
def test_labels_outside_the_classes(smooth, x, name, label, sentence):
    """Said at the first logits, so after one pass at most."""
    y = torch.tensor([0, 0, 0, label, 0, 0, 0, 0])
    with counted(smooth) as passes, pytest.raises(ValueError, match=sentence):
        ATTACKS[name](smooth, x, y, threat=BALLS[name])
    assert passes.forwards <= 1
    assert passes.backwards == 0
    assert not smooth._forward_hooks


@every_attack
def test_probabilities_of_other_classes(smooth, x, name):
    with pytest.raises(ValueError, match="labels are probabilities of 5 classes but the model has 4"):
        ATTACKS[name](smooth, x, torch.full((8, 5), 0.2, dtype=torch.float64), threat=BALLS[name])


@every_attack
def test_an_unknown_setting_is_named_with_what_is_allowed(smooth, x, y, name):
    with pytest.raises(ValueError, match=r"strength\n.*unknown; allowed: "):
        ATTACKS[name](smooth, x, y, threat=BALLS[name], strength=3)
    with pytest.raises(ValidationError, match=r"strength\n.*unknown; allowed: "):
        AttackSpec(name=name, strength=3)


@every_attack
def test_a_name_misspelt_gets_the_nearest(name):
    with pytest.raises(ValidationError, match=rf"is not a known attack; allowed: .*; did you mean '{name}'\?"):
        AttackSpec(name=name[:-1] + "_" + name[-1])


FEW = [
    ("pgd", 2, "loss dlr needs at least 3 classes, the model has 2; use loss: margin"),
    ("bim", 2, "loss dlr needs at least 3 classes"),
    ("mi_fgsm", 2, "loss dlr needs at least 3 classes"),
    ("ni_fgsm", 2, "loss dlr needs at least 3 classes"),
    ("targeted_pgd", 2, "loss dlr needs at least 3 classes"),
    ("apgd", 2, "dlr needs at least 3 classes, the model has 2"),
    ("apgd_targeted", 3, "dlr needs at least 4 classes, the model has 3"),
]


@pytest.mark.parametrize(("name", "classes", "sentence"), [row for row in FEW if row[0] in ATTACKS])
def test_too_few_classes_for_dlr(x, name, classes, sentence):
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, classes)).double()
    with pytest.raises(ValueError, match=sentence):
        ATTACKS[name](model, x, torch.zeros(8, dtype=torch.int64), threat=Linf(0.1), loss="dlr")
