"""The constants, typed a second time: one row per severity, the corruptions as the columns name them."""

import numpy as np
import pytest

from toughen.corruptions import CORRUPTIONS
from toughen.corruptions.constants import CIFAR, IMAGENET, SETS

SINGLE = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"),
    *("gaussian_blur", "brightness", "contrast", "jpeg_compression"),
)
CIFAR_SINGLE = """
.04 500 .01 .06 .4 .05 .75 80
.06 250 .02 .10 .6 .10 .50 65
.08 100 .03 .12 .7 .15 .40 58
.09  75 .05 .16 .8 .20 .30 50
.10  50 .07 .20 1. .30 .15 40
"""
IMAGENET_SINGLE = """
.08 60 .03 .15 1 .1 .40 25
.12 25 .06 .20 2 .2 .30 18
.18 12 .09 .35 3 .3 .20 15
.26  5 .17 .45 4 .4 .10 10
.38  3 .27 .60 6 .5 .05  7
"""
PAIRS = ("defocus_blur", "motion_blur", "fog", "saturate")
CIFAR_PAIRS = """
.3 .4  6 1.0  .20 3.00  .3 .0
.4 .5  6 1.5  .50 3.00  .1 .0
.5 .6  6 2.0  .75 2.50 1.5 .0
1. .2  8 2.0 1.00 2.00 2.0 .1
1.5 .1 9 2.5 1.50 1.75 2.5 .2
"""
IMAGENET_PAIRS = """
 3 .1 10  3 1.5 2.0  .3 .0
 4 .5 15  5 2.0 2.0  .1 .0
 6 .5 15  8 2.5 1.7 2.0 .0
 8 .5 15 12 2.5 1.5 5.0 .1
10 .5 20 15 3.0 1.4 20. .2
"""
OTHERS = {
    "cifar": {
        "glass_blur": "0.05 1 1; 0.25 1 1; 0.4 1 1; 0.25 1 2; 0.4 1 2",
        "snow": """0.1 0.2 1 0.6 8 3 0.95 centre; 0.1 0.2 1 0.5 10 4 0.9 centre; 0.15 0.3 1.75 0.55 10 4 0.9 centre;
                   0.25 0.3 2.25 0.6 12 6 0.85 centre; 0.3 0.3 1.25 0.65 14 12 0.8 centre""",
        "frost": "1 0.2 5 5; 1 0.3 5 5; 0.9 0.4 5 5; 0.85 0.4 5 5; 0.75 0.45 5 5",
        "elastic_transform": "0 0 0.08; 0.05 0.2 0.07; 0.08 0.06 0.06; 0.1 0.04 0.05; 0.1 0.03 0.03",
        "pixelate": "0.95 box; 0.9 box; 0.85 box; 0.75 box; 0.65 box",
        "spatter": """0.62 0.1 0.7 0.7 0.5 water; 0.65 0.1 0.8 0.7 0.5 water; 0.65 0.3 1 0.69 0.5 water;
                      0.65 0.1 0.7 0.69 0.6 mud; 0.65 0.1 0.5 0.68 0.6 mud""",
    },
    "imagenet": {
        "glass_blur": "0.7 1 2; 0.9 2 1; 1 2 3; 1.1 3 2; 1.5 4 2",
        "snow": """0.1 0.3 3 0.5 10 4 0.8 corner; 0.2 0.3 2 0.5 12 4 0.7 corner; 0.55 0.3 4 0.9 12 8 0.7 corner;
                   0.55 0.3 4.5 0.85 12 8 0.65 corner; 0.55 0.3 2.5 0.85 12 12 0.55 corner""",
        "frost": "1 0.4 1 6; 0.8 0.6 1 6; 0.7 0.7 1 6; 0.65 0.7 1 6; 0.6 0.75 1 6",
        "pixelate": "0.6 nearest; 0.5 nearest; 0.4 nearest; 0.3 nearest; 0.25 nearest",
        "spatter": """0.65 0.3 4 0.69 0.6 water; 0.65 0.3 3 0.68 0.6 water; 0.65 0.3 2 0.68 0.5 water;
                      0.65 0.3 1 0.65 1.5 mud; 0.67 0.4 1 0.65 1.5 mud""",
    },
}
# The factors of the zoom blur, written out: each range ends where rounding lets numpy.arange end.
ZOOMS = {
    "cifar": [(7, 1.06), (12, 1.11), (16, 1.15), (21, 1.20), (26, 1.25)],
    "imagenet": [(12, 1.11), (16, 1.15), (11, 1.20), (13, 1.24), (11, 1.30)],
}


def numbers(text: str) -> list[list[float]]:
    return [[float(word) for word in line.split()] for line in text.strip().splitlines()]


@pytest.mark.parametrize(
    ("table", "single", "pairs"), [(CIFAR, CIFAR_SINGLE, CIFAR_PAIRS), (IMAGENET, IMAGENET_SINGLE, IMAGENET_PAIRS)]
)
def test_numbers_and_pairs(table, single, pairs):
    for severity, row in enumerate(numbers(single)):
        assert [table[name][severity] for name in SINGLE] == row
    for severity, row in enumerate(numbers(pairs)):
        assert [value for name in PAIRS for value in table[name][severity]] == row


@pytest.mark.parametrize("constants", SETS)
def test_others(constants):
    for name, text in OTHERS[constants].items():
        rows = [row.split() for row in text.split(";")]
        assert [[str(value) for value in row] for row in SETS[constants][name]] == rows, name


def test_the_displacement_of_the_imagenet_column_scales_with_the_side():
    # 250 times a factor, on noise of 0.005 of the side, smoothed over 0.01 of it.
    for row, factor in zip(IMAGENET["elastic_transform"], (0.05, 0.065, 0.085, 0.1, 0.12), strict=True):
        assert row == pytest.approx((250 * factor * 0.005, 0.01, 0))


@pytest.mark.parametrize("constants", SETS)
def test_zoom_factors(constants):
    for row, (count, last) in zip(SETS[constants]["zoom_blur"], ZOOMS[constants], strict=True):
        factors = np.arange(*row[:3])
        assert len(factors) == count, factors
        assert factors[0] == 1
        assert factors[-1] == pytest.approx(last)
        assert row[3] == ("centre" if constants == "cifar" else "corner")


def test_each_set_has_five_severities_of_all():
    for table in SETS.values():
        assert sorted(table) == sorted(CORRUPTIONS)
        assert all(len(rows) == 5 for rows in table.values())
