"""One radius for each training example: its memory, and the rules of IAAT (Balaji et al. 2019) by which it moves.

    eps = recalled(memory, batch.index, unseen=8 / 255)
    candidate = three_way(eps, gamma, withstands_wider, withstands_same)
    remember(memory, batch, smoothed(eps, candidate, beta=0.1))

A memory is (examples,), the same on every rank, in pixel units; -1 where an example has not been seen yet, because
checkpoints refuse NaN.
"""

import math
from typing import Any

import torch
from torch import Tensor

from toughen.data import Batch
from toughen.devices import has_float64
from toughen.losses import labelled
from toughen.parallel import ranks

UNSEEN = -1.0
BINS, MOST_BINS = 16, 256  # of the histogram in the log, up to the usual radii and in all
FOLLOWED = 3  # examples whose radii stand in every line of the log


def recalled(memory: Tensor, index: Tensor, unseen: float) -> Tensor:
    """The radii of these examples, (N,); `unseen` for those that have none."""
    found = memory[index]
    return torch.where(found >= 0, found, unseen)


def remember(memory: Tensor, batch: Batch, radius: Tensor) -> None:
    """Write the radii (N,) of a batch into every rank's memory; an example without a label keeps what it had.

    An example must stand at most once in a global batch; of several radii one would be kept, no matter which.
    """
    kept = torch.where(labelled(batch.y), radius.to(memory), memory[batch.index])
    if not has_float64(memory.device):
        memory.index_copy_(0, *(ranks.gather(part, batch.size) for part in (batch.index, kept)))
        return
    # One exchange for both: float64 holds any example's number and any radius exactly.
    rows = ranks.gather(torch.stack([batch.index.double(), kept.double()], 1), batch.size)
    memory.index_copy_(0, rows[:, 0].long(), rows[:, 1].to(memory))


def three_way(eps: Tensor, gamma: float, wider: Tensor, same: Tensor) -> Tensor:
    """IAAT, algorithm 2, lines 4 to 10: eps + gamma, eps or eps - gamma, which may be negative.

    Args:
        eps: remembered radii (N,).
        gamma: how far a radius is tried to move.
        wider: (N,) bool, whether the prediction withstands the attack with eps + gamma.
        same: (N,) bool, whether it withstands the one with eps.
    """
    return torch.where(wider, eps + gamma, torch.where(same, eps, eps - gamma))


def smoothed(eps: Tensor, candidate: Tensor, beta: float, lower: float = 0.0) -> Tensor:
    """IAAT, algorithm 2, line 11, clipped from below: max((1 - beta) eps + beta candidate, lower), (N,)."""
    return ((1 - beta) * eps + beta * candidate).clamp(min=lower)


def described(memory: Tensor, usual: float) -> dict[str, Any]:
    """What a line of the log says of the examples seen so far; waits for the device.

    Args:
        memory: (examples,).
        usual: radii up to here have 16 bins; larger ones have more of the same width, as many as they need.

    Returns:
        Nothing while no example has been seen, then "radius_mean"; "radius_histogram", with its edges and one count
        fewer; "radius_of", the radii of the examples with the lowest numbers, so that successive lines are their
        histories.
    """
    values = memory.detach().cpu().double()
    numbers = (values >= 0).nonzero().squeeze(1)
    if not len(numbers):
        return {}
    seen = values[numbers]
    largest, width = float(seen.max()), usual / BINS
    bins = min(max(BINS, math.ceil(largest / width)), MOST_BINS) if width else BINS
    edges = torch.arange(bins + 1, dtype=torch.float64) * width
    # Where there are not bins enough, the last one is wide.
    edges[-1] = max(float(edges[-1]), largest)
    counts = torch.bincount(torch.bucketize(seen, edges[1:-1], right=True), minlength=bins)
    return {
        "radius_mean": float(seen.mean()),
        "radius_histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        "radius_of": {str(number): float(values[number]) for number in numbers[:FOLLOWED].tolist()},
    }
