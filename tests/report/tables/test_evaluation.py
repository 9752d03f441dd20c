"""Tables say the numbers that they were given."""

from io import StringIO

from rich.console import Console

from toughen import recipes
from toughen.progress import duration
from toughen.report import comparison_table, describe_evaluation, describe_training, predicted_cost, render
from toughen.report.blocks import Block, Table
from toughen.report.formatting import percent, with_interval

SUMMARY = {
    "name": "mine",
    "method": "free",
    "threat": "linf:8/255",
    "steps": 2400,
    "best": {
        "weights": {"step": 1600, "clean_accuracy": 0.8125, "robust_accuracy": 0.4567},
        "average-0.9": {"step": 800, "clean_accuracy": 1.0, "robust_accuracy": 0.0},
    },
    "forwards": 2401,
    "backwards": 2402,
    "natural_steps": 2403.4,
    "predicted_natural_steps": 2404.0,
    "seconds": 90.04,
    "peak_memory_bytes": 3 * 2**29,
}
RESULT = {
    "suite": "pgd-40",
    "threat": "linf:0.2",
    "n": 1000,
    "clean_accuracy": 0.957,
    "clean_interval": [0.9425, 0.9678],
    "robust_accuracy": 0.5,
    "robust_interval": [0.469, 0.531],
    "marginal": 2,
    "seconds": 150.0,
    "attacks": [
        {
            "attack": "pgd-40",
            "attempted": 957,
            "broken": 457,
            "accuracy": 0.5,
            "alone": 0.5,
            "forwards": 38280,
            "backwards": 38280,
            "settings": {"name": "pgd"},
        },
    ],
    "notes": [],
    "audit": None,
}


def shown(blocks: list[Block]) -> str:
    console = Console(file=StringIO(), width=200)
    console.print(render(blocks))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def cells(blocks: list[Block]) -> list[list[str]]:
    """The cells of the one table."""
    (table,) = (block for block in blocks if isinstance(block, Table))
    return [["\n".join(filter(None, (cell.text, cell.below))) for cell in row] for row in table.rows]


def test_numbers_as_text():
    assert [percent(v) for v in (0, 0.12345, 0.9996, 1)] == ["0.0 %", "12.3 %", "100.0 %", "100.0 %"]
    assert with_interval(0.5, (0.469, 0.531)) == "50.0 %  [46.9, 53.1]"
    assert [duration(s) for s in (0.04, 119.9, 120, 7199, 7200)] == [
        "0.0 s",
        "119.9 s",
        "2.0 min",
        "120.0 min",
        "2.0 h",
    ]


def test_training_table():
    table = describe_training(SUMMARY)
    assert cells(table) == [["weights", "1,600", "81.2 %", "45.7 %"], ["average-0.9", "800", "100.0 %", "0.0 %"]]
    text = " ".join(shown(table).split())
    assert "mine: free, linf:8/255, 2400 steps" in text
    for part in ("2401 forward", "2402 backward", "2403 natural", "predicted 2404", "90.0 s", "1.50 GiB"):
        assert part in text


def test_evaluation_table():
    table = describe_evaluation(RESULT)
    assert cells(table) == [["pgd-40", "957", "457", "50.0 %", "38,280", "38,280"]]
    text = " ".join(shown(table).split())
    for part in ("pgd-40, linf:0.2, 1000 test images", "clean 95.7 % [94.2, 96.8]", "robust 50.0 % [46.9, 53.1]"):
        assert part in text
    assert "n = 1000, 2 marginal, 2.5 min" in text
    assert "audit: left out" in text


def test_passes_for_nothing_are_shown_where_there_were_any():
    assert "extra passes" not in shown(describe_evaluation(RESULT | {"idle_passes": 0}))
    spent = {"idle_passes": 1234, "forwards": 40_000, "backwards": 38_280, "device": "cuda:0"}
    assert "extra passes: 1,234 of 78,280 were of examples that needed no more; on cuda:0" in shown(
        describe_evaluation(RESULT | spent)
    )


def test_evaluation_table_says_what_not_to_believe_and_what_ran_aside():
    aside = {**RESULT["attacks"][0], "attack": "cw-l2", "alone": 0.25, "settings": {"name": "x", "threat": "l2:0.5"}}
    finding = {"code": "EV201", "message": "All gradients are zero.", "figures": {}, "remedy": "Tried: square."}
    audit = {"findings": [finding], "not_checked": ["No stronger attack."], "examples": 128}
    result = {**RESULT, "attacks": [*RESULT["attacks"], aside], "notes": ["EV241 halved."], "audit": audit}
    table = describe_evaluation(result)
    assert cells(table)[1] == ["cw-l2\naside, l2:0.5", "957", "457", "25.0 %", "38,280", "38,280"]
    text = " ".join(shown(table).split())
    for part in (
        "UNRELIABLE EV201 All gradients are zero. Tried: square.",
        "note: EV241",
        "audit: No stronger attack.",
    ):
        assert part in text
    note = {**finding, "code": "EV225", "advice": ["Nothing to do.", "Nothing."], "severity": "note"}
    text = " ".join(shown(describe_evaluation({**result, "audit": {**audit, "findings": [note]}})).split())
    assert "note: EV225 All gradients are zero. Nothing to do. Nothing. Tried: square." in text
    assert "audit: nothing found on 128 examples" in text
    assert "UNRELIABLE" not in text
    sound = {**result, "audit": {**audit, "findings": []}}
    assert "audit: nothing found on 128 examples" in " ".join(shown(describe_evaluation(sound)).split())


def test_comparison_table():
    table: list[Block] = [comparison_table([("a", SUMMARY, RESULT), ("b", SUMMARY, RESULT)], "side by side")]
    row = ["95.7 %", "50.0 %  [46.9, 53.1]", "2,401", "2,402", "2,403", "90.0"]
    assert cells(table) == [["a", *row], ["b", *row]]
    assert "50.0 %  [46.9, 53.1]" in shown(table)
    header = next(line for line in shown(table).splitlines() if "forwards" in line)
    columns = [" ".join(cell.split()) for cell in header.strip("┃│").split("┃" if "┃" in header else "│")]
    assert columns == ["", "clean", "robust", "forwards", "backwards", "natural steps", "seconds"]


def test_names_are_no_markup():
    name = "[red]a[/red] [/b]"
    best = {name: SUMMARY["best"]["weights"]}
    assert name in shown(describe_training({**SUMMARY, "name": name, "best": best})).splitlines()[0]
    assert name in shown(describe_training({**SUMMARY, "best": best}))
    attacks = [{**RESULT["attacks"][0], "attack": name}]
    assert shown(describe_evaluation({**RESULT, "suite": name, "attacks": attacks})).count(name) == 2
    assert shown([comparison_table([(name, SUMMARY, RESULT)], name)]).count(name) == 2


def test_predicted_cost_is_comment_lines_with_the_counts_of_the_method():
    free = predicted_cost(recipes.load("cifar10-free"))
    assert all(line.startswith("#") for line in free.splitlines())
    assert "10000 batches of 128, 80000 optimiser steps" in free
    assert "8 forward and 8 backward passes (8.00 natural steps)" in free
    assert "in all:  80000 natural steps" in free
    # PGD-7: 8 forwards, 7 backwards to the input and one to the weights, (8 + 7 + 2) / 3 natural steps.
    pgd = predicted_cost(recipes.load("cifar10-pgd"))
    assert "8 forward and 8 backward passes (5.67 natural steps)" in pgd
    assert "in all:  453333 natural steps" in pgd
