"""Whether a GPU computes what the CPU computes: parts of `gpu_session`, each of which yields its figures one by one.

    for row in attacks(Bench(torch.device("cuda"), toy=False, work=folder)):
        ...                                              # {"name": "apgd linf", "far": 3e-16, "ok": True}

What the CPU finds is brought in `references.json` by `gpu_kit`; what is not in it is computed here, on this CPU.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import attack_cases
import frozen_models
from gpu_speed import Bench, Row
from method_cases import CASES
from tiny_runs import digest, tiny_recipe
from toughen.attacks import AttackSpec
from toughen.data import DATA, ImageData, Split
from toughen.devices import wait
from toughen.evaluation import evaluate
from toughen.noise import generator
from toughen.recipes import Recipe
from toughen.testing import toys
from toughen.threat import L2, Linf
from toughen.training import run as running
from toughen.training import train
from toughen.training.acceleration import Acceleration, by_rule, kernels
from toughen.training.loop import Job, train_batch
from toughen.training.setup import set_up

CPU = torch.device("cpu")
BALLS = {"linf": Linf(0.1), "l2": L2(0.5)}
CLOSE = 1e-6
"""Distance of an adversarial example in float64 from the CPU's: sums in another order, a hundred steps of them."""


def tiny() -> ImageData:
    """Random images of 8x8: what they show does not change whether two devices agree."""
    images = torch.randint(0, 256, (190, 1, 8, 8), generator=generator("tiny"), dtype=torch.uint8)
    train, test = (Split(images[part], torch.arange(len(images[part])) % 4) for part in (slice(150), slice(150, 190)))
    return ImageData("tiny", train, None, test, ("a", "b", "c", "d"))


DATA["tiny"] = tiny


def references(bench: Bench) -> dict[str, Any]:
    """What the kit brought."""
    path = bench.work / "references.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def attack_names(toy: bool) -> list[tuple[str, str]]:
    """Every form of every attack, in every ball that it knows."""
    few = ("pgd", "apgd") if toy else tuple(attack_cases.CASES)
    return [(label, norm) for label in few for norm in attack_cases.CASES[label].norms]


def adversarial(label: str, norm: str, device: torch.device) -> Tensor:
    """What an attack finds in float64 on a small network."""
    model, x, y = toys.normed(torch.float64), toys.images(torch.float64), toys.labels()
    attack = AttackSpec(**attack_cases.CASES[label].settings)
    return attack(model.to(device), x.to(device), y.to(device), threat=BALLS[norm]).cpu()


def attacks(bench: Bench) -> Iterator[Row]:
    """In float64 an attack finds on the device what it finds on the CPU."""
    brought = references(bench).get("attacks", {})

    def compared(label: str, norm: str) -> Row:
        found, there = adversarial(label, norm, bench.device), brought.get(f"{label} {norm}")
        wanted = adversarial(label, norm, CPU) if there is None else torch.tensor(there, dtype=torch.float64)
        far = float((found - wanted.reshape(found.shape)).abs().max())
        return {"far": far, "ok": far < CLOSE}

    for label, norm in attack_names(bench.toy):
        yield from bench.attempt(f"{label} {norm}", partial(compared, label, norm))


def methods_names(toy: bool) -> list[str]:
    """Every form of every method."""
    return ["natural", "adversarial", "free"] if toy else list(CASES)


def tiny_job(
    label: str, device: torch.device, ways: Acceleration | None = None, **changes: Any
) -> tuple[Recipe, Job, Any]:
    """A method's job on tiny images, and its batches; by the rule if no ways are given."""
    data, case = tiny(), CASES[label]
    recipe = tiny_recipe(method=case.settings, steps=96, **case.recipe, **changes)
    ways = by_rule(recipe, device) if ways is None else ways
    job, batches = set_up(recipe, data, data.train, torch.arange(len(data.train)), device, ways=ways)
    return recipe, job, batches


def loss(label: str, device: torch.device, ways: Acceleration | None) -> float:
    """Of the first batch, all of whose values must be finite."""
    recipe, job, batches = tiny_job(label, device, ways)
    with kernels(recipe, job.ways):
        train_batch(job, batches[0])
        job.finite.check()
    return job.meters.read()["loss"]


def methods(bench: Bench) -> Iterator[Row]:
    """One batch of every method, plain and by rule: finite, and about the CPU's loss, for draws are a device's own."""
    brought = references(bench).get("methods", {})

    def compared(label: str, ways: Acceleration | None) -> Row:
        found, wanted = loss(label, bench.device, ways), brought.get(label)
        wanted = loss(label, CPU, Acceleration()) if wanted is None else wanted
        return {"loss": found, "cpu": wanted, "ok": abs(found - wanted) < 0.25 * abs(wanted) + 0.05}

    for label in methods_names(bench.toy):
        yield from bench.attempt(f"{label}, plain", partial(compared, label, Acceleration()))
        yield from bench.attempt(f"{label}, by rule", partial(compared, label, None))


def verdict_names(toy: bool) -> list[tuple[str, str, str, int]]:
    """Suite, norm, type and images of each evaluation."""
    if toy:
        return [("quick", "linf", "float64", 16)]
    return [("autoattack", norm, dtype, 128) for norm in ("linf", "l2") for dtype in ("float64", "float32")]


def verdicts_of(suite: str, norm: str, dtype: str, n: int, device: torch.device) -> dict[str, list[int]]:
    """Which digits an evaluation of the frozen robust network breaks, and which are marginal."""
    model, x, y, threat = frozen_models.load("robust", norm, n)
    kind = getattr(torch, dtype)
    model, x, y = model.to(device, kind), x.to(device, kind), y.to(device)
    table = evaluate(model, x, y, threat=threat, suite=suite, audit=False).outcomes
    return {
        "broken": sorted(set(table.index[~table.survived].tolist())),
        "marginal": sorted(set(table.index[table.marginal].tolist())),
    }


def verdicts(bench: Bench) -> Iterator[Row]:
    """AutoAttack breaks on the device what it breaks on the CPU, marginal digits left out."""
    brought = references(bench).get("verdicts", {})

    def compared(given: tuple[str, str, str, int]) -> Row:
        found = verdicts_of(*given, bench.device)
        wanted = brought.get(" ".join(map(str, given))) or verdicts_of(*given, CPU)
        apart = set(found["broken"]) ^ set(wanted["broken"])
        clear = apart - {*found["marginal"], *wanted["marginal"]}
        broken = {"broken": len(found["broken"]), "cpu": len(wanted["broken"])}
        return {"n": given[-1], **broken, "differ": len(apart), "clear": len(clear), "ok": not clear}

    for given in verdict_names(bench.toy):
        yield from bench.attempt(" ".join(map(str, given)), partial(compared, given))


RESUMED: dict[str, dict[str, Any]] = {
    "small_cnn, free": {},
    "small_cnn, trades, perturbed weights": {
        "method": {"name": "trades", "attack": {"name": "pgd", "steps": 2}},
        "weight_perturbation": {},
    },
    "preact_resnet18, pgd": {
        "method": {"name": "adversarial", "attack": {"name": "pgd", "steps": 2}},
        "model": {"name": "preact_resnet18"},
    },
}


def run_recipe(name: str) -> Recipe:
    """Of a run that promises the same bits."""
    return tiny_recipe(**{"device": "auto", "fast": "off", "steps": 24, "save_every": 3, **RESUMED[name]})


def die_midway(name: str, out: Path) -> None:
    """Train, and be killed once there is a checkpoint to go on from."""
    step, before = running.train_batch, iter(range(10**6))

    def dying(job: Job, batch: Any) -> None:
        if next(before) == 4:
            until = time.monotonic() + 20
            while not list(out.glob("checkpoints/step-*")) and time.monotonic() < until:
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        step(job, batch)

    running.train_batch = dying
    train(run_recipe(name), out)


def resumed(bench: Bench) -> Iterator[Row]:
    """With `fast: off` two runs end in the same bits, and one that is killed and gone on with does too."""

    def compared(name: str) -> Row:
        with tempfile.TemporaryDirectory() as folder:
            first, second, killed = (Path(folder) / part for part in ("first", "second", "killed"))
            train(run_recipe(name), first)
            train(run_recipe(name), second)
            session = Path(__file__).with_name("gpu_session.py")
            command = [sys.executable, str(session), "--as", "gpu_checks", name, str(killed)]
            code = subprocess.run(command, check=False, timeout=120).returncode
            assert code == -signal.SIGKILL, f"it was not killed but ended with {code}"
            assert list(killed.glob("checkpoints/step-*")), "it had saved nothing"
            train(run_recipe(name), killed)
            wanted = digest(first)
            found = {"again": digest(second) == wanted, "resumed": digest(killed) == wanted}
        return {**found, "ok": all(found.values())}

    for name in list(RESUMED)[: 1 if bench.toy else None]:
        yield from bench.attempt(name, partial(compared, name))


@contextmanager
def sync_warnings() -> Iterator[Counter[tuple[str, str]]]:
    """What torch itself says the host waits for, by the innermost line of ours: {(operation, line): times}."""
    found: Counter[tuple[str, str]] = Counter()

    def heard(message: Warning | str, *_: object, **__: object) -> None:
        frames = [frame for frame in traceback.extract_stack() if f"{os.sep}toughen{os.sep}" in frame.filename]
        line = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "elsewhere"
        found["wait", line] += "called a synchronizing" in str(message)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = heard
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")


def waits(bench: Bench) -> Iterator[Row]:
    """For what the host waits in a batch of each method, after the first ones: by rule, so without graphs."""
    counting: Callable[[], Any] = sync_warnings
    if bench.toy and torch.version.cuda is None:
        from pretended import waits_of

        counting = waits_of

    def counted(label: str) -> Row:
        recipe, job, batches = tiny_job(label, bench.device)
        with kernels(recipe, job.ways):
            for number in range(3):
                train_batch(job, batches[number])
            wait(bench.device)
            with counting() as making:
                batch = batches[3]
            with counting() as found:
                train_batch(job, batch)
        # A sum of counters holds what is above zero.
        lines = {f"{line}, {what}": n for (what, line), n in (found + making).most_common()}
        return {"waits": sum(found.values()), "batch": sum(making.values()), "lines": lines, "ok": not lines}

    for label in methods_names(bench.toy):
        yield from bench.attempt(label, partial(counted, label))


def compiled(bench: Bench) -> Iterator[Row]:
    """Compiled graphs train as plain kernels do, in float32."""

    def compared(label: str) -> Row:
        found = []
        for ways in (Acceleration(), Acceleration(compiled=True)):
            started = time.perf_counter()
            recipe, job, batches = tiny_job(label, bench.device, ways)
            with kernels(recipe, ways):
                for number in range(4):
                    train_batch(job, batches[number])
            job.finite.check()
            found.append((job.meters.read()["loss"], time.perf_counter() - started))
        (plain, _), (graphs, took) = found
        return {"plain": plain, "graphs": graphs, "seconds": took, "ok": abs(plain - graphs) < 1e-3 * abs(plain) + 1e-4}

    for label in ("adversarial",) if bench.toy else ("adversarial", "free", "trades"):
        yield from bench.attempt(label, partial(compared, label))


def on_the_cpu(toy: bool) -> dict[str, Any]:
    """What a session compares with: the CPU's answers, by part and name."""
    found: dict[str, Any] = {"torch": torch.__version__}
    found["attacks"] = {f"{a} {norm}": adversarial(a, norm, CPU).flatten().tolist() for a, norm in attack_names(toy)}
    found["methods"] = {label: loss(label, CPU, Acceleration()) for label in methods_names(toy)}
    found["verdicts"] = {" ".join(map(str, given)): verdicts_of(*given, CPU) for given in verdict_names(toy)}
    return found


if __name__ == "__main__":
    die_midway(sys.argv[1], Path(sys.argv[2]))
