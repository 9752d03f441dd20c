"""Whole studies at toy scale, with workers killed and a bad row: every valid row once, the bad one listed.

    make bench-studies                                        # the grid of 93 rows with 30 kills, then all others
    python benchmarks/studies.py WORK --studies limits-grid --kills 30

Each study gets one row with a fault and one whose training fails. Two workers take its tasks; at random times one of
them is killed by SIGKILL, and another takes its place. Then the folder is looked at: each valid row done, each run
folder trained to its last step with every logged step once, each evaluation with a row for every example, the bad
ones listed with their reasons. The table is printed from the partial study after every tenth kill. Writes
`results/studies.md`; killed itself, it begins anew.
"""

import argparse
import collections
import datetime
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from toughen.studies.create import create_folder
from toughen.studies.folder import MEASURE, TRAIN, StudyFolder
from toughen.studies.results import collect
from toughen.studies.schema import Row, Study
from toughen.studies.text import load, shipped

RESULT = Path(__file__).resolve().parent / "results" / "studies.md"
FAULTY, FAILING = "a-row-with-a-fault", "a-training-that-fails"


def with_bad_rows(study: Study) -> Study:
    """The study with two rows more."""
    some = next(iter(study.all_rows().values()))
    bad = some.model_copy(update={"set": {**some.set, "method.no_such_setting": 1}, "cells": ()})
    failing = Row(recipe=some.recipe or study.base, label="fails")
    scale = study.scales.get("toy")
    rows = {**(scale.rows if scale else {}), FAILING: {"data.source": "nowhere"}}
    changed = scale.model_copy(update={"rows": rows}) if scale else {"rows": rows}
    scales = {**study.scales, "toy": changed}
    return Study.model_validate(
        {
            **study.model_dump(exclude_unset=True),
            "rows": {**{k: r.model_dump(exclude_unset=True) for k, r in study.rows.items()}}
            | {FAULTY: bad.model_dump(exclude_unset=True), FAILING: failing.model_dump(exclude_unset=True)},
            "scales": {k: s if isinstance(s, dict) else s.model_dump(exclude_unset=True) for k, s in scales.items()},
        }
    )


def run(folder: StudyFolder, kills: int, draw: random.Random) -> int:
    """Two workers until nothing is left, of which `kills` die; how many did."""
    command = [sys.executable, "-m", "toughen", "study", "work", str(folder.path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start() -> subprocess.Popen[bytes]:
        with (folder.path / "workers.log").open("ab") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    workers, killed = [start(), start()], 0
    due = time.monotonic() + draw.uniform(1, 3)
    while any(worker.poll() is None for worker in workers):
        time.sleep(0.1)
        if killed < kills and time.monotonic() >= due:
            number = draw.randrange(2)
            workers[number].send_signal(signal.SIGKILL)
            workers[number].wait()
            workers[number], killed = start(), killed + 1
            due = time.monotonic() + draw.uniform(1, 3)
            if killed % 10 == 0:
                collect(folder)
    # Two rows cannot be measured.
    assert all(worker.returncode == 1 for worker in workers), (folder.path / "workers.log").read_text()[-2000:]
    return killed


def check(folder: StudyFolder) -> dict[str, Any]:
    """Every valid row once, the bad ones listed; counts for the page."""
    found = collect(folder)["rows"]
    states = collections.Counter(row["state"] for row in found.values())
    assert found.pop(FAULTY)["state"] == "faulty"
    assert found.pop(FAILING)["state"] == "failed"
    wrong = {name: (row["state"], row["reason"]) for name, row in found.items() if row["state"] != "done"}
    assert not wrong, wrong
    trained = [task.name for task in folder.tasks() if task.kind == TRAIN and not folder.failure(task)]
    for name in trained:
        steps = [json.loads(line) for line in (folder.run(name) / "metrics.jsonl").read_text().splitlines()]
        logged = [record["step"] for record in steps if "loss" in record]
        assert logged == sorted(set(logged)), name
        assert logged[-1] == folder.asked["trainings"][name]["steps"], name
    evaluations = 0
    for path in (folder.path / "runs").glob("*/evaluation/*/examples.parquet"):
        table = pq.read_table(path, columns=["attack", "index"] if "corruption" not in path.parent.name else ["index"])
        if "attack" in table.column_names:
            pairs = list(zip(table["attack"].to_pylist(), table["index"].to_pylist(), strict=True))
            assert len(pairs) == len(set(pairs)), path
        evaluations += 1
    measured = sum(task.kind == MEASURE and folder.done(task) for task in folder.tasks())
    return {"rows": len(found), "trainings": len(trained), "measured": measured, "evaluations": evaluations, **states}


def main() -> None:
    """Run, check, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--studies", nargs="+", choices=list(shipped()), default=list(shipped()))
    parser.add_argument("--kills", type=int, default=30, help="of the workers of the grid; of every other study two")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rows = []
    for name in sorted(arguments.studies, key=lambda study: study != "limits-grid"):
        shutil.rmtree(arguments.work / name, ignore_errors=True)
        folder = create_folder(with_bad_rows(load(name)), "toy", arguments.work / name, name=name)
        started = time.monotonic()
        kills = run(folder, arguments.kills if name == "limits-grid" else 2, random.Random(arguments.seed))
        found, minutes = check(folder), (time.monotonic() - started) / 60
        rows.append(
            f"| {name} | {found['rows']} | {found['trainings']} | {found['evaluations']} | {kills} | "
            f"{found['done']} done, 1 faulty, 1 failed | {minutes:.1f} |"
        )
        print(rows[-1], flush=True)
    if arguments.studies != list(shipped()):
        return
    text = [
        "# Studies at toy scale, with workers killed",
        "",
        f"`python benchmarks/studies.py WORK --kills {arguments.kills}`, {datetime.date.today()},",
        f"{platform.machine()}, two workers of one thread each on 2 shared cores, torch {torch.__version__}.",
        "Each study has two rows more: one has a fault, and the training of the other fails. Every valid row was",
        "trained and measured once.",
        "",
        "| study | valid rows | trainings | evaluations | workers killed | rows in the end | minutes |",
        "| --- | ---: | ---: | ---: | ---: | --- | ---: |",
        *rows,
    ]
    RESULT.write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
