"""Proves that a re-organisation of the source changes no behaviour: digests of what a tree computes, before and after.

    git worktree add ../before COMMIT
    python benchmarks/ruler.py take --source ../before/src --out before.json         # 9 minutes of processor time
    python benchmarks/ruler.py take --source src --out after.json
    python benchmarks/ruler.py compare before.json after.json                        # exit code 1 if a digest differs
    python benchmarks/ruler.py cross --before ../before/src --after src              # begun by one, ended by the other

`take` trains every form of every method for a few batches, evaluates the frozen models under every suite, calls every
attack by hand, corrupts, labels, checks, analyses, exports, reports, resolves every recipe and study, and runs a small
study (`ruler_measures.py`). `cross` begins a run, evaluations and a study with one tree, kills them, and ends them with
the other (`ruler_cross.py`). Threads and the processor's capability are fixed, and stand in the output. With `--keep
FOLDER` the bytes behind each digest are written there too, so that `diff -r` shows what differs; digests whose keys end
in `(words)` are of prose, which a re-organisation may put better.
"""

import argparse
import concurrent.futures
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from ruler_cross import CROSSINGS, cross
from ruler_digests import WORDS
from ruler_measures import GROUPS

HERE = Path(__file__).resolve().parent
ISA = {"default": "SSE41", "avx2": "AVX2", "avx512": "AVX512_CORE"}
"""oneDNN's name for each of torch's CPU capabilities."""


def environment(source: Path, capability: str, cache: Path) -> dict[str, str]:
    """The variables under which a tree runs: nothing of the caller's that could change what it computes."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    fixed = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "TZ": "UTC", "NO_COLOR": "1"}
    capabilities = {"ATEN_CPU_CAPABILITY": capability, "ONEDNN_MAX_CPU_ISA": ISA[capability]}
    places = {"PYTHONPATH": str(source), "TOUGHEN_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    return kept | fixed | capabilities | places


def commit(source: Path) -> str:
    """The commit of a tree, with a + if files of it were changed since."""
    found = [
        subprocess.run(["git", "-C", str(source), *arguments], capture_output=True, text=True).stdout.strip()
        for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no", "."])
    ]
    return found[0] + "+" * bool(found[1]) if found[0] else "unknown"


def processor() -> str:
    """Its name, as the system gives it."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text(encoding="utf-8")) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def conditions(capability: str) -> dict[str, Any]:
    """Under which digests may be compared: those of two files must be equal."""
    return {"torch": torch.__version__, "processor": processor(), "capability": capability, "threads": 1}


def measure(group: str, source: Path, capability: str, keep: Path | None) -> dict[str, str]:
    """The digests of a group, from a process of its own in a folder of its own."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(HERE / "ruler_measures.py"), group, str(source), *([str(keep)] if keep else [])]
        given = environment(source, capability, Path(folder) / ".cache")
        done = subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{group} of {source} failed:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{group}: {len(found)} digests in {time.monotonic() - started:.0f} s", flush=True)
    return found


def take(source: Path, out: Path, *, groups: list[str], jobs: int, capability: str, keep: Path | None) -> None:
    """Measure a tree and write its digests."""
    started, source, keep = time.monotonic(), source.resolve(), keep and keep.resolve()
    assert (source / "toughen" / "__init__.py").is_file(), f"{source} holds no package toughen; give TREE/src"
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        found = list(pool.map(lambda group: measure(group, source, capability, keep), groups))
    digests = {key: value for some in found for key, value in sorted(some.items())}
    about = {"commit": commit(source), "date": str(datetime.date.today()), **conditions(capability)}
    out.write_text(json.dumps({"about": about, "digests": digests}, indent=1) + "\n", encoding="utf-8")
    print(f"{out}: {len(digests)} digests in {time.monotonic() - started:.0f} s")


def compare(before: Path, after: Path) -> int:
    """Print every digest that differs, or stands in one file alone; the exit code, 0 if there is none.

    Only-after digests, of what is new, are printed and do not count.
    """
    old, new = (json.loads(path.read_text(encoding="utf-8")) for path in (before, after))
    for name in ("torch", "processor", "capability", "threads"):
        if old["about"][name] != new["about"][name]:
            print(f"not comparable: {name} was {old['about'][name]}, is {new['about'][name]}")
            return 2
    was, now = old["digests"], new["digests"]
    lost = [f"only before: {key}" for key in was if key not in now]
    differs = [key for key in was if key in now and now[key] != was[key]]
    numbers, words = ([key for key in differs if key.endswith(WORDS) == prose] for prose in (False, True))
    for line in (*lost, *(f"differs: {key}" for key in (*numbers, *words))):
        print(line)
    for key in (key for key in now if key not in was):
        print(f"only after: {key}")
    print(
        f"{old['about']['commit'][:10]} -> {new['about']['commit'][:10]}, {len(was)} digests: "
        f"{len(numbers)} of values and {len(words)} of words differ, {len(lost)} are gone"
    )
    return int(bool(differs or lost))


def main() -> None:
    """Take, compare or cross."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--capability", choices=list(ISA), default="avx2", help="of the processor, for every process")
    common.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes at a time")
    taking = verbs.add_parser("take", parents=[common])
    taking.add_argument("--source", type=Path, required=True, metavar="TREE/src")
    taking.add_argument("--out", type=Path, required=True)
    taking.add_argument("--keep", type=Path, help="folder for the bytes behind each digest")
    taking.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    comparing = verbs.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    crossing = verbs.add_parser("cross", parents=[common])
    crossing.add_argument("--before", type=Path, required=True, metavar="TREE/src")
    crossing.add_argument("--after", type=Path, required=True, metavar="TREE/src")
    crossing.add_argument("--only", nargs="+", choices=list(CROSSINGS), default=list(CROSSINGS))
    given = parser.parse_args()
    if given.verb == "compare":
        sys.exit(compare(given.before, given.after))
    if given.verb == "take":
        chosen = {"groups": given.only, "jobs": given.jobs, "capability": given.capability, "keep": given.keep}
        take(given.source, given.out, **chosen)
        return
    trees = given.before.resolve(), given.after.resolve()
    print(f"{commit(trees[0])} -> {commit(trees[1])}, {conditions(given.capability)}")
    with tempfile.TemporaryDirectory() as cache:
        before, after = (environment(tree, given.capability, Path(cache)) for tree in trees)
        with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
            ended = list(pool.map(lambda name: cross(name, before, after), given.only))
    sys.exit(0 if all(ended) else 1)


if __name__ == "__main__":
    main()
