"""Label smoothing (Szegedy et al. 2016, section 7) around any method, separately for labelled and for extra data.

    LabelSmoothing(method=Trades())                         # 0.1 on all labels
    LabelSmoothing(method=Trades(), labelled=0)             # on extra, pseudo-labelled images alone

Limits (Gowal et al. 2020), section 4.3.2, tried both "independently" and found no gain; the code that its authors
released a year later smooths the labels of extra images by 0.1 and no others (docs/methods/label_smoothing.md,
Sources).
"""

from dataclasses import replace
from typing import Literal

import torch

from toughen.data import Batch
from toughen.losses import probabilities
from toughen.methods.wrapper import Wrapper
from toughen.settings import Decay


class LabelSmoothing(Wrapper, frozen=True):
    """y <- (1 - s) onehot(y) + s / K, with s = `extra` for extra images and `labelled` for all others.

    The method inside sees smoothed labels wherever it looks at labels: an attack that ascends cross-entropy ascends the
    smoothed one. Deviation from imrahulr's code, which smooths the outer loss alone; with an inner KL (Trades) the two
    are one. Probabilities that come in, from mixup, are smoothed alike: (1 - s) y + s sum(y) / K, so that an image
    without a label, a row of zeros, stays so. Inside mixup each row is smoothed by the s of its first image.

    Attributes:
        name: "label_smoothing".
        labelled: s in [0, 1) for the labelled set, and for every image where there is no extra set.
        extra: s in [0, 1) for the extra set.
    """

    name: Literal["label_smoothing"] = "label_smoothing"
    labelled: Decay = 0.1
    extra: Decay = 0.1

    def changed(self, batch: Batch) -> Batch:
        """The batch with smoothed labels, or as it is where nothing is to be smoothed."""
        if not self.labelled and (batch.extra is None or not self.extra):
            return batch
        y = probabilities(batch.y, batch.classes, batch.x.dtype)
        s = torch.full((len(y), 1), self.labelled, dtype=y.dtype, device=y.device)
        if batch.extra is not None:
            s = torch.where(batch.extra.unsqueeze(1), self.extra, s)
        return replace(batch, y=(1 - s) * y + s * y.sum(1, keepdim=True) / batch.classes)
