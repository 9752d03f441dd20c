"""How steep the loss is at the images: ||grad_x CE||, its largest and mean value over a set.

    gradient_magnitude(model, x, y).summary()["magnitudes"]

Source: Bilateral adversarial training (Wang & Zhang 2019), supplement, section 4 and table 4.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from toughen.devices import in_float64
from toughen.evaluation.analyses.analysis import Analysis
from toughen.losses import cross_entropy
from toughen.models.batched import value_and_grad
from toughen.models.inputs import check_examples
from toughen.models.prepared import ProgressFunction, chunks, prepared
from toughen.threat import safe_norm


@dataclass(frozen=True, eq=False)
class GradientMagnitude(Analysis):
    """The loss's gradient at every image (see `gradient_magnitude`).

    Args (all else as for `Analysis`):
        norm: ||grad_x CE||_2 of each example, (N,), for pixels in [0, 1].
    """

    index: Annotated[np.ndarray, "int64", "N"]
    norm: Annotated[np.ndarray, "float64", "N"]

    def values(self, *, pixel_range: int = 1, squared: bool = False) -> np.ndarray:
        """The magnitudes (N,) for pixels in [0, pixel_range], 1 or 255: L2 norms, or their squares.

        With pixels 255 times as large the norm is 255 times smaller and its square 65,025 times.
        """
        norm = self.norm / pixel_range
        return norm * norm if squared else norm

    def summary(self) -> dict[str, Any]:
        """Largest and mean magnitude for both pixel scales, of the norm and of its square."""
        rows = []
        for pixel_range in (1, 255):
            for squared in (False, True):
                values = self.values(pixel_range=pixel_range, squared=squared).tolist()
                # fsum: the mean in a file must come out again on any machine, however it sums.
                mean = math.fsum(values) / len(values)
                rows.append({"pixel_range": pixel_range, "squared": squared, "max": max(values), "mean": mean})
        return {"n": len(self.index), "magnitudes": rows}


def gradient_magnitude(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    batch_size: int = 256,
    index: Tensor | None = None,
    progress: ProgressFunction | None = None,
) -> GradientMagnitude:
    """||grad_x CE(model(x), y)||_2 of every clean image (Bilateral, supplement, table 4).

    The table states the gradient for pixels in [0, 255] and its largest and mean value over all test images. Its
    heading prints the squared norm, yet its caption divides by 127.5 to come from pixels in [-1, 1], which is right for
    the norm and not for its square (that would take 127.5 squared). Both readings are therefore given, on the scales of
    [0, 1] and [0, 255]. The norm is taken in float64.

    Args (all else as for `evaluate`):
        progress: called with ("gradient", examples done, N).

    Raises:
        ValueError: for arguments that do not fit each other or the model, and for a gradient that is NaN or infinite
            (EV202).
    """
    y, ids = check_examples(x, y, index, batch_size)
    norms = []
    with prepared(model, x, y, batch_size) as classifier:
        for rows in chunks(len(x), batch_size, progress, "gradient"):
            labels = y[rows].to(classifier.device)
            _, grad, _ = value_and_grad(
                classifier.model,
                classifier.images(x[rows]),
                lambda logits, piece, labels=labels: cross_entropy(logits, labels[piece]),
            )
            norm = safe_norm(in_float64(grad)).cpu()
            lost = ids[rows][~norm.isfinite()].tolist()
            if lost:
                raise ValueError(
                    f"EV202 The input gradient is NaN or infinite for {len(lost)} of {len(rows)} images of a batch "
                    f"(ids {', '.join(map(str, lost[:5]))}), so there is no largest and no "
                    "mean; try the model in float64."
                )
            norms.append(norm)
    return GradientMagnitude(index=ids.numpy(), norm=torch.cat(norms).numpy())
