"""A long run that looks at itself after each save: `python long_run.py FOLDER STEPS SAVES`, one JSON line a look."""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from conftest import tiny_data
from tiny_runs import tiny_recipe
from toughen.data import DATA
from toughen.progress import Display
from toughen.training import train

torch.set_num_threads(1)
DATA["tiny"] = tiny_data


class Looking(Display):
    """Prints what the process holds at every line of the log."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def progress(self, record: dict[str, Any], images_per_second: float) -> None:
        """A look; a save is still being written then, whose own files are not counted."""
        print(json.dumps({"step": record["step"], **look(self.run)}))


def look(run: Path) -> dict[str, Any]:
    """Memory in bytes, open files, threads, and children that ended and were not waited for."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    files = [target(link) for link in Path("/proc/self/fd").iterdir()]
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {
        "resident": resident,
        "files": sorted(file for file in files if file and not file.startswith((f"{run}/checkpoints", "/proc"))),
        "threads": threading.active_count(),
        "children": len(children),
    }


def target(link: Path) -> str:
    """What a file handle is of; empty where it is closed meanwhile."""
    try:
        return os.readlink(link)
    except FileNotFoundError:
        return ""


def main(run: Path, steps: int, saves: int) -> None:
    every = steps // saves
    recipe = tiny_recipe(
        method="natural",
        batch_size=8,
        steps=steps,
        save_every=every,
        log_every=every,
        averages=[0.9],
        selection={"suite": "pgd-1", "every": 5 * every},
    )
    train(recipe, run, display=Looking(run))
    print(json.dumps({"step": steps, **look(run)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
