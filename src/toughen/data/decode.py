"""From what a source holds to a data set: which part is what, and pixels in memory or left where they are.

The rules, the same for every source:

- Train and test, with or without validation, are what they are called.
- Train and validation without test: the validation part becomes the test split, as ImageNet's is used; validation
  images are drawn from the training images (see `held_out`). A test part in which no example has a label counts as
  none.
- Train alone: a fifth of it, the same share of every class, is set aside as the test split and never trained on. Which
  examples is a pure function of the class and its size.
- An extra set (`toughen.data.load_extra`) is all of train.

Without a view, pixels are decoded once, and kept in memory and in the cache; training images of more than 4 GiB and
images with a view stay where they are.

    data = make_image_data(found, ResizeCrop(224))
"""

import math

import numpy as np
import torch
from torch import Tensor

from toughen.data import cache
from toughen.data.base import Examples, ImageData, Split
from toughen.data.crops import ResizeCrop
from toughen.data.files import BY_SIZE
from toughen.data.image_source import ArrayImages, Collection, RawDataset, holds_pixels
from toughen.data.lazy_split import LazySplit
from toughen.noise import generator

IN_MEMORY = 4 * 2**30
"""Bytes of decoded training images up to which they are kept in memory."""

TEST_SHARE = 5
"""One in so many examples is set aside where there is no test part."""


def make_image_data(found: RawDataset | ImageData, view: ResizeCrop | None, *, kind: str = "") -> ImageData:
    """The data set of a source.

    Args:
        found: what the source holds, or data that are decoded already.
        view: what images are made into; None takes them as they are.
        kind: the kind of source in the cache's file names; "" keeps nothing there.

    Raises:
        ValueError: there is no training part, or images or labels are not what they must be.
    """
    if isinstance(found, ImageData):
        return apply_view(found, view) if view else found
    # Arrays are as good as a copy in the cache; a key that is not made of the contents may be that of other images.
    arrays = "train" in found.parts and holds_pixels(found.parts["train"].images)
    keep = kind if view is None and not arrays and not found.key.startswith(BY_SIZE) else ""
    path = cache.entry(keep, found.key)
    if keep and (data := cache.read(path, found.name)) is not None:
        return data
    data = assemble(found, view)
    return cache.write(path, data) if keep else data


def assemble(found: RawDataset, view: ResizeCrop | None = None) -> ImageData:
    """The data set of a source, not from the cache.

    Raises:
        ValueError: as for `make_image_data`.
    """
    stored = arrange_splits(found, view)
    classes = found.classes or number_classes(stored["train"].labels, found.name)
    streamed = view is not None or too_large(stored["train"])
    if streamed and view is None:
        _alike(stored["train"])
    splits: dict[str, Examples] = {
        part: split if streamed else decode_split(split) for part, split in stored.items() if len(split)
    }
    empty = [part for part in ("train", "test") if part not in splits]
    if empty:
        raise ValueError(f"{found.name} holds no {empty[0]} images; give data with a train and a test split.")
    return ImageData(found.name, splits["train"], splits.get("validation"), splits["test"], classes)


def arrange_splits(found: RawDataset, view: ResizeCrop | None) -> dict[str, LazySplit]:
    """The splits by the module's rules.

    Raises:
        ValueError: there is no training part, or it is too small to set test images aside.
    """
    if "train" not in found.parts:
        there = " and ".join(found.parts) or "nothing"
        raise ValueError(f"{found.name} holds no training images, only {there}; call one part train.")
    parts = {
        part: make_lazy_split(found, part, view)
        for part, collection in found.parts.items()
        if part in ("train", "validation", "test") and (part == "train" or _labelled(collection))
    }
    for part in parts.values():
        _refuse_negative(part, found.classes)
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
    if "test" not in parts:
        train = parts["train"]
        test = set_aside(train.labels, found.name)
        parts = {"train": train.take(~test), "test": train.take(test)}
    return parts


def make_lazy_split(found: RawDataset, part: str, view: ResizeCrop | None) -> LazySplit:
    """One part of a source, with all its examples."""
    collection = found.parts[part]
    key = f"{collection.key or found.key}/{part}"
    return LazySplit(collection.images, torch.from_numpy(collection.labels), key, view)


def set_aside(labels: Tensor, name: str) -> Tensor:
    """Which examples are the test split of data that have none: (N,) bool.

    Of each class of n examples n/5, rounded, but one at least and never all.

    Raises:
        ValueError: there are no examples, every class has one only, or labels are probabilities.
    """
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    if not len(labels):
        raise ValueError(f"{name} holds no images; give data with some.")
    if labels.ndim != 1:
        raise ValueError(f"{name} holds examples without a class; give data with labels, or use it as an extra set.")
    for label in labels.unique().tolist():
        of_class = (labels == label).nonzero().flatten()
        n = len(of_class)
        order = torch.randperm(n, generator=generator("test split", label, n))
        chosen[of_class[order[: min(max(1, round(n / TEST_SHARE)), n - 1)]]] = True
    if not chosen.any():
        raise ValueError(
            f"{name} has no test images and too few others to set some aside; give data with a test split."
        )
    return chosen


def number_classes(labels: Tensor, name: str) -> tuple[str, ...]:
    """Names of classes that the source does not name: their numbers."""
    # A label beyond the number of images is a broken file, and would ask for that many names.
    highest = int(labels.max()) if len(labels) else -1
    if highest >= len(labels) and len(labels):
        raise ValueError(
            f"Example {int(labels.argmax())} of the train split of {name} has label {highest}, but "
            f"{len(labels)} images without class names allow 0 to {len(labels) - 1}; number the classes from 0 on."
        )
    return tuple(str(number) for number in range(highest + 1))


def too_large(stored: LazySplit) -> bool:
    """Whether the decoded images would exceed `IN_MEMORY`."""
    return len(stored) > 0 and len(stored) * math.prod(stored.shape) > IN_MEMORY


def decode_split(stored: LazySplit) -> Split:
    """A split with its pixels decoded.

    Raises:
        ValueError: an image is broken or unlike the first; says which.
    """
    return Split(stored.images, stored.labels)


def apply_view(data: ImageData, view: ResizeCrop) -> ImageData:
    """Decoded data with a view, which training and testing take from their pixels."""

    def split(part: str, examples: Examples) -> LazySplit:
        if isinstance(examples, LazySplit):
            return LazySplit(examples.encoded, examples.labels, examples.key, view, examples.rows)
        pixels = examples.images.permute(0, 2, 3, 1).contiguous().numpy()
        where = f"the {part} split of {data.name}"
        return LazySplit(ArrayImages(pixels, where), examples.labels, f"{data.fingerprint}/{part}", view)

    splits = {part: split(part, examples) for part, examples in data.splits.items()}
    return ImageData(data.name, splits["train"], splits.get("validation"), splits["test"], data.classes)


def _labelled(collection: Collection) -> bool:
    return not len(collection.labels) or collection.labels.ndim > 1 or bool((collection.labels >= 0).any())


def _refuse_negative(split: LazySplit, classes: tuple[str, ...]) -> None:
    if split.labels.ndim == 1 and len(outside := (split.labels < 0).nonzero().flatten()):
        first = int(outside[0])
        allowed = f"the {len(classes)} classes allow 0 to {len(classes) - 1}" if classes else "classes count from 0 on"
        raise ValueError(
            f"{split.name(first)} has label {int(split.labels[first])}, but {allowed}; remove or relabel the example, "
            "or use the data as an extra set, where -1 stands for none."
        )


def _alike(stored: LazySplit) -> None:
    """Whether some of many images are of one size, so that a set of photographs is refused before training starts."""
    for number in np.linspace(0, len(stored) - 1, num=8).astype(int):
        stored.decode(int(number))
