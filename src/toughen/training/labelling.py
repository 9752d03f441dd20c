"""`toughen label`: opens the run, the pool and the test split, and builds the extra set.

Example:
    manifest = label_sources("pool", "runs/scorer", against="cifar10", counts=(200_000, 500_000), out=Path("extra"))
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from toughen.data import ImageData, View, find, load
from toughen.data.base import Examples
from toughen.data.decode import as_stored, viewed
from toughen.data.labelling import THRESHOLD, Progress, label
from toughen.training.runs import open_run
from toughen.training.setup import chosen_device
from toughen.training.subjects import imported, is_reference


def label_sources(
    pool: str,
    scorer: str,
    *,
    against: str,
    counts: Sequence[int],
    out: Path,
    threshold: float = THRESHOLD,
    labeller: str | None = None,
    soft: bool = False,
    foreign: bool = False,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Build an extra training set from named things.

    Args:
        pool: a source of images, see `data.find`; its training part is the pool. It needs no labels, and those that
            it has are not looked at.
        scorer: a run folder, or `FILE.py:FUNCTION` that returns a module, see `open_classifier`. A run says what view
            of the images it was trained on, and then that is what is scored, compared and written.
        against: the source whose test split no chosen image may be a copy of; its classes are those of the set.
        counts: sizes of the sets, see `label`.
        out: the folder of the set.
        threshold: L2 distance up to which an image is a copy, pixels in [0, 1].
        labeller: a second classifier that labels the chosen images, like `scorer`.
        soft: whether probabilities are written beside the class indices.
        foreign: whether the scorer's last logit is for images that show none of the classes.
        batch_size: images in a pass.
        progress: see `label`.

    Returns:
        The manifest.

    Raises:
        ValueError: a source, run or function that is not there, or as for `label`.
    """
    model, view = open_classifier(scorer)
    target = load(against, view)
    return label(
        open_pool(pool, view),
        model,
        test_images=target.test.images,
        classes=target.classes,
        counts=counts,
        out=out,
        threshold=threshold,
        labels="probabilities" if soft else "hard",
        labeller=open_classifier(labeller)[0] if labeller is not None else None,
        foreign=foreign,
        batch_size=batch_size,
        progress=progress,
    )


def open_pool(source: str, view: View | None) -> Examples:
    """The training part of a source, whose images are decoded when they are asked for unless they are in memory.

    Raises:
        ValueError: as for `data.find`, or the source has no training images.
    """
    found = find(source, unlabelled=True)
    if isinstance(found, ImageData):
        return (viewed(found, view) if view else found).train
    if "train" not in found.parts:
        raise ValueError(f"{found.name} holds no training images to choose from; give a folder of images or shards.")
    return as_stored(found, "train", view)


def open_classifier(what: str) -> tuple[nn.Module, View | None]:
    """A model, on a GPU if there is one, and the view of images that it was trained on, as far as that is known.

    That is a run folder with its best weights, or what a function of the user's own returns, `FILE.py:FUNCTION`.

    Raises:
        ValueError: as for `open_run`, or what is named cannot be imported or is no module.
    """
    if Path(what).is_dir() or not is_reference(what):
        run = open_run(Path(what))
        return run.model, run.recipe.data.view
    made = imported(what)
    model = made() if callable(made) and not isinstance(made, nn.Module) else made
    if not isinstance(model, nn.Module):
        raise ValueError(f"{what} gave {type(model).__name__}; it must be or return a torch.nn.Module")
    return model.to(chosen_device("auto")), None
