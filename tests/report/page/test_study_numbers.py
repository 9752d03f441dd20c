"""Every number of a study's page, computed once more by hand from what became of each example in its runs."""

import csv
import json
import os
import subprocess
import sys
from math import floor, sqrt
from pathlib import Path
from statistics import fmean, pstdev, stdev
from typing import Any

import pyarrow.parquet as pq
import pytest

from report.page.page_run import Read
from report.page.page_study import ABSENT, ATTACKED, COLUMNS, LABELS, PASSES, PRINTED, RECIPE, STEPS, STUDY, N
from toughen.report.page.page import build_entries, write_figures, write_page
from toughen.studies.create import create_folder
from toughen.studies.folder import StudyFolder
from toughen.studies.results import collect
from toughen.studies.text import load
from toughen.studies.worker import work

Z = 1.959963984540054


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    folder = tmp_path_factory.mktemp("study")
    methods = {
        "natural": "natural",
        "free": "{name: free, replays: 2}",
        "pgd": "{name: adversarial, attack: {name: pgd, steps: 2, step_size: 0.05}}",
    }
    for name, method in methods.items():
        (folder / f"{name}.yaml").write_text(f"{RECIPE}method: {method}\n")
    (folder / "tiny.yaml").write_text(STUDY.format(folder=folder, n=N))
    found = create_folder(load(str(folder / "tiny.yaml")), "paper", folder / "out")
    work(found.path)
    return found


@pytest.fixture(scope="module")
def seen(study: StudyFolder) -> Read:
    return Read(made(study, study.path / "page.html").read_text())


def made(study: StudyFolder, out: Path) -> Path:
    write_page(out, build_entries(runs_of(study)[:1], [(study.path, collect(study))]))
    return out


def runs_of(study: StudyFolder) -> list[Path]:
    return sorted(path for path in (study.path / "runs").iterdir())


def of_row(study: StudyFolder, row: str) -> list[Path]:
    """The runs behind a row, found without the study's own code: of two PGD trainings the better in validation."""
    recipes = {path: (path / "recipe.yaml").read_text() for path in runs_of(study)}
    word = {"natural": "name: natural", "free": "name: free", "pgd": "name: adversarial", "plain": "name: natural"}
    if row not in word:
        return []
    found = sorted((path for path, text in recipes.items() if word[row] in text), key=seed_of)
    return [max(found, key=validated)] if row == "pgd" else found


def seed_of(run: Path) -> int:
    (line,) = (line for line in (run / "recipe.yaml").read_text().splitlines() if line.startswith("seed:"))
    return int(line.removeprefix("seed:"))


def validated(run: Path) -> tuple[float, float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    checks = [line["validation"]["weights"] for line in lines if "validation" in line]
    return max((check["robust_accuracy"], check["clean_accuracy"]) for check in checks)


def examples(run: Path, name: str) -> list[dict[str, Any]]:
    with pq.ParquetFile(run / "evaluation" / f"{name}_n{N}" / "examples.parquet") as file:
        return file.read().to_pylist()


def stored(run: Path, name: str) -> dict[str, Any]:
    return json.loads((run / "evaluation" / f"{name}_n{N}" / "result.json").read_text())


def wilson(k: int, n: int) -> tuple[float, float]:
    p = k / n
    centre, reach = p + Z * Z / (2 * n), Z * sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    low, high = ((centre + sign * reach) / (1 + Z * Z / n) for sign in (-1, 1))
    return 100 * (0.0 if k == 0 else low), 100 * (1.0 if k == n else high)


Value = tuple[float, tuple[float, float] | None]
"""Of one training, and its interval: in per cent, or for gradients and minutes as it is."""


def counted(k: int) -> Value:
    return 100 * k / N, wilson(k, N)


def right(run: Path) -> Value:
    rows = examples(run, "pgd-5")
    return counted(sum(one["label"] == one["prediction"] for one in rows if one["attack"] == "clean"))


def standing(run: Path, name: str) -> Value:
    """Images that no attack of an evaluation broke, the image itself among the attacks."""
    rows = examples(run, name)
    return counted(len({one["index"] for one in rows} - {one["index"] for one in rows if not one["survived"]}))


def shown(run: Path) -> Value:
    found = stored(run, "transfer_pgd-2_from-natural")
    ((survived,),), (clean,) = found["survived"], found["clean_correct"]
    return counted(sum(a and b for a, b in zip(survived, clean, strict=True)))


def corrupted(run: Path) -> Value:
    """All cells alike; the interval is that of as many independent predictions as vary as much as the images do."""
    hits: dict[int, list[bool]] = {}
    for one in examples(run, "corruptions"):
        if one["corruption"] != "clean":
            hits.setdefault(one["index"], []).append(one["label"] == one["prediction"])
    assert {len(some) for some in hits.values()} == {19 * 5}
    mean, spread = fmean(map(fmean, hits.values())), pstdev(map(fmean, hits.values()))
    worth = min(19 * 5 * N, floor(N * mean * (1 - mean) / spread**2)) if spread else N
    n = max(N, worth)
    return 100 * mean, wilson(round(mean * n), n)


def slopes(run: Path) -> list[float]:
    return [norm / 255 for norm in stored(run, "gradients")["norm"]]


def seconds(run: Path) -> float:
    return json.loads((run / "summary.json").read_text())["seconds"]


MEASURED = {
    "accuracy": right,
    "pgd-5": lambda run: standing(run, "pgd-5"),
    "several": lambda run: standing(run, "quick"),
    "one-step": lambda run: standing(run, "bilateral_fgsm"),
    "shown": shown,
    "corrupted": corrupted,
    "slope": lambda run: (fmean(slopes(run)), None),
    "steepest": lambda run: (max(slopes(run)), None),
    "minutes": lambda run: (seconds(run) / 60, None),
}


def time_text(value: float) -> str:
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def number(column: str, value: float) -> str:
    if column == "minutes":
        return time_text(60 * value)
    return f"{value:.4g}" if column in ("slope", "steepest") else f"{value:.1f}"


def cell(study: StudyFolder, row: str, column: str) -> str:
    """What is to be read in a cell: figure, interval or deviation, the paper's, and the difference."""
    if column in ABSENT[row]:
        return ""
    found = [MEASURED[column](run) for run in of_row(study, row)]
    mean, below = fmean(value for value, _ in found), []
    if len(found) > 1:
        below.append(f"± {stdev(value for value, _ in found):.2f} (n = {len(found)})")
    elif (bounds := found[0][1]) is not None:
        below.append(f"[{bounds[0]:.1f}, {bounds[1]:.1f}]")
    if (row, column) in PRINTED:
        printed, spread = PRINTED[row, column]
        minutes = column == "minutes"
        below.append(f"paper {printed}" + (f" ± {spread}" if spread else "") + (" min" if minutes else ""))
        if not minutes:
            below.append(f"({mean - float(printed):+.1f})")
    return number(column, mean) + (" " + "\n".join(below) if below else "")


def test_every_cell_of_the_table(study: StudyFolder, seen: Read):
    head, *rows = seen.tables["Tiny"]
    *figures, weights, cost, audit, state, runs = head[1:]
    assert (weights, cost, audit, state, runs) == ("weights", "natural steps", "audit", "state", "runs")
    assert figures == [*COLUMNS[:6], "mce", *COLUMNS[6:]]
    assert [row[0] for row in rows] == list(LABELS.values())
    for key, row in zip(LABELS, rows, strict=True):
        cells = dict(zip(head, row, strict=True))
        for column in COLUMNS:
            assert cells[column] == cell(study, key, column), (key, column)
        # Without 1,000 classes there is no baseline to divide by.
        assert cells["mce"] == ("-" if key == "pgd" else "")
        by = {"natural": "clean accuracy", "free": "robust accuracy", "pgd": "robust accuracy"}.get(key)
        steps = ", ".join([str(STEPS)] * len(of_row(study, key)))
        assert cells["weights"] == (f"best by {by}, step {steps}" if by else "")
        assert cells["runs"] == ", ".join(f"runs/{run.name}" for run in of_row(study, key))


def test_the_cost_follows_from_the_recipe(study: StudyFolder, seen: Read):
    head, *rows = seen.tables["Tiny"]
    for key, row in zip(LABELS, rows, strict=True):
        cost = dict(zip(head, row, strict=True))["natural steps"]
        if key == "bad":
            assert cost == "-"
            continue
        forwards, backwards, natural = (STEPS * passes for passes in PASSES[key])
        spent = time_text(fmean(map(seconds, of_row(study, key))))
        passes = f"{forwards} forward\n{backwards} backward\n{STEPS} steps\n{spent}, cpu"
        assert cost == f"{natural:.0f} {passes}"


def test_the_audits_verdict_is_that_of_every_evaluation(study: StudyFolder, seen: Read):
    head, *rows = seen.tables["Tiny"]
    for key, row in zip(LABELS, rows, strict=True):
        codes: dict[str, list[str]] = {}
        for column, name in ATTACKED.items():
            for run in of_row(study, key) if column not in ABSENT[key] else ():
                for one in stored(run, name)["audit"]["findings"]:
                    if column not in codes.setdefault(one["code"], []):
                        codes[one["code"]].append(column)
        said = "\n".join(f"{code} in {', '.join(columns)}" for code, columns in codes.items())
        verdict = f"unreliable {said}" if codes else "nothing found"
        expected = {"plain": "not audited", "bad": "-"}.get(key, verdict)
        cells = dict(zip(head, row, strict=True))
        assert cells["audit"] == expected
        assert cells["state"].split()[0] == ("faulty" if key == "bad" else "done")
    assert "study · scale paper · 4 of 5 rows done" in " ".join(seen.text)


def lines(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def same(text: str, value: float | None) -> bool:
    return text == "" if value is None else float(text) == pytest.approx(value, rel=1e-12)


def mean_of(study: StudyFolder, row: str, column: str) -> tuple[float, tuple[float, float] | tuple[None, None]]:
    found = [MEASURED[column](run) for run in of_row(study, row)]
    return fmean(value for value, _ in found), (found[0][1] if len(found) == 1 else None) or (None, None)


@pytest.fixture(scope="module")
def files(study: StudyFolder) -> Path:
    write_figures(study.path / "figures", build_entries([], [(study.path, collect(study))]))
    return study.path / "figures"


def test_the_file_behind_the_table(study: StudyFolder, files: Path):
    written = lines(files / "study-1-table.csv")
    table = {(line["row"], line["column"]): line for line in written if line["trainings"] != "1" or line["steps"]}
    each = {(line["row"], line["column"], line["seed"]): line for line in written if not line["steps"]}
    wanted = {(key, column) for key in LABELS for column in COLUMNS if column not in ABSENT[key]}
    assert table.keys() == wanted | {("pgd", "mce")}
    for key, column in wanted:
        line = table[key, column]
        mean, (low, high) = mean_of(study, key, column)
        values = [MEASURED[column](run)[0] for run in of_row(study, key)]
        printed = PRINTED.get((key, column), (None, None))[0]
        # A line for each seed where there are several, else its seed in the line itself.
        for seed in (0, 1) if len(values) > 1 else ():
            one, bounds = MEASURED[column](of_row(study, key)[seed])
            mine = each.pop((key, column, str(seed)))
            assert same(mine["measured"], one)
            assert same(mine["low"], bounds and bounds[0])
            assert (mine["trainings"], mine["std"], mine["checkpoint"]) == ("1", "", line["checkpoint"])
        (run, *more) = of_row(study, key)
        assert line["seed"] == ("mean" if more else str(seed_of(run)))
        assert line["checkpoint"] == ("" if column == "minutes" else "best")
        assert same(line["measured"], mean)
        assert same(line["low"], low)
        assert same(line["high"], high)
        assert same(line["std"], stdev(values) if len(values) > 1 else None)
        assert line["published"] == (printed or "")
        assert same(line["difference"], None if printed is None or column == "minutes" else mean - float(printed))
        forwards, backwards, _ = PASSES[key]
        spent = int(line["steps"]), int(line["forwards"]), int(line["backwards"])
        assert spent == (STEPS, STEPS * forwards, STEPS * backwards)
        assert same(line["minutes"], fmean(map(seconds, of_row(study, key))) / 60)
    assert not each


def test_the_points_of_both_drawings_and_what_is_said_of_them(study: StudyFolder, seen: Read, files: Path):
    means = {
        column: [mean_of(study, key, column)[0] for key in LABELS if column not in ABSENT[key]] for column in ATTACKED
    }
    # The column that took the most, unless it took nearly the same of every row.
    chosen = min((c for c in ATTACKED if max(means[c]) - min(means[c]) > 1), key=lambda column: fmean(means[column]))
    assert f"Robust accuracy in the drawings is that of column {chosen}." in seen.text
    rows = [key for key in LABELS if chosen not in ABSENT[key]]
    points: dict[str, Spot] = {}
    for name in ("study-1-trade-off.csv", "study-1-cost.csv"):
        found = lines(files / name)
        assert [line["name"] for line in found] == [LABELS[key] for key in rows]
        for key, line in zip(rows, found, strict=True):
            clean, _ = mean_of(study, key, "accuracy")
            stood, (low, high) = mean_of(study, key, chosen)
            cost = STEPS * PASSES[key][2]
            doubted = any(stored(run, ATTACKED[chosen])["audit"]["findings"] for run in of_row(study, key))
            assert same(line["clean"], clean / 100)
            assert same(line["robust"], stood / 100)
            assert same(line["low"], None if low is None else low / 100)
            assert same(line["high"], None if high is None else high / 100)
            assert same(line["cost"], cost)
            assert line["unreliable"] == str(doubted)
            points[LABELS[key]] = clean, stood, cost, doubted
    front = {
        f"{name} with {clean:.1f} % clean and {stood:.1f} % robust"
        for name, (clean, stood, _, doubted) in points.items()
        if not doubted and not any(a >= clean and b >= stood for a, b in others(points, name))
    }
    (said,) = {text for text in seen.text if text.startswith("On the Pareto front: ")}
    assert set(said.removeprefix("On the Pareto front: ").removesuffix(".").split("; ")) == front
    best = max(points, key=lambda name: points[name][1])
    _, stood, spent, _ = points[best]
    assert f"The most robust: {best} with {stood:.1f} %, cost {spent:,.0f} natural steps." in seen.text


Spot = tuple[float, float, float, bool]
"""Clean and robust accuracy in per cent, natural steps, and whether the audit found something."""


def others(points: dict[str, Spot], name: str) -> list[tuple[float, float]]:
    """The other points that can be believed and are not equal to it."""
    return [
        (clean, stood)
        for other, (clean, stood, _, doubted) in points.items()
        if not doubted and (clean, stood) != points[name][:2]
    ]


def test_a_page_that_was_deleted_comes_again_to_the_byte(study: StudyFolder, seen: Read):
    path = study.path / "page.html"
    before = path.read_bytes()
    path.unlink()
    command = [sys.executable, "-m", "toughen", "report", study.path, runs_of(study)[0], "--out", path]
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert path.read_bytes() == before
