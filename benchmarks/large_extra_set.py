"""An extra set larger than memory, streamed: what it takes of the memory, its rate, and how soon it opens and resumes.

    python benchmarks/large_extra_set.py [--gigabytes 5] [--write]      # five minutes; a folder of 2.5 times the size

Sets of 32x32 images beside a training set of 10,000 in memory, batches of 1,024 of which 70 % are extra: one .npz
file, the same images in shards, a smaller set in memory and streamed, a smaller compressed set that is unpacked first,
and 50 million images of which the file is a hole (150 GB by its size), so that only memory and times are looked at.
Each is measured in a process of its own: the time to open, to the first batch, to batch 1,000,000 in a fresh process as
a resumed run wants it, images a second over 100 batches, with the file out of the system's cache at first. What counts
of the memory is what is the process's own (RssAnon): pages of files that the system keeps while nobody wants the room
would count in the whole (RssFile). The folder is removed at the end.
"""

import argparse
import datetime
import gc
import json
import multiprocessing
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from sparse_npz import write_sparse  # noqa: E402
from toughen.data import Batches, LazySplit, Split, decode, load_extra  # noqa: E402
from toughen.data.loading.batches import Extra  # noqa: E402
from toughen.progress import Notice  # noqa: E402

RESULT = Path(__file__).parent / "results" / "large_extra_set.md"
IMAGE, BLOCK = 32 * 32 * 3, 50_000
BATCH, LABELLED, BATCHES, FAR = 1024, 0.3, 100, 1_000_000
MANY = 50_000_000


def write(path: Path, n: int, seed: int, *, compressed: bool = False) -> None:
    """`n` images and labels, never more than a block of them in memory; compressible to a half where compressed."""
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    rng = np.random.default_rng(seed)
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as archive:
        with archive.open("image.npy", "w", force_zip64=True) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (n, 32, 32, 3)}
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, n, BLOCK):
                block = rng.integers(0, 16 if compressed else 256, (min(BLOCK, n - start), IMAGE), dtype=np.uint8)
                file.write(block.tobytes())
        with archive.open("label.npy", "w") as file:
            np.lib.format.write_array(file, rng.integers(0, 10, n), allow_pickle=False)


def own(process: int | str = "self") -> float:
    """MiB that are a process's own."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert found is not None, "the kernel does not say what a process holds"
    return int(found[1]) / 1024


def forget(paths: Sequence[Path]) -> None:
    """Take files out of the system's cache."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(source: str, workers: int, in_memory: bool) -> dict[str, Any]:
    """One set, in this process."""
    warnings.simplefilter("ignore", Notice)
    decode.IN_MEMORY = 2**40 if in_memory else 2**20
    train = Split(torch.zeros(10_000, 3, 32, 32, dtype=torch.uint8), torch.arange(10_000) % 10)
    before = own()
    start = time.perf_counter()
    extra = load_extra(source, shape=(3, 32, 32), classes=10)
    opened = time.perf_counter() - start
    assert isinstance(extra, Split if in_memory else LazySplit)
    common = {"batch_size": BATCH, "seed": 0, "device": "cpu", "pad": 4, "flip": True, "classes": 10}

    def batches() -> Batches:
        given = Extra(extra, len(train), LABELLED)
        return Batches(train, torch.arange(len(train)), extra=given, workers=workers, **common)

    drawn = batches()
    start = time.perf_counter()
    drawn[0]
    first = time.perf_counter() - start
    rates, held = [], []
    for begin in (1, 1 + BATCHES):
        start = time.perf_counter()
        for number in range(begin, begin + BATCHES):
            drawn[number]
            if number % 10 == 0:
                held.append(own())
        rates.append(BATCHES * BATCH / (time.perf_counter() - start))
    workers_hold = [own(child.pid) for child in multiprocessing.active_children() if child.pid]
    drawn.close()
    del drawn
    gc.collect()
    resumed = batches()
    start = time.perf_counter()
    resumed[FAR]
    far = time.perf_counter() - start
    resumed.close()
    return {
        "images": len(extra),
        "reading": reading(extra),
        "open": opened,
        "first": first,
        "far": far,
        "rates": rates,
        "before": before,
        "peak": max(held),
        "early": held[0],
        "late": held[-1],
        "workers": workers_hold,
    }


def reading(extra: Split | LazySplit) -> float:
    """Microseconds of a core that an image takes, of those that a batch draws: the median of 30 batches."""
    rng, spent = np.random.default_rng(0), []
    for _ in range(30):
        rows = rng.integers(0, len(extra), round(BATCH * (1 - LABELLED)))
        start = time.process_time()
        if isinstance(extra, LazySplit):
            extra.read_pixels(rows)
        else:
            extra.take(torch.from_numpy(rows))
        spent.append((time.process_time() - start) / len(rows))
    return 1e6 * statistics.median(spent)


def in_process(source: str, workers: int, cache: Path, *, in_memory: bool = False) -> dict[str, Any]:
    """The same, in a fresh process of one thread."""
    words = [sys.executable, __file__, "--measure", source, "--workers", str(workers)]
    done = subprocess.run(
        words + (["--in-memory"] if in_memory else []),
        env={**os.environ, "TOUGHEN_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def row(name: str, size: int, found: dict[str, Any]) -> str:
    """A line of the table."""
    workers = f" + {len(found['workers'])} x {max(found['workers']):.0f}" if found["workers"] else ""
    numbers = [f"{found['open']:.2f}", f"{found['first']:.2f}", f"{found['far']:.2f}"]
    rates = [f"{found['reading']:.1f}", *(f"{rate:,.0f}" for rate in found["rates"])]
    memory = f"{found['peak'] - found['before']:.0f}{workers}"
    return " | ".join([f"| {name}", f"{size / 1e9:.1f}", *numbers, *rates, memory,
                       f"{found['late'] - found['early']:+.0f} |"])  # fmt: skip


def run(gigabytes: float, work: Path) -> list[str]:
    """Write the sets, measure, and say what was found."""
    n = int(gigabytes * 1e9 / IMAGE)
    few, cache = n // 5, work / "cache"
    lines = []

    def add(name: str, paths: Sequence[Path], source: str, workers: int, *, in_memory: bool = False) -> None:
        forget(paths)
        found = in_process(source, workers, cache, in_memory=in_memory)
        lines.append(row(name, sum(path.stat().st_size for path in paths), found))
        print(lines[-1], flush=True)

    whole = work / "gen.npz"
    write(whole, n, 0)
    for workers in (0, 1, 2):
        add(f"one file, {workers} workers", [whole], str(whole), workers)
    whole.unlink()
    shards = [work / "gen" / f"gen-{number:05d}.npz" for number in range(20)]
    shards[0].parent.mkdir()
    for number, path in enumerate(shards):
        write(path, n // 20, number)
    add("20 shards, 1 worker", shards, str(work / "gen"), 1)
    shutil.rmtree(work / "gen")
    small = work / "small.npz"
    write(small, few, 0)
    add("a fifth, in memory", [small], str(small), 0, in_memory=True)
    add("a fifth, streamed, 1 worker", [small], str(small), 1)
    small.unlink()
    packed = work / "packed.npz"
    write(packed, few, 0, compressed=True)
    add("a fifth compressed, opened for the first time", [packed], str(packed), 1)
    add("the same, for the second", [packed, *cache.rglob("*.npy")], str(packed), 1)
    packed.unlink()
    sparse = work / "sparse.npz"
    write_sparse(sparse, (MANY, 32, 32, 3), np.zeros(MANY, np.uint8), {})
    add("50 million images, a hole, 1 worker", [sparse], str(sparse), 1)
    return lines


def main() -> None:
    """Measure and print; with --write into the page of results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=5)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--in-memory", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given.workers, given.in_memory)))
        return
    head = [
        "| set | GB | open, s | first batch, s | batch 1,000,000, s | reading, us an image | images/s, cold | warm | "
        "memory of its own, MiB | from the 10th to the 200th batch |",
        "| --- | " + " | ".join(["---:"] * 9) + " |",
    ]
    print("\n".join(head), flush=True)
    with tempfile.TemporaryDirectory() as work:
        lines = run(given.gigabytes, Path(work))
    if given.write:
        RESULT.write_text("\n".join([*page(given.gigabytes), *head, *lines]) + "\n")


def page(gigabytes: float) -> list[str]:
    """The text above the table."""
    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return [
        "# An extra set larger than memory",
        "",
        f"`make bench-extra`, {datetime.datetime.now(datetime.UTC):%Y-%m-%d},",
        f"{processor[1] if processor else platform.machine()}, {os.cpu_count()} cores that others use too, one thread,",
        f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}.",
        "",
        f"Sets of {gigabytes:g} GB and of a fifth of that, 32x32 colour images, in batches of {BATCH:,} of which 70 %",
        "are of the set; cropped and mirrored, on the CPU, nothing is trained. Cold: the file is not in the system's",
        "cache. Memory is the process's own (RssAnon), above what it held before the set was opened, at its most over",
        "200 batches; that of workers is what each holds in all, most of it shared with the process that began it. The",
        "50 million images lie in a hole of a file, so their rate says little. Reading is what an image takes of a",
        "core, with what the system does for it: most where the file is not in its cache. Files below 1 GiB are read",
        "once when they are opened, for their checksum.",
        "",
    ]


if __name__ == "__main__":
    main()
