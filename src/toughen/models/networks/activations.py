"""Activation functions by name, so that a recipe can choose one for any network here.

Smooth activations (SiLU above all) are a known gain in adversarial training (Gowal et al. 2020, "Uncovering the limits
of adversarial training against norm-bounded adversarial examples").

    layer = activation("silu")
    layer(torch.zeros(2, 3))                     # zeros (2, 3)
"""

from collections.abc import Callable

from torch import nn

from toughen.settings import known

# Never in place: a residual unit may use its activated input twice.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "elu": nn.ELU,
    "softplus": nn.Softplus,
    "gelu": nn.GELU,
}


def activation(name: str) -> nn.Module:
    """A fresh, parameter-free activation layer.

    Args:
        name: one of `relu`, `silu` (x sigmoid(x), also called swish), `leaky_relu` (slope 0.1, as in
            MadryLab/cifar10_challenge; torch's own default is 0.01), `elu` (alpha 1), `softplus` (beta 1),
            `gelu` (exact, by the error function).

    Returns:
        An elementwise layer of any shape.

    Raises:
        ValueError: the name is none of these.
    """
    return ACTIVATIONS[known(name, ACTIVATIONS, "activation")]()
