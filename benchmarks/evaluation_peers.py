"""One and the same attack by four libraries: PGD on a real CIFAR-10 ResNet-18, its verdicts, passes and time.

    python benchmarks/evaluation_peers.py --data path/to/cifar10          # with .venv/bench/bin/python; five minutes

The network is the standard-trained one inside pyautoattack, the radius 1/255, at which some examples stand. Ours,
torchattacks, foolbox and ART get the same images, in turn on one thread: 20 steps of a tenth of the radius, from a
random start. `evaluation.py` holds whole suites against pyautoattack's and torchattacks'; foolbox has none, and ART's
holds four attacks of which each is another's. Writes `results/evaluation_peers.md`.
"""

import argparse
import datetime
import importlib
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from toughen.attacks import AttackSpec
from toughen.evaluation import evaluate
from toughen.models.batched import predict
from toughen.models.cost import Passes, counted
from toughen.modes import evaluating
from toughen.threat import Linf

EPS, STEPS = 1 / 255, 20
STEP = EPS / 10
Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]


def torchattacks(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Attacked images, by torchattacks."""
    attack = importlib.import_module("torchattacks").PGD(model, eps=EPS, alpha=STEP, steps=STEPS)
    return attack(x, y)


def foolbox(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Attacked images, by foolbox."""
    library = importlib.import_module("foolbox")
    attack = library.attacks.LinfPGD(abs_stepsize=STEP, steps=STEPS, random_start=True)
    _, clipped, _ = attack(library.PyTorchModel(model, bounds=(0, 1)), x, y, epsilons=EPS)
    return clipped


def art(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Attacked images, by ART."""
    classifiers = importlib.import_module("art.estimators.classification")
    attacks = importlib.import_module("art.attacks.evasion")
    classifier = classifiers.PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(x.shape[1:]),
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    attack = attacks.ProjectedGradientDescent(
        classifier, eps=EPS, eps_step=STEP, max_iter=STEPS, num_random_init=1, batch_size=len(x), verbose=False
    )
    return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))


LIBRARIES: dict[str, Attack] = {"torchattacks": torchattacks, "foolbox": foolbox, "ART": art}


def ours(model: nn.Module, x: Tensor, y: Tensor, *, audit: bool) -> tuple[int, int, int, float]:
    """Examples that stand, passes of examples forward and backward, seconds."""
    started = time.process_time()
    attack = AttackSpec.model_validate({"name": "pgd", "steps": STEPS, "step_size": STEP})
    found = evaluate(model, x, y, threat=Linf(EPS), suite={"pgd": attack}, audit=audit)
    table = found.outcomes
    broken = set(table.index[~table.survived].tolist())
    return len(x) - len(broken), found.forwards, found.backwards, time.process_time() - started


def theirs(attack: Attack, model: nn.Module, x: Tensor, y: Tensor) -> tuple[int, int, int, float]:
    """The same of another library; whoever gets images from it has to look whether they are inside, and fool."""
    started, passes = time.process_time(), Passes()
    with counted(model, passes):
        x_adv = attack(model, x, y)
        with evaluating(model):
            inside = (x_adv - x).flatten(1).abs().amax(1) <= EPS + 6e-8
            clean = predict(model, x).argmax(1) == y
            stands = clean & ~((predict(model, x_adv).argmax(1) != y) & inside)
    seconds = time.process_time() - started
    return int(stands.sum()), passes.example_forwards, passes.example_backwards, seconds


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of CIFAR-10")
    parser.add_argument("--n", type=int, default=128)
    given = parser.parse_args()
    torch.set_num_threads(1)
    # By name: for type checkers `evaluation` is a folder of tests.
    model, x, y, _ = importlib.import_module("evaluation").resnet18(given.n, given.data)
    load = os.getloadavg()[0]
    found = {"ours": ours(model, x, y, audit=False), "ours, audited": ours(model, x, y, audit=True)}
    found |= {name: theirs(attack, model, x, y) for name, attack in LIBRARIES.items()}
    own = found["ours"]
    lines = [
        "# One attack by four libraries",
        "",
        f"`python benchmarks/evaluation_peers.py --n {given.n}`, {datetime.date.today()}, {platform.machine()},",
        f"one thread of {os.cpu_count()} shared cores (load {load:.1f} at first, {os.getloadavg()[0]:.1f} at the end),",
        f"torch {torch.__version__}.",
        f"PGD of {STEPS} steps at 1/255 on the CIFAR-10 ResNet-18 inside pyautoattack, {given.n} test images. Passes",
        "are example passes divided by n (those of the audit left out), seconds the thread's. Ours attacks nothing",
        "that the network gets wrong by itself, and does not need to be asked what stands. All random starts differ,",
        "so verdicts may, by an example or two.",
        "",
        "| by | stand | forwards | backwards | seconds | ours is faster by |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, (stand, forwards, backwards, seconds) in found.items():
        lines.append(
            f"| {name} | {stand} | {forwards / given.n:.1f} | {backwards / given.n:.1f} | {seconds:.0f} | "
            f"{f'{seconds / own[3]:.2f}' if name in LIBRARIES else '-'} |"
        )
    print("\n".join(lines))
    path = Path(__file__).parent / "results" / "evaluation_peers.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
