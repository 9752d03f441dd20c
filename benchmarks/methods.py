"""Every training method on digits and on a CIFAR-10 subset: accuracy, what the audit says, and what training cost.

    python benchmarks/methods.py digits WORK                         # 5,000 digits that ship with toughen
    python benchmarks/methods.py cifar WORK --data FOLDER            # 5,000 photographs of CIFAR-10
    python benchmarks/methods.py digits WORK --only trades mart      # some rows; several processes may share WORK
    python benchmarks/methods.py report WORK                         # results/methods.md from what is there

All rows see the same minibatches equally often, but for Free on photographs, which takes as many optimiser steps as
natural training (the paper's comparison). Robust accuracy is that of `autoattack` on photographs and of `adaptive` on
digits, on test images that no training saw. Two quick looks stand beside it, PGD-20 on the cross-entropy and the PGD-40
on the margin of Limits, Table 2; the difference is what each would have been wrong by. A killed run goes on.
"""

import argparse
import datetime
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from toughen.recipes.text import build
from toughen.storage.files import Locked
from toughen.training import train
from toughen.workflows import EvaluationSettings, evaluate

RESULTS = Path(__file__).parent / "results"
QUICK = ("pgd-20", "pgd-40-margin")


@dataclass(frozen=True)
class Setting:
    """A data set and what all its rows share.

    Attributes:
        data: of the recipes.
        eps: radius of the ball, as text.
        step: the attack's step size, as text.
        radius: the ball's as a number.
        batches: of every run.
        free_steps: optimiser steps of Free.
        images: test images.
        suite: of robust accuracy.
    """

    data: dict[str, Any]
    eps: str
    step: str
    radius: float
    batches: int
    free_steps: int
    images: int
    suite: str


SETTINGS = {
    "digits": Setting({"source": "mnist5k"}, "0.2", "0.05", 0.2, 200, 1600, 1000, "adaptive"),
    "cifar": Setting({"limit": 5000, "pad": 4, "flip": True}, "8/255", "2/255", 8 / 255, 800, 800, 500, "autoattack"),
}


def pgd(steps: int, step_size: str, **settings: object) -> dict[str, object]:
    """The attack of training."""
    return {"name": "pgd", "steps": steps, "step_size": step_size, **settings}


def rows(setting: Setting) -> dict[str, dict[str, Any]]:
    """Name -> changes to the common recipe."""
    step, batches = setting.step, setting.batches
    attack = pgd(7, step)
    one_step = {"name": "rs_fgsm"}
    trades = {"name": "trades", "attack": attack}
    adaptive = {"name": "instance_adaptive", "attack": attack, "warmup": batches // 8, "gamma": 0.24 * setting.radius}
    bilateral = {"name": "bilateral"}
    return {
        "natural": {"method": "natural"},
        "free": {"method": {"name": "free", "replays": 8}, "steps": setting.free_steps},
        "rs-fgsm": {"method": {"name": "adversarial", "attack": one_step}},
        "n-fgsm": {"method": {"name": "adversarial", "attack": "fgsm", "noise_scale": 2}},
        "gradalign": {"method": {"name": "adversarial", "attack": one_step, "alignment": 0.2}},
        "pgd-7": {"method": {"name": "adversarial", "attack": attack}},
        "pgd-7 kl": {"method": {"name": "adversarial", "attack": pgd(7, step, loss="kl")}},
        "pgd-7 margin": {"method": {"name": "adversarial", "attack": pgd(7, step, loss="margin")}},
        "pgd-7 radius 1.1": {"method": {"name": "adversarial", "attack": attack, "radius_scale": 1.1}},
        "trades kl": {"method": trades},
        "trades cross_entropy": {"method": {**trades, "inner": "cross_entropy"}},
        "trades + weight perturbation": {"method": trades, "weight_perturbation": {"gamma": 0.005}},
        "mart": {"method": {"name": "mart", "attack": attack}},
        "instance_adaptive": {"method": adaptive},
        "instance_adaptive reuse": {"method": {**adaptive, "selection": "reuse"}},
        "bilateral": {"method": bilateral},
        "bilateral, image only": {"method": {**bilateral, "labels": "none"}},
        "mixup of pgd-7": {
            "method": {"name": "mixup", "alpha": 1.4, "method": {"name": "adversarial", "attack": attack}}
        },
        "interpolated": {"method": {"name": "interpolated", "attack": attack}},
        "label smoothing of pgd-7": {
            "method": {"name": "label_smoothing", "method": {"name": "adversarial", "attack": attack}}
        },
    }


def common(setting: Setting, source: str | None) -> dict[str, Any]:
    """What all rows share."""
    return {
        "data": {**setting.data, **({"source": source} if source else {})},
        "model": {"name": "small_cnn", "norm": "batch", "width": 16},
        "normalize": "data",
        "threat": f"linf:{setting.eps}",
        "batch_size": 128,
        "steps": setting.batches,
        "optimizer": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
        "schedule": {"name": "one_cycle", "peak": 0.3},
        "selection": {"suite": "pgd-20", "every": 10**9},
        "save_every": 200,
    }


def run(kind: str, work: Path, source: str | None, only: list[str]) -> None:
    """Train and evaluate the rows that are not done."""
    setting = SETTINGS[kind]
    shared, chosen = common(setting, source), rows(setting)
    for name in only or chosen:
        folder = work / kind / name.replace(" ", "_").replace(",", "")
        if (folder / "row.json").exists():
            continue
        try:
            summary = train(build({**shared, **chosen[name]}), folder)
            suites = (*QUICK, setting.suite)
            results = {
                suite: evaluate(folder, EvaluationSettings(suite, limit=setting.images))[0].summary()
                for suite in suites
            }
        except Locked:
            continue
        (folder / "row.json").write_text(json.dumps({"name": name, "summary": summary, "results": results}))
        print(line(name, summary, results), flush=True)


def line(name: str, summary: dict[str, Any], results: dict[str, Any]) -> str:
    """A row of the table."""
    *quick, full = results.values()
    low, high = full["robust_interval"]
    audit = full["audit"]
    codes = ", ".join(dict.fromkeys(found["code"] for found in audit["findings"])) or "nothing found"
    steps = summary["natural_steps"]
    looks = " | ".join(f"{100 * look['robust_accuracy']:.1f}" for look in quick)
    gaps = " | ".join(f"{100 * (look['robust_accuracy'] - full['robust_accuracy']):.1f}" for look in quick)
    return (
        f"| {name} | {100 * full['clean_accuracy']:.1f} | {looks} | "
        f"{100 * full['robust_accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}] | {gaps} | {codes} | "
        f"{steps:.0f} / {summary['predicted_natural_steps']:.0f} | {summary['seconds'] / 60:.1f} |"
    )


def report(work: Path) -> None:
    """The tables as they stand."""
    text = [
        "# Every training method, side by side",
        "",
        f"`python benchmarks/methods.py digits|cifar|report`, {datetime.date.today()}, {platform.machine()}, one",
        f"thread each on two shared cores, torch {torch.__version__}, fp32, seed 0.",
        "small_cnn of width 16 with BatchNorm, last weights, 128 images a batch. Accuracies in %, with 95 % Wilson",
        "intervals; gap = the quick look minus robust; cost = natural steps measured / predicted; minutes are of a",
        "shared, noisy machine and are no benchmark.",
    ]
    for kind, setting in SETTINGS.items():
        done = {path.parent.name: json.loads(path.read_text()) for path in (work / kind).glob("*/row.json")}
        by_name = {row["name"]: row for row in done.values()}
        text += [
            "",
            f"## {kind}: eps {setting.eps}, {setting.batches} minibatches (Free: {setting.free_steps} steps), "
            f"{setting.images} test images",
            "",
            f"| method | clean | PGD-20 | PGD-40 margin | robust ({setting.suite}) | gap | margin gap | audit | cost | "
            "minutes |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: |",
            *(line(**by_name[name]) for name in rows(setting) if name in by_name),
        ]
    (RESULTS / "methods.md").write_text("\n".join(text) + "\n", encoding="utf-8")


def main() -> None:
    """Run rows, or write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*SETTINGS, "report"])
    parser.add_argument("work", type=Path)
    parser.add_argument("--data", help="a folder or name of CIFAR-10")
    parser.add_argument("--only", nargs="+", default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "report":
        report(arguments.work)
    else:
        run(arguments.what, arguments.work, arguments.data, arguments.only)


if __name__ == "__main__":
    main()
