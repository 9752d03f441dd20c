"""What a GPU makes of it: its rates, our steps beside them, one step in kernels, other libraries, and the speed-runs.

    python benchmarks/gpu.py steps profile peers                         # on random images
    python benchmarks/gpu.py speedrun --data DIR --recipe cifar10-speedrun-46 --suite pgd-50 --seeds 0 1 2
    python benchmarks/gpu.py steps profile peers speedrun --toy          # a minute on a CPU: does it run

Needs what the package needs, and for `peers` whichever of torchattacks, robustness and ART can be imported. Each figure
is written to `results/gpu.json` as soon as it is there, under the device's name, and `results/gpu.md` is made of them.
AutoAttack beside other libraries' is `evaluation.py --device cuda`.
"""

import argparse
import datetime
import itertools
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from peer_steps import ENTRANTS, PGD, Setting, images
from step_cost import recipe_of
from toughen.data import Batches
from toughen.models.cost import counted
from toughen.modes import backends
from toughen.recipes import Recipe
from toughen.training.acceleration import Acceleration, kernels
from toughen.training.loop import Job, train_batch
from toughen.training.setup import set_up

RESULTS = Path(__file__).parent / "results"
FAST = {"bf16": True, "channels_last": True, "tf32": True}
WAYS = {
    "plain float32": Acceleration(),
    "TF32": Acceleration(tf32=True),
    "bf16, folded": Acceleration(**FAST, folded=True),
    "bf16, graphs": Acceleration(**FAST, compiled=True),
}
METHODS: dict[str, dict[str, Any]] = {
    "natural": {"method": "natural"},
    "pgd-10": {"method": {"name": "adversarial", "attack": PGD}},
    "free-8": {"method": {"name": "free", "replays": 8}},
}
CASES = [
    ("wrn-34-10", "pgd-10", 128),
    ("wrn-34-10", "pgd-10", 512),
    ("preact_resnet18", "natural", 128),
    ("preact_resnet18", "pgd-10", 128),
    ("preact_resnet18", "free-8", 128),
    ("madry-w32-10", "free-8", 128),
]
TOY = [("small_cnn", "pgd-10", 8), ("small_cnn", "free-8", 8)]
MATRIX = re.compile(
    r"^(?!triton_(poi|red|per)_).*(gemm|conv(?!ert)|xmma|cutlass|[wd]grad|fprop|nvjet|mm(_|$))", re.IGNORECASE
)
"""Names of kernels, or on a CPU of operations, that multiply matrices; triton's others name what they fuse."""


@dataclass(frozen=True)
class Bench:
    """Where and how large.

    Attributes:
        device: what is measured.
        cases: network, method and batch size of each step.
        rounds: how often a time is taken; the median counts.
        repeats: steps of one time.
        toy: whether sizes are those that a CPU has done with in seconds.
    """

    device: torch.device
    cases: list[tuple[str, str, int]]
    rounds: int
    repeats: int
    toy: bool

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, step: Callable[[], object]) -> float:
        """Of one step: the median over rounds, in each of which the device is waited for before and after."""
        found = []
        for _ in range(self.rounds):
            self.wait()
            started = time.perf_counter()
            for _ in range(self.repeats):
                step()
            self.wait()
            found.append((time.perf_counter() - started) / self.repeats)
        return statistics.median(found)


def ceilings(bench: Bench) -> tuple[float, float]:
    """What the device does at most: bf16 matrix products in FLOP/s, and copies in bytes read and written a second."""
    n, length = (256, 10**6) if bench.toy else (8192, 2**31)
    # Random: on zeros a product runs faster than on any data.
    a, b = (torch.randn(n, n, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randint(0, 256, (length,), device=bench.device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * n**3 / bench.seconds(lambda: a @ b), 2 * length / bench.seconds(lambda: target.copy_(source))


def set_up_on(device: torch.device, recipe: Recipe, ways: Acceleration) -> tuple[Job, Batches]:
    """A job of random images, and its batches."""
    data = images(max(4 * recipe.batch_size, 64))
    return set_up(recipe, data, data.train, torch.arange(len(data.train)), device, ways=ways)


class Flops(TorchDispatchMode):
    """Counts as torch's `FlopCounterMode`, whose hooks on modules do not go with `autograd.grad`.

    Attributes:
        total: floating-point operations so far.
    """

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do as asked, and count."""
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func.overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def flops(bench: Bench, network: str, method: str) -> float:
    """Floating-point operations of an optimiser step for one image: matrix products alone, a multiply-add being two."""
    size = 4
    job, batches = set_up_on(bench.device, recipe_of(network, size, METHODS[method]), Acceleration())
    with Flops() as counter:
        train_batch(job, batches[0])
    return counter.total / size / job.method.steps_per_batch


def training(job: Job, batches: Batches) -> Callable[[], None]:
    """What the loop does for a batch."""

    def step() -> None:
        batch = batches[job.number]
        with counted(job.model, job.passes):
            train_batch(job, batch)

    return step


def steps(bench: Bench) -> Iterator[dict[str, Any]]:
    """Every case in every way: milliseconds, FLOP/s and their share of the ceiling, and what making the batch took."""
    rate, bandwidth = ceilings(bench)
    yield {"part": "ceilings", "flops": rate, "bytes": bandwidth}
    for network, method, size in bench.cases:
        each = flops(bench, network, method)
        for name, ways in WAYS.items():
            if bench.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(bench.device)
            recipe = recipe_of(network, size, METHODS[method])
            job, batches = set_up_on(bench.device, recipe, ways)
            step, per_batch = training(job, batches), job.method.steps_per_batch
            with kernels(recipe, ways):
                bench.wait()
                started = time.perf_counter()
                step()
                bench.wait()
                first = time.perf_counter() - started
                step()
                took = bench.seconds(step) / per_batch
                making = bench.seconds(lambda batches=batches, job=job: batches[job.number]) / per_batch
            memory = torch.cuda.max_memory_allocated(bench.device) if bench.device.type == "cuda" else 0
            yield {
                "part": "steps",
                "network": network,
                "method": method,
                "batch": size,
                "ways": name,
                "ms": 1000 * took,
                "first": first,
                "flops": each * size / took,
                "share": each * size / took / rate,
                "data": making / took,
                "gigabytes": memory / 1e9,
            }


def profiled(bench: Bench) -> Iterator[dict[str, Any]]:
    """The first case in the last way, kernel by kernel: what is no matrix work, and how long the device was idle."""
    network, method, size = bench.cases[0]
    name, ways = list(WAYS.items())[-1]
    recipe = recipe_of(network, size, METHODS[method])
    job, batches = set_up_on(bench.device, recipe, ways)
    step, cuda, count = training(job, batches), bench.device.type == "cuda", 3
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with kernels(recipe, ways), tempfile.TemporaryDirectory() as folder:
        step()
        step()
        bench.wait()
        with profile(activities=activities) as taken:
            started = time.perf_counter()
            for _ in range(count):
                step()
            bench.wait()
            wall = time.perf_counter() - started
        path = Path(folder) / "trace.json"
        taken.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    kinds = {"kernel", "gpu_memcpy", "gpu_memset"} if cuda else {"cpu_op"}
    micros: Counter[str] = Counter()
    for event in events:
        if event.get("cat") in kinds:
            micros[event["name"]] += event["dur"]
    total, matrix = sum(micros.values()), sum(took for kernel, took in micros.items() if MATRIX.search(kernel))
    others = Counter({kernel: took for kernel, took in micros.items() if not MATRIX.search(kernel)})
    yield {
        "part": "profile",
        "case": f"{network}, {method}, batch {size}, {name}",
        "ms": 1000 * wall / count,
        "matrix": matrix / total,
        # Kernels of one stream do not overlap; a CPU's operations contain each other, so there this says nothing.
        "idle": max(0.0, 1 - total / 1e6 / wall),
        "others": [[kernel[:100], took / total] for kernel, took in others.most_common(12)],
    }


def peers(bench: Bench) -> Iterator[dict[str, Any]]:
    """A PGD-10 step of each library, in torch's own precision and under autocast, and of ours by its rule."""
    network, _, size = bench.cases[0]
    setting = Setting(network, images(4 * size), size, bench.device)
    # For all of them, as a user who asks for speed has it.
    with backends(benchmark=True, tf32=True):
        for name, make in ENTRANTS["PGD-10"].items():
            for low in [False] if name == "ours" else [False, True]:
                row = {"part": "peers", "by": name, "network": network, "batch": size, "autocast": low}
                try:
                    step = make(setting)
                except (ImportError, RuntimeError) as error:
                    yield {**row, "ms": None, "why": f"{type(error).__name__}: {error}"}
                    continue
                with torch.autocast(bench.device.type, torch.bfloat16, enabled=low):
                    step()
                    step()
                    yield {**row, "ms": 1000 * bench.seconds(step)}


def speedrun(bench: Bench, recipe: str, suite: str, seeds: list[int], data: str | None) -> Iterator[dict[str, Any]]:
    """Whole runs by the command line, on the clock from the start of the process, and what they are worth."""
    toy = ["data=mnist5k", "model={name: small_cnn, width: 4}", "steps=20", "batch_size=20", "device=cpu"]
    changes = toy if bench.toy else [f"data={data}"] if data else []
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            out = Path(folder) / f"{seed}"
            toughen = [sys.executable, "-m", "toughen"]
            started = time.perf_counter()
            subprocess.run([*toughen, "train", recipe, *changes, f"seed={seed}", "--out", str(out)], check=True)
            took = time.perf_counter() - started
            limit = ["--limit", "20"] if bench.toy else []
            subprocess.run([*toughen, "evaluate", str(out), "--suite", suite, *limit], check=True)
            (result,) = (out / "evaluation").glob("*/result.json")
            found = json.loads(result.read_text(encoding="utf-8"))
            yield {
                "part": "speedrun",
                "recipe": recipe,
                "suite": suite,
                "seed": seed,
                "seconds": took,
                "training": json.loads((out / "summary.json").read_text(encoding="utf-8"))["seconds"],
                "clean": found["clean_accuracy"],
                "robust": found["robust_accuracy"],
            }


def report(rows: list[dict[str, Any]]) -> str:
    """The page: a table for each part, the newest figures last."""
    lines = ["# On a GPU", "", "By `benchmarks/gpu.py`; each row says on what and when.", ""]
    tables: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
        "ceilings": (
            "| bf16 products, TFLOP/s | copies, TB/s |",
            lambda row: f"| {row['flops'] / 1e12:.3g} | {row['bytes'] / 1e12:.3g} |",
        ),
        "steps": (
            "| network | method | batch | ways | ms a step | TFLOP/s | of the ceiling | data, share | GB | first, s |",
            lambda row: (
                f"| {row['network']} | {row['method']} | {row['batch']} | {row['ways']} | {row['ms']:.2f} | "
                f"{row['flops'] / 1e12:.3g} | {row['share']:.1%} | {row['data']:.1%} | {row['gigabytes']:.1f} | "
                f"{row['first']:.0f} |"
            ),
        ),
        "profile": (
            "| case | ms a batch | matrix work | idle | the rest, most first |",
            lambda row: (
                f"| {row['case']} | {row['ms']:.2f} | {row['matrix']:.1%} | {row['idle']:.1%} | "
                f"{'; '.join(f'`{name}` {share:.1%}' for name, share in row['others'])} |"
            ),
        ),
        "peers": (
            "| PGD-10 by | network | batch | autocast | ms a step |",
            lambda row: (
                f"| {row['by']} | {row['network']} | {row['batch']} | {row['autocast']} | "
                f"{row['why'] if row['ms'] is None else format(row['ms'], '.2f')} |"
            ),
        ),
        "speedrun": (
            "| recipe | seed | seconds in all | of training | clean | suite | robust |",
            lambda row: (
                f"| {row['recipe']} | {row['seed']} | {row['seconds']:.1f} | {row['training']:.1f} | "
                f"{row['clean']:.2%} | {row['suite']} | {row['robust']:.2%} |"
            ),
        ),
    }
    for part, (header, line) in tables.items():
        if found := [row for row in rows if row["part"] == part]:
            lines += [f"## {part}", "", f"{header} device | date |", re.sub(r"[^|]+", " --- ", f"{header} - | - |")]
            lines += [f"{line(row)} {row['device']}, torch {row['torch']} | {row['date']} |" for row in found]
            lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def main() -> None:
    """Measure, and write down each figure as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=["steps", "profile", "peers", "speedrun"])
    parser.add_argument("--recipe", default="cifar10-speedrun-46")
    parser.add_argument("--suite", default="pgd-50")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--data", help="where CIFAR-10 lies; the recipe's own source by default")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder for gpu.json and gpu.md")
    parser.add_argument("--toy", action="store_true", help="small sizes on the CPU")
    given = parser.parse_args()
    device = torch.device("cpu" if given.toy else "cuda")
    bench = Bench(device, TOY, 1, 1, True) if given.toy else Bench(device, CASES, 5, 5, False)
    name = "CPU, toy sizes" if given.toy else torch.cuda.get_device_name(device)
    common = {"device": name, "torch": torch.__version__, "date": datetime.date.today().isoformat()}
    figures = given.out / "gpu.json"
    rows = json.loads(figures.read_text(encoding="utf-8")) if figures.exists() else []
    parts = {
        "steps": lambda: steps(bench),
        "profile": lambda: profiled(bench),
        "peers": lambda: peers(bench),
        "speedrun": lambda: speedrun(bench, given.recipe, given.suite, given.seeds, given.data),
    }
    for row in itertools.chain.from_iterable(parts[part]() for part in given.parts):
        rows.append(row | common)
        print(json.dumps(row), flush=True)
        figures.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        (given.out / "gpu.md").write_text(report(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
