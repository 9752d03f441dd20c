"""A trained network for other classes: a new head, and the trunk below it held fixed if asked.

The head is the last linear layer; the trunk is all the rest.

    name = replace_head(model, num_classes=7)              # "net.linear"
    freeze_trunk(model)                                    # only head_parameters(model) still train
    optimizer = SGD(head_parameters(model), lr=0.1)
"""

import functools
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from toughen.models.classifier import Classifier


def find_head(net: nn.Module) -> tuple[str, nn.Linear]:
    """The classification head and its name in `net`: what timm says it is, or else the last `nn.Linear`.

    Args:
        net: a network, or a `Classifier` around one.

    Raises:
        ValueError: there is no linear layer, or timm's head is another kind of layer.
    """
    if isinstance(net, Classifier):
        name, layer = find_head(net.net)
        return f"net.{name}" if name else "net", layer
    linear = [(name, layer) for name, layer in net.named_modules() if isinstance(layer, nn.Linear)]
    if (said := _timm_head(net)) is not None:
        linear = [(name, layer) for name, layer in linear if layer is said]
    if not linear:
        raise ValueError(f"{type(net).__name__} does not end in a linear layer, so its head cannot be told from it")
    return linear[-1]


def _timm_head(net: nn.Module) -> nn.Module | None:
    get = getattr(net, "get_classifier", None)
    found = get() if callable(get) and hasattr(net, "reset_classifier") else None
    return found if isinstance(found, nn.Module) else None


def replace_head(net: nn.Module, num_classes: int) -> str:
    """Put a new linear layer of `num_classes` outputs, freshly drawn, in place of the head.

    Weights come from torch's global generator as torch draws them, biases are 0; a timm network draws its own. The new
    head has the old one's device and data type.

    Args:
        net: a network, or a `Classifier` around one; changed in place.
        num_classes: number of logits K of the new head, at least 1.

    Returns:
        The name of the head in `net`.

    Raises:
        ValueError: `num_classes` is below 1, or as in `find_head`.
    """
    if num_classes < 1:
        raise ValueError(f"a head needs at least 1 class, got {num_classes}")
    name, old = find_head(net)
    owner: Any = net.net if isinstance(net, Classifier) else net
    if hasattr(owner, "reset_classifier"):
        owner.reset_classifier(num_classes)
        new_name, new = find_head(net)
        new.to(old.weight)
        return new_name
    new = nn.Linear(
        old.in_features,
        num_classes,
        bias=old.bias is not None,
        device=old.weight.device,
        dtype=old.weight.dtype,
    )
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    if old is net:
        raise ValueError("the network is its own head, a single linear layer; build a new one instead")
    net.set_submodule(name, new)
    return name


def head_parameters(net: nn.Module) -> list[nn.Parameter]:
    """The head's weight and bias. Raises as `find_head` does."""
    return list(find_head(net)[1].parameters())


def trunk_parameters(net: nn.Module) -> list[nn.Parameter]:
    """All parameters but the head's. Raises as `find_head` does."""
    head = {id(parameter) for parameter in head_parameters(net)}
    return [parameter for parameter in net.parameters() if id(parameter) not in head]


def freeze_trunk(net: nn.Module) -> int:
    """Hold everything below the head fixed, in training too.

    Its parameters ask for no gradient any more. Its BatchNorm layers stay in inference mode whatever mode the network
    is put in, so that their statistics neither move nor depend on the batch. Keys of the state dict stay as they are.

    Returns:
        The number of weights that are held fixed.

    Raises:
        ValueError: as in `find_head`.
    """
    parameters = trunk_parameters(net)
    for parameter in parameters:
        parameter.requires_grad_(False)
    for layer in net.modules():
        if isinstance(layer, _BatchNorm) and not isinstance(layer, _Still):
            layer.__class__ = _still(type(layer))  # pyright: ignore[reportAttributeAccessIssue]
            layer.eval()
    return sum(parameter.numel() for parameter in parameters)


class _Still:
    """Refuses training mode. A class and not a hook on the layer: copies and averages of the network inherit it."""

    def __setattr__(self, name: str, value: Any) -> None:
        # Not `train()`: the context managers of `modes` set and restore the flag itself.
        super().__setattr__(name, False if name == "training" else value)


@functools.cache
def _still(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (_Still, kind), {})
