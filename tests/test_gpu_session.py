"""The session with a GPU writes what it finds as it comes, and outlives parts that fail or hang. None is asked for."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import gpu_kit  # noqa: E402  # pyright: ignore[reportMissingImports]
import gpu_session  # noqa: E402  # pyright: ignore[reportMissingImports]
from gpu_page import page  # noqa: E402  # pyright: ignore[reportMissingImports]

SAY = """
import json, sys, time
def say(event, **said): print(json.dumps({"event": event, **said}), flush=True)
parts = json.loads(sys.argv[1])
say("hello", device="none", torch="0")
for part in parts:
    say("begun", part=part)
    if part == "attacks": time.sleep(600)
    if part == "verdicts": raise ValueError("this part is broken")
    say("row", part=part, name="a", ok=True, far=0.0, loss=1.0, cpu=1.0)
    say("ended", part=part, name="ended", failed=0, seconds=0.0)
say("bye")
"""


def starting(script: str, log: Path) -> Callable[[list[str]], Any]:
    """What begins a worker that runs a script in place of measuring."""
    return lambda parts: gpu_session.Worker([sys.executable, "-S", "-c", script, json.dumps(parts)], {}, log)


def kept(rows: Any) -> list[dict[str, Any]]:
    """The rows as they lie in the file, without their date."""
    lines = [json.loads(line) for line in rows.file().read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "date"} for row in lines]


@pytest.fixture
def rows(tmp_path: Path) -> Any:
    return gpu_session.Rows(tmp_path / "out", [tmp_path / "work"])


def measured(parts: list[str], rows: Any, script: str = SAY, seconds: float = 500) -> list[tuple[str, str]]:
    """Part and name of each row, or part and error."""
    gpu_session.measure(parts, rows, starting(script, rows.folder / "log"), lambda: seconds)
    return [(row["part"], row.get("error", row["name"])) for row in kept(rows)]


def test_a_part_that_hangs_is_ended_and_the_next_one_begun(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu_session.SHARES, "attacks", 0.2)
    found = measured(["attacks", "methods"], rows)
    assert found == [
        ("attacks", "took longer than its share of 0 s"),
        ("methods", "a"),
        ("methods", "ended"),
    ]


def test_a_part_that_fails_leaves_its_error_and_the_next_one_is_begun(rows: Any) -> None:
    first, *rest = measured(["verdicts", "methods"], rows)
    assert first[0] == "verdicts"
    assert "ValueError: this part is broken" in first[1]
    assert rest == [("methods", "a"), ("methods", "ended")]
    assert all(row["device"] == "none" for row in kept(rows))


def test_a_part_that_dies_after_a_row_goes_on_in_a_new_process(rows: Any, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    dies = SAY.replace(
        '    say("ended"',
        f"    import os, pathlib, signal\n    mark = pathlib.Path({str(mark)!r})\n"
        "    if not mark.exists():\n        mark.touch()\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        '    say("ended"',
    )
    assert measured(["methods"], rows, dies) == [("methods", "a"), ("methods", "a"), ("methods", "ended")]


def test_nothing_is_begun_when_the_time_is_over(rows: Any) -> None:
    assert measured(["methods"], rows, seconds=0) == []


def test_what_a_worker_started_ends_with_it(tmp_path: Path) -> None:
    child = "import subprocess, sys; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()"
    worker = gpu_session.Worker([sys.executable, "-c", child], {"PATH": "/usr/bin:/bin"}, tmp_path / "log")
    number = worker.message(60)
    assert "-15" in worker.stop()
    assert not Path(f"/proc/{number}/stat").exists() or "Z" in Path(f"/proc/{number}/stat").read_text().split()


def test_rows_of_earlier_sessions_are_kept_once_and_lie_in_both_folders(tmp_path: Path) -> None:
    results, work, out = (tmp_path / name for name in ("results", "work", "out"))
    for folder, lines in {results: "1\n2\n", work: "2\n3\n"}.items():
        folder.mkdir()
        (folder / "gpu.jsonl").write_text(lines)
    gpu_session.Rows(out, [results, work])
    assert (out / "gpu.jsonl").read_text() == (work / "gpu.jsonl").read_text() == "1\n2\n3\n"
    assert (results / "gpu.jsonl").read_text() == "1\n2\n"


def test_the_page_names_faults_first_and_the_newest_figure_counts() -> None:
    about = {"device": "none", "torch": "0", "date": "2026-12-01T10:00:00"}
    rows = [
        {**about, "part": "attacks", "name": "pgd linf", "error": "RuntimeError: out\nof order"},
        {**about, "part": "attacks", "name": "pgd linf", "far": 1e-3, "ok": False},
        {**about, "part": "attacks", "name": "pgd linf", "error": "again"},
        {**about, "part": "attacks", "name": "apgd l2", "far": 1e-9, "ok": True},
        {**about, "part": "peers", "name": "art", "missing": "art is not installed"},
        {**about, "part": "verdicts", "name": "", "error": "RuntimeError: out\nof order"},
        {**about, "part": "attacks", "name": "", "error": "took longer than its share of 60 s"},
        {**about, "part": "attacks", "name": "ended", "failed": 0, "seconds": 1.0},
    ]
    lines = page(rows).splitlines()
    assert [line for line in lines if line.startswith("- ")] == [
        "- **Not as it should be**: attacks, pgd linf",
        "- **Failed**: verdicts, : RuntimeError: out of order",
        "- Not measured: peers, art: art is not installed",
    ]
    assert "| pgd linf | 1.0e-03 | **NO** | none, torch 0 | 2026-12-01 |" in lines
    assert "| apgd l2 | 1.0e-09 | as on the CPU | none, torch 0 | 2026-12-01 |" in lines


def test_pieces_of_the_kit_come_one_by_one_and_are_joined(tmp_path: Path) -> None:
    data, kit, work = (tmp_path / name for name in ("cifar", "kit", "work"))
    data.mkdir()
    kit.mkdir()
    (data / "train.parquet").write_bytes(bytes(range(256)) * 1000)
    gpu_kit.pack(data, "data", kit, 10**5)
    pieces = sorted(kit.iterdir())
    assert [piece.name for piece in pieces] == ["1", "2", "3"]
    for piece in pieces:
        # As it is carried: alone.
        alone = tmp_path / f"carried{piece.name}"
        alone.mkdir()
        piece.rename(alone / piece.name)
        gpu_kit.unpack(alone, work)
    assert (work / "data" / "train.parquet").read_bytes() == bytes(range(256)) * 1000
    assert [path.name for path in work.iterdir()] == ["data"]


def test_a_piece_and_the_checkout_travel_together(monkeypatch: pytest.MonkeyPatch) -> None:
    most = gpu_kit.room()
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=gpu_kit.ROOT, check=True, capture_output=True, text=True
    )
    files = [gpu_kit.ROOT / name for name in listed.stdout.split("\0") if name]
    assert most + sum(path.stat().st_size for path in files if path.is_file()) < 64 * 2**20
    assert most <= 60 * 10**6
    monkeypatch.setattr(gpu_kit, "TOGETHER", 2**40)
    assert gpu_kit.room() == 60 * 10**6


def test_torch_is_not_in_the_kit_and_what_the_package_needs_is() -> None:
    names = [wanted.partition("==")[0] for wanted in gpu_kit.closure()]
    assert {"pydantic", "pydantic-core", "typer", "safetensors", "numpy", "datasets"} <= set(names)
    assert not [name for name in names if name.startswith(("torch", "nvidia", "triton", "sympy"))]


def test_the_kit_refuses_a_folder_without_images(tmp_path: Path) -> None:
    said = subprocess.run(
        [sys.executable, str(BENCHMARKS / "gpu_kit.py"), "--data", str(tmp_path)], capture_output=True, text=True
    )
    assert said.returncode == 2
    assert said.stderr.strip() == f"{tmp_path} holds no parquet files of CIFAR-10; give --data a folder that does"


def test_the_readme_says_what_was_seen_on_a_real_device_and_when() -> None:
    text = (BENCHMARKS.parent / "README.md").read_text(encoding="utf-8")
    results = BENCHMARKS / "results" / "gpu.jsonl"
    dates = {json.loads(line)["date"][:10] for line in results.read_text().splitlines()} if results.exists() else set()
    tables = re.findall(r"^\|.*\| (?:the real one|GPU) \|\n(?:\|.*\n)+", text, flags=re.M)
    assert len(tables) == 2
    for table in tables:
        _, _, *lines = table.splitlines()
        for *_, seen in (line.strip("| ").split("|") for line in lines if not line.startswith("| `cpu`")):
            assert seen.strip() == "not yet" or any(date in seen for date in dates), seen
