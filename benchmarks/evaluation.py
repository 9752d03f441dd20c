"""What an evaluation costs and finds: our AutoAttack and `adaptive` against pyautoattack and torchattacks.

    make setup-bench                                         # once; then with .venv/bench/bin/python:
    python benchmarks/evaluation.py robust ours pyautoattack
    python benchmarks/evaluation.py free=runs/free adaptive ours --eps 8/255
    python benchmarks/evaluation.py resnet18 ours adaptive pyautoattack --device cuda
    python benchmarks/evaluation.py report

Tools are timed side by side, one process and one thread each, started together, so that whatever else the machine does
meets all; on a GPU one after the other, each alone with it, by the clock on the wall. Verdicts, passes and times go to
`benchmarks/results/` as JSON; `report` makes a table of them.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toughen.evaluation import evaluate
from toughen.models.batched import predict
from toughen.models.cost import Passes, counted
from toughen.modes import evaluating, frozen
from toughen.threat import Linf, Threat

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "evaluation"
Subject = tuple[nn.Module, Tensor, Tensor, Threat]


def frozen_model(name: str, n: int) -> Subject:
    """One of the three classifiers of digits that the tests share, on test images; the robust one at its own radius."""
    sys.path.insert(0, str(ROOT / "tests"))
    import frozen_models
    from toughen.data import load
    from toughen.threat import parse

    test = load("mnist5k").test
    ball = Linf(0.2) if name == "robust" else parse(frozen_models.RADII[name]["linf"])
    return frozen_models.trained(name), test.float_images()[:n], test.labels[:n], ball


def resnet18(n: int, data: str) -> Subject:
    """The standard-trained CIFAR-10 ResNet-18 that ships inside pyautoattack, on the first test images."""
    import pyautoattack  # pyright: ignore[reportMissingImports]
    from pyautoattack.examples.resnet import ResNet18  # pyright: ignore[reportMissingImports]

    from toughen.data import load

    folder = Path(str(pyautoattack.__file__)).parent / "examples"
    model = ResNet18()
    state = torch.load(folder / "model_test.pt", map_location="cpu", weights_only=True)
    model.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    test = load(data).test
    return model.eval(), test.float_images()[:n], test.labels[:n], Linf(8 / 255)


def run_folder(folder: str, n: int, eps: str, split: str) -> Subject:
    """A run, on the first images of one of its splits."""
    from toughen.settings import parse_number
    from toughen.workflows.run_folder import open_run

    run = open_run(Path(folder))
    images = getattr(run.data, split)
    return run.model, images.float_images()[:n], images.labels[:n], Linf(parse_number(eps))


def subject(arguments: argparse.Namespace) -> Subject:
    """The model that the command line names."""
    name = arguments.model
    if name == "resnet18":
        return resnet18(arguments.n, arguments.data)
    if "=" in name:
        return run_folder(name.partition("=")[2], arguments.n, arguments.eps, arguments.split)
    return frozen_model(name, arguments.n)


def pyautoattack_standard(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """AutoAttack, standard, by the packaged port."""
    from pyautoattack import AutoAttack  # pyright: ignore[reportMissingImports]

    attack = AutoAttack(model, norm="Linf", eps=eps, device=str(x.device), seed=0)
    found = attack.run_standard_evaluation(x, y, batch_size=250)
    return found[0] if isinstance(found, tuple) else found


def torchattacks_standard(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """AutoAttack, standard, by torchattacks."""
    import torchattacks  # pyright: ignore[reportMissingImports]

    attack = torchattacks.AutoAttack(model, norm="Linf", eps=eps, n_classes=10, seed=0)
    return torch.cat([attack(x[part], y[part]) for part in torch.arange(len(x)).split(250)])


REFERENCES: dict[str, Callable[[nn.Module, Tensor, Tensor, float], Tensor]] = {
    "pyautoattack": pyautoattack_standard,
    "torchattacks": torchattacks_standard,
}
OURS = {"ours": "autoattack", "adaptive": "adaptive", "quick": "quick"}


def measure(tool: str, model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> dict[str, Any]:
    """Verdict of every example, passes and seconds of one tool: of processor time, on a GPU of all time."""
    assert isinstance(threat.eps, float)
    cuda = x.device.type == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    if cuda:
        # The first pass of a process fetches the GPU's libraries.
        predict(model, x[:1])
        torch.cuda.synchronize()
    started, passes, curve = clock(), Passes(), []
    if tool in OURS:
        found = evaluate(model, x, y, threat=threat, suite=OURS[tool], batch_size=250)
        seconds, table = clock() - started, found.outcomes
        broken = set(table.index[~table.survived].tolist())
        robust = [i not in broken for i in range(len(x))]
        marginal = sorted(set(table.index[table.marginal].tolist()))
        forwards, backwards = found.forwards, found.backwards
        for row in found.summary()["attacks"]:
            curve.append([row["attack"], row["forwards"], row["backwards"], row["accuracy"]])
    else:
        with evaluating(model), frozen(model), counted(model, passes):
            x_adv = REFERENCES[tool](model, x, y, threat.eps)
            if cuda:
                torch.cuda.synchronize()
        seconds = clock() - started
        with evaluating(model):
            logits = predict(model, x_adv)
            clean = predict(model, x).argmax(1) == y
        inside = (x_adv - x).flatten(1).abs().amax(1) <= threat.eps + 6e-8
        robust = (clean & ~((logits.argmax(1) != y) & inside)).tolist()
        top = logits.topk(2, dim=1).values
        marginal = (top[:, 0] - top[:, 1] < 1e-5).nonzero().squeeze(1).tolist()
        forwards, backwards = passes.example_forwards, passes.example_backwards
    with evaluating(model):
        correct = int((predict(model, x).argmax(1) == y).sum())
    return {
        "tool": tool,
        "n": len(x),
        "clean": correct,
        "robust": robust,
        "marginal": marginal,
        "forwards": forwards,
        "backwards": backwards,
        "seconds": seconds,
        "curve": curve,
        "threat": str(threat),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "machine": machine(cuda=cuda),
    }


def machine(*, cuda: bool) -> str:
    """What a tool had to itself."""
    return torch.cuda.get_device_name() if cuda else f"{platform.machine()}, {os.cpu_count()} cores, one thread a tool"


def worker(arguments: argparse.Namespace) -> None:
    """One tool on one model, in a process of its own."""
    torch.set_num_threads(1)
    model, x, y, threat = subject(arguments)
    device = arguments.device
    result = measure(arguments.tools[0], model.to(device), x.to(device), y.to(device), threat)
    RESULTS.mkdir(parents=True, exist_ok=True)
    results_of(arguments)[0].write_text(json.dumps(result | {"model": name_of(arguments)}) + "\n")


def name_of(arguments: argparse.Namespace) -> str:
    """What the model is called in the results, where figures of a GPU stand apart."""
    return arguments.model.partition("=")[0] + ("" if arguments.device == "cpu" else f"-{arguments.device}")


def results_of(arguments: argparse.Namespace) -> list[Path]:
    """The file of each tool."""
    return [RESULTS / f"{name_of(arguments)}-{tool}.json" for tool in arguments.tools]


def side_by_side(arguments: argparse.Namespace) -> None:
    """All tools at once, one process and one thread each; on a GPU one by one."""
    shared = ["--n", str(arguments.n), "--data", arguments.data, "--eps", arguments.eps, "--split", arguments.split]
    shared += ["--device", arguments.device]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = []
    for tool in arguments.tools:
        command = [sys.executable, __file__, "--worker", arguments.model, tool, *shared]
        running.append(subprocess.Popen(command, env=environment))
        if arguments.device != "cpu":
            running[-1].wait()
    failed = [process.args for process in running if process.wait() != 0]
    if failed:
        raise SystemExit(f"failed: {failed}")
    for path in results_of(arguments):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"beside": arguments.tools}) + "\n")


Results = dict[str, dict[str, dict[str, Any]]]


def measured() -> Results:
    """Every result by model and tool."""
    found: Results = {}
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text())
        found.setdefault(result["model"], {})[result["tool"]] = result
    return found


def costs(found: Results) -> list[str]:
    """A table: every tool on every model, with its time and its verdicts beside pyautoattack's."""
    lines = [
        "| model | n | tool | clean | robust | forwards | backwards | seconds | of pyautoattack's | other verdict |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for model, tools in found.items():
        reference = tools.get("pyautoattack")
        for tool, result in tools.items():
            n, robust = result["n"], np.array(result["robust"])
            ratio = other = "-"
            if reference is not None and tool != "pyautoattack":
                # Of one run alone: what else the machine does is in no two runs the same.
                if tool in reference.get("beside", []) and result["beside"] == reference["beside"]:
                    ratio = f"{result['seconds'] / reference['seconds']:.2f}"
                apart = robust != np.array(reference["robust"])
                apart[sorted({*result["marginal"], *reference["marginal"]})] = False
                other = f"{int(apart.sum())}"
            lines.append(
                f"| {model}, {result['threat']} | {n} | {tool} | {100 * result['clean'] / n:.1f} | "
                f"{100 * robust.mean():.1f} | {result['forwards'] / n:.0f} | {result['backwards'] / n:.0f} | "
                f"{result['seconds']:.0f} | {ratio} | {other} |"
            )
    return lines


def adaptive_against_autoattack(found: Results) -> list[str]:
    """A table: what `adaptive` leaves and takes, against our AutoAttack, on each model and pooled."""
    lines = [
        "| model | n | AutoAttack | adaptive | points above | forwards fewer by | backwards fewer by |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    total = np.zeros(4)
    for model, tools in found.items():
        if not {"ours", "adaptive"} <= tools.keys():
            continue
        full, ours = tools["ours"], tools["adaptive"]
        n = full["n"]
        left = [100 * sum(result["robust"]) / n for result in (full, ours)]
        passes = np.array([full["forwards"], ours["forwards"], full["backwards"], ours["backwards"]])
        total += passes
        lines.append(
            f"| {model}, {full['threat']} | {n} | {left[0]:.2f} | {left[1]:.2f} | {left[1] - left[0]:+.2f} | "
            f"{passes[0] / passes[1]:.1f} | {passes[2] / passes[3]:.2f} |"
        )
    if total.all():
        lines.append(f"| pooled | | | | | {total[0] / total[1]:.1f} | {total[2] / total[3]:.2f} |")
    return lines


def curves(found: Results) -> list[str]:
    """For each model, accuracy left after so many passes an example, by either suite."""
    lines = [
        "| model | suite | accuracy left (%) after so many forwards + backwards an example |",
        "| --- | --- | --- |",
    ]
    for model, tools in found.items():
        for tool in OURS:
            taken, points = 0, []
            for _, forwards, backwards, accuracy in tools.get(tool, {}).get("curve", []):
                taken += forwards + backwards
                points.append(f"{100 * accuracy:.1f} ({taken / tools[tool]['n']:.0f})")
            if points:
                lines.append(f"| {model} | {OURS[tool]} | {', '.join(points)} |")
    return lines


def report() -> str:
    """The tables of all that was measured."""
    found = measured()
    return "\n".join([*costs(found), "", *adaptive_against_autoattack(found), "", *curves(found), ""])


def main() -> None:
    """Measure, or report what has been measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="linear, standard, robust, resnet18, or NAME=RUN_FOLDER; or report")
    parser.add_argument("tools", nargs="*", help=f"of {', '.join([*OURS, *REFERENCES])}")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--data", default="cifar10", help="data of resnet18")
    parser.add_argument("--eps", default="8/255", help="radius for a run folder")
    parser.add_argument("--split", default="test", choices=["train", "test"], help="of a run folder's data")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--worker", action="store_true")
    arguments = parser.parse_args()
    if arguments.model == "report":
        print(report(), end="")
    elif arguments.worker:
        worker(arguments)
    else:
        side_by_side(arguments)


if __name__ == "__main__":
    main()
