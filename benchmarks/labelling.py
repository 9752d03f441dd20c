"""`toughen label` on CIFAR-10: are planted test images found, foreign images kept out, and pseudo-labels right?

    python benchmarks/labelling.py --data CIFAR10FOLDER WORK           # half an hour on one core
    python benchmarks/labelling.py --data CIFAR10FOLDER WORK --only scale --images 100000

The pool is 30,000 training images with their labels hidden, copies and near-copies of 200 test images, and 2,000
foreign images. The scorers see the other 20,000 training images and foreign images of other kinds. What a part has
found lies in WORK/NAME.json, and is not measured again while it is there.
"""

import argparse
import datetime
import hashlib
import json
import os
import platform
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from toughen.data import Batches, Split, load
from toughen.data.pseudo_labelling.build import THRESHOLD, label
from toughen.data.pseudo_labelling.duplicates import Reference, near
from toughen.models import build
from toughen.noise import derive, generator
from toughen.storage import files

COUNTS = (4_000, 10_000)
LABELLED = 20_000
WIDTH, EPOCHS, TRIALS = 12, 6, 3
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


def noise(name: str, n: int, kind: str) -> Tensor:
    """Foreign images without any object: uniform or blurred noise for the pool; specks or stripes for training."""
    draw = generator("labelling", name, kind)
    if kind == "uniform":
        return torch.randint(0, 256, (n, 3, 32, 32), generator=draw, dtype=torch.uint8)
    if kind == "blurred":
        coarse = torch.rand((n, 3, 8, 8), generator=draw)
        return (255 * nn.functional.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 1)).to(torch.uint8)
    if kind == "specks":
        grey = torch.rand((n, 3, 1, 1), generator=draw).expand(n, 3, 32, 32)
        at = torch.rand((n, 1, 32, 32), generator=draw)
        return (255 * torch.where(at < 0.15, 0.0, torch.where(at > 0.85, 1.0, grey))).to(torch.uint8)
    period = 2 + 10 * torch.rand((n, 1, 1, 1), generator=draw)
    angle = 3.2 * torch.rand((n, 1, 1, 1), generator=draw)
    place = torch.arange(32.0)
    wave = torch.cos(6.3 / period * (angle.cos() * place[:, None] + angle.sin() * place))
    coarse = torch.rand((n, 3, 16, 16), generator=draw).repeat_interleave(2, 2).repeat_interleave(2, 3)
    return (255 * (0.3 + 0.3 * wave + 0.4 * coarse).clamp(0, 1)).to(torch.uint8)


def digits(low: int, high: int, n: int) -> Tensor:
    """Real digits of some classes as 32x32 RGB, from the embedded set."""
    data = load("mnist5k").train
    chosen = ((data.labels >= low) & (data.labels <= high)).nonzero().squeeze(1)[:n]
    assert len(chosen) == n
    return nn.functional.pad(data.take(chosen).images, (2, 2, 2, 2)).expand(-1, 3, -1, -1)


def perturbed(images: Tensor, sigma: float) -> Tensor:
    """Near-copies: with Gaussian noise, sigma in levels of 0 to 255."""
    draw = torch.randn(images.shape, generator=generator("labelling", "near-copies", int(10 * sigma)))
    return (images + sigma * draw).round().clamp(0, 255).to(torch.uint8)


PLANTED: dict[str, Callable[[Tensor], Tensor]] = {
    "copies": lambda x: x,
    "noise of 10/255": lambda x: perturbed(x, 10),
    "noise of 30/255": lambda x: perturbed(x, 30),
    "noise of 37/255": lambda x: perturbed(x, 37),
    "shifted by a pixel": lambda x: x.roll(1, 3),
    "mirrored": lambda x: x.flip(3),
    "brighter": lambda x: (1.2 * x.float() + 20).clamp(0, 255).to(torch.uint8),
}


def foreign(which: str) -> Tensor:
    """2,000 foreign images: those of the pool, or others to train on."""
    kinds, low, high = (("uniform", "blurred"), 0, 4) if which == "pool" else (("specks", "stripes"), 5, 9)
    return torch.cat([*(noise(which, 500, kind) for kind in kinds), digits(low, high, 1000)])


def parts_of(data_folder: str) -> tuple[Split, Split, dict[str, slice], Tensor, Tensor]:
    """The labelled images, the pool, which rows of it are what, the hidden labels (-1 for others), the test images."""
    data = load(data_folder)
    order = torch.randperm(len(data.train), generator=generator("labelling", "split"))
    labelled, hidden = data.train.take(order[:LABELLED]), data.train.take(order[LABELLED:])
    test = data.test.images
    source = test[torch.randperm(len(test), generator=generator("labelling", "planted"))[:200]]
    pieces = {"training images": hidden.images, **{name: make(source) for name, make in PLANTED.items()}}
    pieces["foreign"] = foreign("pool")
    ends = np.cumsum([len(piece) for piece in pieces.values()]).tolist()
    where = {name: slice(end - len(piece), end) for (name, piece), end in zip(pieces.items(), ends, strict=True)}
    images = torch.cat(list(pieces.values()))
    truth = torch.full((len(images),), -1)
    truth[where["training images"]] = hidden.labels
    assert isinstance(labelled, Split)
    return labelled, Split(images, torch.zeros(len(images), dtype=torch.int64)), where, truth, test


def trained(labelled: Split, with_foreign: bool, path: Path) -> nn.Module:
    """A small classifier of the labelled images and, perhaps, of foreign ones as an eleventh class."""
    torch.manual_seed(derive("labelling", "weights"))
    model = build("small_cnn", num_classes=10 + with_foreign, width=WIDTH, norm="batch", mean=MEAN, std=STD)
    if path.is_file():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    split = labelled
    if with_foreign:
        others = foreign("training")
        labels = torch.cat([labelled.labels, torch.full((len(others),), 10)])
        split = Split(torch.cat([labelled.images, others]), labels)
    index = torch.arange(len(split))
    batches = Batches(split, index, batch_size=128, seed=0, device="cpu", pad=4, flip=True, classes=10 + with_foreign)
    steps = EPOCHS * len(batches)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps)
    for number in range(steps):
        batch = batches[number]
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(batch.x), batch.y).backward()
        optimizer.step()
        schedule.step()
    torch.save(model.state_dict(), path)
    return model.eval()


def one_call(arguments: argparse.Namespace, kind: str, out: Path) -> dict[str, Any]:
    """The set made by the scorer of ten classes ("plain") or by that of eleven ("foreign")."""
    labelled, pool, _, _, test = parts_of(arguments.data)
    model = trained(labelled, kind == "foreign", arguments.work / f"{kind}.pt")
    names = load(arguments.data).classes
    return label(pool, model, test_images=test, classes=names, counts=COUNTS, foreign=kind == "foreign", out=out)


def extra_set(arguments: argparse.Namespace, kind: str) -> dict[str, Any]:
    """What a set holds, counted with what the scorer was not told."""
    out = arguments.work / f"{kind}-set"
    started = time.perf_counter()
    manifest = one_call(arguments, kind, out)
    seconds = time.perf_counter() - started
    _, pool, where, truth, test = parts_of(arguments.data)
    shards = [pq.read_table(path, columns=["pool_index", "label", "set"]) for path in sorted(out.glob("train-*"))]
    index, given, smallest = (np.concatenate([t.column(c).to_numpy() for t in shards]) for c in shards[0].column_names)
    removed = pq.read_table(out / "duplicates.parquet").column("pool_index").to_numpy()
    alike = pq.read_table(out / "perceptual.parquet").column("pool_index").to_numpy()
    truth_of = truth.numpy()[index]
    planted = {}
    for name in PLANTED:
        rows = np.arange(len(pool))[where[name]]
        squared = brute_force(pool.images[where[name]], test)
        planted[name] = {
            "planted": len(rows),
            "within": int((squared <= 2000**2).sum()),
            "removed": int(np.isin(rows, removed).sum()),
            "as they must": bool((np.isin(rows, removed) == (squared <= 2000**2)).all()),
            "reported alike": int(np.isin(rows, alike).sum()),
            "chosen": int(np.isin(rows, index).sum()),
        }
    natural = np.arange(len(pool))[where["training images"]]
    sets = {}
    for count in COUNTS:
        of_set = smallest <= count
        known = of_set & (truth_of >= 0)
        sets[count] = {
            "chosen": int(of_set.sum()),
            "foreign": float((index[of_set] >= where["foreign"].start).mean()),
            "precision": float((given[known] == truth_of[known]).mean()),
        }
    return {
        "seconds": seconds,
        "planted": planted,
        "training images": len(natural),
        "training images within the threshold": int(np.isin(natural, removed).sum()),
        "training images alike": int(np.isin(natural, alike).sum()),
        "foreign within the threshold": int((removed >= where["foreign"].start).sum()),
        "judged foreign": manifest["pool"]["foreign"],
        "missing": manifest["sets"][-1]["missing"],
        "sets": sets,
    }


def brute_force(images: Tensor, test: Tensor) -> np.ndarray:
    """Squared distance (N,) to the nearest test image, pixels in 0 to 255: whole numbers, exact in float64."""
    a, b = (x.flatten(1).numpy().astype(np.float64) for x in (images, test))
    return ((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * (a @ b.T)).min(1)


def killed(arguments: argparse.Namespace) -> dict[str, Any]:
    """A call that is killed a moment after its folder has got new files, and called again, until it ends by itself."""
    expected, draw, trials = digest(arguments.work / "foreign-set"), random.Random(0), []
    command = [sys.executable, __file__, "--data", arguments.data, str(arguments.work), "--child"]
    for trial in range(TRIALS):
        out, kills = arguments.work / f"killed-{trial}", 0
        while True:
            wanted = len(list(out.rglob("*"))) + draw.randint(1, 3)
            child = subprocess.Popen([*command, str(out)])
            while child.poll() is None and (kills == 4 or len(list(out.rglob("*"))) < wanted):
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 0.5))
            if child.poll() is None:
                os.kill(child.pid, signal.SIGKILL)
            if child.wait() == 0:
                break
            assert child.returncode == -signal.SIGKILL
            kills += 1
        trials.append({"kills": kills, "equal": digest(out) == expected})
    return {"trials": trials}


def digest(folder: Path) -> str:
    """Of every file's name and bytes."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != ".lock":
            total.update(f"{path.relative_to(folder)}".encode() + path.read_bytes())
    return total.hexdigest()


class Mixtures:
    """A pool that is made as it is read: means of two training images, and a test image for each thousandth."""

    def __init__(self, train: Tensor, test: Tensor, n: int, rows: Tensor | None = None) -> None:
        self.train, self.test, self.n = train, test, n
        self.rows = torch.arange(n) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Tensor) -> "Mixtures":
        """Some of them."""
        return Mixtures(self.train, self.test, self.n, self.rows[indices])

    @property
    def images(self) -> Tensor:
        """(N, 3, 32, 32) uint8."""
        total = len(self.train)
        # Two multiplicative hashes: no image of the pool is like its neighbours, and none needs a generator.
        first, second = (self.rows * 7919) % total, (self.rows * 104_729 + self.rows // total + 1) % total
        mixed = ((self.train[first].short() + self.train[second].short()) // 2).to(torch.uint8)
        copies = self.rows % 1000 == 0
        mixed[copies] = self.test[(self.rows[copies] // 1000) % len(self.test)]
        return mixed


def scale(arguments: argparse.Namespace) -> dict[str, Any]:
    """A large pool against 10,000 test images: time, memory of the process, and a sample against brute force."""
    data = load(arguments.data)
    pool = Mixtures(data.train.images, data.test.images, arguments.images)
    started, cpu = time.perf_counter(), time.process_time()
    found = near(pool, data.test.images)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    copies = torch.arange(0, len(pool), 1000)
    sample = torch.randint(0, len(pool), (200,), generator=generator("labelling", "sample"))
    correct = (found.squared[sample].numpy() == brute_force(pool.take(sample).images, data.test.images)).sum()
    started = time.perf_counter()
    Reference(data.test.images).alike(pool.take(torch.arange(8192)).images)
    return {
        "images": len(pool),
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_bytes": peak,
        "copies": len(copies),
        "copies_found": int((found.squared[copies] == 0).sum()),
        "sample": len(sample),
        "sample_correct": int(correct),
        "within": int(found.within(THRESHOLD).sum()),
        "alike_seconds_per_million": (time.perf_counter() - started) / 8192 * 1e6,
    }


def true_neighbours(arguments: argparse.Namespace) -> dict[str, Any]:
    """How near CIFAR-10's own training images are to its test images."""
    data = load(arguments.data)
    distance = near(data.train, data.test.images).distance
    within = {f"{bound:.3g}": int((distance <= bound + 1e-9).sum()) for bound in (0, 2, 4, 6, THRESHOLD, 10)}
    return {"images": len(distance), "within": within, "median": float(distance.median())}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "scale": scale,
    "neighbours": true_neighbours,
    "plain": lambda arguments: extra_set(arguments, "plain"),
    "foreign": lambda arguments: extra_set(arguments, "foreign"),
    "killed": killed,
}


def report(found: dict[str, Any], arguments: argparse.Namespace) -> list[str]:
    """The page of results."""
    big, plain, eleven = found["scale"], found["plain"], found["foreign"]
    lines = [
        "# Extra sets by `toughen label`",
        "",
        f"`python benchmarks/labelling.py --data CIFAR10 WORK --images {big['images']}`, {datetime.date.today()}, "
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} thread on a shared machine, torch "
        f"{torch.__version__}, fp32.",
        "",
        "## The set",
        "",
        f"Pool: {eleven['training images']} CIFAR-10 training images with their labels hidden, {len(PLANTED)} forms of",
        "200 test images, 2,000 foreign images (uniform and blurred noise, digits 0 to 4). The scorers (`small_cnn` of",
        f"width {WIDTH}, {EPOCHS} epochs) see the other {LABELLED} training images; the one with a foreign class also",
        "2,000 of other kinds (specks, stripes, digits 5 to 9). Precision is against the hidden labels.",
        "",
        "| scorer | N | chosen | foreign among them | bound | precision | judged foreign in the pool |",
        "| --- | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    for name, result, bound in (("10 classes", plain, None), ("10 and foreign", eleven, 0.01)):
        for count, row in result["sets"].items():
            verdict = "reported" if bound is None else "within 1 %" if row["foreign"] < bound else "ABOVE 1 %"
            lines.append(
                f"| {name} | {count} | {row['chosen']} | {row['foreign']:.2%} | {verdict} | {row['precision']:.2%} | "
                f"{result['judged foreign']} |"
            )
    lines += [
        "",
        "Planted images, with the scorer that has a foreign class; what is within is counted by brute force.",
        "",
        "| planted | images | within 2000/255 | removed | just those | reported alike | chosen |",
        "| --- | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    lines += [
        f"| {name} | {row['planted']} | {row['within']} | {row['removed']} | "
        f"{'yes' if row['as they must'] else 'NO'} | {row['reported alike']} | {row['chosen']} |"
        for name, row in eleven["planted"].items()
    ]
    near_ones, neighbours = eleven["training images within the threshold"], found["neighbours"]
    trials = found["killed"]["trials"]
    lines += [
        "",
        f"Of the pool's own {eleven['training images']} images {near_ones} "
        f"({near_ones / eleven['training images']:.1%}) are within the threshold of a test image, and",
        f"{eleven['training images alike']} are reported to look like one. In all of CIFAR-10's {neighbours['images']} "
        "training images, within",
        ", ".join(f"{bound}: {n} ({n / neighbours['images']:.1%})" for bound, n in neighbours["within"].items())
        + f"; the median is {neighbours['median']:.2f}.",
        "So Carmon's threshold, 2000/255 = 7.84, removes far more than copies: smooth images (skies, seas) are that",
        "near one another. A smaller one keeps them, and still removes what was planted with little noise.",
        "",
        f"Killed by SIGKILL while it wrote and called again: {sum(trial['kills'] for trial in trials)} kills in "
        f"{len(trials)} trials; the same bytes in {sum(trial['equal'] for trial in trials)} of {len(trials)}.",
        "",
        "## Scale",
        "",
        f"{big['images']} images x 10,000 test images of 3x32x32, every nearest distance exact: "
        f"{big['seconds'] / 60:.1f} minutes ({big['cpu_seconds'] / 60:.1f} of the processor),",
        f"peak memory of the process {big['peak_bytes'] / 2**30:.2f} GiB "
        f"({'within' if big['peak_bytes'] < 2**31 else 'ABOVE'} 2 GiB; 0.17 GiB of it is CIFAR-10 itself, from which "
        "the pool is made).",
        f"{big['copies_found']} of {big['copies']} planted copies found; {big['sample_correct']} of "
        f"{big['sample']} drawn images have the distance of brute force.",
        f"{big['within']} are within 2000/255. The pool is synthetic: each image the mean of two training images.",
        f"Likeness, measured on 8,192 images: {big['alike_seconds_per_million'] / 60:.1f} minutes a million.",
    ]
    return lines


def main() -> None:
    """Measure what is not measured yet, and write `results/labelling.md`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--data", required=True, help="folder of CIFAR-10's parquet files")
    parser.add_argument("--images", type=int, default=1_000_000, help="of the pool that shows the scale")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.child:
        one_call(arguments, "foreign", arguments.child)
        return
    for name in arguments.only:
        path = arguments.work / f"{name}.json"
        if not path.is_file():
            files.write_json(path, PARTS[name](arguments))
            print(path.read_text(), flush=True)
    found = {path.stem: json.loads(path.read_text()) for path in arguments.work.glob("*.json")}
    if found.keys() >= PARTS.keys():
        page = "\n".join(report(found, arguments)) + "\n"
        (Path(__file__).parent / "results" / "labelling.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
