"""All of CIFAR-10 through every route: the same 60,000 images, bit for bit, and what reading them takes.

    python benchmarks/routes.py --data PATH/TO/cifar10-parquet WORK        # about three minutes on two cores

WORK is a folder for 2 GB of copies; it must not exist. The layouts are written by Pillow, numpy and the standard
library alone (`tests/layouts.py`), sorted by class as class folders are, and compared with the parquet files' images in
that order.
"""

import argparse
import datetime
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import layouts  # noqa: E402
from toughen.data import ImageData, ResizeCrop, load  # noqa: E402
from toughen.data.sources.cifar_pickle import import_folder  # noqa: E402


def by_class(data: ImageData) -> ImageData:
    """The data with the examples of each split sorted by class, otherwise in their order."""
    train, test = (split.take(split.labels.argsort(stable=True)) for split in (data.train, data.test))
    return ImageData(data.name, train, None, test, data.classes)


def write_parquet(folder: Path, parts: layouts.Parts, classes: tuple[str, ...]) -> Path:
    """The Hub's format, by HF datasets."""
    import datasets

    folder.mkdir()
    datasets.disable_progress_bars()
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list(classes))})
    for part, (images, labels) in parts.items():
        cells = [{"bytes": layouts.encoded(image), "path": None} for image in images]
        table = datasets.Dataset.from_dict({"img": cells, "label": labels.tolist()}, features=features)
        table.to_parquet(folder / f"{part}-00000-of-00001.parquet")
    return folder


def imported(work: Path, parts: layouts.Parts) -> Path:
    """The Python layout, through `toughen import`."""
    import_folder(layouts.write_python(work / "cifar-10-batches-py", parts), work / "imported.npz")
    return work / "imported.npz"


def timed(source: Path) -> tuple[ImageData, float]:
    """The data and the seconds that loading took."""
    start = time.perf_counter()
    data = load(str(source))
    return data, time.perf_counter() - start


def main() -> None:
    """Write, read and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of CIFAR-10's parquet files")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "routes.md")
    parser.add_argument("work", type=Path)
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True)
    os.environ["TOUGHEN_CACHE"] = str(work / "cache")
    torch.set_num_threads(1)

    original, seconds = timed(Path(arguments.data))
    again = timed(Path(arguments.data))[1]
    wanted = by_class(original)
    rows = [("parquet, as it is", len(original.train), len(original.test), seconds, again, "reference")]
    layouts.CLASSES = original.classes
    parts = {
        part: (np.ascontiguousarray(split.images.permute(0, 2, 3, 1).numpy()), split.labels.numpy())
        for part, split in wanted.splits.items()
    }
    routes: dict[str, Callable[[], Path]] = {
        "parquet": lambda: write_parquet(work / "parquet", parts, original.classes),
        "folder of PNG files": lambda: layouts.write_folder(work / "folder", parts),
        "npz": lambda: layouts.write_npz(work / "arrays.npz", parts),
        "CIFAR binary": lambda: layouts.write_binary(work / "cifar-10-batches-bin", parts),
        "webdataset shards": lambda: layouts.write_shards(work / "shards", parts, per_shard=5000),
        "CIFAR Python, imported": lambda: imported(work, parts),
    }
    few = torch.arange(0, len(wanted.test), 97)
    view = ResizeCrop(28)
    reference = None
    for name, write in routes.items():
        source = write()
        data, first = timed(source)
        second = timed(source)[1]
        pictures = load(str(source), view).test.take(few).images
        reference = pictures if reference is None else reference
        equal = data.fingerprint == wanted.fingerprint and torch.equal(pictures, reference)
        rows.append((name, len(data.train), len(data.test), first, second, "equal" if equal else "DIFFERENT"))
        print(rows[-1], flush=True)

    lines = [
        "# CIFAR-10 through every route",
        "",
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} shared cores, "
        f"Python {platform.python_version()}, torch {torch.__version__}, one thread. "
        "`python benchmarks/routes.py --data PATH WORK`",
        "",
        "Each layout is written from the parquet files' pixels, sorted by class as class folders are, and loaded. "
        "Equal: the SHA-256 of shapes, labels and pixels of both splits is that of the original in this order, and 104 "
        "test images streamed through a view of 28 pixels are those of every other route. Seconds: the first load, and "
        "another one, from the cache where the route has one.",
        "",
        "| route | training | test | pixels and labels | first load, s | second, s |",
        "| --- | ---: | ---: | --- | ---: | ---: |",
        *(f"| {name} | {a:,} | {b:,} | {equal} | {one:.1f} | {two:.1f} |" for name, a, b, one, two, equal in rows),
        "",
        f"Fingerprint as it is: `{original.fingerprint}`; by class: `{wanted.fingerprint}`.",
    ]
    arguments.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
