"""What one source tree begins, another ends: `python benchmarks/ruler.py cross --before TREE/src --after TREE/src`.

A run, an evaluation or a study is begun by the command line of the one tree, killed by SIGKILL when so many files of
its work have appeared, and ended by the same command of the other. What lies in the folder then must be what the other
tree makes undisturbed, and the work that was done before the kill must not be done again.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ruler_cases import PGD, RADII, write_frozen, write_recipe, write_study
from ruler_digests import Digests

OUT = "out"
CHECKPOINTS = f"{OUT}/checkpoints/step-*/MANIFEST.json"
UNITS = f"{OUT}/units/*[0-9].json"


Stamps = dict[Path, tuple[int, int]]
"""What tells whether a file was written again: its number on the disk, and when it was written."""


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


LONGER = {
    "steps": 240,
    "save_every": 24,
    "log_every": 12,
    "overfitting_every": 96,
    "selection": {"suite": "pgd-1", "every": 96},
}
"""Of a run, so that it has ten checkpoints to be killed between."""


def _training(**changes: object) -> Crossing:
    def write(folder: Path) -> list[str]:
        write_recipe(folder / "recipe.yaml", **LONGER, **changes)
        return ["train", "recipe.yaml"]

    return Crossing(write, CHECKPOINTS, 2, f"{OUT}/summary.json")


def _evaluation(model: str, suite: str, limit: int, count: int) -> Crossing:
    def write(folder: Path) -> list[str]:
        given = ["--data", "mnist5k", "--limit", str(limit), "--suite", suite]
        ball = [] if suite == "corruptions" else ["--threat", f"linf:{RADII[model]['linf']}"]
        return ["evaluate", write_frozen(folder, model), *given, *ball]

    return Crossing(write, UNITS, count, f"{OUT}/result.json")


def _analysis(folder: Path) -> list[str]:
    ball = f"linf:{RADII['robust']['linf']}"
    return ["analyse", write_frozen(folder, "robust"), "--data", "mnist5k", "--threat", ball, "--limit", "8"]


def _study(folder: Path) -> list[str]:
    return ["study", "run", write_study(folder).name, "--scale", "toy"]


ADAPTIVE = {"name": "instance_adaptive", "attack": PGD["attack"], "warmup": 24}
CROSSINGS: dict[str, Crossing] = {
    "run (free)": _training(method={"name": "free", "replays": 3}),
    "run (instance_adaptive)": _training(method=ADAPTIVE),
    "evaluation (autoattack)": _evaluation("linear", "autoattack", 12, 2),
    "evaluation (adaptive)": _evaluation("linear", "adaptive", 24, 3),
    "evaluation (quick)": _evaluation("robust", "quick", 100, 1),
    "corruptions": _evaluation("robust", "corruptions", 60, 20),
    "analysis": Crossing(_analysis, f"{OUT}/*-sweep.json", 2, f"{OUT}/pictures.npz"),
    # When the first training has ended; the second and all that is measured follow.
    "study": Crossing(_study, f"{OUT}/runs/*/summary.json", 1, f"{OUT}/runs/*/evaluation/*/result.json"),
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
    started = time.monotonic()
    try:
        whole, _, _ = _made(CROSSINGS[name], None, after)
        crossed, done, again = _made(CROSSINGS[name], before, after)
    except RuntimeError as error:
        print(f"{name}: FAILED: {error}", flush=True)
        return False
    differs = sorted(key for key in whole.keys() | crossed.keys() if whole.get(key) != crossed.get(key))
    verdict = f"DIFFERENT: {', '.join(differs)}" if differs else "equal"
    redone = f"; DONE TWICE: {', '.join(again)}" if again else ""
    took = time.monotonic() - started
    print(f"{name}: {verdict}{redone} ({len(whole)} files, killed after {done}, {took:.0f} s)", flush=True)
    return not differs and not again


def _made(
    crossing: Crossing, begin: Mapping[str, str] | None, end: Mapping[str, str]
) -> tuple[dict[str, str], int, list[str]]:
    """Digests of what two trees make, how many files of work the first had done, and those that were done twice."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        arguments = [*crossing.write(folder), "--out", OUT]
        done = _begin(crossing, folder, arguments, begin) if begin else {}
        again = _end(crossing, folder, arguments, end, done)
        digests = Digests()
        digests.folder(OUT, folder / OUT)
        return digests.found, len(done), again


@contextlib.contextmanager
def _started(folder: Path, arguments: list[str], variables: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """The command, in a group of processes of its own, so that the workers of a study die with it."""
    with (folder / "said").open("wb") as said:
        command = [sys.executable, "-m", "toughen", *arguments]
        process = subprocess.Popen(command, cwd=folder, env=variables, stdout=said, stderr=said, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _stamps(folder: Path, pattern: str) -> Stamps:
    found = {}
    for path in folder.glob(pattern):
        # It may be deleted by now.
        with contextlib.suppress(FileNotFoundError):
            about = path.stat()
            found[path] = about.st_ino, about.st_mtime_ns
    return found


def _begin(crossing: Crossing, folder: Path, arguments: list[str], variables: Mapping[str, str]) -> Stamps:
    """Run the command until so much is done, and kill it; the files that are done."""
    with _started(folder, arguments, variables) as process:
        while process.poll() is None and len(_stamps(folder, crossing.files)) < crossing.count:
            time.sleep(0.005)
    if process.returncode != -signal.SIGKILL or any(folder.glob(crossing.end)):
        raise RuntimeError(f"{arguments} ended before it was killed:\n{(folder / 'said').read_text()[-2000:]}")
    return _stamps(folder, crossing.files)


def _end(
    crossing: Crossing, folder: Path, arguments: list[str], variables: Mapping[str, str], done: Stamps
) -> list[str]:
    """Run the command to its end; names of files that were done and were written again meanwhile."""
    again = set[str]()
    with _started(folder, arguments, variables) as process:
        while process.poll() is None:
            for path, stamp in _stamps(folder, crossing.files).items():
                if done.get(path, stamp) != stamp:
                    again.add(path.relative_to(folder).as_posix())
            time.sleep(0.01)
    if process.returncode:
        said = (folder / "said").read_text(encoding="utf-8")
        raise RuntimeError(f"{arguments}: exit code {process.returncode}\n{said[-2000:]}")
    return sorted(again)
