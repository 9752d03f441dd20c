"""Mixup (Zhang et al. 2018) around any method: pairs of images and of their labels are mixed, then the method trains.

    Mixup(alpha=1.4, method=AdversarialTraining(attack=AttackSpec(name="pgd", steps=10)))

Around adversarial training it is the "mix first, then attack the mixed loss" of the code of Rice et al. 2020, with
alpha 1.4. The other order, attack first, is `Interpolated` (docs/methods/mixup.md, Two readings). Be warned that models
trained so look better than they are: IAAT (Balaji et al. 2019), table 8, has them at 42.6 % under PGD-10 and 38.5 %
under PGD-1000, so believe no short attack.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from toughen.data import Batch
from toughen.devices import sent
from toughen.losses import probabilities
from toughen.methods.base import Seen
from toughen.methods.wrapper import Wrapper
from toughen.noise import Stream
from toughen.parallel import ranks
from toughen.settings import NonNegative


@dataclass(frozen=True, eq=False)
class Mixing:
    """Each row of the global batch and its partner, weighed: share * rows + (1 - share) * partners.

    Args:
        share: lambda, in [0, 1], of the row itself.
        partners: (N,) int64 on the CPU, for each of this rank's rows its partner's place in the global batch.
        size: rows of the global batch.
    """

    share: float
    partners: Tensor
    size: int

    def __call__(self, rows: Tensor) -> Tensor:
        """Mix (N, ...). Every rank must call it, with its rows: the partners may be anywhere."""
        return self.share * rows + (1 - self.share) * ranks.gather(rows, self.size)[sent(self.partners, rows.device)]


def mixing(noise: Stream, size: int, alpha: float) -> Mixing:
    """One lambda ~ Beta(alpha, alpha) and one permutation for a whole global batch, equal on all ranks.

    One for the batch, as in Zhang et al.'s code; their equations draw lambda for each pair.

    Args:
        noise: of the batch, for this purpose alone.
        size: rows of the global batch.
        alpha: positive; 1 draws lambda uniformly, more draws it nearer to one half, less nearer to 0 or 1.
    """
    draw = noise.shared()
    share = float(draw.beta(alpha, alpha))
    return Mixing(share, torch.from_numpy(draw.permutation(size))[noise.rows], size)


def mixed(batch: Batch, x: Tensor, alpha: float, *purpose: str) -> tuple[Tensor, Tensor]:
    """Images and labels of a batch, mixed alike; as they are where alpha is 0, which stands for lambda = 1.

    The labels are lambda onehot(y) + (1 - lambda) onehot(y'). One that is missing counts for nothing, so that what is
    left of a row adds up to its partner's share.

    Args:
        batch: gives labels and noise.
        x: (N, C, H, W), its images, or others made of them.
        alpha: as in `mixing`, or 0.
        purpose: the name of the draw.

    Returns:
        Images, shaped as x, and probabilities (N, K).
    """
    if alpha == 0:
        return x, batch.y
    mix = mixing(batch.noise.child(*purpose), batch.size, alpha)
    return mix(x), mix(probabilities(batch.y, batch.classes, x.dtype))


class Mixup(Wrapper, frozen=True):
    """x <- lambda x + (1 - lambda) x', y <- lambda onehot(y) + (1 - lambda) onehot(y'); then the method inside.

    (x', y') is the batch in another order, lambda ~ Beta(alpha, alpha). No pass is added. What the method keeps by
    image or by row (Free's perturbation) goes with the first of the two images.

    Attributes:
        name: "mixup".
        alpha: at least 0; 0 is the method inside, bit for bit. Zhang et al. advise 0.1 to 0.4 for ImageNet and 1 for
            CIFAR-10; 1.4 is Rice et al.'s choice for adversarial training.
    """

    name: Literal["mixup"] = "mixup"
    alpha: NonNegative = 1.0

    @property
    def forwards(self) -> tuple[Seen, ...]:
        """None: the batch's labels are not those of mixed images, and an accuracy on them would say nothing."""
        return () if self.alpha else super().forwards

    def changed(self, batch: Batch) -> Batch:
        """The mixed batch; what draws next has a stream of its own, so that mixup within mixup is independent."""
        if self.alpha == 0:
            return batch
        x, y = mixed(batch, batch.x, self.alpha, "mixup")
        return replace(batch, x=x, y=y, noise=batch.noise.child("mixed"))
