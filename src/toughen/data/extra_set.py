"""Extra sets: the whole training part of any source, with labels, probabilities or neither, which training mixes in.

extra = load_extra("1m.npz", shape=data.image_shape, classes=data.classes)        # arrays `image` and `label`
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from toughen.data import cache
from toughen.data.base import Examples, ImageData, Split
from toughen.data.crops import ResizeCrop
from toughen.data.decode import apply_view, decode_split, make_lazy_split, too_large
from toughen.data.files import BY_SIZE
from toughen.data.image_source import RawDataset, holds_pixels
from toughen.data.lazy_split import LazySplit
from toughen.errors import UsageError, image_size

TOLERANCE = 1e-3
"""How far the sum of an example's probabilities may be from 1."""


def make_extra_set(
    found: RawDataset | ImageData,
    *,
    shape: tuple[int, int, int],
    classes: int | Sequence[str],
    view: ResizeCrop | None = None,
) -> Examples:
    """The training part of a source as an extra set.

    Args:
        found: the source, or data that are decoded already.
        shape: (C, H, W) of the images that it goes with.
        classes: their classes; or how many there are, and then indices are taken as they are. With names, classes that
            the source calls by the same names in another order are renumbered.
        view: what the images are made into; None takes them as they are.

    Returns:
        Images and labels: class indices, -1 for none, or (N, K) float32 probabilities. Decoded; or where they are, with
        a view or above 4 GiB.

    Raises:
        ValueError: images are of another shape, or labels are not of these classes.
    """
    if isinstance(found, ImageData):
        examples, names, name = (apply_view(found, view) if view else found).train, found.classes, found.name
    else:
        if "train" not in found.parts:
            raise ValueError(f"{found.name} holds no training images; give a set with some.")
        examples, names, name = make_lazy_split(found, "train", view), found.classes, found.name
    if not len(examples):
        raise ValueError(f"{name} holds no image; give an extra set with some.")
    labels = _labels(examples.labels, names, classes, name)
    if examples.shape != shape:
        remedy = () if view else ("give ", image_size(like=224), ", or ")
        raise UsageError(
            f"The images of the extra set {name} are {examples.shape} (C, H, W), but the training images are {shape}; ",
            *remedy,
            "resize them.",
        )
    if isinstance(examples, LazySplit):
        examples = LazySplit(examples.encoded, labels, examples.key, view, examples.rows)
        return examples if view or too_large(examples) else _decoded(examples)
    return Split(examples.images, labels)


def _decoded(stored: LazySplit) -> Split:
    """With the pixels in memory, from the cache where they were decoded before."""
    key = stored.key.partition("/")[0]
    if holds_pixels(stored.encoded) or key.startswith(BY_SIZE):
        return decode_split(stored)
    path = cache.entry("extra", key)
    if (images := cache.read_array(path, "images", np.uint8, 4)) is not None and len(images) == len(stored):
        return Split(torch.from_numpy(images), stored.labels)
    split = decode_split(stored)
    cache.write_arrays(path, images=split.images.numpy())
    return split


def _labels(labels: Tensor, names: Sequence[str], classes: int | Sequence[str], name: str) -> Tensor:
    wanted, count = ((), classes) if isinstance(classes, int) else (tuple(classes), len(classes))
    if labels.ndim == 2:
        return _probabilities(labels, count, name)
    numbers = tuple(map(str, range(len(names))))
    renumber = wanted and names and tuple(names) not in (wanted, numbers)
    if renumber and (strange := [called for called in names if called not in wanted]):
        raise ValueError(
            f"The extra set {name} has the class {strange[0]}, which the training images do not have; remove it, "
            "or call it like theirs."
        )
    outside = ((labels < -1) | (labels >= (len(names) if renumber else count))).nonzero()
    if len(outside):
        first = int(outside[0])
        raise ValueError(
            f"Example {first} of the extra set {name} has label {int(labels[first])}, but the {count} classes allow 0 "
            f"to {count - 1}, and -1 for none; remove or relabel the example."
        )
    # -1 stays -1: it takes the last entry.
    return torch.tensor([*map(wanted.index, names), -1])[labels] if renumber else labels


def _probabilities(labels: Tensor, count: int, name: str) -> Tensor:
    if labels.shape[1] != count:
        raise ValueError(
            f"The extra set {name} gives {labels.shape[1]} probabilities an image, but there are {count} classes; give "
            "one for each."
        )
    wrong = ~((labels >= 0).all(1) & ((labels.sum(1) - 1).abs() <= TOLERANCE))
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0])
        raise ValueError(
            f"Example {first} of the extra set {name} has probabilities that are negative or do not sum to 1; give "
            "probabilities, not logits."
        )
    return labels
