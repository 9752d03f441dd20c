"""Record what other libraries' attacks find on the frozen models, in `tests/frozen/references.json`.

Each reference attacks the same images within the same ball with the same budget. What it returns is verified here: in
[0, 1], misclassified by our own forward pass, its distance measured in float64. The file holds, for each model, norm,
attack and library, which images were broken within the radius and, for the attacks that look for the nearest example,
how far away the examples found are (null: none found).

    make setup-bench
    .venv/bench/bin/python tools/record_references.py

References: pyautoattack (the port of AutoAttack), torchattacks, foolbox and adv_lib
(adversarial-library). The last imports torchvision and visdom for parts that are not used here; without them installed
empty modules stand in. About ten minutes on one thread.
"""

# pyright: reportMissingImports=false

import importlib.metadata
import json
import math
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path.insert(0, str(TESTS))

from frozen_models import FROZEN, RADII, load  # noqa: E402  (the tests are no package)
from toughen.evaluation.referee import ROUNDING  # noqa: E402

N = 100
SEED = 0

# The budget of each attack, the same for every library and for ours. Where one library has a setting that another
# fixes, it is set to what the other has.
SETTINGS: dict[str, dict[str, Any]] = {
    "apgd-ce": {"steps": 50},
    "apgd-dlr": {"steps": 50},
    "apgd-t": {"steps": 20, "targets": 9},
    "fab-t": {"steps": 20, "targets": 5},
    "square": {"queries": 1000},
    "deepfool": {"steps": 50, "overshoot": 0.02, "candidates": 10},
    "carlini-wagner": {"steps": 100, "binary_search_steps": 5, "learning_rate": 0.05, "initial_const": 1.0},
}
MINIMAL_NORM = ("fab-t", "deepfool", "carlini-wagner")
LIBRARIES = {"pyautoattack": "pyautoattack", "torchattacks": "torchattacks", "foolbox": "foolbox", "adv_lib": "adv-lib"}

Call = Callable[[nn.Module, Tensor, Tensor, str, float], Tensor]
ORDER = {"linf": math.inf, "l2": 2}
SPELT = {"linf": "Linf", "l2": "L2"}


def stand_in(name: str, **members: object) -> None:
    """An empty module in place of one that is imported but never used."""
    try:
        __import__(name)
    except (ImportError, RuntimeError):
        module = types.ModuleType(name)
        module.__dict__.update(members)
        sys.modules[name] = module


def nearest(model: nn.Module, x: Tensor, y: Tensor, norm: str, toward: Callable[[int], Tensor], targets: int) -> Tensor:
    """The nearest example over the targets, the most probable (rank 2) first.

    The two FABs' own loops over targets stop at the first success within a radius and keep nothing outside it.
    """
    best, distance = x.clone(), torch.full((len(x),), math.inf, dtype=torch.float64)
    for rank in range(2, targets + 2):
        found = toward(rank)
        size = verified(model, x, y, found, norm)
        best[size < distance], distance = found[size < distance], torch.minimum(size, distance)
    return best


def of_pyautoattack(attack: str, budget: dict[str, Any]) -> Call | None:
    """An attack as AutoAttack has it."""
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
    from pyautoattack.fab_pt import FABAttack_PT
    from pyautoattack.square import SquareAttack

    def call(model: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float) -> Tensor:
        common = {"norm": SPELT[norm], "eps": eps, "seed": SEED, "device": "cpu"}
        if attack in ("apgd-ce", "apgd-dlr"):
            return APGDAttack(model, n_iter=budget["steps"], loss=attack[5:], **common).perturb(x, y)
        if attack == "apgd-t":
            targets = budget["targets"]
            found = APGDAttack_targeted(model, n_iter=budget["steps"], n_target_classes=targets, **common)
            return found.perturb(x, y)
        if attack == "fab-t":
            fab = FABAttack_PT(model, n_iter=budget["steps"], **common)

            def toward(rank: int) -> Tensor:
                fab.target_class = rank
                with torch.no_grad():
                    return fab.attack_single_run(x, y, is_targeted=True)

            return nearest(model, x, y, norm, toward, budget["targets"])
        queries = budget["queries"]
        return SquareAttack(model, n_queries=queries, p_init=0.8, resc_schedule=True, **common).perturb(x, y)

    return call if attack in ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square") else None


def of_torchattacks(attack: str, budget: dict[str, Any]) -> Call | None:
    """An attack of torchattacks; its CW has a fixed constant and is no match for a search."""
    import torchattacks

    def call(model: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float) -> Tensor:
        common = {"norm": SPELT[norm], "eps": eps, "seed": SEED}
        if attack in ("apgd-ce", "apgd-dlr"):
            return torchattacks.APGD(model, steps=budget["steps"], loss=attack[5:], **common)(x, y)
        if attack == "apgd-t":
            # It attacks n_classes - 1 targets.
            return torchattacks.APGDT(model, steps=budget["steps"], n_classes=budget["targets"] + 1, **common)(x, y)
        if attack == "fab-t":
            fab = torchattacks.FAB(model, steps=budget["steps"], multi_targeted=True, **common)

            def toward(rank: int) -> Tensor:
                fab.target_class = rank
                with torch.no_grad():
                    return fab.attack_single_run_targeted(x, y)

            return nearest(model, x, y, norm, toward, budget["targets"])
        if attack == "square":
            return torchattacks.Square(model, n_queries=budget["queries"], resc_schedule=True, **common)(x, y)
        return torchattacks.DeepFool(model, steps=budget["steps"], overshoot=budget["overshoot"])(x, y)

    def l2_only(model: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float) -> Tensor:
        if norm != "l2":
            raise NotImplementedError
        return call(model, x, y, norm, eps)

    if attack == "carlini-wagner":
        return None
    return l2_only if attack == "deepfool" else call


def of_foolbox(attack: str, budget: dict[str, Any]) -> Call | None:
    """An attack of foolbox."""
    import foolbox

    if attack not in ("deepfool", "carlini-wagner"):
        return None

    def call(model: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float) -> Tensor:
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        if attack == "deepfool":
            kind = {"linf": foolbox.attacks.LinfDeepFoolAttack, "l2": foolbox.attacks.L2DeepFoolAttack}[norm]
            return kind(**budget).run(wrapped, x, y)
        if norm != "l2":
            raise NotImplementedError
        found = foolbox.attacks.L2CarliniWagnerAttack(
            binary_search_steps=budget["binary_search_steps"],
            steps=budget["steps"],
            stepsize=budget["learning_rate"],
            initial_const=budget["initial_const"],
        ).run(wrapped, x, y)
        # Where it finds nothing it returns a black image, which may happen to be misclassified.
        return torch.where(found.flatten(1).any(1).reshape(-1, 1, 1, 1), found, x)

    return call


def of_adv_lib(attack: str, budget: dict[str, Any]) -> Call | None:
    """An attack of adversarial-library."""
    stand_in("torchvision", models=None)
    stand_in("visdom")
    from adv_lib import attacks

    def call(model: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float) -> Tensor:
        torch.manual_seed(SEED)
        order = ORDER[norm]
        if attack in ("apgd-ce", "apgd-dlr"):
            return attacks.apgd(model, x, y, eps, order, n_iter=budget["steps"], loss_function=attack[5:])
        if attack == "apgd-t":
            targets = budget["targets"]
            return attacks.apgd_targeted(model, x, y, eps, order, n_iter=budget["steps"], num_targets=targets)
        if attack == "fab-t":
            targets = budget["targets"]
            return attacks.fab(model, x, y, order, n_iter=budget["steps"], restarts=targets, targeted_restarts=True)
        if attack == "deepfool":
            return attacks.df(model, x, y, steps=budget["steps"], overshoot=budget["overshoot"], norm=order)
        if norm != "l2":
            raise NotImplementedError
        return attacks.carlini_wagner_l2(
            model,
            x,
            y,
            learning_rate=budget["learning_rate"],
            initial_const=budget["initial_const"],
            binary_search_steps=budget["binary_search_steps"],
            max_iterations=budget["steps"],
        )

    return None if attack == "square" else call


ADAPTERS = {
    "pyautoattack": of_pyautoattack,
    "torchattacks": of_torchattacks,
    "foolbox": of_foolbox,
    "adv_lib": of_adv_lib,
}


def verified(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, norm: str) -> Tensor:
    """The distance of each example found, float64 (N,); infinite where it is no adversarial example in [0, 1]."""
    x_adv = x_adv.detach().float()
    with torch.no_grad():
        wrong = model(x_adv).argmax(1) != y
    inside = ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1)
    distance = torch.linalg.vector_norm((x_adv.double() - x.double()).flatten(1), ord=ORDER[norm], dim=1)
    return torch.where(wrong & inside, distance, math.inf)


def rows() -> Iterator[dict[str, Any]]:
    """What each library finds, one row for each (model, norm, attack, library)."""
    for name, radii in RADII.items():
        for norm in radii:
            model, x, y, threat = load(name, norm, N)
            assert isinstance(threat.eps, float)
            share, amount = ROUNDING[norm]
            for attack, budget in SETTINGS.items():
                for library, adapter in ADAPTERS.items():
                    call = adapter(attack, budget)
                    try:
                        x_adv = call(model, x.clone(), y.clone(), norm, threat.eps) if call else None
                    except NotImplementedError:
                        x_adv = None
                    if x_adv is None:
                        continue
                    distance = verified(model, x, y, x_adv, norm)
                    broken = distance <= threat.eps * (1 + share) + amount
                    row: dict[str, Any] = {"model": name, "norm": norm, "attack": attack, "library": library}
                    row["broken"] = "".join("01"[flag] for flag in broken.tolist())
                    if attack in MINIMAL_NORM:
                        row["distance"] = [None if math.isinf(d) else float(f"{d:.8g}") for d in distance.tolist()]
                    print(name, norm, attack, library, f"broken {int(broken.sum())} of {N}", flush=True)
                    yield row


def record() -> dict[str, Any]:
    """The content of the file."""
    torch.set_num_threads(1)
    versions = {library: importlib.metadata.version(package) for library, package in LIBRARIES.items()}
    return {
        "images": N,
        "seed": SEED,
        "versions": versions | {"torch": importlib.metadata.version("torch")},
        "radii": RADII,
        "settings": SETTINGS,
        "rows": list(rows()),
    }


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else FROZEN / "references.json"
    found = record()
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in found.pop("rows"))
    head = json.dumps(found, indent=1).rstrip().removesuffix("}").rstrip()
    target.write_text(f'{head},\n "rows": [\n{lines}\n]\n}}\n')
    print(f"{target}: {target.stat().st_size} bytes")
