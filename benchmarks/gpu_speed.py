"""How fast a GPU is with it: parts of `gpu_session`, each of which yields its figures one by one.

    for row in steps(Bench(torch.device("cuda"), toy=False, work=folder)):
        ...                                              # a network, a method and a way: milliseconds, FLOP/s, ...

Rows have a `name`, by which a session that is begun again knows what is done.
"""

import importlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from peer_steps import ENTRANTS, PGD, Setting, images
from step_cost import recipe_of
from toughen.data import Batches
from toughen.devices import wait
from toughen.models.cost import counted
from toughen.modes import backends
from toughen.recipes import Recipe
from toughen.training.acceleration import Acceleration, kernels
from toughen.training.loop import Job, train_batch
from toughen.training.setup import set_up

evaluations = importlib.import_module("evaluation")  # tests/ has a folder of that name, which checkers of types find

Row = dict[str, Any]
FAST = {"bf16": True, "channels_last": True, "tf32": True}
WAYS = {
    "bf16, folded": Acceleration(**FAST, folded=True),
    "bf16, graphs": Acceleration(**FAST, compiled=True),
    "TF32": Acceleration(tf32=True),
    "plain float32": Acceleration(),
}
"""What users will run comes first."""

METHODS: dict[str, dict[str, Any]] = {
    "natural": {"method": "natural"},
    "pgd-10": {"method": {"name": "adversarial", "attack": PGD}},
    "free-8": {"method": {"name": "free", "replays": 8}},
}
Case = tuple[str, str, int]
FIRST: list[Case] = [("preact_resnet18", "pgd-10", 128), ("wrn-34-10", "pgd-10", 128)]
MORE: list[Case] = [
    ("wrn-34-10", "pgd-10", 512),
    ("preact_resnet18", "natural", 128),
    ("preact_resnet18", "free-8", 128),
    ("madry-w32-10", "free-8", 128),
]
TOY: list[Case] = [("small_cnn", "natural", 8)]
TOY_MORE: list[Case] = [("small_cnn", "free-8", 4)]
SPEEDRUNS = {"cifar10-speedrun-46": "pgd-50", "cifar10-speedrun-50": "autoattack"}
"""Recipe -> the suite by which it is measured."""

MATRIX = re.compile(
    r"^(?!triton_(poi|red|per)_).*(gemm|conv(?!ert)|xmma|cutlass|[wd]grad|fprop|nvjet|mm(_|$))", re.IGNORECASE
)
"""Names of kernels, or on a CPU of operations, that multiply matrices; triton's others name what they fuse."""


@dataclass(frozen=True)
class Bench:
    """Where, how large, and what is known.

    Attributes:
        device: what is measured.
        toy: whether sizes are those that a CPU has done with in seconds.
        work: a folder for what has to last: data of the kit, runs that go on.
        done: names of the part's rows that are there already.
    """

    device: torch.device
    toy: bool
    work: Path
    done: frozenset[str] = frozenset()

    def seconds(self, step: Callable[[], object]) -> float:
        """Of one step: the mean of some that follow each other without a wait, of one alone where it takes long."""
        took, repeats = 0.0, 1
        while repeats:
            wait(self.device)
            started = time.perf_counter()
            for _ in range(repeats):
                step()
            wait(self.device)
            took = (time.perf_counter() - started) / repeats
            repeats = 0 if self.toy or repeats > 1 else min(10, int(2 / took))
        return took

    def attempt(self, name: str, what: Callable[[], Row]) -> Iterator[Row]:
        """The row of that name, unless it is there: what was found, or with what it failed.

        Raises:
            RuntimeError: the device does no more after that, so that the process must end.
        """
        if name in self.done:
            return
        try:
            found = what()
        except ModuleNotFoundError as error:
            yield {"name": name, "missing": f"{error.name} is not installed"}
        except Exception as error:  # noqa: BLE001  # whatever it is, the other rows are wanted
            yield {"name": name, "error": f"{type(error).__name__}: {error}"[:500]}
            wait(self.device)
        else:
            yield {"name": name, **found}


def rates(bench: Bench) -> tuple[float, float]:
    """What the device does at most: bf16 matrix products in FLOP/s, and copies in bytes read and written a second."""
    n, length = (64, 10**6) if bench.toy else (8192, 2**31)
    # Random: on zeros a product runs faster than on any data.
    a, b = (torch.randn(n, n, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randint(0, 256, (length,), device=bench.device, dtype=torch.uint8)
    target = torch.empty_like(source)
    product, copy = (lambda: a @ b), (lambda: target.copy_(source))
    product()
    copy()
    return 2 * n**3 / bench.seconds(product), 2 * length / bench.seconds(copy)


def ceilings(bench: Bench) -> Iterator[Row]:
    """The device's rates, measured."""

    def measured() -> Row:
        rate, bandwidth = rates(bench)
        return {"flops": rate, "bytes": bandwidth}

    yield from bench.attempt("measured", measured)


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


def steps(bench: Bench) -> Iterator[Row]:
    """PreActResNet-18 and WRN-34-10 at PGD-10."""
    yield from each_way(bench, TOY if bench.toy else FIRST)


def more_steps(bench: Bench) -> Iterator[Row]:
    """Natural and Free steps, and a batch of 512."""
    yield from each_way(bench, TOY_MORE if bench.toy else MORE)


def each_way(bench: Bench, cases: list[Case]) -> Iterator[Row]:
    """Every case in every way: milliseconds, FLOP/s and their share of the ceiling, and what making the batch took."""
    names = {f"{network}, {method}, {size}, {way}" for network, method, size in cases for way in WAYS}
    if names <= bench.done:
        return
    rate, _ = rates(bench)
    for network, method, size in cases:
        for way in WAYS:
            name = f"{network}, {method}, {size}, {way}"
            yield from bench.attempt(name, partial(one_step, bench, network, method, size, way, rate))


def one_step(bench: Bench, network: str, method: str, size: int, way: str, rate: float) -> Row:
    """One case in one way."""
    cuda, ways = bench.device.type == "cuda", WAYS[way]
    each = flops(bench, network, method)
    if cuda:
        torch.cuda.reset_peak_memory_stats(bench.device)
    recipe = recipe_of(network, size, METHODS[method])
    job, batches = set_up_on(bench.device, recipe, ways)
    step, per_batch = training(job, batches), job.method.steps_per_batch
    with kernels(recipe, ways):
        wait(bench.device)
        started = time.perf_counter()
        step()
        wait(bench.device)
        first = time.perf_counter() - started
        step()
        took = bench.seconds(step) / per_batch
        making = bench.seconds(lambda: batches[job.number]) / per_batch
    return {
        "network": network,
        "method": method,
        "batch": size,
        "ways": way,
        "ms": 1000 * took,
        "first": first,
        "flops": each * size / took,
        "share": each * size / took / rate,
        "data": making / took,
        "gigabytes": torch.cuda.max_memory_allocated(bench.device) / 1e9 if cuda else 0,
    }


def profiled(bench: Bench) -> Iterator[Row]:
    """The larger network in compiled graphs, kernel by kernel: what is no matrix work, and how long all was idle."""
    network, method, size = (TOY if bench.toy else FIRST)[-1]
    way = "bf16, graphs"
    yield from bench.attempt(
        f"{network}, {method}, {size}, {way}", partial(kernel_times, bench, network, method, size, way)
    )


def kernel_times(bench: Bench, network: str, method: str, size: int, way: str) -> Row:
    """One case in one way."""
    ways = WAYS[way]
    recipe = recipe_of(network, size, METHODS[method])
    job, batches = set_up_on(bench.device, recipe, ways)
    # The pretended device has no kernels of its own.
    step, cuda, count = training(job, batches), bench.device.type == "cuda" and not bench.toy, 3
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with kernels(recipe, ways), tempfile.TemporaryDirectory() as folder:
        step()
        step()
        wait(bench.device)
        with profile(activities=activities) as taken:
            started = time.perf_counter()
            for _ in range(count):
                step()
            wait(bench.device)
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
    return {
        "ms": 1000 * wall / count,
        "matrix": matrix / total,
        # Kernels of one stream do not overlap; a CPU's operations contain each other, so there this says nothing.
        "idle": max(0.0, 1 - total / 1e6 / wall),
        "others": [[kernel[:100], took / total] for kernel, took in others.most_common(12)],
    }


def peers(bench: Bench) -> Iterator[Row]:
    """A PGD-10 step of each library that can be imported, in torch's precision and under autocast; ours by its rule."""
    network, _, size = (TOY if bench.toy else FIRST)[-1]
    setting = Setting(network, images(4 * size), size, bench.device)

    def measured(make: Callable[[Setting], Callable[[], object]], low: bool) -> Row:
        # For all of them, as a user who asks for speed has it.
        with backends(benchmark=True, tf32=True), torch.autocast(bench.device.type, torch.bfloat16, enabled=low):
            step = make(setting)
            step()
            step()
            return {"network": network, "batch": size, "ms": 1000 * bench.seconds(step)}

    for by, make in ENTRANTS["PGD-10"].items():
        for low in [False] if by == "ours" or bench.toy else [False, True]:
            yield from bench.attempt(f"{by}{', autocast' if low else ''}", partial(measured, make, low))


def evaluation(bench: Bench) -> Iterator[Row]:
    """Our suites on 1,000 digits beside whichever reference can be imported, each alone with the device."""
    n = 20 if bench.toy else 1000

    def measured(tool: str) -> Row:
        model, x, y, threat = evaluations.frozen_model("robust", n)
        model, x, y = model.to(bench.device), x.to(bench.device), y.to(bench.device)
        found = evaluations.measure(tool, model, x, y, threat)
        kept = ("tool", "n", "clean", "threat", "forwards", "backwards", "seconds")
        return {"robust": sum(found["robust"]), **{key: found[key] for key in kept}}

    for tool in ("quick",) if bench.toy else (*evaluations.OURS, *evaluations.REFERENCES):
        yield from bench.attempt(tool, partial(measured, tool))


def speedrun(bench: Bench) -> Iterator[Row]:
    """Whole runs by the command line, on the clock of the process, and what they are worth.

    One that is stopped saves, and goes on in the next session where its folder is still there.
    """
    data = bench.work / "data"
    for recipe, suite in {"mnist-free": "pgd-1"}.items() if bench.toy else SPEEDRUNS.items():
        if bench.toy:
            changes, limit = ["steps=16", "batch_size=20", "model.width=4", "device=auto"], ["--limit", "20"]
        else:
            changes, limit = [f"data={data}"], []
        if not bench.toy and not data.exists():
            yield {"name": recipe, "missing": "the pieces of the kit with CIFAR-10 have not been brought"}
            continue
        yield from bench.attempt(recipe, partial(whole_run, bench, recipe, suite, changes, limit))


def whole_run(bench: Bench, recipe: str, suite: str, changes: list[str], limit: list[str]) -> Row:
    """One run, begun or gone on with, and its evaluation."""
    out = bench.work / "runs" / recipe
    again = out.exists()
    command = [sys.executable, str(Path(__file__).with_name("gpu_session.py")), "--as", "toughen"]
    started = time.perf_counter()
    subprocess.run([*command, "train", recipe, *changes, "--out", str(out)], check=True)
    took = time.perf_counter() - started
    subprocess.run([*command, "evaluate", str(out), "--suite", suite, *limit], check=True)
    (result,) = (out / "evaluation").glob("*/result.json")
    found = json.loads(result.read_text(encoding="utf-8"))
    return {
        "suite": suite,
        # Not known where there were several sittings.
        "seconds": None if again else took,
        "training": json.loads((out / "summary.json").read_text(encoding="utf-8"))["seconds"],
        "clean": found["clean_accuracy"],
        "robust": found["robust_accuracy"],
    }
