"""Three small classifiers of digits with frozen weights, and what other libraries' attacks found on them.

The weights lie in `frozen/*.safetensors` (made by `tools/make_frozen_models.py`), the libraries' outcomes in
`frozen/references.json` (made by `tools/record_references.py`). Images are the first test images of mnist5k that all
three models classify correctly, the same for all.

    model, x, y, threat = load("robust", "l2")
"""

import functools
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from oracles import Affine
from toughen.data import load as load_data
from toughen.models import Classifier, build
from toughen.threat import Threat, parse

FROZEN = Path(__file__).parent / "frozen"

# Radii at which a good attack leaves 30 to 80 % of the images standing.
RADII = {
    "linear": {"linf": "linf:0.08", "l2": "l2:1.2"},
    "standard": {"linf": "linf:0.05", "l2": "l2:0.7"},
    "robust": {"linf": "linf:0.23", "l2": "l2:2.6"},
}


def untrained(name: str) -> Classifier:
    """The architecture of a frozen model: images (N, 1, 28, 28) to 10 logits."""
    if name == "linear":
        return Classifier(Affine(torch.zeros(10, 784), torch.zeros(10)))
    return build("small_cnn", num_classes=10, in_channels=1, norm="batch")


def trained(name: str) -> Classifier:
    """A frozen model, in inference mode, in float32."""
    model = untrained(name)
    model.load_state_dict(load_file(FROZEN / f"{name}.safetensors"))
    return model.eval()


@functools.cache
def images(n: int = 128) -> tuple[Tensor, Tensor]:
    """The first `n` test images (n, 1, 28, 28) in [0, 1] that every frozen model classifies correctly, and labels."""
    test = load_data("mnist5k").test
    x, y = test.float_images(), test.labels
    with torch.no_grad():
        correct = torch.stack([trained(name)(x).argmax(1) == y for name in RADII]).all(0)
    return x[correct][:n], y[correct][:n]


def load(name: str, norm: str = "linf", n: int = 128) -> tuple[nn.Module, Tensor, Tensor, Threat]:
    """A frozen model with images that it classifies correctly, their labels, and a ball of the interesting size.

    Args:
        name: "linear", "standard" or "robust" (trained with PGD in the Linf ball of 0.2).
        norm: "linf" or "l2".
        n: how many images.
    """
    x, y = images(n)
    return trained(name), x, y, parse(RADII[name][norm])
