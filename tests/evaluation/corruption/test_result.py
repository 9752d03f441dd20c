"""Means, intervals and mean corruption errors, counted by hand."""

import math
from pathlib import Path

import pytest
import torch

from dark import FEW, LABELS, LEVELS, Bright, darker, grey, measured, stand
from toughen.corruptions import CORRUPTIONS, MAIN
from toughen.evaluation.corruption import evaluate as measuring
from toughen.evaluation.corruption.evaluate import corruption_accuracy
from toughen.evaluation.corruption.result import ALEXNET_ERRORS, mean_corruption_error

# Hendrycks & Dietterich's order; typed off their code (ImageNet-C/test.py), not off the module.
ALEXNET = [0.886428, 0.894468, 0.922640, 0.819880, 0.826268, 0.785948, 0.798360, 0.866816, 0.826572, 0.819324]
ALEXNET += [0.564592, 0.853204, 0.646056, 0.717840, 0.606500]


@pytest.fixture(autouse=True)
def _dark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "corrupt", darker)


def test_intervals():
    found = measured(severities=range(1, 6), corruptions=MAIN)
    cell = found.summary()["corruptions"][0]["cells"][0]
    k, n, z = cell["correct"], 12, 1.959963984540054
    low = (k + z * z / 2 - z * math.sqrt(k * (n - k) / n + z * z / 4)) / (n + z * z)
    assert cell["interval"][0] == pytest.approx(low, abs=1e-12)
    # The same images stand behind every cell: wider than 900 independent ones, narrower than 12.
    mean, ends = found.mean(MAIN), found.mean_interval(MAIN)
    assert mean is not None
    assert ends is not None
    shares = [sum(stand(level, c, s) for c in MAIN for s in range(1, 6)) / 75 for level in LEVELS]
    variance = sum((share - mean) ** 2 for share in shares) / 12
    worth = int(12 * mean * (1 - mean) / variance)
    assert 12 < worth < 900
    assert ends[0] < mean < ends[1]
    k = round(mean * worth)
    middle = (k + z * z / 2) / (worth + z * z)
    assert (ends[0] + ends[1]) / 2 == pytest.approx(middle, abs=1e-12)
    assert found.mean_interval(CORRUPTIONS) is None


def test_a_perfect_model_still_has_an_interval():
    found = corruption_accuracy(Bright(1000.0), grey(), torch.zeros(12).long(), corruptions=MAIN)
    assert found.mean(MAIN) == 1
    z = 1.959963984540054
    assert found.mean_interval(MAIN) == (pytest.approx(12 / (12 + z * z)), 1)


def test_what_was_not_measured_has_no_mean():
    found = measured(corruptions=["snow", "fog"])
    assert found.corruptions == ("snow", "fog")
    assert found.mean(MAIN) is None
    assert found.missing(["fog", "snow"]) is None
    assert found.missing(["fog", "frost"]) == "no frost was measured"
    assert found.summary()["mean_15"]["missing"].startswith("no gaussian_noise, shot_noise")
    found = measured(**FEW)
    assert found.severities == (1, 5)
    assert found.missing(["fog", "frost"]) == "no frost and no severity 2, 3, 4 was measured"
    assert found.summary()["mce"]["why"].endswith("and no severity 2, 3, 4 was measured") is True
    with pytest.raises(ValueError, match="severity 2 was not measured, but 1, 5"):
        found.accuracy("fog", 2)
    with pytest.raises(ValueError, match="not a known corruption of this result"):
        found.accuracy("frost")


def test_mce_with_alexnet_by_hand():
    found = measured(Bright(classes=1000))
    assert list(ALEXNET_ERRORS) == list(MAIN)
    assert list(ALEXNET_ERRORS.values()) == ALEXNET
    wrong = [sum(not stand(level, c, s) for s in range(1, 6) for level in LEVELS) / 12 for c in MAIN]
    by_hand = 100 * sum(errors / (5 * alexnet) for errors, alexnet in zip(wrong, ALEXNET, strict=True)) / 15
    for baseline in (None, "alexnet"):
        error = mean_corruption_error(found, baseline)
        assert error.value == pytest.approx(by_hand, rel=1e-12)
        assert error.baseline == "AlexNet on ImageNet-C"
        assert error.unnormalised == pytest.approx(100 * sum(wrong) / 75, rel=1e-12)
        assert error.why is not None
        assert "these were generated" in error.why
    assert found.summary()["mce"]["value"] == error.value


def test_mce_with_another_model_by_hand(tmp_path: Path):
    found, other = measured(), measured(Bright(119.5), folder=tmp_path)
    ratios = [
        sum(not stand(level, c, s) for s in range(1, 6) for level in LEVELS)
        / sum(not stand(level, c, s, 119.5) for s in range(1, 6) for level in LEVELS)
        for c in MAIN
    ]
    for baseline in (other, tmp_path, tmp_path / "result.json", str(tmp_path)):
        error = mean_corruption_error(found, baseline)
        assert error.value == pytest.approx(100 * sum(ratios) / 15, rel=1e-12)
        assert error.value != pytest.approx(100)
        assert error.baseline is not None
        assert other.identity["model"][:8] in error.baseline
    assert mean_corruption_error(found, found).value == pytest.approx(100)


def test_no_mce_without_a_baseline_and_the_reason():
    error = mean_corruption_error(measured(corruptions=MAIN))
    assert (error.value, error.baseline) == (None, None)
    mean = measured().mean(MAIN)
    assert mean is not None
    assert error.unnormalised == pytest.approx(100 * (1 - mean))
    assert error.why is not None
    assert "1,000 classes, and this model has 2: name a baseline" in error.why
    assert mean_corruption_error(measured(corruptions=["fog"])).unnormalised is None


def test_a_baseline_that_does_not_fit_is_named(tmp_path: Path):
    found = measured(corruptions=MAIN)
    perfect = corruption_accuracy(Bright(1000.0), grey(), torch.zeros(12).long(), corruptions=MAIN)
    others = corruption_accuracy(Bright(), grey()[:6], LABELS[:6], corruptions=MAIN)
    for baseline, said in [
        ("alexnet", "1,000 classes, and this model has 2"),
        (tmp_path / "nowhere" / "result.json", "is no result.json of the suite corruptions"),
        ("alexnett", "give alexnet or such a file"),
        (measured(corruptions=["fog"]), "is no baseline of an mCE: no gaussian_noise"),
        (measured(seed=1), "measured on other images"),
        (measured(constants="imagenet"), "measured on other images"),
        (others, "measured on other images"),
    ]:
        with pytest.raises(ValueError, match=said):
            mean_corruption_error(found, baseline)
    with pytest.raises(ValueError, match="makes no error under gaussian_noise, shot_noise"):
        mean_corruption_error(perfect, perfect)
