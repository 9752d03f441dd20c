"""Every number of a page, computed once more by hand from the rows of examples.parquet."""

import json
import shutil
from collections.abc import Iterator
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from report.page.page_run import CORRUPTED, K, N, Read, make_run
from toughen.report.blocks import Figure, Table
from toughen.report.page.figures import run as draw
from toughen.report.page.page import build_entries, render_page
from toughen.report.page.study import build_study_entry

Z = 1.959963984540054


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "mine")


@pytest.fixture(scope="module")
def seen(run: Path) -> Read:
    return Read(render_page(build_entries([run])))


def rows_of(run: Path, name: str) -> list[dict[str, Any]]:
    with pq.ParquetFile(run / "evaluation" / name / "examples.parquet") as file:
        return file.read().to_pylist()


def share(k: int, n: int) -> str:
    """A cell: per cent, then Wilson's interval."""
    p = k / n
    centre, reach = p + Z * Z / (2 * n), Z * sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    low, high = ((centre + sign * reach) / (1 + Z * Z / n) for sign in (-1, 1))
    low, high = (0.0 if k == 0 else low), (1.0 if k == n else high)
    return f"{100 * p:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def broken_by(rows: list[dict[str, Any]]) -> dict[int, tuple[str, int]]:
    """By example: the first attack of the worst case that broke it, and what it was taken for."""
    found: dict[int, tuple[str, int]] = {}
    for row in rows:
        if not row["survived"] and not row["aside"]:
            found.setdefault(row["index"], (row["attack"], row["prediction"]))
    return found


def test_headline_and_evaluations(run: Path, seen: Read):
    (head, *found) = seen.tables["Evaluations, 95 % Wilson intervals below"]
    assert head[:6] == ["evaluation", "ball", "suite", "images", "clean", "robust"]
    assert [row[0] for row in found] == ["autoattack_n40", "pgd-20_n40"]
    for row in found:
        rows = rows_of(run, row[0])
        clean = sum(one["survived"] for one in rows if one["attack"] == "clean")
        robust = N - len(broken_by(rows))
        assert row[3:6] == [str(N), share(clean, N), share(robust, N)]
        assert row[7] == str(len({one["index"] for one in rows if one["marginal"]}))
    text = " ".join(seen.text)
    rows = rows_of(run, "autoattack_n40")
    for k in (sum(one["survived"] for one in rows if one["attack"] == "clean"), N - len(broken_by(rows))):
        figure, _, bounds = share(k, N).partition(" % ")
        assert f"{figure} %" in text
        assert f"95 % interval {bounds}" in text
    # As made: an alarm at the second of two checks, seen first of all and again beside the monitor.
    assert " ".join(text.split()).count("training overfitted at step 20 (AT101)") == 1


def test_waterfall(run: Path, seen: Read):
    rows = rows_of(run, "autoattack_n40")
    (_, *found) = seen.tables["What each attack of autoattack_n40 took"]
    left, names = N, list(dict.fromkeys(one["attack"] for one in rows))
    assert [row[0].split(" aside")[0] for row in found] == [*names[:-1], "aside"]
    for row, name in zip(found, names, strict=True):
        some = [one for one in rows if one["attack"] == name]
        broken = sum(not one["survived"] for one in some)
        assert row[1:3] == [str(len(some)), str(broken)]
        assert row[5:] == [str(sum(one[kind] for one in some)) for kind in ("forwards", "backwards")]
        if name == "aside":
            # It took nothing from the worst case; alone it met everybody who was right.
            clean = sum(one["survived"] for one in rows if one["attack"] == "clean")
            assert row[3:5] == ["-", f"{100 * (clean - broken) / N:.1f} %"]
        else:
            left -= broken
            assert row[3] == f"{100 * left / N:.1f} %"
    assert left == N - len(broken_by(rows))


def test_classes_and_where_images_go(run: Path, seen: Read):
    rows = rows_of(run, "autoattack_n40")
    broken = broken_by(rows)
    clean = {one["index"]: one for one in rows if one["attack"] == "clean"}
    (_, *found) = seen.tables["Accuracy by class, autoattack_n40"]
    assert len(found) == K
    flows: dict[tuple[str, str], int] = {}
    for label, row in enumerate(found):
        those = [one for one in clean.values() if one["label"] == label]
        right = sum(one["survived"] for one in those)
        robust = sum(one["index"] not in broken for one in those)
        assert row == [f"text class {label}", str(len(those)), share(right, len(those)), share(robust, len(those))]
        for one in those:
            if one["index"] in broken:
                way = f"text class {label}", f"text class {broken[one['index']][1]}"
                flows[way] = flows.get(way, 0) + 1
    (_, *ways) = seen.tables["Commonest confusions"]
    assert ways
    assert all(flows[true, end] == int(count) for true, end, count in ways)
    assert [int(way[2]) for way in ways] == sorted(flows.values(), reverse=True)[: len(ways)]


def test_corruptions(run: Path, seen: Read):
    rows = rows_of(run, "corruptions_n40")
    caption = "Accuracy under corruptions, generated images, corruptions_n40"
    (_, *found) = seen.tables[caption]
    assert [row[0] for row in found] == list(CORRUPTED)

    def right(name: str, severity: int | None = None) -> Iterator[bool]:
        for one in rows:
            if one["corruption"] == name and severity in (None, one["severity"]):
                yield one["label"] == one["prediction"]

    def mean(values: list[bool]) -> str:
        return f"{100 * sum(values) / len(values):.1f} %"

    for name, row in zip(CORRUPTED, found, strict=True):
        assert row[1:] == [*(mean(list(right(name, level))) for level in range(1, 6)), mean(list(right(name)))]
    text = " ".join(seen.text)
    stored = json.loads((run / "evaluation" / "corruptions_n40" / "result.json").read_text())
    for count, said in ((15, "mean over the 15 main corruptions"), (19, "mean over all 19")):
        values = [value for name in CORRUPTED[:count] for value in right(name)]
        # The interval by CorruptionResult's own code, which is tested beside it.
        low, high = stored[f"mean_{count}"]["interval"]
        assert f"{said} {mean(values)} [{100 * low:.1f}, {100 * high:.1f}]" in text
    assert f"clean {share(sum(right('clean')), N)}" in text


def test_sweeps_and_gradients(seen: Read):
    # As made: 6, 4 and 5 of 6 images survive at the three radii and numbers of steps.
    robust = [share(k, 6) for k in (6, 4, 5)]
    assert seen.tables["Robust accuracy over the radius, 6 images"][1:] == [
        ["0", robust[0]], ["4/255", robust[1]], ["8/255", robust[2]]
    ]  # fmt: skip
    assert [row[1] for row in seen.tables["Robust accuracy over the steps of PGD, 6 images"][1:]] == robust
    (_, *found) = seen.tables["Gradient magnitudes of 6 images"]
    norm = [0.0, 0.1, 0.2, 0.5, 1.0, 4.0]
    assert found[0] == ["L2 norm, pixels in [0, 1]", f"{sum(norm) / 6:.4g}", "4"]
    assert found[3][1] == f"{sum((value / 255) ** 2 for value in norm) / 6:.4g}"


def test_runs_side_by_side(run: Path, tmp_path: Path):
    other = make_run(tmp_path / "other", analyses=False)
    seen = Read(render_page(build_entries([run, other, run])))
    (head, *found) = seen.tables["Runs side by side, each by its strongest evaluation"]
    assert [row[0] for row in found] == ["mine", "other"]
    rows = rows_of(run, "autoattack_n40")
    clean = sum(one["survived"] for one in rows if one["attack"] == "clean")
    cells = dict(zip(head, found[0], strict=True))
    assert (cells["clean"], cells["robust"]) == (share(clean, N), share(N - len(broken_by(rows)), N))
    assert (cells["natural steps"], cells["time"], cells["audit"]) == ("37", "12.5 s", "unreliable: EV286")
    assert cells["method"] == "text method overfitted at step 20 (AT101)"
    assert "#run-2" in seen.addresses


def a_row(label: str, figures: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What `collect` says of a row that is done and has one training, runs/a."""
    cost = {"steps": 16, "forwards": 32, "backwards": 48, "natural_steps": 36.7, "device": "cpu", "minutes": 0.5}
    row = {"label": label, "state": "done", "reason": None, "counted": ["runs/a"], "cost": cost}
    weights = {"checkpoint": "best", "columns": ["pgd-20"], "selected_by": "robust accuracy", "steps": [1600]}
    return {**row, "figures": figures, "weights": [weights], "alarms": [], "notes": [], **more}


def a_figure(what: str, measured: float | None, **more: Any) -> dict[str, Any]:
    figure = {
        "what": what,
        "checkpoint": "best",
        "published": None,
        "measured": measured,
        "unit": "%",
        "n": 1,
        "std": None,
    }
    return {**figure, "interval": None, "unreliable": False, "findings": None, **more}


def the_table(rows: dict[str, Any], columns: list[str], targets: dict[str, str] | None = None) -> Read:
    study = {"title": "Table", "scale": "toy", "columns": columns, "notes": ["a note"], "rows": rows}
    return Read(render_page([build_study_entry(study, "study-1", targets or {})]))


def test_a_study():
    published = {"id": "x", "value": 46.2, "unit": "%", "std": None, "raw": "46.20", "note": ""}
    figures = {"clean": a_figure("clean", 40.0, interval=[70.0, 80.0])}
    doubted = {"unreliable": True, "findings": ["EV286", "EV281"]}
    figures["pgd-20"] = a_figure("robust", 40.0, interval=[38.0, 42.0], difference=-6.2, published=published, **doubted)
    waiting = {"pgd-20": {"what": "robust", "checkpoint": "last", "published": published, "measured": None, "n": 0}}
    rows = {
        "m2": a_row("m = 2", figures),
        "m4": a_row("m = 4", waiting, state="failed", reason="it broke", counted=[], cost=None),
    }
    seen = the_table(rows, ["clean", "pgd-20"], {"runs/a": "run-1"})
    head, done, failed = seen.tables["Table"]
    assert head == ["row", "clean", "pgd-20", "weights", "natural steps", "audit", "state", "runs"]
    assert done[:3] == ["m = 2", "40.0 [70.0, 80.0]", "40.0 [38.0, 42.0]\npaper 46.20\n(-6.2)"]
    assert done[3] == "best by robust accuracy, step 1,600"
    assert done[4] == "37 32 forward\n48 backward\n16 steps\n30.0 s, cpu"
    assert done[5:] == ["unreliable EV286 in pgd-20\nEV281 in pgd-20", "done", "runs/a"]
    assert failed[:3] == ["m = 4", "", "- paper 46.20"]
    assert failed[4:] == ["-", "-", "failed it broke", ""]
    assert seen.addresses.count("#run-1") == 2


def test_a_study_says_which_findings_in_which_columns_and_what_was_not_audited():
    sound, doubted = {"findings": []}, {"unreliable": True}
    kinds = {
        "unreliable EV286 in a, c\nEV281 in c": [
            a_figure("robust", 1.0, findings=["EV286"], **doubted),
            a_figure("robust", 1.0, **sound),
            a_figure("robust", 1.0, findings=["EV286", "EV281"], **doubted),
        ],
        "nothing found": [a_figure("corruptions", 1.0), a_figure("robust", 1.0, **sound)],
        "not audited": [a_figure("corruptions", 1.0), a_figure("transfer", 1.0)],
        "-": [{"what": "robust", "checkpoint": "last", "published": None, "measured": None, "n": 0}],
    }
    rows = {said: a_row(said, dict(zip("abc", figures, strict=False))) for said, figures in kinds.items()}
    head, *found = the_table(rows, ["a", "b", "c"]).tables["Table"]
    assert [row[head.index("audit")] for row in found] == list(kinds)


def test_a_study_says_which_trainings_overfitted():
    def alarm(run: str, step: int) -> dict[str, Any]:
        return {"run": f"runs/{run}", "code": "AT101", "step": step, "alarm": "AT101 ..."}

    both = ["runs/a", "runs/b"]
    kinds = {
        "done": a_row("sound", {}),
        "done overfitted at step 612 (AT101)": a_row("one", {}, alarms=[alarm("a", 612)]),
        "done overfitted at steps 612 and 1,040 (AT101)": a_row(
            "twice", {}, alarms=[alarm("a", 612), alarm("a", 1040)]
        ),
        "done runs/b overfitted at step 9 (AT101)": a_row("another", {}, alarms=[alarm("b", 9)]),
        "done runs/a overfitted at step 1 (AT101)\nruns/b overfitted at step 2 (AT101)": a_row(
            "both", {}, counted=both, alarms=[alarm("a", 1), alarm("b", 2)]
        ),
        "running runs/a overfitted at step 3 (AT101)": a_row(
            "open", {}, counted=[], state="running", alarms=[alarm("a", 3)]
        ),
        "failed it broke\noverfitted at step 4 (AT101)": a_row(
            "broken", {}, state="failed", reason="it broke", alarms=[alarm("a", 4)]
        ),
    }
    rows = {row["label"]: row for row in kinds.values()}
    head, *found = the_table(rows, []).tables["Table"]
    assert [row[head.index("state")] for row in found] == list(kinds)
    made = build_study_entry(
        {"title": "Table", "scale": "toy", "columns": [], "notes": [], "rows": rows}, "study-1", {}
    )
    table = made.sections[0].blocks[0]
    assert isinstance(table, Table)
    tones = [row[head.index("state")].tone for row in table.rows]
    # Bad where a training overfitted whose figures stand in the row.
    assert tones == ["good", "bad", "bad", "good", "bad", "dim", "bad"]


def test_a_study_draws_what_an_attack_in_the_ball_stands_behind_whatever_its_columns_are_called():
    def row(label: str, *values: float) -> dict[str, Any]:
        kinds = ("transfer", "robust", "clean")
        figures = {
            name: a_figure(what, value, **({"findings": []} if what == "robust" else {}))
            for name, what, value in zip(("shown", "transfer", "natural"), kinds, values, strict=True)
        }
        return a_row(label, figures)

    rows = {"a": row("a", 10.0, 50.0, 90.0), "b": row("b", 20.0, 60.0, 80.0)}
    seen = the_table(rows, ["shown", "transfer", "natural"])
    assert "Robust accuracy in the drawings is that of column transfer." in seen.text
    ends = "a with 90.0 % clean and 50.0 % robust", "b with 80.0 % clean and 60.0 % robust"
    assert f"On the Pareto front: {ends[1]}; {ends[0]}." in seen.text


def test_rows_that_are_equal_are_called_equal():
    def row(label: str, clean: float, robust: float) -> dict[str, Any]:
        figures = {"clean": a_figure("clean", clean), "pgd": a_figure("robust", robust, findings=[])}
        return a_row(label, figures)

    rows = {"a": row("a", 90.0, 50.0), "b": row("b", 90.0, 50.0), "c": row("c", 95.0, 40.0)}
    seen = the_table(rows, ["clean", "pgd"])
    pair = "with 90.0 % clean and 50.0 % robust"
    assert f"On the Pareto front: a {pair}; b {pair}; c with 95.0 % clean and 40.0 % robust." in seen.text
    cost = "with 50.0 %, cost 37 natural steps"
    assert f"The most robust are equal: a {cost}; b {cost}." in seen.text


def test_corruptions_that_are_equally_hard_are_all_named():
    accuracy = np.array([[0.5, 0.25], [0.25, 0.5], [0.75, 0.5], [0.5, 0.5]])
    drawn = draw.corruptions("x", ["fog", "snow", "frost", "contrast"], [1, 2], accuracy, clean=0.875)
    said = (
        "Hardest: fog and snow with 37.5 % over all severities; easiest: frost with 62.5 %; without corruption 87.5 %."
    )
    assert drawn.alt == said


def test_a_study_is_drawn_by_the_column_that_took_the_most_and_tells_its_rows_apart():
    # In per cent for rows a and b: an attack without bounds, one that a alone has met, a weak and a strong one.
    values = {"all": (0.0, 0.0), "once": (10.0, None), "weak": (50.0, 70.0), "strong": (30.0, 60.0)}

    def rows(columns: list[str]) -> dict[str, Any]:
        found = {}
        for at, name in enumerate("ab"):
            taken = {key: a_figure("robust", value) for key in columns if (value := values[key][at]) is not None}
            found[name] = a_row(name, {"clean": a_figure("clean", 90.0 - at), **taken})
        return found

    for columns, chosen in (
        (["all", "once", "weak", "strong"], "strong"),
        (["weak", "strong", "once", "all"], "strong"),
        (["all", "weak"], "weak"),
        (["once", "all"], "all"),
        (["once"], "once"),
    ):
        seen = the_table(rows(columns), ["clean", *columns])
        assert f"Robust accuracy in the drawings is that of column {chosen}." in seen.text
        assert any("On the Pareto front" in text for text in seen.text) == (chosen != "once")


def test_many_runs_stand_by_their_results_alone(tmp_path: Path):
    made = make_run(tmp_path / "run-0", analyses=False)
    folders = [made, *(shutil.copytree(made, tmp_path / f"run-{number}") for number in range(1, 13))]
    text = render_page(build_entries(folders))
    seen = Read(text)
    assert len(seen.tables["Runs side by side, each by its strongest evaluation"]) == 14
    assert "toughen report run-12 --out PAGE.html makes it." in " ".join(" ".join(seen.text).split())
    assert "What each attack took" not in text
    # So 100 runs have far less than 5 MB.
    assert len(text.encode()) < 300_000


def test_a_histogram_whose_bins_grew_is_drawn_with_all_of_its_lines(tmp_path: Path):
    path = make_run(tmp_path / "grown")
    few = {"edges": [0, 0.25, 0.5], "counts": [3, 1]}
    more = {"edges": [0, 0.25, 0.5, 0.75, 1.5], "counts": [1, 1, 0, 2]}
    lines = [(10, 0.2, few), (20, 0.7, more)]
    told = [{"step": step, "radius_mean": mean, "radius_histogram": found} for step, mean, found in lines]
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in told))
    blocks = [block for section in build_entries([path])[0].sections for block in section.blocks]
    (drawn,) = (block for block in blocks if isinstance(block, Figure) and block.key == "run-1-radii")
    counts = [[row.split(",")[at] for at in (0, 3)] for row in drawn.csv.splitlines()[1:]]
    assert counts == [["10", n] for n in "3100"] + [["20", n] for n in "1102"]
    assert "commonest radii lie between 191.2 and 382.5 of 255" in drawn.alt
