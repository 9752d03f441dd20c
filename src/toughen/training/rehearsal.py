"""The first step, tried and taken back: what cannot be done on this device is known, and said, before training begins.

ready(recipe, job, batches, note)      # how many images fit, whether the network compiles, which sums may differ
"""

import re
import warnings
from collections.abc import Callable
from dataclasses import replace

from toughen.data import Batch, Batches
from toughen.models.refusals import first_line
from toughen.modes import NO_SUCH_KERNEL
from toughen.parallel import ranks
from toughen.recipes import Recipe
from toughen.training.acceleration import folding_of
from toughen.training.loop import Job, rehearse
from toughen.training.micro_batch_search import rows_that_fit
from toughen.training.micro_batches import leave_out_short


def ready(recipe: Recipe, job: Job, batches: Batches, note: Callable[[str], None]) -> None:
    """Try a step in the ways in which a run is to compute, and go on in others where it cannot.

    Args:
        recipe: of the run.
        job: between two batches, under the run's `kernels`; it may lose its graphs.
        batches: of the run.
        note: is told of what is otherwise than the recipe has it.

    Raises:
        RecipeError: not even one image fits, see `rows_that_fit`.
    """
    if recipe.micro_batch == "auto":
        if job.number == 0:
            job.micro_batch = rows_that_fit(job, batches[0])
        leave_out_short(recipe, job.model, batches, job.micro_batch, job.least, note)
    if job.graphs:
        compile_or_not(job, batches[0], note)
    if recipe.fast == "off" and (names := inexact(job, batches[0])):
        note(
            "fast: off cannot promise the same bits at every run of this network: torch has no kernel that always sums "
            f"alike for {', '.join(names)}"
        )


def compile_or_not(job: Job, batch: Batch, note: Callable[[str], None]) -> None:
    """Go on without graphs where the network cannot be compiled on some rank: every form of a step is tried.

    There may be no C compiler, none of Python's headers, a GPU that is too old, or a full disk.
    """
    said = ""
    try:
        # Its own warnings are none of the run's, and are no failure where the user has made errors of them.
        with warnings.catch_warnings(action="ignore"):
            rehearse(job, batch, job.micro_batch)
    except Exception as error:  # noqa: BLE001  # a compiler may fail in any way
        said = f"{type(error).__name__}: {first_line(getattr(error, 'inner_exception', None) or error)}"
    if not (failed := [told for told in ranks.from_every(said) if told]):
        return
    job.graphs = None
    job.ways = replace(job.ways, compiled=False, folded=True)
    job.folding = folding_of(job.model, batch.x.shape[1:], batch.x.device, batch.x.dtype)
    # What the network itself raises it raises again, and nobody is told of compilers.
    rehearse(job, batch, job.micro_batch)
    note(f"the network cannot be compiled here ({failed[0].rstrip('.')}); computing in {job.ways}")


def inexact(job: Job, batch: Batch) -> list[str]:
    """What a step makes use of that does not sum alike each time, as torch calls it."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        rehearse(job, batch, job.micro_batch)
    found = [re.match(NO_SUCH_KERNEL, str(warning.message)) for warning in told]
    return sorted({match[1] or "cuBLAS" for match in found if match})
