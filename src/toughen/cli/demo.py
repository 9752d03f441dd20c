"""The demo: natural, free and PGD training on real digits, attacked and compared in one table.

Example:
    demo(Path("runs/demo"), Console())
"""

import time
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from toughen import recipes, report
from toughen.progress import open_display
from toughen.training import train
from toughen.workflows import evaluate

SUITE = "pgd-40"
# The whole demo is to take a minute and a half on two CPU cores; the last row is left out where it would take longer.
BUDGET_SECONDS = 80.0
OPTIONAL = "mnist-pgd"


def demo(out: Path, console: Console) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Train and evaluate each demo recipe in a folder below `out`, and print the comparison.

    Returns:
        For each run its name, its summary and its evaluation on the test split.
    """
    started, rows = time.monotonic(), []
    show = partial(console.print, markup=False, highlight=False)
    for name in ("mnist-natural", "mnist-free", OPTIONAL):
        recipe = recipes.load(name)
        if name == OPTIONAL and not (out / name / "summary.json").exists():
            trained = rows[-1][1]
            expected = trained["seconds"] * recipe.natural_steps / trained["natural_steps"]
            if time.monotonic() - started + expected > BUDGET_SECONDS:
                show(f"{name} is left out: about {expected:.0f} s here; toughen train {name} runs it")
                continue
        summary = train(recipe, out / name, display=open_display(console))
        found, _ = evaluate(out / name, SUITE)
        rows.append((name, summary, found.summary()))
    threat = rows[0][1]["threat"]
    title = f"{rows[0][2]['n']} test digits, robust: {SUITE} within {threat} (95 % interval)"
    console.print(report.render([report.comparison_table(rows, title)]))
    show(f"runs: {out}")
    show("next: toughen train mnist-free threat=linf:0.1 --out runs/mine")
    return rows
