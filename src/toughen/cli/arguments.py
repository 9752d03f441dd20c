"""What commands take: text that can be written again, and the options that several of them share.

app = typer.Typer(cls=Arguments)
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from toughen.workflows import ModelSource

MODEL = "A run or exported model, weights (resnet18=FILE.pt), timm:NAME, or FILE.py:FUNCTION."

Model = Annotated[str, typer.Argument(help=MODEL)]
Scorer = Annotated[str, typer.Option(help=MODEL)]
Data = Annotated[str | None, typer.Option(help="Data set of a model of your own.")]
Size = Annotated[int | None, typer.Option(min=1, help="Bring its images to this side, like 224.")]
Mean = Annotated[str | None, typer.Option(help="Normalise first: one number a channel, like 0.5,0.5,0.5.")]
Std = Annotated[str | None, typer.Option(help="Goes with --mean.")]
Checkpoint = Annotated[str, typer.Option(help="Of a run: best (by validation) or last.")]
Weights = Annotated[str | None, typer.Option(help="Of a run: weights, or an average like average-0.995.")]
Key = Annotated[
    str | None, typer.Option(metavar="ENTRY", help="Of a file of weights with several that fit, like state_dict_ema.")
]
Ball = Annotated[str | None, typer.Option(help="Another threat model than the run's, like linf:4/255.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images at a time.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the random draws.")]
Images = Annotated[
    list[str] | None, typer.Option(help="Test images by position, like 0,1, whose loss surfaces are computed.")
]
Directions = Annotated[
    list[str] | None, typer.Option(help="Of their planes: random, adversarial (by default) or both with a comma.")
]
Out = Annotated[Path | None, typer.Option(help="Folder of the result; the same command goes on there.")]


class Arguments(TyperGroup):
    """Commands whose arguments are UTF-8: results name paths and are UTF-8 too, as are the libraries that open them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse any other argument at once, before work is done that could not be kept."""
        for argument in args:
            try:
                argument.encode()
            except UnicodeEncodeError:
                raise typer.BadParameter(f"{argument!a} is not UTF-8; rename it, or go there and give '.'") from None
        return super().parse_args(ctx, args)


def source_of(what: str, mean: str | None, std: str | None, **given: Any) -> "ModelSource":
    """The model that a command is about, with its normalisation's numbers read from text.

    Raises:
        ValueError: these are no numbers.
    """
    from toughen.settings import parse_number
    from toughen.workflows import ModelSource

    numbers = [None if text is None else [parse_number(part) for part in text.split(",")] for text in (mean, std)]
    return ModelSource(what, mean=numbers[0], std=numbers[1], **given)


def parts_of(items: list[str] | None) -> list[str]:
    """What an option that may be given several times, and each time with commas, names in all."""
    return [name.strip() for item in items or () for name in item.split(",")]


def positions_of(items: list[str] | None) -> list[int] | None:
    """Positions of images from text, with commas.

    Raises:
        ValueError: one is no whole number.
    """
    parts = None if items is None else parts_of(items)
    wrong = next((part for part in parts or () if not part.isdecimal()), None)
    if wrong is not None:
        raise ValueError(f"--images names {wrong!a}, which is no position; give whole numbers from 0, like 0,1")
    return parts if parts is None else [int(part) for part in parts]
