"""The table of corruptions says the numbers that it was given."""

import subprocess
import sys
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from toughen.corruptions import CORRUPTIONS, SEVERITIES
from toughen.report import render
from toughen.report.tables.corruptions import describe_corruptions

NAMES = ["fog", "jpeg_compression", "spatter"]


def cell(severity: int, correct: int) -> dict[str, Any]:
    return {"severity": severity, "correct": correct, "accuracy": correct / 1000, "interval": [0.1, 0.9]}


RESULT: dict[str, Any] = {
    "suite": "corruptions",
    "n": 1000,
    "origin": "generated",
    "constants": "cifar",
    "seed": 7,
    "clean_accuracy": 0.957,
    "clean_interval": [0.9425, 0.9678],
    "severities": [1, 5],
    "corruptions": [
        {"corruption": name, "accuracy": 0.613 + row / 100, "cells": [cell(1, 700 + row), cell(5, 525 + row)]}
        for row, name in enumerate(NAMES)
    ],
    "mean_15": {"accuracy": 0.5612, "interval": [0.541, 0.581], "missing": None},
    "mean_19": {"accuracy": None, "interval": None, "missing": "no saturate was measured"},
    "mce": {"value": None, "baseline": None, "unnormalised": 43.88, "why": "name a baseline"},
    "seconds": 90.04,
    "notes": ["EV241 Out of memory [twice]"],
}


def shown(*given: dict[str, Any]) -> list[str]:
    console = Console(file=StringIO(), width=200)
    console.print(render(describe_corruptions(*given)))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


def row_of(lines: list[str], name: str) -> list[str]:
    (line,) = (line for line in lines if name in line)
    return line.replace("│", " ").split()


def test_every_number_is_there():
    lines = shown(RESULT)
    # The title of a narrow table takes two lines.
    title = " ".join(" ".join(lines[:2]).split())
    assert title.startswith("corruptions (generated, constants of cifar, seed 7), 1000 test images")
    assert row_of(lines, "fog") == ["fog", "70.0", "52.5", "61.3"]
    assert row_of(lines, "spatter") == ["spatter", "70.2", "52.7", "63.3"]
    assert "clean 95.7 %  [94.2, 96.8]" in lines
    assert "mean over the 15 main corruptions 56.1 %  [54.1, 58.1]" in lines
    assert "mean over all 19 none: no saturate was measured" in lines
    assert "mean corruption error, unnormalised 43.9 %" in lines
    assert "no mCE: name a baseline" in lines
    assert "note: EV241 Out of memory [twice]" in lines
    assert "(95 % Wilson intervals, over the draw of the images; 90.0 s)" in lines
    assert not [line for line in lines if line.startswith("mCE")]


def test_a_line_parts_the_main_corruptions_from_the_extra_ones():
    lines = shown(RESULT)
    place = next(number for number, line in enumerate(lines) if "jpeg_compression" in line)
    assert "─" in lines[place + 1]
    assert "spatter" in lines[place + 2]
    assert "─" not in lines[place - 1]


def test_the_mean_corruption_error_says_its_baseline():
    error = {"value": 76.694, "baseline": "AlexNet on ImageNet-C", "unnormalised": 60.0, "why": "these were generated"}
    lines = shown(RESULT, error)
    assert "mCE 76.69 %, relative to AlexNet on ImageNet-C" in lines
    assert "mean corruption error, unnormalised 60.0 %" in lines
    assert "note: these were generated" in lines
    assert not [line for line in lines if line.startswith("no mCE")]


def test_published_images_are_said_to_be():
    title = " ".join(" ".join(shown({**RESULT, "origin": "published"})[:2]).split())
    assert "corruptions (published images), 1000 test images" in title


@pytest.mark.parametrize("width", [80, 160])
def test_every_name_and_figure_fits_a_narrow_terminal(width: int):
    full = [
        {"corruption": name, "accuracy": 1.0, "cells": [cell(severity, 1000) for severity in SEVERITIES]}
        for name in CORRUPTIONS
    ]
    console = Console(file=StringIO(), width=width)
    console.print(
        render(
            describe_corruptions(
                {**RESULT, "severities": [*SEVERITIES], "corruptions": full, "mean_19": RESULT["mean_15"]}
            )
        )
    )
    assert isinstance(console.file, StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    (heads,) = (line for line in lines if "mean" in line and "┃" in line)
    assert heads.replace("┃", " ").split() == ["corruption,", "severity", "1", "2", "3", "4", "5", "mean"]
    for name in CORRUPTIONS:
        assert row_of(lines, name) == [name, *["100.0"] * 6]


def test_no_torch_is_imported():
    code = "import sys, toughen.report.tables.corruptions; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
