"""What one source tree begins, another ends: `python benchmarks/ruler.py cross --before TREE/src --after TREE/src`.

A run, an evaluation or a study is begun by the command line of the one tree, killed by SIGKILL when so many files of
its work have appeared, and ended by the same command of the other. What lies in the folder then must be what the other
tree makes undisturbed, and the work that was done before the kill must not be done again.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ruler_cases import PGD, RADII, write_frozen, write_recipe, write_study
from ruler_digests import Digests

OUT = "out"
CHECKPOINTS = f"{OUT}/checkpoints/step-*/MANIFEST.json"
UNITS = f"{OUT}/units/[0-9a-z]*[0-9].json"


@dataclass(frozen=True)
class Crossing:
    """Something to begin and to end.

    Attributes:
        write: writes what it needs into a folder and returns the command's arguments; results go to `OUT`.
        files: pattern of the files of work that is done.
        count: of them that are there when it is killed.
        end: a file that is there only when all is done.
    """

    write: Callable[[Path], list[str]]
    files: str
    count: int
    end: str


def _training(**changes: object) -> Crossing:
    def write(folder: Path) -> list[str]:
        write_recipe(folder / "recipe.yaml", **{"steps": 480, "save_every": 24, "log_every": 12, **changes})
        return ["train", "recipe.yaml"]

    return Crossing(write, CHECKPOINTS, 2, f"{OUT}/summary.json")


def _evaluation(suite: str, limit: int, files: str, count: int) -> Crossing:
    def write(folder: Path) -> list[str]:
        given = ["--data", "mnist5k", "--limit", str(limit), "--suite", suite]
        ball = [] if suite == "corruptions" else ["--threat", f"linf:{RADII['robust']['linf']}"]
        return ["evaluate", write_frozen(folder, "robust"), *given, *ball]

    return Crossing(write, files, count, f"{OUT}/result.json")


def _analysis(folder: Path) -> list[str]:
    ball = f"linf:{RADII['robust']['linf']}"
    return ["analyse", write_frozen(folder, "robust"), "--data", "mnist5k", "--threat", ball, "--limit", "8"]


def _study(folder: Path) -> list[str]:
    return ["study", "run", write_study(folder).name, "--scale", "toy"]


ADAPTIVE = {"name": "instance_adaptive", "attack": PGD["attack"], "warmup": 24}
CROSSINGS: dict[str, Crossing] = {
    "run (free)": _training(method={"name": "free", "replays": 3}),
    "run (instance_adaptive)": _training(method=ADAPTIVE),
    "evaluation (autoattack)": _evaluation("autoattack", 12, UNITS, 2),
    "evaluation (adaptive)": _evaluation("adaptive", 24, UNITS, 3),
    "corruptions": _evaluation("corruptions", 60, f"{OUT}/units/*[0-9].json", 20),
    "analysis": Crossing(_analysis, f"{OUT}/*-sweep.json", 2, f"{OUT}/pictures.npz"),
    "study": Crossing(_study, f"{OUT}/runs/*/checkpoints/step-*/MANIFEST.json", 3, f"{OUT}/runs/*/evaluation/*/*.json"),
}


def cross(name: str, before: Mapping[str, str], after: Mapping[str, str]) -> bool:
    """Begin by one tree, end by the other, and print how it went.

    Args:
        name: of `CROSSINGS`.
        before: the variables under which the first tree runs.
        after: those of the second.

    Returns:
        Whether the files are equal and no work was done twice.
    """
    crossing, started = CROSSINGS[name], time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        found: dict[str, dict[str, str]] = {}
        again: list[str] = []
        for way in ("whole", "crossed"):
            folder = Path(place) / way
            folder.mkdir()
            arguments = [*crossing.write(folder), "--out", OUT]
            done = _begin(crossing, folder, arguments, before) if way == "crossed" else {}
            again = _end(name, folder, arguments, after, done)
            digests = Digests()
            digests.folder(name, folder / OUT)
            found[way] = digests.found
    whole, crossed = found["whole"], found["crossed"]
    differs = sorted(key for key in whole.keys() | crossed.keys() if whole.get(key) != crossed.get(key))
    verdict = "equal" if not differs else f"DIFFERENT: {', '.join(differs)}"
    redone = f"; DONE TWICE: {', '.join(again)}" if again else ""
    took = time.monotonic() - started
    print(f"{name}: {verdict}{redone} ({len(whole)} files, killed after {len(done)}, {took:.0f} s)", flush=True)
    return not differs and not again


def _start(folder: Path, arguments: list[str], variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with (folder / "said").open("wb") as said:
        command = [sys.executable, "-m", "toughen", *arguments]
        # A group of its own, so that the workers of a study die with it.
        return subprocess.Popen(command, cwd=folder, env=variables, stdout=said, stderr=said, start_new_session=True)


def _stamps(folder: Path, pattern: str) -> dict[Path, tuple[int, int]]:
    """What tells whether a file was written again, for each that matches."""
    found = {}
    for path in folder.glob(pattern):
        # It may be deleted by now.
        if path.exists():
            about = path.stat()
            found[path] = about.st_ino, about.st_mtime_ns
    return found


def _begin(
    crossing: Crossing, folder: Path, arguments: list[str], variables: Mapping[str, str]
) -> dict[Path, tuple[int, int]]:
    """Run the command until so much is done, and kill it; the files that are done."""
    process = _start(folder, arguments, variables)
    while process.poll() is None and len(_stamps(folder, crossing.files)) < crossing.count:
        time.sleep(0.005)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = _stamps(folder, crossing.files)
    if process.returncode != -signal.SIGKILL or any(folder.glob(crossing.end)):
        raise RuntimeError(f"{arguments} ended before it was killed:\n{(folder / 'said').read_text()[-2000:]}")
    return done


def _end(
    name: str, folder: Path, arguments: list[str], variables: Mapping[str, str], done: dict[Path, tuple[int, int]]
) -> list[str]:
    """Run the command to its end; names of files that were done and were written again meanwhile."""
    process, again = _start(folder, arguments, variables), set[str]()
    while process.poll() is None:
        for path, stamp in _stamps(folder, CROSSINGS[name].files).items():
            if done.get(path, stamp) != stamp:
                again.add(path.relative_to(folder).as_posix())
        time.sleep(0.01)
    if process.returncode:
        raise RuntimeError(
            f"{name}, {arguments}: exit code {process.returncode}\n{(folder / 'said').read_text()[-2000:]}"
        )
    return sorted(again)
