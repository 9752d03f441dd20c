"""How fast photographs are streamed, against the barest loop that Pillow allows: decode, crop, resize, array.

    python benchmarks/streaming.py WORK [--images 1000] [--rounds 3] [--workers 0 1 2]

WORK receives 1,000 JPEGs of 500 pixels, cut from the photographs that ship with scikit-image. The loop opens, crops and
resizes in one process, with boxes like ours, and makes nothing random, no labels and no batches. Ours is what feeds
training, up to the point where pixels go to the device: in this process (0 workers), or in so many others. Both
alternate in one run. What counts is images per second of a core's time (must of issue 5: at least 90 % of the loop's),
because the machine is shared; the wall clock stands beside it. Workers run while this process receives and the loop
runs alone, so where two cores are halves of one, as here, workers look slower than they are.
"""

import argparse
import datetime
import os
import platform
import resource
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from toughen.data import load
from toughen.data.crops import ResizeCrop
from toughen.data.lazy_split import LazySplit
from toughen.data.loading.prefetch import Streamed
from toughen.data.loading.sampler import Sampler
from toughen.noise import derive

RESULTS = Path(__file__).parent / "results"
SIDE, SIZE, BATCH, QUALITY = 500, 224, 50, 90
EPOCHS = 3
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "retina", "hubble_deep_field", "immunohistochemistry")


def photographs() -> list[Image.Image]:
    """Those of scikit-image that are there without a download."""
    import skimage.data  # pyright: ignore[reportMissingImports]

    found = []
    for name in PHOTOGRAPHS:
        try:
            found.append(Image.fromarray(getattr(skimage.data, name)()).convert("RGB"))
        except (OSError, RuntimeError, ModuleNotFoundError):
            continue
    return found


def make(folder: Path, n: int) -> None:
    """`n` JPEGs in ten class folders: random parts of the photographs, as sharp as those, 500 pixels wide."""
    sources = photographs()
    for number in range(n):
        path = folder / f"{number % 10}" / f"{number:04}.jpg"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(number)
        source = sources[number % len(sources)]
        side = int(min(source.size) * rng.uniform(0.6, 1))
        left, top = (int(rng.integers(length - side + 1)) for length in source.size)
        part = source.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        part.save(path, quality=QUALITY)


def loop(paths: list[Path], view: ResizeCrop, epoch: int) -> tuple[float, float]:
    """Images per second of a core and of the wall clock, of Pillow alone, with boxes like ours."""
    boxes = [view.box((SIDE, SIDE), np.random.default_rng(derive(epoch, number))) for number in range(len(paths))]
    start, core = time.perf_counter(), time.process_time()
    for path, (left, top, width, height) in zip(paths, boxes, strict=True):
        with Image.open(path) as image:
            pixels = image.convert("RGB").crop((left, top, left + width, top + height))
            np.asarray(pixels.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    return len(paths) / (time.process_time() - core), len(paths) / (time.perf_counter() - start)


def ours(split: LazySplit, epoch: int, workers: int) -> tuple[float, float]:
    """Images per second of the decoding cores, and of the wall clock and worker, of some epochs as they are fed."""
    cpu = torch.device("cpu")
    order = Sampler(len(split), BATCH, 1, epoch, short=True, mine=slice(None), device=cpu)
    feed = Streamed(split, order.rows, seed=epoch, device=cpu, workers=workers)
    core, start = core_seconds(workers), time.perf_counter()
    for number in range(EPOCHS * order.batches):
        feed[number]
    seconds = time.perf_counter() - start
    # Workers are counted when they have ended, with what they decoded ahead: two batches each.
    del feed
    images, ahead = EPOCHS * len(split), 2 * BATCH * workers
    return (images + ahead) / (core_seconds(workers) - core), images / seconds / max(workers, 1)


def core_seconds(workers: int) -> float:
    """Time that cores have spent: on the processes that this one started and that have ended, or on this one."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN if workers else resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure, print, and write `results/streaming.md`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = arguments.work / "photographs" / "train"
    make(folder, arguments.images)
    view = ResizeCrop(SIZE)
    split = load(str(folder.parent), view).train
    assert isinstance(split, LazySplit)
    paths = [Path(split.name(number)) for number in range(len(split))]
    rows = []
    for workers in arguments.workers:
        pairs = [(loop(paths, view, r), ours(split, r, workers)) for r in range(arguments.rounds)]
        figures = [statistics.median(value) for value in zip(*(bare + mine for bare, mine in pairs), strict=True)]
        ratios = [statistics.median(mine[i] / bare[i] for bare, mine in pairs) for i in (0, 1)]
        bare_core, bare_wall, core, wall = figures
        rows.append(
            f"| {workers} | {bare_core:.0f} | {core:.0f} | {ratios[0]:.2f} | {bare_wall:.0f} | {wall:.0f} | "
            f"{ratios[1]:.2f} |"
        )
        print(rows[-1], flush=True)
    text = [
        "# Streaming photographs",
        "",
        f"`python benchmarks/streaming.py WORK --workers {' '.join(map(str, arguments.workers))}`,",
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} shared cores, torch {torch.__version__},",
        f"Pillow {Image.__version__}; {len(paths)} JPEGs of {SIDE}x{SIDE}, random resized crops to {SIZE}; medians of",
        f"{arguments.rounds} rounds. The loop and 0 workers run in one process.",
        "",
        "| workers | loop, images per core second | ours | ratio | loop, images/s | ours, a worker | ratio |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *rows,
    ]
    (RESULTS / "streaming.md").write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
