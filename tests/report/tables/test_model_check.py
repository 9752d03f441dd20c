"""The table of a model check says what it was given, and what it comes to."""

from io import StringIO
from typing import Any

from rich.console import Console

from toughen.report import render
from toughen.report.tables.model_check import describe_model_check

FINE = {"what": "batch", "verdict": "fine", "evidence": "the same outputs [in] another batch", "remedy": "", "code": ""}
UNKNOWN = {**FINE, "what": "channel order", "verdict": "not checked", "evidence": "the images are grey"}
WRONG = {
    "what": "normalisation",
    "verdict": "wrong",
    "evidence": "Clean accuracy 12.5% as fed.",
    "remedy": "Classifier(net, mean=(0.5,), std=(0.5,))",
    "code": "EV222",
}


def shown(*items: dict[str, str]) -> str:
    summary: dict[str, Any] = {"items": items, "examples": 128, "forwards": 1280, "backwards": 192, "fine": False}
    console = Console(file=StringIO(), width=120)
    console.print(render(describe_model_check(summary)))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_says_what_is_wrong_and_what_to_write():
    text = shown(FINE, WRONG, UNKNOWN)
    (row,) = (line for line in text.splitlines() if "normalisation" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == [
        "normalisation",
        "wrong",
        "EV222 Clean accuracy 12.5% as fed.",
    ]
    assert "-> Classifier(net, mean=(0.5,), std=(0.5,))" in text
    assert "the same outputs [in] another batch" in text
    assert text.splitlines()[-1] == "1 wrong, 1 not checked (10.0 forward and 1.5 backward passes of 128 images)"


def test_says_that_nothing_is_wrong():
    text = shown(FINE)
    assert text.splitlines()[-1] == "nothing is wrong (10.0 forward and 1.5 backward passes of 128 images)"
    assert "->" not in text
    assert "nothing is wrong, 1 not checked" in shown(FINE, UNKNOWN)
