"""How many images fit into a GPU's memory in one pass, found by trying before training begins.

    job.micro_batch = rows_that_fit(job, batches[0])

A try runs the method's attacks, a forward and a backward pass on a real batch in parts of that size, and leaves nothing
behind: one part alone would not show the other parts' adversarial examples, nor the gradients so far. Beside it lies
what the first step will add: the optimiser's momentum, and what weight perturbation keeps.
"""

import torch

from toughen import devices
from toughen.data import Batch
from toughen.models.batched import out_of_memory
from toughen.parallel import ranks
from toughen.recipes import RecipeError
from toughen.training.loop import Job, rehearse
from toughen.training.micro_batches import fewest


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
    device = batch.x.device
    missed = torch.zeros((), dtype=torch.bool, device=device)
    try:
        _first_step(job, batch, rows)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        missed.fill_(True)
    devices.forget_cache(device)
    return not bool(ranks.any_rank(missed))


def _first_step(job: Job, batch: Batch, rows: int) -> None:
    trained = [p for p in job.model.parameters() if p.requires_grad]
    beside = [torch.empty_like(p) for p in trained * (3 if job.perturbation else 1)]
    rehearse(job, batch, rows)
    del beside
