"""The state of a run as its checkpoint tells it, read as strictly as if a stranger had written it.

saved = Saved.of(checkpoint)        # raises Damaged where a value is missing, or of another kind
with fitting(checkpoint):
    restore(job, checkpoint)        # what fails in here is the checkpoint's fault too
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError

from toughen.models.cost import Passes
from toughen.storage.checkpoint import Checkpoint
from toughen.storage.files import Damaged, encode
from toughen.training.acceleration import Acceleration
from toughen.training.catastrophic_overfitting import OverfittingState

Whole = Annotated[int, Field(ge=0)]


class _StrictState(BaseModel, frozen=True, extra="forbid", strict=True, allow_inf_nan=False):
    """Values of the very kind that is written."""


class _Meters(_StrictState, frozen=True):
    """Sums since the last line of the log, of one rank."""

    loss: float
    examples: Whole
    labelled: Whole
    correct: dict[str, Whole]


class _Best(_StrictState, frozen=True):
    """The best weights of a candidate."""

    step: Whole
    clean_accuracy: float
    robust_accuracy: float


class SavedState(_StrictState, frozen=True):
    """What a checkpoint holds beside tensors; the defaults are for what older ones lack.

    Attributes:
        step: optimiser steps taken.
        number: minibatches done.
        passes: of the model, on the first rank.
        meters: of each rank.
        micro_batch: images of each rank in one pass.
        ways: in which it computes; None for one that does not say.
        code: see `state.code_of`; None for a checkpoint that does not say.
        metrics: bytes of `metrics.jsonl`.
        timing: bytes of `timing.jsonl`.
        best: by candidate.
        selected_by: the accuracy by which that is chosen; None for a run that an earlier version began, see `improved`.
        overfitting: what the watch remembers.
        seconds: of training and validating.
        unvalidated: whether it was saved before the validation that is due at its step.
        data: see `About`.
        extra: fingerprint of the extra set.
        threads: of torch.
        torch: its version.
    """

    step: Whole
    number: Whole
    passes: Passes
    meters: list[_Meters] = []
    micro_batch: Annotated[int, Field(ge=1)] | None = None
    ways: Acceleration | None = None
    code: dict[str, str] | None = None
    metrics: Whole
    timing: Whole
    best: dict[str, _Best]
    selected_by: Literal["robust_accuracy", "clean_accuracy"] | None = None
    overfitting: OverfittingState = Field(default_factory=OverfittingState)
    seconds: float
    unvalidated: bool = False
    data: dict[str, Any]
    extra: str | None
    threads: Whole
    torch: str

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Self:
        """Read a checkpoint's state.

        Raises:
            Damaged: it is not a run's.
        """
        try:
            return cls.model_validate_json(encode(checkpoint.state))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise Damaged(checkpoint.path, f"state.json is not a run's: {where}: {first['msg']}") from None

    def check_place(self, checkpoint: Checkpoint, *, batches: int, steps_per_batch: int) -> None:
        """Refuse a place that a run does not come by.

        Raises:
            Damaged: the steps are not those of so many minibatches, or more than there are.
        """
        if self.number > batches or self.step != self.number * steps_per_batch or self.step != checkpoint.step:
            reason = f"state.json is at step {self.step} after {self.number} of {batches} minibatches"
            raise Damaged(checkpoint.path, reason)


@contextmanager
def fitting(checkpoint: Checkpoint) -> Iterator[None]:
    """What goes wrong inside is the checkpoint's fault: it is whole, but not of this run.

    Raises:
        Damaged: instead of whatever its tensors made go wrong.
    """
    try:
        yield
    except Damaged:
        raise
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        said = str(error).partition("\n")[0]
        reason = f"its tensors do not fit this run: {type(error).__name__}: {said}"
        raise Damaged(checkpoint.path, reason) from error
