"""From what a source holds to a data set: which part is what, and pixels in memory or left where they are.

The rules, the same for every source:

- Train and test, with or without validation, are what they are called.
- Train and validation without test: the validation part becomes the test split, as ImageNet's is used; validation
  images are drawn from the training images (see `held_out`). A test part in which no example has a label counts as
  none.
- Train alone: a fifth of it, the same share of every class, is set aside as the test split and never trained on. Which
  examples is a pure function of the class and its size. For a model that was not trained on the rest, all of it is the
  test split instead, and there are no training images (`whole`).
- Test or validation alone: there is nothing to train on, and the data can be evaluated on.
- An extra set (`toughen.data.load_extra`) is all of train.

Without a view, pixels are decoded once, and kept in memory and in the cache; training images of more than 4 GiB and
images with a view stay where they are.

    data = make_image_data(found, ResizeCrop(224))
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from toughen.data import cache
from toughen.data.base import Examples, ImageData, Split
from toughen.data.crops import ResizeCrop
from toughen.data.files import BY_SIZE, SPLITS
from toughen.data.image_source import ArrayImages, Collection, RawDataset, holds_pixels
from toughen.data.lazy_split import LazySplit
from toughen.noise import generator

IN_MEMORY = 4 * 2**30
"""Bytes of decoded training images up to which they are kept in memory."""

TEST_SHARE = 5
"""One in so many examples is set aside where there is no test part."""

MOST_CLASSES = 2**16
"""Classes that images to evaluate on may be of, where the source names none."""


def make_image_data(
    found: RawDataset | ImageData, view: ResizeCrop | None, *, kind: str = "", whole: bool = False
) -> ImageData:
    """The data set of a source.

    Args:
        found: what the source holds, or data that are decoded already.
        view: what images are made into; None takes them as they are.
        kind: the kind of source in the cache's file names; "" keeps nothing there.
        whole: whether nothing is set aside of a source that is one part alone.

    Raises:
        ValueError: there are no images, or images or labels are not what they must be.
    """
    if isinstance(found, ImageData):
        data = apply_view(found, view) if view else found
    else:
        # Arrays are as good as a copy in the cache; a key that is not made of the contents may be of other images.
        arrays = any(holds_pixels(part.images) for part in found.parts.values())
        keep = kind if view is None and not arrays and not found.key.startswith(BY_SIZE) else ""
        path = cache.entry(keep, found.key)
        if not keep:
            data = assemble(found, view)
        elif (kept := cache.read(path, found.name)) is not None:
            data = kept
        else:
            data = cache.write(path, assemble(found, view))
        # Not in the cache: they are of this path to the images.
        data = replace(data, notes=(*found.notes, *data.notes)) if found.notes else data
    return data if whole else with_test_images(data)


def assemble(found: RawDataset, view: ResizeCrop | None = None) -> ImageData:
    """The data set of a source with nothing set aside, not from the cache.

    Raises:
        ValueError: as for `make_image_data`.
    """
    stored, test_part, notes = arrange_splits(found, view)
    first = stored.get("train", stored["test"])
    # A label beyond the number of training images is a broken file, and would ask for that many names; a few images to
    # evaluate on may show the last ones of many classes.
    part, most = ("train", len(first)) if "train" in stored else (test_part, MOST_CLASSES)
    classes = found.classes or number_classes(first.labels, f"the {part} split of {found.name}", most)
    aside = set_aside(first.labels) if test_part == "train" else torch.zeros(len(first), dtype=torch.bool)
    streamed = view is not None or too_large(first.take(~aside))
    if streamed and view is None:
        _alike(first)
    splits: dict[str, Examples] = {part: split if streamed else decode_split(split) for part, split in stored.items()}
    train, test = splits.get("train", splits["test"].take(torch.arange(0))), splits["test"]
    return ImageData(found.name, train, splits.get("validation"), test, classes, test_part, notes)


def arrange_splits(found: RawDataset, view: ResizeCrop | None) -> tuple[dict[str, LazySplit], str, tuple[str, ...]]:
    """The splits by the module's rules, with nothing set aside.

    Returns:
        The splits, none of them empty, a test split among them; which part that is, as `ImageData` has it; and what to
        tell the user.

    Raises:
        ValueError: no part holds images with labels.
    """
    parts: dict[str, LazySplit] = {}
    notes: tuple[str, ...] = ()
    for part in SPLITS:
        if part not in found.parts or not len(found.parts[part].labels):
            continue
        if part == "train" or _labelled(found.parts[part]):
            parts[part] = make_lazy_split(found, part, view)
        else:
            notes += (f"the {part} part has no labels, and is left aside",)
    if not parts:
        raise ValueError(f"{found.name} holds no images{' with labels' if notes else ''}; give data with some.")
    for part in parts.values():
        if part.labels.ndim != 1:
            raise ValueError(
                f"{found.name} holds examples without a class; give data with labels, or use it as an extra set."
            )
        _refuse_negative(part, found.classes)
    test_part = next(part for part in ("test", "validation", "train") if part in parts)
    parts["test"] = parts.pop(test_part)
    return parts, test_part, notes


def with_test_images(data: ImageData) -> ImageData:
    """The data with a fifth set aside as the test split, where all of it is one part; else as they are.

    Raises:
        ValueError: it is too small for that, or has a label beyond the number of its images.
    """
    if data.test_part != "train" or len(data.train):
        return data
    every = data.test
    aside = set_aside(every.labels)
    if not aside.any():
        raise ValueError(
            f"{data.name} has no test images and too few others to set some aside; give data with a test split."
        )
    if numbered(data.classes):
        number_classes(every.labels, f"the train split of {data.name}", int((~aside).sum()))
    return replace(data, train=every.take(~aside), test=every.take(aside))


def make_lazy_split(found: RawDataset, part: str, view: ResizeCrop | None) -> LazySplit:
    """One part of a source, with all its examples."""
    collection = found.parts[part]
    key = f"{collection.key or found.key}/{part}"
    return LazySplit(collection.images, torch.from_numpy(collection.labels), key, view)


def set_aside(labels: Tensor) -> Tensor:
    """Which examples are the test split of data that have none: (N,) bool.

    Of each class of n examples n/5, rounded, but one at least and never all.
    """
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        of_class = (labels == label).nonzero().flatten()
        n = len(of_class)
        order = torch.randperm(n, generator=generator("test split", label, n))
        chosen[of_class[order[: min(max(1, round(n / TEST_SHARE)), n - 1)]]] = True
    return chosen


def numbered(classes: Sequence[str]) -> bool:
    """Whether classes are called by their numbers, as where the source does not name them."""
    return [*classes] == [str(number) for number in range(len(classes))]


def number_classes(labels: Tensor, where: str, most: int) -> tuple[str, ...]:
    """Names of classes that the source does not name: their numbers, of which there are `most` at most.

    Raises:
        ValueError: a label is beyond that.
    """
    highest = int(labels.max())
    if highest >= most:
        raise ValueError(
            f"Example {int(labels.argmax())} of {where} has label {highest}, but {len(labels)} images without class "
            f"names allow 0 to {most - 1}; number the classes from 0 on."
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
    pixels = getattr(stored.encoded, "pixels", None)
    if isinstance(pixels, np.ndarray) and stored.view is None:
        whole = len(stored) == len(pixels) and bool((stored.rows == torch.arange(len(stored))).all())
        chosen = pixels if whole else pixels[stored.rows.numpy()]
        # A copy in any case: what is mapped from a file may not be written to.
        return Split(torch.from_numpy(np.array(chosen.transpose(0, 3, 1, 2), order="C")), stored.labels)
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
    train = splits.get("train", splits["test"].take(torch.arange(0)))
    return replace(data, train=train, validation=splits.get("validation"), test=splits["test"])


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
