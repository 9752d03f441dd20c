"""What watches a run without making the device wait: sums and flags stay on the device until they are read.

Example:
    finite.guard(optimizer, losses, x, index, step)      # masks the coming update if anything is NaN or infinite
    finite.check()                                       # raises, naming the first bad step and its examples
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from toughen import devices
from toughen.losses import hard, labelled
from toughen.parallel import ranks


class NonFinite(RuntimeError):
    """A loss or gradient was NaN or infinite; the weights are those before that step."""


class Finite:
    """Stops a run before the optimiser takes a step that is NaN or infinite.

    The update is masked on the device (torch's fused optimisers skip a step whose `found_inf` is set, weights and
    momentum alike), from the first bad step on; the flags are read where the run reads from the device anyway. On MPS,
    whose optimisers cannot skip a step, they are read before each.

    Args:
        slots: rows of this rank's batches.
        device: of the model.
    """

    def __init__(self, slots: int, device: torch.device | str):
        self._broken = torch.zeros((), dtype=torch.bool, device=device)
        self._step = torch.full((), -1, device=device)
        self._rows = torch.zeros(slots, dtype=torch.bool, device=device)
        self._index = torch.zeros(slots, dtype=torch.int64, device=device)
        self._masks = devices.skips_steps(self._broken.device)

    def guard(self, optimizer: torch.optim.Optimizer, losses: Tensor, x: Tensor, index: Tensor, step: int) -> None:
        """Note the step if it is bad, and mask it and all later ones.

        Args:
            optimizer: its gradients in place; fused, where a device can skip its steps.
            losses: per example (N,).
            x: the images (N, C, H, W), of which an attack's clipping could hide what is infinite.
            index: of the examples, (N,).
            step: number of the step that is about to be taken.

        Raises:
            NonFinite: see `check`, where the update cannot be masked.
        """
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        images, bad_rows = ~x.isfinite().all(dim=(1, 2, 3)), ~losses.detach().isfinite()
        # One such image makes every loss of its batch so, through BatchNorm.
        bad_rows = torch.where(images.any(), images, bad_rows)
        bad = ranks.any_rank(bad_rows.any() | ~torch.nn.utils.get_total_norm(gradients).isfinite())
        first = bad & ~self._broken
        n = len(losses)
        self._step = torch.where(first, step, self._step)
        self._rows[:n] = torch.where(first, bad_rows, self._rows[:n])
        self._index[:n] = torch.where(first, index.to(self._index), self._index[:n])
        self._broken = self._broken | bad
        if self._masks:
            optimizer.found_inf = self._broken.float()  # pyright: ignore[reportAttributeAccessIssue]
        else:
            self.check()

    def check(self) -> None:
        """Wait for the device and look.

        Raises:
            NonFinite: with the first bad step, the rank and its examples, and what to do.
        """
        if not bool(self._broken):
            return
        ids = self._index[self._rows].tolist()
        where = f"examples {', '.join(map(str, ids[:5]))}{' ...' if len(ids) > 5 else ''}" if ids else "in a gradient"
        raise NonFinite(
            f"AT111 The loss or its gradient is not finite at step {int(self._step)} on rank {ranks.rank()} "
            f"({where}). The optimiser was not stepped and no checkpoint was written; lower optimizer.lr or use "
            "precision=fp32."
        )


@dataclass
class Meters:
    """Sums since the last line of the log, on the device: the mean loss and the accuracy on what was forwarded."""

    _loss: float = 0.0
    _losses: list[Tensor] = field(default_factory=list)
    _examples: int = 0
    _labelled: Tensor | int = 0
    _correct: dict[str, Tensor | int] = field(default_factory=dict)

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[list[Tensor]]:
        """Collect the logits of every forward pass until the context ends: accuracy without a pass of its own."""
        seen: list[Tensor] = []
        handle = model.register_forward_hook(lambda module, inputs, logits: seen.append(logits.detach()))
        try:
            yield seen
        finally:
            handle.remove()

    def add(self, losses: Tensor, seen: list[Tensor], y: Tensor, forwards: tuple[str, ...]) -> None:
        """One step: per-example losses (N,), the logits that were seen, the labels, and what each pass saw.

        Examples without a label count in the loss alone.
        """
        # Added up where they are read, in float64, which not every device has.
        self._losses.append(losses.detach().sum())
        self._examples += len(y)
        known = labelled(y)
        self._labelled = self._labelled + known.sum()
        for kind, logits in zip(forwards, seen, strict=False):
            right = (logits.argmax(1) == hard(y)) & known if len(y) else known
            correct = right.sum()
            self._correct[kind] = self._correct.get(kind, 0) + correct

    def state(self) -> dict[str, Any]:
        """The sums so far, as plain numbers; reading them makes the device wait."""
        return {
            "loss": self._total_loss(),
            "examples": self._examples,
            "labelled": int(self._labelled),
            "correct": {kind: int(count) for kind, count in sorted(self._correct.items())},
        }

    def restore(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on from what `state` gave, added up where there are several."""
        counts = [Counter(state["correct"]) for state in states]
        self._loss, self._losses = math.fsum(state["loss"] for state in states), []
        self._examples = sum(state["examples"] for state in states)
        self._labelled = sum(state["labelled"] for state in states)
        self._correct = {kind: sum(count[kind] for count in counts) for count in counts for kind in count}

    def _total_loss(self) -> float:
        total = self._loss
        # One after the other, so that a run that goes on in their midst comes to the same bits.
        for loss in torch.stack(self._losses).tolist() if self._losses else ():
            total += loss
        return total

    def read(self) -> dict[str, float]:
        """Means over all ranks since the last reading, which also starts the sums anew."""
        kinds = sorted(self._correct)
        home = devices.float64_home(self._losses[0].device) if self._losses else torch.device("cpu")
        counts = [self._examples, self._labelled, *(self._correct[kind] for kind in kinds)]
        sums = torch.tensor([self._total_loss(), *map(int, counts)], dtype=torch.float64, device=home)
        loss, examples, known, *correct = ranks.total(sums).tolist()
        self._loss, self._losses, self._examples, self._labelled, self._correct = 0.0, [], 0, 0, {}
        return {"loss": loss / examples} | {
            f"{kind}_batch_accuracy": count / max(known, 1) for kind, count in zip(kinds, correct, strict=True)
        }
