"""What a data set is: decoded images and labels in splits, and the two ways to take a part of one.

Pixels stay uint8 until a batch is made, so that a whole data set fits on the device. Validation images come from the
data's own validation split or from the training images; nothing here ever reads the test split to choose anything.

    data = load("cifar10")
    train, validation, index = held_out(data, seed=0)        # 48,976 and 1,024 images
    few, chosen = subset(train, 5000, seed=0)                # index[chosen] are their original positions
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from toughen.noise import generator

HELD_OUT = 1024


@dataclass(frozen=True, eq=False)
class Split:
    """Images and labels of one split.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64, class indices.

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
        if self.labels.dtype != torch.int64 or self.labels.ndim != 1:
            raise ValueError(f"labels are {_describe(self.labels)}, but must be class indices, int64 of shape (N,).")
        if len(self.images) != len(self.labels):
            raise ValueError(f"{len(self.images)} images came with {len(self.labels)} labels; give one label an image.")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> "Split":
        """The examples at `indices` ((M,) int64, or a mask (N,) bool), in that order; the pixels are copied."""
        return Split(self.images[indices], self.labels[indices])

    def float_images(self) -> Tensor:
        """The images as (N, C, H, W) float32 in [0, 1]."""
        return to_float(self.images)


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set with its splits.

    Args:
        name: what it is called in tables and run folders.
        train: the training split.
        validation: the validation split that the data came with, or None.
        test: the test split; for final numbers only, never for choosing.
        classes: the classes' names, in the order of their indices.

    Raises:
        ValueError: a split is empty, its images have another shape than the training images, or a label is no class.
    """

    name: str
    train: Split
    validation: Split | None
    test: Split
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        for name, split in self.splits.items():
            if not len(split):
                raise ValueError(f"The {name} split of {self.name} holds no image; it must hold at least one.")
            if split.images.shape[1:] != self.train.images.shape[1:]:
                raise ValueError(
                    f"The {name} images of {self.name} are {tuple(split.images.shape[1:])} (C, H, W), but its training "
                    f"images are {self.image_shape}; bring all splits to one shape."
                )
            outside = ((split.labels < 0) | (split.labels >= self.num_classes)).nonzero()
            if len(outside):
                first = int(outside[0])
                raise ValueError(
                    f"Example {first} of the {name} split of {self.name} has label {int(split.labels[first])}, but the "
                    f"{self.num_classes} classes allow 0 to {self.num_classes - 1}; remove or relabel the example."
                )

    @property
    def splits(self) -> dict[str, Split]:
        """The splits there are by name: train, validation (if any), test."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def channels(self) -> int:
        """Number of channels, 1 for grey and 3 for colour."""
        return self.image_shape[0]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over shapes, labels and pixels of all splits: equal exactly when the data are."""
        digest = hashlib.sha256()
        for name, split in self.splits.items():
            digest.update(f"{name}{tuple(split.images.shape)}".encode())
            for tensor in (split.labels, split.images):
                # Little-endian labels, so that the fingerprint is the same on every machine.
                array = tensor.cpu().contiguous().numpy()
                digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
        return digest.hexdigest()


def to_float(images: Tensor) -> Tensor:
    """uint8 pixels as float32 in [0, 1]: the one conversion, so that training and evaluation see equal numbers."""
    return images.float().div_(255)


def held_out(data: ImageData, *, seed: int, size: int | None = None) -> tuple[Split, Split, Tensor]:
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


def subset(split: Split, n: int, *, seed: int) -> tuple[Split, Tensor]:
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
    order = torch.randperm(len(split), generator=generator("subset", seed, len(split)))
    by_class = split.labels.cpu()[order].argsort(stable=True)
    counts = split.labels.cpu().bincount()
    # The k-th example of its class has turn k: taking turns in order is dealing one example a class and round.
    turn = torch.empty_like(order)
    turn[by_class] = torch.arange(len(split)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    chosen = order[turn.argsort(stable=True)[:n]].sort().values
    return split.take(chosen), chosen


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
