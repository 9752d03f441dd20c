"""Networks by name.

`MODELS` is a plain dictionary: a network of one's own is one line, and then works by name wherever a model is named.

    MODELS["mine"] = MyNet                                 # takes num_classes and in_channels, returns logits
    model = build("wrn-28-10", num_classes=10, mean=(0.5,) * 3, std=(0.5,) * 3, activation="silu")
    logits = model(x)                                      # x (N, 3, H, W) in [0, 1] -> (N, 10)
    model = build("timm:resnet50", num_classes=10)         # where timm is installed
"""

import inspect
import re
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from toughen.models.classifier import Classifier
from toughen.models.networks.preact_resnet import PreActResNet18
from toughen.models.networks.resnet import ResNet18, resnet34, resnet50, resnet101, resnet152, wide_resnet50_2
from toughen.models.networks.small_cnn import SmallCNN
from toughen.models.networks.wide_resnet import MadryResNet, WideResNet, check_size
from toughen.models.pretrained.timm_hub import PREFIXES, find_extra
from toughen.progress import Notice
from toughen.settings import nearest, shown
from toughen.storage.compiler_cache import writable_cache

# A builder takes `num_classes` and `in_channels`, then options by keyword, and returns a network from images to logits.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "small_cnn": SmallCNN,
    "resnet18": ResNet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet101": resnet101,
    "resnet152": resnet152,
    "wide_resnet50_2": wide_resnet50_2,
    "preact_resnet18": PreActResNet18,
    "wrn-D-W": WideResNet,  # `wrn-28-10` and the like are found here; the builder takes depth and width
    "madry-w32-10": MadryResNet,
}


def find(name: str) -> Callable[..., nn.Module]:
    """The builder that a name stands for.

    Args:
        name: a key of `MODELS`, or `wrn-D-W` with numbers, e.g. `wrn-28-10`, which stands for the entry `wrn-D-W` with
            depth D and width W filled in, or `timm:NAME` or `hub:OWNER/NAME` (see `extra.find_extra`).

    Returns:
        A callable of `num_classes`, `in_channels` and the network's own options.

    Raises:
        ValueError: no such name, a wide ResNet of impossible depth (not 6n + 4) or width (below 1), or an extra that is
            not installed.
    """
    if name in MODELS:
        return MODELS[name]
    numbers = re.fullmatch(r"wrn-([0-9]{1,9})-([0-9]{1,9})", name)
    if numbers and "wrn-D-W" in MODELS:
        depth, width = int(numbers[1]), int(numbers[2])
        check_size(depth, width)
        return partial(MODELS["wrn-D-W"], depth=depth, width=width)
    if name.startswith(PREFIXES):
        return find_extra(name)
    allowed = ", ".join([*MODELS, "timm:NAME", "hub:OWNER/NAME"])
    raise ValueError(f"{shown(name)} is not a known model; allowed: {allowed}{nearest(name, MODELS)}")


_TRIED: dict[str, Callable[..., nn.Module]] = {}
"""Builders that took certain options, by how these are written."""


def try_options(name: str, options: dict[str, Any]) -> None:
    """Let a builder itself check its options, once for each.

    It builds on the meta device, which takes no memory and no random numbers, but ten milliseconds: a study has
    hundreds of recipes of a few networks.

    Raises:
        ValueError: see `find`, or of the builder; so may be other errors.
    """
    builder = find(name)
    call = getattr(builder, "func", builder)
    written = f"{name} {options!r}"
    if _TRIED.get(written) is not call:
        writable_cache(lambda said: warnings.warn(said, Notice, stacklevel=2))
        with torch.device("meta"):
            builder(num_classes=10, in_channels=3, **options)
        _TRIED[written] = call


def build(
    name: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    per_image: bool = False,
    **options: Any,
) -> Classifier:
    """Build a network by name, with its normalisation as the first layer.

    No network normalises by itself, `madry-w32-10` included: without `mean` and `std` or `per_image` it sees the images
    as they are. Initial weights come from torch's global generator.

    Args:
        name: see `find`.
        num_classes: number of logits K.
        in_channels: channels C of the images.
        mean: C numbers in the images' unit, together with `std`; see `Normalize`.
        std: C positive numbers.
        per_image: standardise every image by itself instead; see `PerImageStandardize`.
        **options: the builder's own, e.g. `activation="silu"`.

    Returns:
        A model from images (N, C, H, W) in [0, 1] to logits (N, K).

    Raises:
        ValueError: an unknown name, an option that the builder does not know or lacks, a value that it refuses, or a
            normalisation that contradicts itself or `in_channels`.
    """
    builder = find(name)
    _check_options(name, builder, options)
    for label, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != in_channels:
            raise ValueError(f"{label} needs one number for each of the {in_channels} channels, got {len(values)}")
    net = builder(num_classes=num_classes, in_channels=in_channels, **options)
    return Classifier(net, mean=mean, std=std, per_image=per_image, in_channels=in_channels)


def _check_options(name: str, builder: Callable[..., nn.Module], options: dict[str, Any]) -> None:
    filled = builder.keywords if isinstance(builder, partial) else {}  # wrn-28-10 has no depth left to choose
    parameters = [p for p in inspect.signature(builder).parameters.values() if p.name not in filled]
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    known = [p.name for p in by_name if p.name not in ("num_classes", "in_channels")]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for option in options:
        if option in filled or (option not in known and not open_ended):
            allowed = f"allowed are {', '.join(known)}" if known else "it takes none"
            raise ValueError(f"model {name!r} has no option {option!r}; {allowed}{nearest(option, known)}")
    missing = [p.name for p in by_name if p.default is p.empty and p.name in known and p.name not in options]
    if missing:
        raise ValueError(f"model {name!r} also needs the options {', '.join(missing)}")
