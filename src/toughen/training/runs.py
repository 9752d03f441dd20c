"""Finished or unfinished runs, opened from their folders.

Example:
    run = open_run(Path("runs/free"))
    run.model, run.data.test
"""

from dataclasses import dataclass
from pathlib import Path

from toughen import recipes
from toughen.checkpoint import latest_checkpoint
from toughen.data import ImageData
from toughen.models import Classifier
from toughen.recipes import Recipe
from toughen.training.setup import build_model, chosen_device, load_data


@dataclass(frozen=True, eq=False)
class Run:
    """A run folder, opened.

    Attributes:
        folder: where it is.
        recipe: what was trained.
        data: what it was trained on, with the test split.
        model: in inference mode, on the recipe's device.
        step: optimiser steps behind these weights.
        weights: which weights these are, like `best-weights`.
    """

    folder: Path
    recipe: Recipe
    data: ImageData
    model: Classifier
    step: int
    weights: str


def open_run(folder: Path, *, checkpoint: str = "best", weights: str | None = None) -> Run:
    """Open a run folder.

    Args:
        folder: of the run.
        checkpoint: "best" by robust validation accuracy, or "last".
        weights: "weights" or an average like "average-0.995"; the recipe's headline by default.

    Raises:
        ValueError: the folder is no run, has no checkpoint yet, or not these weights.
        Damaged: it has checkpoints but none is whole.
    """
    if checkpoint not in ("best", "last"):
        raise ValueError(f"checkpoint is {checkpoint!r}; it must be best or last")
    if not (folder / "recipe.yaml").is_file():
        raise ValueError(f"{folder} is no run folder: it holds no recipe.yaml; give the --out of a toughen train")
    recipe = recipes.load(str(folder / "recipe.yaml"))
    newest = latest_checkpoint(folder, warn=print, clean=False)
    if newest is None:
        raise ValueError(f"{folder} has no checkpoint yet; give the same toughen train command to go on with it")
    name = weights or recipe.headline
    group = f"best-{name}" if checkpoint == "best" else name
    if not newest.has(group):
        there = [c for c in ("weights", *(f"average-{d:g}" for d in recipe.averages)) if newest.has(c)]
        if name in there:
            raise ValueError(f"{folder} has not been validated yet, so there is no best; use --checkpoint last")
        raise ValueError(f"{folder} has no weights {name!r}; it has {', '.join(there)}")
    data = load_data(recipe)
    if newest.state["data"] != data.fingerprint:
        raise ValueError(f"CK302 {folder} was trained on other images than {data.name} holds now; restore them")
    model = build_model(recipe, data)
    model.load_state_dict(newest.tensors(group))
    step = newest.state["best"][name]["step"] if checkpoint == "best" else newest.step
    return Run(folder, recipe, data, model.to(chosen_device(recipe.device)).eval(), step, group)
