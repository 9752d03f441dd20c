import copy
import json
from typing import Any

import pytest
import torch
from torch import nn

from conftest import few
from oracles import linear_problem
from toughen.evaluation.audit.audit import audit, check_range
from toughen.evaluation.audit.findings import Audit
from toughen.evaluation.audit.messages import CODES, MESSAGES
from toughen.models.cost import counted
from toughen.threat import L2, Linf
from zoo import EPS, FAULTY, SOUND, Around, SetUp, digits, linear, nan_gradient, quantised, random_noise, saturated


def audited(set_up: SetUp, **settings: Any) -> Audit:
    return audit(set_up.model, set_up.x, set_up.y, threat=set_up.threat, **settings)


@pytest.mark.parametrize("name", FAULTY)
def test_faulty_set_ups_raise_their_codes(name):
    make, codes = FAULTY[name]
    found = audited(make())
    assert set(codes) <= set(found.codes), [str(finding) for finding in found.findings]
    assert found.unreliable


@pytest.mark.parametrize("name", SOUND)
def test_sound_set_ups_raise_none(name):
    found = audited(SOUND[name]())
    assert [str(finding) for finding in found.findings] == []
    assert not found.unreliable


def test_there_are_enough_of_both():
    assert len(FAULTY) >= 14
    assert len(SOUND) >= 6
    assert {code for _, codes in FAULTY.values() for code in codes} >= set(CODES) - {
        *("EV203", "EV283", "EV286", "EV287", "EV288"),  # below
        *("EV210", "EV215", "EV216", "EV225", "EV289"),  # in tests/strangers/test_audit.py
        *("EV226", "EV227", "EV229"),  # of a check alone, see test_checkup.py
    }


def test_every_code_has_a_sentence():
    assert list(CODES) == list(MESSAGES)


@pytest.mark.parametrize(
    "make", [linear, digits, nan_gradient, quantised, random_noise, FAULTY["misleading gradient"][0]]
)
def test_passes_are_counted_and_bounded(make):
    set_up = make()
    with counted(set_up.model) as passes:
        found = audited(set_up)
    assert found.examples == min(128, len(set_up.x))
    # Besides, one image is looked at when the model comes in, and where it has convolutions two in both layouts.
    layouts = 4 * any(parameter.ndim == 4 for parameter in set_up.model.parameters())
    looks = (found.forwards + 1 + layouts, found.backwards + layouts)
    assert looks == (passes.example_forwards, passes.example_backwards)
    assert 0 < found.passes <= 100 * found.examples


def test_a_pass_in_training_mode_is_counted():
    set_up = linear()
    set_up.model.train()
    with counted(set_up.model) as passes:
        found = audited(set_up)
    assert found.forwards + 1 == passes.example_forwards


def truth(name: str, seed: int) -> float:
    """Robust accuracy of the first 128 images, by closed form."""
    problem = linear_problem(seed)
    x, y = problem.x[:128].double(), problem.y[:128]
    if name != "quantised":
        return 1 - problem.breakable()[:128].double().mean().item()
    # Each pixel takes the better of the levels within reach.
    low, high = ((x + side * EPS).clamp(0, 1).mul(8).round().div(8).flatten(1).unsqueeze(1) for side in (-1, 1))
    weight, bias = problem.model.weight.detach().double(), problem.model.bias.detach().double()
    y = ((x * 8).round() / 8).flatten(1).matmul(weight.T).add(bias).argmax(1)
    toward = weight.unsqueeze(0) - weight[y].unsqueeze(1)
    margins = torch.maximum(low * toward, high * toward).sum(2) + bias - bias[y].unsqueeze(1)
    return 1 - (margins.scatter(1, y.unsqueeze(1), -torch.inf).amax(1) > 0).double().mean().item()


@pytest.mark.parametrize("seed", few(0, 1, 2))
@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("nan", lambda x: x, lambda z: z + 0 * (z - z).sqrt()),
        ("saturated", lambda x: x, lambda z: 1e4 * z),
        ("quantised", lambda x: (x * 8).round() / 8, lambda z: z),
    ],
)
def test_masked_models_are_unreliable_and_remedies_find_the_truth(name, before, after, seed):
    problem = linear_problem(seed)
    model = Around(problem.model, before, after).eval()
    with torch.no_grad():
        y = model(problem.x).argmax(1)
    found = audit(model, problem.x, y, threat=Linf(EPS))
    assert found.unreliable
    assert len(found.standing_pgd) / 128 > truth(name, seed) + 0.1
    assert abs(len(found.standing) / 128 - truth(name, seed)) <= 0.02
    assert "falls from" in found.findings[0].remedy


def test_leaves_everything_as_found():
    set_up = digits()
    model = nn.Sequential(set_up.model, nn.Dropout(0.1)).train()
    next(model.parameters()).requires_grad_(False)
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    asked = [parameter.requires_grad for parameter in model.parameters()]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    x, y = set_up.x.clone(), set_up.y.clone()
    audit(model, x, y, threat=set_up.threat)
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == asked
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    assert torch.equal(x, set_up.x)
    assert torch.equal(y, set_up.y)


def test_the_batch_size_changes_nothing_in_float64():
    set_up = linear(dtype=torch.float64)
    whole, pieces = audited(set_up), audited(set_up, batch_size=50)
    assert (whole.findings, whole.standing, whole.standing_pgd) == (
        pieces.findings,
        pieces.standing,
        pieces.standing_pgd,
    )


def test_random_models_are_judged_alike_every_time():
    set_up = random_noise()
    assert audited(set_up) == audited(set_up)


def test_reads_back_what_it_wrote():
    found = audited(saturated())
    stored = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert stored["unreliable"] is True
    assert Audit.from_json(stored) == found


def test_names_examples_by_their_ids():
    set_up, ids = linear(dtype=torch.float64), torch.arange(300) * 7
    found = audited(set_up, index=ids)
    assert found.ids == tuple(ids[:128].tolist())
    # The first half of them keep their ids in any company, and with them their draws.
    part = audit(set_up.model, set_up.x[:64], set_up.y[:64], threat=set_up.threat, index=ids[:64])
    assert part.standing_pgd == tuple(i for i in found.standing_pgd if i < 64 * 7)
    assert 0 < len(part.standing_pgd) < 64


def test_uint8_images_and_few_examples():
    set_up = digits()
    x = (set_up.x * 255).round().to(torch.uint8)
    assert audit(set_up.model, x, set_up.y, threat=set_up.threat).findings == ()
    for n in (0, 1, 2, 5):
        found = audit(set_up.model, set_up.x[:n], set_up.y[:n], threat=set_up.threat)
        assert found.findings == ()
        assert found.examples == n


def test_nothing_to_attack_is_said():
    set_up = linear()
    found = audit(set_up.model, set_up.x, set_up.y, threat=Linf(0.0))
    assert found.findings == ()
    assert "No attack was looked at" in found.not_checked[0]


def test_logits_that_are_nan_are_named():
    set_up = linear()

    def spoil(logits: torch.Tensor) -> torch.Tensor:
        return torch.where(logits.amax(1, keepdim=True) > 9, torch.nan, logits)

    found = audit(Around(set_up.model, after=spoil), set_up.x, set_up.y, threat=set_up.threat)
    (first, *_) = found.findings
    with torch.no_grad():
        lost = (set_up.model(set_up.x[:128]).amax(1) > 9).nonzero().squeeze(1).tolist()
    assert first.code == "EV203"
    assert first.figures["lost"] == len(lost)
    assert f"ids {lost[0]}, {lost[1]}" in first.message


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [
        (0.0, 255.0, "Inputs span 0..255 but the threat model is defined on [0,1]: divide the images by 255."),
        (-1.0, 1.0, "Inputs span -1..1 but the threat model is defined on [0,1]: undo the normalisation"),
        (0.0, 1 / 255, "divided by 255 twice"),
        (0.0, float("nan"), "undo"),
    ],
)
def test_ranges(low, high, says):
    found = check_range(torch.tensor([low, high]).reshape(2, 1, 1, 1), Linf(EPS))
    assert found is not None
    assert found.code == "EV221"
    assert says in found.message


@pytest.mark.parametrize("threat", [Linf(EPS), Linf(1.0), L2(8.0), Linf(torch.tensor([0.1, 0.2]))])
def test_sound_ranges(threat):
    assert check_range(torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1), threat) is None
    assert check_range(torch.zeros(2, 1, 1, 1, dtype=torch.uint8), threat) is None
    assert check_range(torch.zeros(2, 1, 1, 1), threat) is None


def test_noise_stronger_than_gradients_is_said():
    set_up = FAULTY["nan gradient"][0]()
    assert "EV283" in audited(set_up).codes


def test_what_falls_at_once_is_asked_no_more():
    problem = linear_problem(0)
    found = audit(problem.model, problem.x, problem.y, threat=Linf(32 / 255))
    assert not found.unreliable
    assert found.standing == found.standing_pgd == ()
    assert any("the first steps of PGD broke 128 of 128 examples" in sentence for sentence in found.not_checked)
    assert found.passes <= 40 * 128
    whole = audit(problem.model, problem.x, problem.y, threat=Linf(2 / 255))
    assert whole.passes > found.passes
    assert not any("the first steps" in sentence for sentence in whole.not_checked)
