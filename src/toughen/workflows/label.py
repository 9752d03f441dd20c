"""`toughen label`: opens the run, the pool and the test split, and builds the extra set.

Example:
    manifest = label("pool", "runs/scorer", against="cifar10", counts=(200_000, 500_000), out=Path("extra"))
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from toughen.data import ImageData, ResizeCrop, find, load
from toughen.data.base import Examples
from toughen.data.decode import apply_view, make_lazy_split
from toughen.data.pseudo_labelling import build
from toughen.data.pseudo_labelling.build import THRESHOLD, ProgressFunction
from toughen.devices import own_draws, placed
from toughen.errors import Option, UsageError, naming
from toughen.models import exported
from toughen.training.setup import chosen_device
from toughen.workflows.evaluated_images import used
from toughen.workflows.model_sources import (
    ModelSource,
    as_source,
    build_model,
    check_there,
    is_exported,
    is_run,
    refuse_key,
    refuse_normalisation,
    refuse_run_options,
    view_of,
)
from toughen.workflows.run_folder import open_run


@naming(size="size")
def label(
    pool: str,
    scorer: ModelSource | Path | str,
    *,
    against: str,
    counts: Sequence[int],
    out: Path,
    threshold: float = THRESHOLD,
    labeller: ModelSource | Path | str | None = None,
    soft: bool = False,
    foreign: bool = False,
    batch_size: int = 256,
    progress: ProgressFunction | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Build an extra training set from named things.

    Args:
        pool: a source of images, see `data.find`; its training part is the pool. It needs no labels, and those that
            it has are not looked at.
        scorer: a classifier, see `open_classifier`. What its images are made into is scored, compared and written: of
            the size that it names, or else as the run or exported model was trained on, or as they are.
        against: the source whose test split no chosen image may be a copy of; its classes are those of the set.
        counts: sizes of the sets, see `build.label`.
        out: the folder of the set.
        threshold: L2 distance up to which an image is a copy, pixels in [0, 1].
        labeller: a second classifier that labels the chosen images, like `scorer`.
        soft: whether probabilities are written beside the class indices.
        foreign: whether the scorer's last logit is for images that show none of the classes.
        batch_size: images in a pass.
        progress: see `build.label`.
        note: is told how the classifiers were opened, where that is worth knowing.

    Returns:
        The manifest.

    Raises:
        ValueError: a source or classifier that is not there, a classifier of other classes than those of `against`, or
            as for `build.label`.
    """
    with own_draws(chosen_device("auto")):
        scored = open_classifier(scorer, lambda view: load(against, view), foreign=foreign)
        with naming(key="labeller_key"):
            second = open_classifier(labeller, lambda _: scored.target) if labeller is not None else None
        target = scored.target
        against_what = used(target) if target.test_part != "test" or target.notes else ""
        for said in (scored.said, second.said if second else "", against_what):
            if said:
                note(said)
        return build.label(
            open_pool(pool, scored.view, note),
            scored.model,
            test_images=scored.target.test.images,
            classes=scored.target.classes,
            counts=counts,
            out=out,
            threshold=threshold,
            labels="probabilities" if soft else "hard",
            labeller=second and second.model,
            foreign=foreign,
            batch_size=batch_size,
            progress=progress,
            note=note,
        )


def open_pool(source: str, view: ResizeCrop | None, note: Callable[[str], None] = lambda text: None) -> Examples:
    """The training part of a source, whose images are decoded when they are asked for unless they are in memory.

    What was done to find it is told to `note`.

    Raises:
        ValueError: as for `data.find`, or the source has no training images.
    """
    found = find(source, unlabelled=True)
    if isinstance(found, ImageData):
        return (apply_view(found, view) if view else found).train
    for said in found.notes:
        note(said)
    if "train" not in found.parts:
        raise ValueError(f"{found.name} holds no training images to choose from; give a folder of images or shards.")
    return make_lazy_split(found, "train", view)


@dataclass(frozen=True, eq=False)
class OpenedLabeller:
    """A classifier that scores or labels.

    Attributes:
        model: on its device.
        view: of the images that it is given; None for images as they are.
        target: the data whose classes it is to tell apart, in that view.
        said: what was done to open it, for the user; often nothing.
    """

    model: nn.Module
    view: ResizeCrop | None
    target: ImageData
    said: str = ""


def open_classifier(
    source: ModelSource | Path | str, look: Callable[[ResizeCrop | None], ImageData], *, foreign: bool = False
) -> OpenedLabeller:
    """A classifier, on a GPU if there is one, with the data whose classes it is to tell apart.

    Args:
        source: of the model, without data of its own.
        look: what opens that data in a view.
        foreign: whether it has one more class, of images that show none of the others.

    Raises:
        ValueError: as for `model_sources.open`; the model's classes have other names than the data's; or a size for a
            run that says itself what it is.
    """
    source = as_source(source)
    refuse_key(source)
    what, path, view = source.what, source.path, source.view
    if source.data is not None:
        raise UsageError(f"{what} is to tell the classes of ", Option("against"), " apart; leave out ", Option("data"))
    if is_exported(path):
        refuse_run_options(source)
        refuse_normalisation(source)
        config = exported.read_config(path)
        view = view_of(source, config)
        target = look(view)
        _check_names(what, config["classes"], target)
        return OpenedLabeller(placed(exported.load_model(path), chosen_device("auto")), view, target)
    if is_run(what):
        check_there(path)
        refuse_normalisation(source)
        run = open_run(path, checkpoint=source.checkpoint, weights=source.weights)
        own = run.recipe.data.view
        if view and own:
            said = f"{what} was trained on images of side {own.size}, and gets such; leave out "
            raise UsageError(said, Option("size"))
        target = look(view or own)
        _check_names(what, run.data.classes, target)
        return OpenedLabeller(run.model, view or own, target)
    refuse_run_options(source)
    target = look(view)
    for_classes = replace(target, classes=(*target.classes, "foreign")) if foreign else target
    model, said = build_model(source, for_classes)
    return OpenedLabeller(placed(model, chosen_device("auto")), view, target, said)


def _check_names(what: str, theirs: Sequence[str], target: ImageData) -> None:
    """Refuse a classifier whose classes are called otherwise, where both sides have names and not just numbers."""
    if any([*names] == [str(number) for number in range(len(names))] for names in (theirs, target.classes)):
        return
    for number, (its, ours) in enumerate(zip(theirs, target.classes, strict=False)):
        if its != ours:
            raise ValueError(
                f"class {number} is {its!r} for {what} and {ours!r} in {target.name}; give a classifier of the classes "
                f"of {target.name}, in their order, or other data"
            )
