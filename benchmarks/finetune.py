"""Fine-tuning as somebody with a folder of 400 photographs does it: every command, and what came out.

    python benchmarks/finetune.py --data path/to/cifar10 --work runs/finetune-trial

Needs timm beside toughen. Weights cannot be had where there is no network, so that they are made first: timm's
ResNet-18 on five classes of CIFAR-10, three epochs. Then the commands of `toughen`, one after the other, on a folder of
400 images of three other classes, scaled up to 64 pixels, JPEG and PNG in turn. The outputs lie in the folder `--work`,
which must be new; `benchmarks/results/finetune.md` holds what they said, but for the lines of progress.
"""

import argparse
import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from toughen.data import load
from toughen.workflows.run_folder import open_run

RESULT = Path(__file__).resolve().parent / "results" / "finetune.md"
BEFORE = ("airplane", "automobile", "bird", "cat", "deer")
NOW = {"frog": 134, "horse": 133, "ship": 133}
SIDE = 64

PRETRAIN = """
name: pretrain
data: {source: before.npz, size: 64, crop_area: 0.5, flip: true, validation: 100, workers: 0}
model: timm:resnet18
normalize: {mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}
method: natural
threat: linf:4/255
batch_size: 64
steps: 230
optimizer: {lr: 0.05, weight_decay: 5e-4}
schedule: {name: one_cycle, peak: 0.3}
selection: {suite: pgd-2, every: 115}
"""

SHORT = ("data=photographs", "data.size=64", "data.workers=0", "batch_size=32", "steps=320", "selection.every=160")
WEIGHTS = ("model=timm:resnet18", "model.weights=resnet18-five.pt")

COMMANDS: dict[str, tuple[str, ...]] = {
    "train": ("train", "finetune", *SHORT, *WEIGHTS),
    "check": ("check", "runs/finetune"),
    "evaluate": ("evaluate", "runs/finetune"),
    "export": ("export", "runs/finetune", "--out", "exports/photographs"),
    "evaluate-export": ("evaluate", "exports/photographs", "--data", "photographs"),
    "check-export": ("check", "exports/photographs", "--data", "photographs"),
    "head-alone": ("train", "finetune", *SHORT, *WEIGHTS, "model.freeze=true", "--out", "runs/head"),
    "evaluate-head": ("evaluate", "runs/head"),
    "scratch": ("train", "finetune", *SHORT, "model=timm:resnet18", "--out", "runs/scratch"),
    "evaluate-scratch": ("evaluate", "runs/scratch"),
    "pretrained-offline": (
        *("train", "finetune", *SHORT, "model=timm:resnet18", "model.pretrained=true", "model.weights=null"),
        *("normalize=pretrained", "--out", "runs/none"),
    ),
    "small-batch": ("train", "finetune", *SHORT, *WEIGHTS, "batch_size=512", "--out", "runs/none"),
    "no-weights": ("train", "finetune", "data=photographs", "--out", "runs/none"),
    "no-folder": ("train", "finetune", "data=photos", "--out", "runs/none"),
}


def toughen(work: Path, name: str, arguments: tuple[str, ...]) -> None:
    """One command, its output and exit code into NAME.txt."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    command = [sys.executable, "-m", "toughen", *arguments]
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    text = f"$ toughen {' '.join(arguments)}\n{done.stdout}{done.stderr}[exit {done.returncode}, {seconds:.0f} s]\n"
    (work / f"{name}.txt").write_text(text)
    print(text, flush=True)


def prepare(data: str, work: Path) -> None:
    """The images of five classes as an .npz file, and the folder of three others."""
    cifar = load(data)
    old = torch.tensor([cifar.classes.index(name) for name in BEFORE])
    arrays = {}
    for part, split, n in (("train", cifar.train, 5000), ("test", cifar.test, 500)):
        chosen = torch.isin(split.labels, old).nonzero().flatten()[:n]
        arrays[f"{part}_images"] = split.images[chosen].permute(0, 2, 3, 1).numpy()
        arrays[f"{part}_labels"] = torch.searchsorted(old, split.labels[chosen]).numpy()
    np.savez(work / "before.npz", **arrays)
    for name, n in NOW.items():
        folder = work / "photographs" / name
        folder.mkdir(parents=True)
        rows = (cifar.train.labels == cifar.classes.index(name)).nonzero().flatten()[:n]
        for number, image in enumerate(cifar.train.images[rows]):
            large = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            large.save(folder / f"{number:03}.{'png' if number % 2 else 'jpg'}")


def page(work: Path) -> str:
    """What the commands said, in their order."""
    lines = [
        "# Fine-tuning on a folder of 400 photographs",
        "",
        f"`python benchmarks/finetune.py --data CIFAR10 --work WORK`, {datetime.date.today()}, "
        f"{platform.processor() or platform.machine()},",
        f"one thread of a shared machine, torch {torch.__version__}, timm {importlib.metadata.version('timm')}. The",
        "weights were trained on five other classes for three epochs; 81 of the images are the test set.",
    ]
    for name in ("pretrain", *COMMANDS):
        said = (work / f"{name}.txt").read_text().replace(str(work), "WORK").splitlines()
        kept = [line.rstrip() for line in said if not (line.startswith("step ") and "validation" not in line)]
        lines += ["", f"## {name}", "", "```", *kept, "```"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Prepare, train the weights, and run every command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", type=Path, required=True)
    given = parser.parse_args()
    given.work.mkdir(parents=True)
    prepare(given.data, given.work)
    (given.work / "pretrain.yaml").write_text(PRETRAIN)
    toughen(given.work, "pretrain", ("train", "pretrain.yaml", "--out", "runs/pretrain"))
    os.chdir(given.work)
    torch.save(open_run(Path("runs/pretrain")).model.net.state_dict(), "resnet18-five.pt")
    for name, arguments in COMMANDS.items():
        toughen(Path(), name, arguments)
    RESULT.write_text(page(given.work.resolve()), encoding="utf-8")


if __name__ == "__main__":
    main()
