"""Finished or unfinished runs, opened from their folders.

Example:
    run = open_run(Path("runs/free"))
    run.model, run.data.test
"""

from dataclasses import dataclass
from pathlib import Path

from toughen import recipes
from toughen.data import ImageData
from toughen.data.dataset_card import DatasetCard
from toughen.errors import Command, Option, UsageError
from toughen.models import Classifier
from toughen.models.pretrained.load import fitted
from toughen.recipes import Recipe
from toughen.storage.checkpoint import latest_checkpoint
from toughen.storage.files import Damaged
from toughen.training.setup import build_model, device_of_results, load_data
from toughen.training.state_schema import SavedState


@dataclass(frozen=True, eq=False)
class OpenedWeights:
    """A run folder, opened without its images.

    Attributes:
        folder: where it is.
        recipe: what was trained.
        about: what it was trained on.
        model: in inference mode, on the recipe's device, or the best that is there where that one is not.
        step: optimiser steps behind these weights.
        weights: which weights these are, like `best-weights`.
    """

    folder: Path
    recipe: Recipe
    about: DatasetCard
    model: Classifier
    step: int
    weights: str


@dataclass(frozen=True, eq=False)
class OpenedRun(OpenedWeights):
    """A run folder, opened.

    Attributes:
        data: what it was trained on, with the test split.
        said: what has changed in the data since then, as a clause for the user; mostly nothing.
    """

    data: ImageData
    said: str


def open_run(folder: Path, *, checkpoint: str = "best", weights: str | None = None) -> OpenedRun:
    """Open a run folder, to measure its weights on its test images.

    Args:
        folder: of the run.
        checkpoint: "best" by validation (`Recipe.selected_by`), or "last".
        weights: "weights" or an average like "average-0.995"; the recipe's headline by default.

    Raises:
        ValueError: as for `open_trained`; the data cannot be loaded; or CK302: training images and test images have
            both changed, so that training may have seen what is test data now.
        Damaged: it has checkpoints but none is whole.
    """
    found = open_trained(folder, checkpoint=checkpoint, weights=weights)
    data, said = load_data(found.recipe), ""
    if changed := found.about.changed(data.fingerprints):
        said = f"the {' and '.join(changed)} images of {data.name} have changed since {folder} was trained"
        if "test" in changed and len(changed) > 1:
            raise ValueError(
                f"CK302 {folder} was trained on other images than {data.name} holds now (the {' and '.join(changed)} "
                "images have changed), and may have seen what are test images now; restore them, or export the run and "
                "evaluate the export on data that it has not seen"
            )
    return OpenedRun(**vars(found), data=data, said=said)


def open_trained(folder: Path, *, checkpoint: str = "best", weights: str | None = None) -> OpenedWeights:
    """Open a run folder for its weights; its images are not looked at, and need not be there.

    Args:
        folder: of the run.
        checkpoint: see `open_run`.
        weights: see `open_run`.

    Raises:
        ValueError: the folder is no run, has no checkpoint yet, or not these weights.
        Damaged: it has checkpoints but none is whole.
    """
    if checkpoint not in ("best", "last"):
        raise ValueError(f"checkpoint is {checkpoint!r}; it must be best or last")
    if not (folder / "recipe.yaml").is_file():
        said = f"{folder} is no run folder: it holds no recipe.yaml; give the "
        raise UsageError(said, Option("out"), " of a ", Command("train"))
    recipe = recipes.load(str(folder / "recipe.yaml"))
    newest = latest_checkpoint(folder, warn=print, clean=False)
    if newest is None:
        raise ValueError(f"{folder} has no checkpoint yet; give the same {Command('train')} command to go on with it")
    name = weights or recipe.headline
    group = f"best-{name}" if checkpoint == "best" else name
    if not newest.has(group):
        there = [c for c in ("weights", *(f"average-{d:g}" for d in recipe.averages)) if newest.has(c)]
        if name in there:
            said = f"{folder} has not been validated yet, so there is no best; use "
            raise UsageError(said, Option("checkpoint", "last"))
        raise ValueError(f"{folder} has no weights {name!r}; it has {', '.join(there)}")
    saved = SavedState.of(newest)
    try:
        about = DatasetCard.read(saved.data)
        step = saved.best[name].step if checkpoint == "best" else newest.step
    except (KeyError, ValueError) as error:
        raise Damaged(newest.path, f"state.json is not a run's: {error}") from None
    model = fitted(lambda: build_model(recipe, about), newest.tensors(group), str(newest.file(group)))
    return OpenedWeights(folder, recipe, about, model.to(device_of_results(recipe.device)).eval(), step, group)
