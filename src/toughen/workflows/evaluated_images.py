"""Which images a model is evaluated on: those of its data that it was not trained on, and a sentence that says so.

images = unseen("exports/mine", load("pets.npz", whole=True), trained_on)
used(images)                                     # "images: from all 600 of pets, which has no test part"
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from toughen.data import ImageData
from toughen.data.base import Examples, fingerprint, first
from toughen.data.decode import numbered, set_aside
from toughen.errors import Command, Option, UsageError
from toughen.models.prepared import prepare


def unseen(what: str, images: ImageData, config: Mapping[str, Any], trained: Callable[[], ImageData]) -> ImageData:
    """Without what an exported model was trained on: of one part alone, the fifth that was set aside then.

    Args:
        what: the model, for messages.
        images: with nothing set aside.
        config: what is known of the model, see `exported.Config`.
        trained: what gives the same data in the view in which it was trained on.

    Raises:
        ValueError: it was trained on all of these images.
    """
    seen, parts = config.get("fingerprints", {}).get("train"), images.test_part
    if seen is None:
        return held_out_part(images) if parts == "train" and images.name == config["data"] else images

    def was_seen(part: Callable[[ImageData], Examples]) -> bool:
        if fingerprint({"train": part(images)}) == seen:
            return True
        # What cannot be read in that view was not trained on in it.
        with contextlib.suppress(ValueError):
            return fingerprint({"train": part(trained())}) == seen
        return False

    if was_seen(lambda data: data.test):
        raise UsageError(
            f"{what} was trained on all {len(images.test):,} images of {images.name}; give it others with ",
            Option("data"),
            ", such as the test images that go with them",
        )
    known = parts == "train" and was_seen(lambda data: held_out_part(data).train)
    return held_out_part(images) if known else images


def held_out_part(images: ImageData) -> ImageData:
    """With a fifth set aside as `load` does it, or as they are where that leaves nothing."""
    aside = set_aside(images.test.labels)
    return replace(images, train=images.test.take(~aside), test=images.test.take(aside)) if aside.any() else images


def for_classes(images: ImageData, count: int | None) -> ImageData:
    """As of so many classes, where the images' classes are only numbered and some of them may not be shown."""
    if count is None or count <= images.num_classes or not numbered(images.classes):
        return images
    return replace(images, classes=tuple(map(str, range(count))))


def used(images: ImageData) -> str:
    """Which images of their data a model is evaluated on, for the user."""
    n, name = f"{len(images.test):,}", images.name
    if images.test_part == "test":
        said = f"from the test part of {name} ({n})"
    elif images.test_part == "validation":
        said = f"from the validation part of {name} ({n}), which has no test part"
    elif len(images.train):
        rest = f"{len(images.train):,}"
        said = f"from the {n} that are set aside of {name}, which has no test part, and not the {rest} to train on"
    else:
        said = f"from all {n} of {name}, which has no test part"
    shown = images.test.labels.unique().tolist()
    alone = (f"all of them are of class {images.classes[shown[0]]}",) if len(shown) == 1 else ()
    return "; ".join((f"images: {said}", *alone, *images.notes))


def fewer_names(model: nn.Module, classes: Sequence[str], test: Examples) -> str:
    """What to note where images name fewer classes than a model has logits: their labels may be other classes there.

    Raises:
        ValueError: as for `prepare`.
    """
    # Without names nothing is known of how many there are.
    logits = prepare(model, test.take(torch.arange(1)).images, None, 1).classes if classes else 0
    if logits <= len(classes):
        return ""
    names = f"{', '.join(classes[:5])}{', ...' * (len(classes) > 5)}"
    return (
        f"the images name {len(classes)} classes ({names}) and the model returns {logits} logits: it is taken to mean "
        f"them by the first {len(classes)}, in this order"
    )


def limited(test: Examples, limit: int | None) -> tuple[Examples, Tensor | None, tuple[str, ...]]:
    """The first `limit` test images, as in most papers; as many spread over all of them where these lie by class.

    Class folders are read one after another, so that the first images would be of one class.

    Returns:
        The images; their positions in the test set (limit,), None where they are the first ones; and what to note.

    Raises:
        ValueError: there are fewer.
    """
    total, labels = len(test), test.labels
    if limit is None or limit == total:
        return test, None, ()
    if limit > total:
        raise ValueError(f"limit is {limit}, but there are {total} test images; give at most that")
    if not (bool((labels[1:] >= labels[:-1]).all()) and labels[0] < labels[-1]):
        return first(test, limit), None, ()
    rows = torch.arange(limit) * total // limit
    said = f"{limit} images spread over the {total} of the test set, which lie sorted by class: "
    return test.take(rows), rows, (f"{said}the i-th, from 0, is number floor(i * {total} / {limit}) of them",)


def may_lack_classes(images: ImageData) -> bool:
    """Whether there may be more classes than the images show."""
    return numbered(images.classes) and not len(images.train)


def check_classes(what: str, theirs: int, images: ImageData) -> None:
    """Refuse images of more or fewer classes than a model tells apart.

    Raises:
        ValueError: they are.
    """
    if theirs != images.num_classes:
        raise UsageError(
            f"{what} tells {theirs} classes apart and {images.name} has {images.num_classes} "
            f"({', '.join(images.classes[:5])}{', ...' * (images.num_classes > 5)}); give the data that it is for, "
            "or fine-tune it: ",
            Command("train", "finetune"),
        )
