import io
import subprocess
import sys

from rich.console import Console

from toughen.report import render
from toughen.report.tables.labelling import describe_labelling

QUANTILES = [0.9123, 0.95, 0.96, 0.97, 0.99]
MANIFEST = {
    "request": {"threshold": 2000 / 255, "labels": "probabilities", "foreign": True},
    "pool": {"images": 200, "removed_within_threshold": 30, "exact_copies": 5, "foreign": 12, "candidates": 158},
    "perceptual": {"bound": 0.9, "images": 7, "mirrored": 2, "removed": 5, "chosen": 1},
    "sets": [
        {
            "count": 8,
            "chosen": 7,
            "missing": 1,
            "classes": {
                "cat": {"chosen": 4, "score_quantiles": QUANTILES},
                "[dog]": {"chosen": 3, "missing": 1, "score_quantiles": None},
            },
        }
    ],
    "classes": {"cat": {"candidates": 155}, "[dog]": {"candidates": 3}},
    "labelled_by": "labeller",
    "labeller_agrees": 0.875,
}


def shown(what: object) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_says_what_was_done():
    text = " ".join(shown(render(describe_labelling(MANIFEST))).split())
    for part in (
        "│ cat │ 155 │ 4 │ 0.9123 │",
        "│ [dog] │ 3 │ 3 (1 missing) │ - │",
        "│ all │ 158 │ 7 │ │",
        "30 images (15.0 %) are within 2000/255 of a test image and were left out, 5 of them exact copies",
        "7 look like a test image (correlation of 0.9 or more), 2 of them mirrored; 1 of these were chosen",
        "12 are foreign to the scorer",
        "labels: probabilities by the labeller, which agrees with the scorer on 87.5 %",
        "The set of 8 holds 7 images: too few candidates for [dog]",
    ):
        assert part in text


def test_what_was_not_asked_is_not_said():
    plain = {**MANIFEST, "request": {"threshold": 0.5, "labels": "hard", "foreign": False}, "labeller_agrees": None}
    text = shown(render(describe_labelling({**plain, "labelled_by": "scorer"})))
    assert "labels: class indices by the scorer\n" in text
    assert "foreign" not in text


def test_it_loads_no_torch():
    code = "import sys, toughen.report.tables.labelling; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
