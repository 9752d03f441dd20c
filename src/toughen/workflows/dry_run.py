"""What `toughen train` would refuse, before it is begun: the recipe as it would be trained, and nothing written.

recipe = dry_run(load("finetune", ["data=photos"]), Path("runs/mine"), note=print)

Weights, images, suites, balls and the folder are tried as training tries them, and after them the first step of two
images. What would have to be fetched from the Hub is not, and its images are taken to be as `SIZES` says.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from toughen.data.base import ImageData
from toughen.data.sources.registry import SIZES, is_fetched
from toughen.devices import own_draws
from toughen.recipes import Recipe, RecipeError
from toughen.training.initial_weights import as_weights_show, check_start, expected_normalization, start
from toughen.training.micro_batch_search import fits
from toughen.training.run import check_folder, resume_state
from toughen.training.setup import (
    build_model,
    check_balls,
    check_images,
    chosen_device,
    load_data,
    load_pseudo_labelled,
    set_up,
    splits,
)

ROWS = 2
"""Images of the first step, where the method can take a batch in parts."""

Note = Callable[[str], None]


def dry_run(recipe: Recipe, out: Path, *, note: Note) -> Recipe:
    """Try all that training would refuse before or amid its first epoch, on the device that it would take.

    Args:
        recipe: about the run.
        out: the folder that the run would have; left as it is.
        note: is told what `train` would tell of weights and images, and what could not be tried.

    Returns:
        The recipe with what its weights show of the network's options.

    Raises:
        ValueError: as for `train`.
    """
    device = chosen_device(recipe.device)
    with own_draws(device):
        recipe = as_weights_show(recipe, out, note)
        check_folder(recipe, out)
        data = try_data(recipe, note=note)
        if data is None:
            return recipe
        train_split, validation, index = splits(recipe, data)
        extra = load_pseudo_labelled(recipe, data)
        read = {"train": train_split, "validation": validation, "test": data.test}
        fresh, _ = resume_state(out)
        check_images({**read, "extra": extra.examples} if extra else read, note, fresh=fresh)
        if fresh and recipe.model.settings.get("pretrained"):
            _try_pretrained(recipe, data, note)
            fresh = False
        # As plainly as can be, and without processes: for two images nothing else pays.
        plain = recipe.data.model_copy(update={"workers": 0})
        slow = recipe.model_copy(update={"data": plain, "fast": "off"})
        job, batches = set_up(slow, data, train_split, index, device, extra=extra, note=note, fresh=fresh)
        try:
            fits(job, batches[0], min(ROWS, recipe.batch_size) if job.method.divisible else recipe.batch_size)
        finally:
            batches.close()
    return recipe


def _try_pretrained(recipe: Recipe, data: ImageData, note: Note) -> None:
    """Try what is known of weights that must be fetched."""
    check_start(recipe)
    if recipe.normalize == "pretrained":
        expected_normalization(recipe, data.channels)
    note(f"the weights of {recipe.model.name} are fetched when training begins, and were not looked at")


def try_data(recipe: Recipe, data: ImageData | None = None, *, note: Note) -> ImageData | None:
    """Try what a recipe says against its images, or against what is known of them where they must be fetched.

    Args:
        recipe: about the run.
        data: its images, where they are loaded already.
        note: is told what could not be tried.

    Returns:
        The images; None where they must be fetched.

    Raises:
        ValueError: as for `train`.
    """
    source, view = recipe.data.source, recipe.data.view
    if data is None and is_fetched(source):
        note(f"{source} is fetched from the Hub when training begins, and was not looked at")
        shape, classes = SIZES.get(source, (None, None))
        shape = (3, view.size, view.size) if view else shape
        check_start(recipe)
    else:
        data = data or load_data(recipe)
        shape, classes = data.image_shape, data.num_classes
    for said in check_balls(recipe, shape):
        note(said)
    if shape and classes:
        method = recipe.method.resolved(recipe.threat)
        try:
            method.passes(channels=shape[0], classes=classes)
        except ValueError as error:
            raise RecipeError(f"method: {error}") from None
    return data


def try_trainings(recipes: Iterable[tuple[str, Recipe]], *, note: Note) -> None:
    """Try the trainings of a study as far as takes no network: weights, images, suites and balls.

    Args:
        recipes: by the names of their trainings.
        note: as for `dry_run`.

    Raises:
        ValueError: of the first that training would refuse, with its name.
    """
    loaded: dict[str, ImageData] = {}
    told: set[str] = set()

    def once(text: str) -> None:
        if text not in told:
            told.add(text)
            note(text)

    for name, recipe in recipes:
        where = f"{recipe.data.source} {recipe.data.view}"
        try:
            check_start(recipe)
            recipe = as_weights_show(recipe, Path(name), lambda text: None)
            found = try_data(recipe, loaded.get(where), note=once)
            if found is not None:
                # One at a time lies in memory.
                loaded = {where: found}
                train_split, *_ = splits(recipe, found)
                if recipe.model.weights:
                    with own_draws():
                        start(build_model(recipe, found, train_split), recipe, lambda text: None)
        except ValueError as error:
            raise RecipeError(f"{name}: ", error) from None
