"""What a run must remember of its data, so that its weights can be described when the images are gone.

card = DatasetCard.of(data, trained=len(train_split), validated=len(validation))
card.changed(data.fingerprints)                  # ["test"]: the splits that hold other images now
DatasetCard.read(card.state) == card
"""

import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from toughen.data import ImageData


@dataclass(frozen=True)
class DatasetCard:
    """A data set without its images.

    Attributes:
        name: what it is called.
        classes: the classes' names.
        image_shape: (C, H, W) of every image.
        sizes: images by split, before any were held out.
        trained: images that training draws from.
        validated: images held out for the choice of the best weights.
        fingerprint: of all splits, see `ImageData`.
        fingerprints: of each split.
    """

    name: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    sizes: dict[str, int]
    trained: int
    validated: int
    fingerprint: str
    fingerprints: dict[str, str]

    @classmethod
    def of(cls, data: ImageData, *, trained: int, validated: int) -> Self:
        """What there is to remember of a data set."""
        sizes = {name: len(split) for name, split in data.splits.items()}
        shape, prints = data.image_shape, data.fingerprints
        return cls(data.name, data.classes, shape, sizes, trained, validated, data.fingerprint, prints)

    @classmethod
    def read(cls, state: dict[str, Any]) -> Self:
        """From `state`.

        Raises:
            ValueError: it is not what `state` gives.
        """
        try:
            channels, height, width = (operator.index(side) for side in state["image_shape"])
            classes = tuple(map(str, state["classes"]))
            sizes = {str(name): operator.index(size) for name, size in state["sizes"].items()}
            prints = {str(name): str(value) for name, value in state["fingerprints"].items()}
            read = {"classes": classes, "image_shape": (channels, height, width), "sizes": sizes}
            return cls(**{**state, **read, "fingerprints": prints})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"its data are not described as toughen does ({type(error).__name__})") from None

    @property
    def state(self) -> dict[str, Any]:
        """It as what comes back from JSON equal."""
        return {**asdict(self), "classes": [*self.classes], "image_shape": [*self.image_shape]}

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def channels(self) -> int:
        """Number of channels of an image."""
        return self.image_shape[0]

    def changed(self, now: Mapping[str, str]) -> list[str]:
        """The splits whose fingerprints are others now, or that only one of the two has."""
        return [name for name in ("train", "validation", "test") if self.fingerprints.get(name) != now.get(name)]
