"""What a data set is: images and labels in splits, and the ways to take a part of one.

A split holds its pixels (`Split`, uint8 until a batch is made, so that a whole data set fits on the device) or knows
where to decode them from (`LazySplit`); both are used alike. Validation images come from the
data's own validation split or from the training images; nothing here ever reads the test split to choose anything.

    data = load("cifar10")
    train, validation, index = held_out(data, seed=0)        # 48,976 and 1,024 images
    few, chosen = subset(train, 5000, seed=0)                # index[chosen] are their original positions
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from toughen.data.lazy_split import LazySplit
from toughen.noise import generator

HELD_OUT = 1024


@dataclass(frozen=True, eq=False)
class Split:
    """Images and labels of one split.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64, class indices; or, in an extra set, (N, K) float32 probabilities.

    Raises:
        ValueError: a tensor has another type or shape, or the two differ in length.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(
                f"images are {_describe(self.images)}, but must be uint8 of shape (N, C, H, W); "
                "convert floats in [0, 1] by (images * 255).round().to(torch.uint8)."
            )
        if (self.labels.dtype, self.labels.ndim) not in ((torch.int64, 1), (torch.float32, 2)):
            raise ValueError(
                f"labels are {_describe(self.labels)}, but must be class indices, int64 of shape (N,), or "
                "probabilities, float32 of shape (N, K)."
            )
        if len(self.images) != len(self.labels):
            raise ValueError(f"{len(self.images)} images came with {len(self.labels)} labels; give one label an image.")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def take(self, indices: Tensor) -> "Split":
        """The examples at `indices` ((M,) int64, or a mask (N,) bool), in that order; the pixels are copied."""
        return Split(self.images[indices], self.labels[indices])

    def float_images(self) -> Tensor:
        """The images as (N, C, H, W) float32 in [0, 1]."""
        return to_float(self.images)


Examples = Split | LazySplit
"""Images and labels, with their pixels in memory or not."""


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set with its splits.

    Args:
        name: what it is called in tables and run folders.
        train: the training split; empty where the data are there to be evaluated on alone.
        validation: the validation split that the data came with, or None.
        test: the test split; for final numbers only, never for choosing.
        classes: the classes' names, in the order of their indices.
        test_part: which part of its source the test split is: "test", "validation", or "train" where there is no other;
            then it was set aside of that part, or is all of it and there are no training images.
        notes: what was done to read them, for the user.

    Raises:
        ValueError: a split is empty, its images have another shape than the training images, or a label is no class.
    """

    name: str
    train: Examples
    validation: Examples | None
    test: Examples
    classes: tuple[str, ...]
    test_part: str = "test"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, split in self.splits.items():
            if not len(split):
                raise ValueError(f"The {name} split of {self.name} holds no image; it must hold at least one.")
            if split.shape != self.image_shape:
                raise ValueError(
                    f"The {name} images of {self.name} are {split.shape} (C, H, W), but its training "
                    f"images are {self.image_shape}; bring all splits to one shape."
                )
            if split.labels.ndim != 1:
                raise ValueError(f"The {name} split of {self.name} has no class indices; give (N,) int64 labels.")
            outside = ((split.labels < 0) | (split.labels >= self.num_classes)).nonzero()
            if len(outside):
                first = int(outside[0])
                raise ValueError(
                    f"Example {first} of the {name} split of {self.name} has label {int(split.labels[first])}, but the "
                    f"{self.num_classes} classes allow 0 to {self.num_classes - 1}; remove or relabel the example."
                )

    @property
    def splits(self) -> dict[str, Examples]:
        """The splits there are by name: train (if it holds any image), validation (if any), test."""
        named = {"train": self.train if len(self.train) else None, "validation": self.validation, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return (self.train if len(self.train) else self.test).shape

    @property
    def channels(self) -> int:
        """Number of channels, 1 for grey and 3 for colour."""
        return self.image_shape[0]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the splits: see `fingerprint`."""
        return fingerprint(self.splits)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """The same of each split by itself."""
        return {name: fingerprint({name: split}) for name, split in self.splits.items()}


def check_several_classes(data: ImageData) -> None:
    """Refuse what is no classification.

    Raises:
        ValueError: there is one class only, as of a folder whose images all fall into it.
    """
    if data.num_classes < 2:
        raise ValueError(
            f"{data.name} has one class only, {data.classes[0]}; give two at least, a folder each, and as data the "
            "folder that they lie in"
        )


def fingerprint(splits: Mapping[str, Examples]) -> str:
    """SHA-256 (hex) over shapes, labels and pixels of some splits.

    Of splits that are decoded, equal exactly when the data are. Of stored ones not the pixels enter but their source's
    key, the view and which images they are, because nobody wants to wait until all of ImageNet has been read.
    """
    digest = hashlib.sha256()
    for name, split in splits.items():
        stored = isinstance(split, LazySplit)
        source = f"({split.key!r}, {split.view and split.view.key})" if stored else ""
        digest.update(f"{name}{(len(split), *split.shape)}{source}".encode())
        for tensor in (split.labels, split.rows if stored else split.images):
            # Little-endian numbers, so that the fingerprint is the same on every machine.
            array = tensor.cpu().contiguous().numpy()
            digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
    return digest.hexdigest()


def to_float(images: Tensor) -> Tensor:
    """uint8 pixels as float32 in [0, 1]: the one conversion, so that training and evaluation see equal numbers."""
    return images.float().div_(255)


def held_out(data: ImageData, *, seed: int, size: int | None = None) -> tuple[Examples, Examples, Tensor]:
    """Training and validation images, without a look at the test split.

    A validation split that came with the data is used as it is when no `size` is given. Otherwise the validation images
    are drawn from the training images, as a pure function of (seed, number of training images, size): a larger
    `size` holds every image of a smaller one.

    Args:
        data: the data set.
        seed: which draw.
        size: validation images to take from the training set; None means the shipped split or, without one, 1,024
            images, or 10 % where there are fewer than 10,240 training images.

    Returns:
        The training split, the validation split (each in the original order), and the original positions of the
        training examples, (N,) int64, ascending.

    Raises:
        ValueError: `size` leaves no training or no validation image.
    """
    n = len(data.train)
    if data.validation is not None and size is None:
        return data.train, data.validation, torch.arange(n)
    if size is None:
        size = HELD_OUT if n >= 10 * HELD_OUT else n // 10
    if not 0 < size < n:
        raise ValueError(
            f"{size} validation images cannot be taken from the {n} training images of {data.name}; "
            f"give a size from 1 to {n - 1}."
        )
    order = torch.randperm(n, generator=generator("validation", seed, n))
    chosen, rest = order[:size].sort().values, order[size:].sort().values
    return data.train.take(rest), data.train.take(chosen), rest


def first(split: Examples, n: int) -> Examples:
    """The first `n` examples.

    Raises:
        ValueError: there are fewer.
    """
    if n > len(split):
        raise ValueError(f"The first {n} examples were asked for, but there are {len(split)}; give at most that.")
    return split.take(torch.arange(n))


def subset(split: Examples, n: int, *, seed: int) -> tuple[Examples, Tensor]:
    """`n` examples, as evenly over the classes as the split allows, as a pure function of (seed, labels, n).

    A larger `n` holds every example of a smaller one.

    Args:
        split: where to take from.
        n: how many examples, 1 to len(split).
        seed: which draw.

    Returns:
        The chosen examples in their original order, and their positions in `split`, (n,) int64, ascending.

    Raises:
        ValueError: `n` is not in 1 .. len(split).
    """
    if not 0 < n <= len(split):
        raise ValueError(
            f"{n} examples were asked for, but there are {len(split)}; give a limit from 1 to {len(split)}."
        )
    order, turn = _turns(split, seed)
    chosen = order[turn.argsort(stable=True)[:n]].sort().values
    return split.take(chosen), chosen


def per_class(split: Examples, n: int, *, seed: int) -> tuple[Examples, Tensor]:
    """`n` examples of each class that there is: those that `subset` takes where it takes `n` of each.

    Args:
        split: where to take from.
        n: how many examples of a class.
        seed: which draw.

    Returns:
        As for `subset`.

    Raises:
        ValueError: a class has fewer.
    """
    counts = split.labels.cpu().bincount()
    if (short := ((counts > 0) & (counts < n)).nonzero().flatten().tolist()) or n < 1:
        least = min(int(counts[label]) for label in short) if short else int(counts[counts > 0].min())
        raise ValueError(f"per_class is {n}, but the smallest class has {least} images to take; give 1 to {least}.")
    order, turn = _turns(split, seed)
    chosen = order[turn < n].sort().values
    return split.take(chosen), chosen


def _turns(split: Examples, seed: int) -> tuple[Tensor, Tensor]:
    """An order of the examples, and in which round each is dealt when every round deals one example a class."""
    order = torch.randperm(len(split), generator=generator("subset", seed, len(split)))
    by_class = split.labels.cpu()[order].argsort(stable=True)
    counts = split.labels.cpu().bincount()
    turn = torch.empty_like(order)
    turn[by_class] = torch.arange(len(split)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return order, turn


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
