"""What a recipe trains on: the section `data`, and the extra set in it.

data: {source: cifar10, pad: 4, flip: true, extra: {source: ./extra, labelled: 0.3}}
"""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from toughen.data.crops import ResizeCrop
from toughen.settings import Count, NonNegativeCount, Number, OpenShare, Settings, Some, Whole


def named_section(key: str) -> BeforeValidator:
    """Text in place of a section stands for its most important field."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str | list | tuple) else value)


Source = Annotated[str, Some]


class ExtraSettings(Settings, frozen=True):
    """A pseudo-labelled set beside the training images (Carmon et al. 2019; Limits, section 4.3).

    Attributes:
        source: like `data.source`, what `toughen label` wrote, or a list of .npz files; all training images are used.
        labelled: share of each batch that are training images of `data.source`, rounded to whole images; Limits, table
            9, finds 0.3 best.
        limit: only the first so many.
    """

    source: Source | Annotated[tuple[Source, ...], Some]
    labelled: OpenShare = 0.3
    limit: Count | None = None


class DataSettings(Settings, frozen=True):
    """What is trained on.

    Attributes:
        source: a name from `toughen list data`, `hub:owner/name`, a folder or a file.
        limit: train on a class-balanced subset of this many training images; null for all.
        per_class: train on this many images of each class, instead of a limit.
        size: side of the square images in pixels: training takes random resized crops and testing the centre, decoded
            ahead by worker processes; null takes the images as they are.
        resize: side to which the short side is resized before the centre is taken; null for 8/7 of the size.
        crop_area: the least share of an image that a random resized crop covers.
        workers: processes that decode; null for the cores there are, less one, at most 8.
        validation: images held out of the training set for selection; null for the source's own validation split, or
            1,024 images (10 % where there are fewer than 10,240).
        pad: pixels added on each side before a random crop back to size.
        pad_mode: what they hold: "constant" (black) or "reflect".
        flip: flip half of the images left to right.
        repeats: how often each image stands in its batch, each time under an augmentation of its own; it must divide
            the batch size.
        extra: a pseudo-labelled set, see `ExtraSettings`; null for none.
    """

    source: Source
    limit: Count | None = None
    validation: Count | None = None
    per_class: Count | None = None
    size: Count | None = None
    resize: Count | None = None
    crop_area: Annotated[Number, Field(gt=0, le=1)] = 0.08
    workers: Annotated[Whole, Field(ge=0, le=256)] | None = None
    pad: NonNegativeCount = 0
    pad_mode: Literal["constant", "reflect"] = "constant"
    flip: bool = False
    repeats: Count = 1
    extra: Annotated[ExtraSettings, named_section("source")] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.limit is not None and self.per_class is not None:
            raise ValueError("limit and per_class both say how many images; give one of them")
        if self.resize is not None and (self.size is None or self.resize < self.size):
            raise ValueError("resize goes with a size, and must be at least that; give data.size=224 data.resize=256")
        return self

    @property
    def view(self) -> ResizeCrop | None:
        """How images become tensors of one size, where that is asked for."""
        return ResizeCrop(self.size, self.resize, self.crop_area) if self.size else None
