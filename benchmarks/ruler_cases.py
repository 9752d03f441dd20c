"""What `ruler.py` measures, as data: recipes, attacks, suites and a study, and how they are written into a folder."""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FROZEN = ROOT / "tests" / "frozen"
sys.path.append(str(ROOT / "tests"))

from method_cases import CASES  # noqa: E402  # plain settings, which import nothing of any tree

LISTS = ("recipes", "methods", "attacks", "models", "data", "suites")
SCALES = ("small", "paper")

TRAINED = {
    "data": {"source": "mnist5k", "limit": 120, "validation": 20},
    "model": {"name": "small_cnn", "width": 2, "norm": "batch"},
    "method": "natural",
    "threat": "linf:0.1",
    "batch_size": 32,
    "steps": 12,
    "optimizer": {"lr": 0.05, "nesterov": True, "weight_decay": 5e-4},
    "schedule": "cosine",
    "averages": [0.9],
    "selection": {"suite": "pgd-1", "every": 6},
    "overfitting_every": 6,
    "log_every": 3,
    "save_every": 6,
}
PGD = {"name": "adversarial", "attack": {"name": "pgd", "steps": 2}}
FORMS: dict[str, dict[str, Any]] = {
    **{name: {"method": case.settings, **case.recipe} for name, case in CASES.items()},
    "l2": {"threat": "l2:1.5", "method": PGD},
    "micro-batch": {"micro_batch": 12, "method": {"name": "mart", "attack": {"name": "pgd", "steps": 2}}},
    "activation-checkpointing": {"activation_checkpointing": True, "model": "wrn-10-1", "steps": 4},
    "augmented": {"data": {**TRAINED["data"], "pad": 2, "flip": True, "repeats": 2}},
    "per-class": {"data": {"source": "mnist5k", "per_class": 6, "validation": 20}},
    "sized": {"data": {**TRAINED["data"], "size": 16, "workers": 0}},
    "normalised": {"normalize": "data", "schedule": "one_cycle", "averages": [0.5, 0.99], "averages_warm_start": True},
    "per-image": {"normalize": "per_image", "optimizer": {"lr": 0.1, "decay_on": "weights", "warmup": 0.3}},
    "frozen-trunk": {
        "model": {**TRAINED["model"], "weights": "weights.safetensors", "freeze": True},
        "optimizer": {"lr": 0.1, "lr_batch_size": 256},
    },
    "bf16": {"precision": "bf16"},
}
"""Changes of `TRAINED` by name: every form of every method, then other settings."""

SHORT: dict[str, dict[str, Any]] = {
    "multi_targeted": {"steps": 5, "restarts": 4},
    "apgd": {"steps": 8, "restarts": 2},
    "apgd_targeted": {"steps": 5, "targets": 3},
    "fab": {"steps": 4, "restarts": 2},
    "deepfool": {"steps": 10},
    "carlini_wagner": {"steps": 12, "learning_rate": 0.1, "initial_const": 10, "binary_search_steps": 2},
    "carlini_wagner_linf": {"steps": 5},
    "square": {"queries": 60},
    "spsa": {"steps": 4, "samples": 8},
}
"""Settings of attacks whose own are those of an evaluation; all others run with their defaults."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "pgd, restarts": ("pgd", {"steps": 3, "restarts": 3}),
    "pgd, highest loss": ("pgd", {"steps": 3, "restarts": 2, "keep": "highest_loss", "loss": "margin-50"}),
    "pgd, kl": ("pgd", {"loss": "kl"}),
    "pgd, dlr": ("pgd", {"steps": 3, "loss": "dlr"}),
    "pgd, batch": ("pgd", {"steps": 3, "attack_bn": "batch"}),
    "rs_fgsm, gaussian": ("rs_fgsm", {"random_start": "gaussian"}),
    "adam_pgd, restarts": ("adam_pgd", {"steps": 4, "restarts": 3, "loss": "margin", "drops": (0.5, 0.75)}),
    "targeted_pgd, most confusing": ("targeted_pgd", {"steps": 3, "target": "most_confusing", "loss": "margin"}),
    "multi_targeted, all": ("multi_targeted", {"steps": 3, "restarts": 2, "targets": "all"}),
    "apgd, dlr": ("apgd", {"steps": 8, "loss": "dlr"}),
    "fab, targeted": ("fab", {"steps": 4, "targets": 3}),
    "fab, inside": ("fab", {"steps": 4, "stop_inside": True}),
    "deepfool, inside": ("deepfool", {"steps": 10, "stop_inside": True}),
}

RADII = {
    "linear": {"linf": "0.08", "l2": "1.2"},
    "standard": {"linf": "0.05", "l2": "0.7"},
    "robust": {"linf": "0.23", "l2": "2.6"},
}
"""Of the frozen models, such that some examples are broken."""

LINEAR = """
import torch
from safetensors.torch import load_file

def linear():
    layer, found = torch.nn.Linear(784, 10), load_file("linear.safetensors")
    layer.load_state_dict({name.removeprefix("net."): value for name, value in found.items()})
    return torch.nn.Sequential(torch.nn.Flatten(), layer)
"""

SHORT_SUITES = ("pgd-20", "pgd-10-r2", "pgd-20-margin", "cw-10", "cw-10-r2", "random-target-10", "quick")
LONG_SUITES = ("autoattack", "autoattack-plus", "aa+mt", "iaat", "iaat-imagenet", "bilateral", "adaptive")
"""In full for the linear model, whose passes cost least; for the networks those of `NETWORK_SUITES`."""

NETWORK_SUITES = (*SHORT_SUITES, "autoattack", "adaptive")
OPTIONS: dict[str, list[str]] = {
    "independent": ["--independent", "--keep", "float32"],
    "seed 1, uint8": ["--seed", "1", "--keep", "uint8", "--batch-size", "3"],
    "step size": ["--step-size", "2/255"],
}

STUDY = {
    "title": "Tiny",
    "base": "natural.yaml",
    "columns": {"clean": {"what": "clean"}, "pgd-2": "pgd-2"},
    "rows": {"natural": {"label": "Natural"}, "free": {"recipe": "free.yaml"}},
    "scales": {"toy": {"twins": False, "set": {"seed": 0}, "limit": 12, "suite": None}},
}


def write_recipe(path: Path, **changes: Any) -> Path:
    """A recipe as a file; JSON is YAML."""
    path.write_text(json.dumps({**TRAINED, "name": path.stem, **changes}), encoding="utf-8")
    return path


def write_study(folder: Path) -> Path:
    """A study of two rows; its file."""
    for name, method in (("natural", "natural"), ("free", {"name": "free", "replays": 3})):
        write_recipe(folder / f"{name}.yaml", method=method, steps=48)
    path = folder / "tiny.yaml"
    path.write_text(json.dumps(STUDY), encoding="utf-8")
    return path


def write_frozen(folder: Path, name: str) -> str:
    """A frozen model; what the command line calls it there."""
    (folder / f"{name}.safetensors").write_bytes((FROZEN / f"{name}.safetensors").read_bytes())
    if name != "linear":
        return f"small_cnn={name}.safetensors"
    (folder / "linear.py").write_text(LINEAR, encoding="utf-8")
    return "linear.py:linear"
