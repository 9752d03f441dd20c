"""How many images fit into a GPU's memory in one pass, found by trying before training begins.

    job.micro_batch = rows_that_fit(job, batches[0])

A try runs the method's attacks, a forward and a backward pass on a real batch in parts of that size, and leaves nothing
behind: one part alone would not show the other parts' adversarial examples, nor the gradients so far. Beside it lies
what the first step will add: the optimiser's momentum, and what weight perturbation keeps.
"""

import torch

from toughen.data import Batch
from toughen.methods import State
from toughen.parallel import ranks
from toughen.recipes import RecipeError
from toughen.training.activation_checkpointing import recomputed
from toughen.training.loop import Job, backward, objectives_of
from toughen.training.micro_batches import divided, fewest


def rows_that_fit(job: Job, batch: Batch) -> int | None:
    """Images of each rank in one pass: all of them, or their number halved until they fit; None for all.

    Args:
        job: in its first state, in which it is left.
        batch: a full one.

    Raises:
        RecipeError: not even one image fits, or not the two that the network needs.
    """
    most = rows = -(-batch.size // ranks.world())
    while not fits(job, batch, rows):
        before, rows = rows, -(-rows // 2)
        if rows == before or fewest(batch.size, rows, job.least) < job.least:
            few = "two images fit" if job.least == 2 else "one image fits"
            raise RecipeError(
                f"micro_batch: not even {few} into the device's memory; use a smaller model, "
                "activation_checkpointing=true or precision=bf16"
            )
    return None if rows == most else rows


def fits(job: Job, batch: Batch, rows: int) -> bool:
    """Whether every rank has the memory for the first step of a batch, so many images at a time."""
    buffers = [(buffer, buffer.clone()) for buffer in job.model.buffers()]
    state = {name: value.clone() for name, value in job.state.items()}
    device = batch.x.device
    missed = torch.zeros((), dtype=torch.bool, device=device)
    try:
        _first_step(job, batch, state, rows)
    except torch.OutOfMemoryError:
        missed.fill_(True)
    job.model.zero_grad(set_to_none=True)
    for buffer, before in buffers:
        buffer.copy_(before)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return not bool(ranks.any_rank(missed))


def _first_step(job: Job, batch: Batch, state: State, rows: int) -> None:
    """The first step of a batch up to its gradients."""
    trained = [p for p in job.model.parameters() if p.requires_grad]
    beside = [torch.empty_like(p) for p in trained * (3 if job.perturbation else 1)]
    job.model.train()
    with (
        ranks.unsynchronised(job.wrapped),
        recomputed(job.recomputed),
        divided(job.method, batch, state, rows, job.least) as parts,
    ):
        backward(job, batch, next(objectives_of(job, parts)))
    del beside
