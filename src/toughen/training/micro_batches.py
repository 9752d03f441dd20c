"""Gradient accumulation: a batch in parts, where the memory is too small for it; the optimiser steps once on all.

    with divided(method, batch, state, rows=128) as parts:
        for objectives in zip(*(part.method.losses(model, part.batch, part.state) for part in parts)):
            ...                                       # one optimiser step: the gradients of all objectives, added up

Every draw and every mean is that of the whole batch, so the step is the same to rounding, with one exception that
nothing can mend: BatchNorm in training mode normalises each part by its own statistics.

No pass has fewer images than the network can be trained on (`images_needed`). Where the last part would, the batch is
cut evenly; where that does not help, or a rank of a short last batch would have too few, that batch is left out of its
epoch (the images in it are others in each); and a full batch that cannot be so is refused before the first step.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from toughen.data import Batch, Batches
from toughen.devices import own_draws
from toughen.methods import Method, State
from toughen.methods.wrapper import Wrapper
from toughen.models.refusals import described, is_models
from toughen.modes import training
from toughen.parallel import ranks
from toughen.recipes import Recipe, RecipeError


@dataclass(frozen=True)
class MicroBatch:
    """Some rows of a batch, and what runs on them.

    Attributes:
        method: without its wrappers, which have seen the whole batch.
        batch: the rows; its `size` counts those of this part over all ranks.
        state: the method's, of these rows: slots are theirs, what belongs to training examples is shared.
    """

    method: Method
    batch: Batch
    state: State


@contextmanager
def divided(method: Method, batch: Batch, state: State, rows: int | None, least: int = 0) -> Iterator[list[MicroBatch]]:
    """A batch in parts of at most so many rows on each rank; the method's state is whole again at the end.

    Args:
        method: of training.
        batch: this rank's rows of a global batch.
        state: of the method; changed in place by what runs on the parts.
        rows: of a part; None for one part, the batch as it is.
        least: rows that a part must have on every rank, see `cuts`.
    """
    slices = cuts(batch.size, rows, least)
    if len(slices) == 1:
        yield [MicroBatch(method, batch, state)]
        return
    while isinstance(method, Wrapper):
        method, batch = method.method, method.changed(batch)
    parts = [_part(method, batch, state, part) for part in slices]
    yield parts
    # Each part has moved a copy of its own, as if it were the whole batch, and all in the same way.
    for name in _replicated(method, state):
        state[name].copy_(parts[0].state[name])


def cuts(size: int, rows: int | None, least: int = 0) -> list[slice]:
    """Each rank's rows of the parts of a batch: `rows` in all but the last, or evenly where that had too few.

    Args:
        size: rows of the batch on all ranks together.
        rows: of a part on each rank; None for one part.
        least: rows that a part must have on every rank; where that cannot be, some have fewer (`fewest`).
    """
    world = ranks.world()
    most, fewer = -(-size // world), size // world
    starts = list(range(0, most, rows or max(most, 1))) or [0]
    if len(starts) > 1 and fewer - starts[-1] < least:
        # By the rows of the ranks that have fewer; the last part has one more on the others.
        starts = [-(-number * fewer // len(starts)) for number in range(len(starts))]
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], most], strict=True)]


def fewest(size: int, rows: int | None, least: int) -> int:
    """The fewest rows that a rank has in a part of a batch (see `cuts`)."""
    fewer = size // ranks.world()
    return min(min(part.stop, fewer) - part.start for part in cuts(size, rows, least))


def images_needed(
    recipe: Recipe, model: nn.Module, shape: tuple[int, ...], device: torch.device, *, together: bool = False
) -> int:
    """How many images each rank must have in a pass in training mode, found by trying.

    Two where the network cannot be trained on one alone, as with BatchNorm over a single number a channel; one
    where several ranks normalise together or share the weights, and so wait for one another; otherwise none.

    Args:
        recipe: of the run.
        model: of the run, not yet given to several ranks.
        shape: (C, H, W) of the images.
        device: of the model.
        together: whether BatchNorm is synchronised.

    Raises:
        RecipeError: it cannot be trained on two either.
    """
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    alone = _refused(model, torch.zeros(1, *shape, device=device, dtype=dtype))
    if alone and (refused := _refused(model, torch.zeros(2, *shape, device=device, dtype=dtype))):
        raise RecipeError(
            f"model: {recipe.model.name} does not take {'x'.join(map(str, shape))} images in training mode "
            f"({described(refused)}); use larger images or another network"
        )
    if alone and not together:
        return 2
    return int(together or (recipe.sharding == "full" and ranks.world() > 1))


def _refused(model: nn.Module, x: torch.Tensor) -> Exception | None:
    """What a pass in training mode raises for some images; the model and the random state stay as they are."""
    # What has no shape yet gets one here, and its values from the checkpoint.
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers() if not is_lazy(buffer)]
    try:
        with own_draws(x.device), training(model), torch.no_grad():
            logits = model(x)
        if isinstance(logits, torch.Tensor) and logits.shape[:1] != x.shape[:1]:
            # As of a network that squeezes away whatever axis has one entry.
            return ValueError(f"it gives logits of shape {tuple(logits.shape)} for {len(x)} images")
    except Exception as error:
        if not is_models(error):
            raise
        return error
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)
    return None


def leave_out_short(
    recipe: Recipe, model: nn.Module, batches: Batches, rows: int | None, least: int, note: Callable[[str], None]
) -> None:
    """Leave short last batches out where a rank would have fewer images in a pass than it needs.

    Args:
        recipe: of the run.
        model: of the run.
        batches: of the run, changed where that is so.
        rows: of each rank in one pass; None for all.
        least: see `images_needed`.
        note: is told of what is left out.

    Raises:
        RecipeError: full batches have too few.
    """
    world, normalises = ranks.world(), has_batchnorm(model)
    # In parts a rank may have nothing to normalise, but not in a whole batch.
    whole = max(least, int(normalises and world > 1))
    who = "the network in training mode" if least == 2 else "BatchNorm" if normalises else "sharding"
    needs = f"{who} needs {('', 'one', 'two')[whole]} at least" + (
        f" on each of the {world} ranks" if world > 1 else ""
    )

    def short(size: int) -> bool:
        return size // world < whole or fewest(size, rows, least) < least

    if recipe.batch_size // world < whole:
        raise RecipeError(
            f"batch_size: {recipe.batch_size} is too few images, for {needs}; give {whole * world} or more"
        )
    if short(recipe.batch_size):
        raise RecipeError(
            f"micro_batch: parts of {rows} leave too few images in one of a batch of {recipe.batch_size}, for {needs}; "
            "choose another micro_batch, or null"
        )
    if short(batches.smallest):
        note(
            f"the last batch of every epoch, with {batches.smallest} of the images, is left out, for {needs}; which "
            "images those are changes from epoch to epoch"
        )
        batches.leave_out_short()


def batchnorm_of_ranks(recipe: Recipe, model: nn.Module) -> str:
    """What BatchNorm normalises by where there are several ranks, in a sentence; empty where it makes no difference."""
    if ranks.world() == 1 or not has_batchnorm(model):
        return ""
    if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        return "synchronised BatchNorm: all ranks normalise by the whole batch"
    wanted = "; batchnorm: synchronised needs GPUs" if recipe.batchnorm == "synchronised" else ""
    return f"per-rank BatchNorm: each rank normalises by its own part of the batch{wanted}"


def has_batchnorm(model: nn.Module) -> bool:
    """Whether statistics of the batch enter the model, which several ranks do not share."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def _part(method: Method, batch: Batch, state: State, rows: slice) -> MicroBatch:
    world, kinds = ranks.world(), method.state_kinds
    # Row i of the global batch lives on rank i mod world, so the same slice of every rank is a stretch of that batch.
    size = min(rows.stop * world, batch.size) - rows.start * world
    own = {name: value[rows] if kinds[name] == "slot" else value for name, value in state.items()}
    own |= {name: state[name].clone() for name in _replicated(method, state)}
    part = replace(
        batch,
        x=batch.x[rows],
        y=batch.y[rows],
        index=batch.index[rows],
        noise=batch.noise[rows],
        extra=None if batch.extra is None else batch.extra[rows],
        size=size,
    )
    return MicroBatch(method, part, own)


def _replicated(method: Method, state: State) -> list[str]:
    return [name for name in state if method.state_kinds[name] == "replicated"]
