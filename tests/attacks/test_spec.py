"""Attacks as text, attacks from outside, and the sentences that a mistake gets."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from toughen.attacks import ATTACKS, AttackSpec, attack, bim, fgsm, pgd, r_fgsm
from toughen.losses import margin
from toughen.noise import Stream, fixed
from toughen.settings import Count, Positive
from toughen.threat import Linf, Threat

EPS = Linf(0.1)


# --- specs


@pytest.mark.parametrize("name", list(ATTACKS))
def test_a_spec_comes_back_from_its_record(name):
    spec = AttackSpec(name=name)
    assert AttackSpec.model_validate(spec.model_dump()) == spec
    assert AttackSpec.model_validate_json(spec.model_dump_json()) == spec
    assert AttackSpec.model_validate(name) == spec


def test_a_record_says_all_settings():
    assert AttackSpec(name="pgd", steps=7, step_size="2/255").model_dump() == {
        "name": "pgd",
        "steps": 7,
        "step_size": 2 / 255,
        "random_start": True,
        "restarts": 1,
        "keep": "any_success",
        "loss": "cross_entropy",
        "attack_bn": "eval",
    }
    assert AttackSpec(name="r_fgsm").settings == {
        "random_share": 0.5,
        "loss": "cross_entropy",
        "attack_bn": "eval",
    }


def test_specs_are_compared_by_their_settings():
    assert AttackSpec(name="pgd") == AttackSpec(name="pgd", steps=20)
    assert AttackSpec(name="pgd") != AttackSpec(name="pgd", steps=10)
    assert AttackSpec(name="fgsm") != AttackSpec(name="bim")


def test_an_unknown_attack_names_the_nearest():
    with pytest.raises(ValidationError, match=r"'pgdd' is not a known attack; allowed: .*; did you mean 'pgd'\?"):
        AttackSpec(name="pgdd")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"step": 3}, r"step\n.*unknown; allowed: steps, step_size, .*; did you mean 'steps'\?"),
        ({"restart": 3}, r"did you mean 'restarts'\?"),
        ({"threat": "linf:0.1"}, r"threat\n.*unknown; allowed: steps"),
        ({"noise": None}, r"noise\n.*unknown; allowed: steps"),
        ({"eps": 0.1}, r"eps\n.*unknown; allowed: steps"),
        ({"loss": "crossentropy"}, r"'crossentropy' is not a known loss; .*; did you mean 'cross_entropy'\?"),
        ({"attack_bn": "Batch"}, "attack_bn"),
        ({"step_size": "2/0"}, "'2/0' is not a number"),
        ({"step_size": "-1/255"}, "it must be positive and finite, like 2/255"),
        ({"steps": 0}, "greater than or equal to 1"),
        ({"steps": 2.5}, "steps"),
    ],
)
def test_settings_that_a_recipe_may_not_have(settings, sentence):
    with pytest.raises(ValidationError, match=sentence):
        AttackSpec(name="pgd", **settings)


def test_an_attack_from_outside_works_by_name(monkeypatch, linear, x, y):
    """Registered with the checks of `@attack` and no noise; its settings are read from its signature."""

    @attack
    def shift(model, x, y, *, threat: Threat, by: Positive = 1.0, times: Count):
        return (x + by * times * threat.eps).clamp(0, 1)

    monkeypatch.setitem(ATTACKS, "shift", shift)
    spec = AttackSpec(name="shift", by="1/2", times=2)
    assert spec.settings == {"by": 0.5, "times": 2}
    expected = (x + 0.1).clamp(0, 1)
    assert torch.equal(spec(linear, x, y, threat=EPS, noise=fixed(8)), expected)
    assert torch.equal(shift(linear, x, y, threat=EPS, by=0.5, times=2), expected)
    with pytest.raises(ValidationError, match="times"):
        AttackSpec(name="shift")
    with pytest.raises(ValueError, match=r"did you mean 'times'\?"):
        shift(linear, x, y, threat=EPS, time=2)
    with pytest.raises(ValueError, match="images are"):
        shift(linear, x[0], y, threat=EPS, times=1)


def test_a_plain_function_and_one_without_a_threat_work_too(monkeypatch, linear, x, y):
    def nearest(model, x, y, *, shade: float = 0.5, noise: Stream | None = None):
        assert noise is not None
        return torch.full_like(x, shade) + noise.uniform((2, 4, 4), dtype=x.dtype)

    monkeypatch.setitem(ATTACKS, "nearest", nearest)
    found = AttackSpec(name="nearest", shade=0.25)(linear, x, y, threat=EPS, noise=fixed(8))
    assert torch.equal(found, 0.25 + fixed(8).uniform((2, 4, 4), dtype=x.dtype))


# --- calls from Python


@pytest.mark.parametrize("function", list(ATTACKS.values()), ids=list(ATTACKS))
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda x: x * 255, r"images are in \[.*, 25\d\] but must be in \[0, 1\]: divide by 255"),
        (lambda x: (x - 0.5) / 0.25, r"images are in \[-.*or move the normalisation into the model"),
        (lambda x: x - 1e-5, r"must be in \[0, 1\]"),
        (lambda x: x + 1e-5, r"must be in \[0, 1\]"),
        (lambda x: x.where(x != x.max(), math.nan), "image 0 of 8 holds NaN or infinity"),
        (lambda x: x.where(x != x.max(), math.inf), "image 0 of 8 holds NaN or infinity"),
        (lambda x: x[0], r"images are torch.float64 of shape \(2, 4, 4\); give \(N, C, H, W\), floats in"),
        (lambda x: x.flatten(1), r"of shape \(8, 32\); give \(N, C"),
        (lambda x: (x * 255).byte(), "images are torch.uint8 .* such as uint8 images divided by 255"),
        (lambda x: x.long(), "images are torch.int64"),
    ],
)
def test_images_that_are_refused(linear, x, y, function, change, sentence):
    full = x.clone()
    full[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    with pytest.raises(ValueError, match=sentence):
        function(linear, change(full), y, threat=EPS)


def test_rounding_beyond_the_box_is_forgiven_and_clipped(linear, x, y):
    x[0, 0, 0, :2] = torch.tensor([-5e-7, 1 + 5e-7])
    found = fgsm(linear, x, y, threat=Linf(0))
    assert torch.equal(found, x.clamp(0, 1))


@pytest.mark.parametrize("function", list(ATTACKS.values()), ids=list(ATTACKS))
@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (torch.zeros(7, dtype=torch.int64), r"labels are torch.int64 of shape \(7,\) for 8 images; give class numbers"),
        (torch.zeros(9, dtype=torch.int64), r"of shape \(9,\) for 8 images"),
        (torch.zeros(8), r"labels are torch.float32 of shape \(8,\) for 8 images"),
        (torch.zeros(8, 2, dtype=torch.int64), r"labels are torch.int64 of shape \(8, 2\)"),
        (torch.zeros(8, 2, 1), r"of shape \(8, 2, 1\)"),
    ],
)
def test_labels_that_are_refused(linear, x, function, labels, sentence):
    with pytest.raises(ValueError, match=sentence):
        function(linear, x, labels, threat=EPS)


@pytest.mark.parametrize(
    ("function", "settings", "sentence"),
    [
        (pgd, {"steps": 0}, "steps\n.*greater than or equal to 1"),
        (pgd, {"steps": -1}, "steps\n.*greater than or equal to 1"),
        (bim, {"steps": 0}, "steps\n.*greater than or equal to 1"),
        (pgd, {"restarts": 0}, "restarts\n.*greater than or equal to 1"),
        (pgd, {"step_size": 0.0}, "step_size.*\n.*it must be positive and finite, like 2/255; it is 0"),
        (pgd, {"step_size": -0.1}, "it must be positive and finite, like 2/255; it is -0.1"),
        (bim, {"step_size": 0}, "it must be positive and finite"),
        (pgd, {"step_size": math.nan}, "step_size.*\n.*finite"),
        (pgd, {"step_size": math.inf}, "step_size.*\n.*finite"),
        (pgd, {"step_size": "fast"}, "'fast' is not a number"),
        (r_fgsm, {"random_share": 1.1}, "random_share\n.*less than or equal to 1"),
        (r_fgsm, {"random_share": -0.1}, "random_share\n.*greater than or equal to 0"),
        (fgsm, {"attack_bn": "evaluation"}, "attack_bn\n.*'eval', 'train' or 'batch'"),
        (fgsm, {"loss": "margins"}, r"'margins' is not a known loss; .*; did you mean 'margin'\?"),
        (fgsm, {"steps": 3}, "unknown; allowed: loss, attack_bn"),
        (pgd, {"stepsize": 0.1}, r"unknown; allowed: .*; did you mean 'step_size'\?"),
        (
            pgd,
            {"loss": "kl", "random_start": False},
            "loss kl has a zero gradient at the clean image; use random_start",
        ),
        (pgd, {"restarts": 2, "random_start": False}, "2 restarts without a random start would be equal"),
    ],
)
def test_settings_that_are_refused(linear, x, y, function, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        function(linear, x, y, threat=EPS, **settings)


@pytest.mark.parametrize("function", [fgsm, bim])
def test_kl_is_refused_by_attacks_that_start_at_the_clean_image(linear, x, y, function):
    with pytest.raises(ValueError, match="kl has a zero gradient at the clean image"):
        function(linear, x, y, threat=EPS, loss="kl")


def test_inference_mode_is_refused(linear, x, y):
    with torch.inference_mode(), pytest.raises(ValueError, match=r"need gradients.*use torch.no_grad\(\)"):
        pgd(linear, x, y, threat=EPS)


def test_a_refused_call_leaves_the_model_alone(linear, x, y):
    linear.train()
    with pytest.raises(ValueError, match="loss kl"):
        pgd(linear, x, y, threat=EPS, loss="kl", random_start=False)
    with pytest.raises(ZeroDivisionError):
        pgd(linear, x, y, threat=EPS, loss=lambda logits, y: 1 / 0)
    assert linear.training
    assert all(parameter.requires_grad for parameter in linear.parameters())


def test_lengths_are_read_from_text_and_losses_given_as_functions(linear, x, y):
    expected = pgd(linear, x, y, threat=EPS, step_size=2 / 255, loss="margin", steps=3)
    assert torch.equal(pgd(linear, x, y, threat=EPS, step_size="2/255", loss=margin, steps=3), expected)


@pytest.mark.parametrize("bad", [math.inf, -0.1, math.nan])
def test_lengths_per_example_are_checked_but_may_be_zero(linear, x, y, bad):
    length = torch.full((8,), 0.1)
    length[3] = bad
    with pytest.raises(ValueError, match="it must not be negative, and be finite"):
        pgd(linear, x, y, threat=EPS, step_size=length)
    length[3] = 0.0
    assert torch.equal(pgd(linear, x, y, threat=EPS, step_size=length, random_start=False)[3], x[3])


def test_numpy_numbers_are_numbers(linear, x, y):
    expected = pgd(linear, x, y, threat=EPS, step_size=0.05, steps=3)
    assert torch.equal(pgd(linear, x, y, threat=EPS, step_size=np.float64(0.05), steps=3), expected)
