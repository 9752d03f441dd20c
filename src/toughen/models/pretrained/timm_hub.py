"""Networks of timm and of the Hugging Face Hub, where the extras are installed.

net = find("timm:resnet50")(num_classes=10)            # pip install 'toughen[timm]'
net = find("hub:timm/resnet18.a1_in1k")(num_classes=10)
mean, std = pretrained_normalization("timm:resnet50")
"""

import difflib
import re
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import nn

from toughen.errors import Option, UsageError
from toughen.models.classifier import MeanStd
from toughen.models.pretrained.hub_access import cache_where_unreachable
from toughen.models.pretrained.timm_import import import_beside_torchvision

PREFIXES = ("timm:", "hub:")


def find_extra(name: str) -> Callable[..., nn.Module]:
    """The builder of a network named `timm:NAME` or `hub:OWNER/NAME`.

    Nothing is downloaded.

    Args:
        name: for timm as `timm.list_models()` has it, with or without the tag of pretrained weights.

    Returns:
        A callable of `num_classes`, `in_channels` and `pretrained`.

    Raises:
        ValueError: timm is not installed or does not import, there is no such network in it, or the name after `hub:`
            is not of the form OWNER/NAME.
    """
    kind, _, rest = name.partition(":")
    timm = _timm(name)
    if kind == "timm":
        _check_name(timm, rest)
        return partial(_from_timm, rest)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", rest):
        raise ValueError(f"{name!r} is not a name on the Hub; write hub:OWNER/NAME, like hub:timm/resnet18.a1_in1k")
    return partial(_from_hub, rest)


def pretrained_normalization(name: str) -> MeanStd | None:
    """Mean and std, in units of [0, 1], that the pretrained weights of a network were trained with.

    Args:
        name: a name as `find` takes it.

    Returns:
        None for the networks of this package, which come without weights, and where timm says nothing.

    Raises:
        ValueError: as in `find_extra`; for `hub:` also where the Hub cannot be reached or has no such network.
    """
    if not name.startswith(PREFIXES):
        return None
    find_extra(name)
    kind, _, rest = name.partition(":")
    timm = _timm(name)
    if kind == "timm":
        found = timm.get_pretrained_cfg(rest)
        return (tuple(found.mean), tuple(found.std)) if found is not None else None
    try:
        with cache_where_unreachable():
            found = timm.models.load_model_config_from_hf(rest)[0]
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise _unreachable(name, error) from None
    return (tuple(found["mean"]), tuple(found["std"])) if "mean" in found and "std" in found else None


def _from_timm(architecture: str, num_classes: int, in_channels: int = 3, *, pretrained: bool = False) -> nn.Module:
    """A network of timm; `pretrained` fetches its weights, with a new head where the classes differ."""
    name = f"timm:{architecture}"
    timm = _timm(name)
    if pretrained and not timm.is_model_pretrained(architecture):
        raise ValueError(f"timm has no pretrained weights of {architecture}; leave out pretrained, or give weights")
    return _create(timm, name, architecture, num_classes, in_channels, pretrained and not _checking())


def _from_hub(repository: str, num_classes: int, in_channels: int = 3, *, pretrained: bool = True) -> nn.Module:
    """A network of the Hub that timm knows, with its weights and a new head where the classes differ."""
    if _checking():
        return nn.Identity()  # even its architecture would have to be fetched
    name = f"hub:{repository}"
    return _create(_timm(name), name, f"hf-hub:{repository}", num_classes, in_channels, pretrained)


def _checking() -> bool:
    """Whether networks are built on the meta device, without memory, to check a recipe."""
    return torch.empty(0).device.type == "meta"


def _create(timm: ModuleType, name: str, model: str, num_classes: int, in_channels: int, pretrained: bool) -> nn.Module:
    # A network of the Hub's needs its description from there, without its weights too.
    fetches = pretrained or model.startswith("hf-hub:")
    try:
        with cache_where_unreachable() if fetches else nullcontext():
            return timm.create_model(model, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels)
    except OSError as error:
        raise _unreachable(name, error) from None
    except (RuntimeError, ValueError, KeyError, NotImplementedError) as error:
        raise ValueError(f"{name} cannot be built: {str(error).partition(chr(10))[0]}") from None


def _unreachable(name: str, error: Exception) -> UsageError:
    return UsageError(
        f"{name} needs a file from the Hugging Face Hub that is not there or cannot be reached "
        f"({type(error).__name__}); check the name and the network, or give weights you have as ",
        Option("weights", "FILE", python="a file to toughen.models.load_weights"),
    )


def _timm(name: str) -> ModuleType:
    try:
        return import_beside_torchvision("timm")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("timm", "torchvision", "huggingface_hub"):
            raise
        extra = name.partition(":")[0]
        raise ValueError(f"{name} needs timm; install it with: pip install 'toughen[{extra}]'") from None
    except RuntimeError as error:
        text = str(error).partition("\n")[0]
        raise ValueError(f"{name} needs timm, which does not import here: {text}; reinstall torchvision") from None


def _check_name(timm: ModuleType, name: str) -> None:
    architectures, tagged = timm.list_models(), timm.list_models(pretrained=True)
    if name in architectures or name in tagged:
        return
    pool: list[Any] = tagged if name.partition(".")[0] in architectures else architectures
    close = difflib.get_close_matches(name, pool, n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else "; timm.list_models() has the names"
    raise ValueError(f"timm has no model {name!r}{hint}")
