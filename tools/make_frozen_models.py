"""Make `tests/frozen/*.safetensors`, the small classifiers on which attacks are compared with other libraries'.

A linear classifier, a convolutional network trained naturally, and the same network trained with PGD in the Linf ball
of 0.2, all on the training digits that ship with toughen. The same machine gives the same bytes, about two minutes on
one thread. Other weights void `tests/frozen/references.json`: record it anew with `tools/record_references.py`.

    python tools/make_frozen_models.py                 # writes the shipped files
    python tools/make_frozen_models.py elsewhere
"""

import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from toughen import recipes, train
from toughen.models import MODELS
from toughen.recipes import Recipe
from toughen.workflows.run_folder import open_run

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path.insert(0, str(TESTS))

from frozen_models import FROZEN  # noqa: E402  (the tests are no package)
from oracles import Affine  # noqa: E402

SETTINGS = {
    "linear": ("mnist-natural", {"model": {"name": "frozen-linear"}, "steps": 600, "optimizer": {"lr": 0.05}}),
    "standard": ("mnist-natural", {"steps": 600}),
    "robust": ("mnist-pgd", {"steps": 900}),
}


def recipe(name: str) -> Recipe:
    """What a model is trained by: a shipped recipe with a few changes, validated once, at the end."""
    base, changes = SETTINGS[name]
    settings = recipes.load(base).model_dump(mode="json") | changes
    steps = settings["steps"]
    return Recipe.model_validate(
        settings | {"name": f"frozen-{name}", "device": "cpu", "selection": {"suite": "pgd-40", "every": steps}}
    )


def linear(num_classes: int, in_channels: int) -> nn.Module:
    """The linear classifier, as a network with a name."""
    return Affine(torch.zeros(num_classes, in_channels * 28 * 28), torch.zeros(num_classes))


def write(folder: Path) -> None:
    """Train the three models and write their weights into a folder."""
    torch.set_num_threads(1)
    MODELS["frozen-linear"] = linear
    folder.mkdir(parents=True, exist_ok=True)
    for name in SETTINGS:
        with tempfile.TemporaryDirectory() as run:
            summary = train(recipe(name), Path(run) / name)
            weights = open_run(Path(run) / name, checkpoint="last").model.state_dict()
        target = folder / f"{name}.safetensors"
        target.write_bytes(save({key: value.contiguous() for key, value in weights.items()}))
        print(f"{target}: {target.stat().st_size} bytes; validation {summary.get('best', summary)}")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FROZEN)
