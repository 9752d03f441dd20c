"""Which images of a pool make an extra training set, and with which labels.

A classifier scores every image; of each class that it predicts, the surest N / K are taken. That is the choice of
Carmon et al. 2019 and of Gowal et al. 2020, whose sets of 200,000, 500,000 and 1,000,000 images hold one another
(docs/methods/extra_data.md, How a set is chosen). Carmon's classifier has an eleventh class for images that show none
of the ten; what it puts there is out.

    predicted, scores = score_predictions(logits)             # logits (N, K) or, with a foreign class, (N, K + 1)
    choice = choose(scores, predicted, counts=(200, 500), classes=10)
    choice.index, choice.set                                  # positions in the pool; 200 or 500, the smallest set
    probabilities(logits, classes=10)                         # without the foreign class
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from toughen.devices import in_float64


@dataclass(frozen=True, eq=False)
class Choice:
    """The images of an extra set and of the smaller ones inside it.

    Args:
        index: (M,) int64, positions in the pool: those of the smallest set first, each set's in ascending order, so
            that the first rows are the smallest set, a few more the next one.
        set: (M,) int64, the smallest of the counts whose set holds the image.
        taken: for each count, how many images of each class its set holds.
        wanted: for each count, how many there should be.
    """

    index: Tensor
    set: Tensor
    taken: dict[int, list[int]]
    wanted: dict[int, list[int]]

    @property
    def missing(self) -> dict[int, dict[int, int]]:
        """For each count the classes that had too few candidates, with how many images are missing."""
        pairs = {count: enumerate(zip(self.wanted[count], self.taken[count], strict=True)) for count in self.taken}
        return {count: {k: want - got for k, (want, got) in rows if want > got} for count, rows in pairs.items()}


def score_predictions(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The predicted class of each image, and how sure it is.

    The score is log(p / (1 - p)) of the largest softmax probability p, which has p's order. p itself will not do: in
    floating point it is exactly 1 for every image of which a network is very sure, and those are the ones to rank.

    Args:
        logits: (N, K) with K of at least 2.

    Returns:
        Predicted classes (N,) int64, of equal logits the first, and scores (N,) float64.
    """
    wide = in_float64(logits)
    predicted = wide.argmax(1)
    top = wide.gather(1, predicted[:, None])
    others = (wide - top).scatter(1, predicted[:, None], -torch.inf)
    return predicted, -others.logsumexp(1)


def choose(
    scores: Tensor, predicted: Tensor, *, counts: Sequence[int], classes: int, allowed: Tensor | None = None
) -> Choice:
    """The N / K images of each predicted class with the highest scores, for every N of `counts`.

    Where K does not divide N, the first N mod K classes give one image more. Of equal scores the image that is
    earlier in the pool wins. So the sets are pure functions of the scores, and each holds the smaller ones. A class
    with too few candidates gives all it has; `Choice.missing` says so.

    Args:
        scores: (N,) floats, higher for surer.
        predicted: (N,) int64; a class of `classes` or beyond is foreign, and its images are never chosen.
        counts: sizes of the sets, each at least `classes`, in any order.
        classes: K.
        allowed: (N,) bool, which images may be chosen; all by default.

    Raises:
        ValueError: no counts, one twice or one too small.
    """
    sizes = check_counts(counts, classes)
    index, smallest, taken = [], [], {size: [0] * classes for size in sizes}
    wanted = {size: [size // classes + (k < size % classes) for k in range(classes)] for size in sizes}
    for k in range(classes):
        members = (predicted == k if allowed is None else (predicted == k) & allowed).nonzero().squeeze(1)
        ranked = members[scores[members].argsort(descending=True, stable=True)][: wanted[sizes[-1]][k]]
        place = torch.arange(len(ranked))
        of_size = torch.full_like(place, sizes[-1])
        for size in reversed(sizes):
            of_size[place < wanted[size][k]] = size
            taken[size][k] = min(len(ranked), wanted[size][k])
        index.append(ranked)
        smallest.append(of_size)
    chosen, sets = torch.cat(index), torch.cat(smallest)
    by_position = chosen.argsort()
    order = by_position[sets[by_position].argsort(stable=True)]
    return Choice(chosen[order], sets[order], taken, wanted)


def check_counts(counts: Sequence[int], classes: int) -> list[int]:
    """The sizes of the sets in ascending order.

    Raises:
        ValueError: as for `choose`.
    """
    sizes = sorted(counts)
    if not sizes or len(set(sizes)) < len(sizes) or sizes[0] < classes:
        given = ", ".join(str(size) for size in counts) or "nothing"
        raise ValueError(
            f"counts are {given}, but must be one or more different numbers of at least {classes}, one image a class."
        )
    return sizes


def probabilities(logits: Tensor, *, classes: int) -> Tensor:
    """Softmax over the classes proper, (N, classes) float32: what comes after them is dropped, the rest sums to 1."""
    return in_float64(logits[:, :classes]).softmax(1).float()
