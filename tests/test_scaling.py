"""The tables of docs/scaling.md are what is calculated, from counts that agree with closed forms."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import scaling  # pyright: ignore[reportMissingImports]
from toughen.methods import METHODS
from toughen.threat import Linf


def test_parameters_are_those_of_the_papers() -> None:
    # Zagoruyko & Komodakis 2016: 36.5 M; He et al. 2016 and Dosovitskiy et al. 2021, by their definitions.
    assert {name: scaling.counts(name).parameters for name in scaling.NETWORKS} == {
        "WRN-28-10": 36_479_194,
        "ResNet-50": 25_557_032,
        "ViT-B/16": 86_567_656,
    }


def test_operations_are_those_of_the_closed_form() -> None:
    width, depth, tokens, classes = 768, 12, 197, 1000
    products = 12 * tokens * width**2 + 2 * tokens**2 * width
    ends = (tokens - 1) * width * 3 * 16 * 16 + width * classes
    assert scaling.counts("ViT-B/16").forward == 2 * (depth * products + ends)
    wrn = scaling.counts("WRN-28-10")
    assert wrn.to_image == pytest.approx(wrn.forward, rel=0.01)
    assert wrn.full == pytest.approx(2 * wrn.forward, rel=0.01)
    assert wrn.step("PGD-10") / wrn.step("natural, Free") == pytest.approx(23 / 3, rel=0.01)


def test_passes_are_those_of_our_methods() -> None:
    pgd = {"name": "pgd", "steps": 10}
    for name, settings in {
        "PGD-10": {"name": "adversarial", "attack": pgd},
        "TRADES-10": {"name": "trades", "attack": pgd},
    }.items():
        passes = METHODS[str(settings["name"])].model_validate(settings).resolved(Linf(0.1)).passes()
        assert scaling.METHODS[name] == (passes.forwards, passes.input_backwards)
        natural = scaling.counts("WRN-28-10").step("natural, Free")
        assert scaling.counts("WRN-28-10").step(name) / natural == pytest.approx(passes.natural_steps, rel=0.01)


def test_an_exchange_takes_what_rings_take() -> None:
    fixed = scaling.ASSUMED["collective"]
    assert scaling.exchange(1e6, 1) == 0
    assert scaling.exchange(8e6, 2) - fixed == pytest.approx(8e6 / 360e9)
    assert scaling.exchange(8e6, 8) - fixed == pytest.approx(2 * 7 / 8 * 8e6 / 360e9)
    assert scaling.exchange(8e6, 16) - scaling.exchange(8e6, 8) == pytest.approx(1e6 / 40e9)


def test_what_ddp_pays_for_is_monotonic() -> None:
    for name in scaling.NETWORKS:
        for gpus in scaling.GPUS[1:]:
            enough = scaling.least(name, "PGD-10", gpus)
            assert scaling.step(name, "PGD-10", enough, gpus).share >= 0.9
            assert scaling.step(name, "PGD-10", enough - 1, gpus).share < 0.9
            assert enough <= scaling.least(name, "natural, Free", gpus)


def test_the_page_has_the_tables_that_are_calculated() -> None:
    page = scaling.PAGE.read_text(encoding="utf-8")
    assert scaling.filled(page) == page
    assert "Calculated, not measured" in page.splitlines()[2]
