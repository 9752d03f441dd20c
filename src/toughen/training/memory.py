"""Memory that does not suffice, in one sentence: what to change, and that nothing is lost."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from toughen.models.batched import out_of_memory
from toughen.recipes import Recipe, RecipeError
from toughen.storage.checkpoint import latest_checkpoint


@contextmanager
def enough_memory(recipe: Recipe, out: Path, device: torch.device) -> Iterator[None]:
    """Within it a run may use up the memory of its device, or of the host.

    Raises:
        RecipeError: it did.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        newest = latest_checkpoint(out, warn=lambda _: None, clean=False)
        remedy = (
            f"{newest.path.name} in {out} is whole, and the same command goes on from it where there is more"
            if newest
            else _smaller(recipe)
        )
        raise RecipeError(f"out of memory on {device} ({_line(error)}); {remedy}") from error


def _smaller(recipe: Recipe) -> str:
    """What a run that has not begun can do with less."""
    rows = recipe.micro_batch if isinstance(recipe.micro_batch, int) else recipe.batch_size
    options = [f"micro_batch={rows // 2}"] if rows > 1 else []
    options += [] if recipe.activation_checkpointing else ["activation_checkpointing=true"]
    options += [] if recipe.precision == "bf16" else ["precision=bf16"]
    return " or ".join(["use a smaller model", *options])


def _line(error: Exception) -> str:
    # torch's own text goes on with advice about its allocator.
    return str(error).strip().partition("\n")[0].partition(". GPU")[0].rstrip(".")[:200] or type(error).__name__
