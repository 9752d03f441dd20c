"""Several classifiers as one: the mean of their probabilities.

model = Ensemble([first, second])
evaluate(model, x, y, threat=Linf(8 / 255), suite="autoattack")
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from toughen.models.adapted import adapt


class Ensemble(nn.Module):
    """The logarithm of the mean over models of softmax(logits), which has this mean as its own softmax.

    An attack follows the gradient of all models together, by the same formula as the prediction.

    Args:
        models: classifiers of the same classes, whatever they return their logits in; at least one.

    Raises:
        ValueError: there are none; in `forward`, they differ in the number of their classes.
    """

    def __init__(self, models: Iterable[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(adapt(model) for model in models)
        if not self.models:
            raise ValueError("there are no models in the ensemble; give at least one")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W) in [0, 1]."""
        every = [model(x).log_softmax(1) for model in self.models]
        if len(counts := {logits.shape[1] for logits in every}) > 1:
            raise ValueError(
                f"the models have {' and '.join(map(str, sorted(counts)))} classes; give models of the same"
            )
        return torch.stack(every).logsumexp(0) - math.log(len(every))
