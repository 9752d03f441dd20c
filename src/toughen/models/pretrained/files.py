"""Files of weights: safetensors, and torch's own format without its pickle.

state = read_state("resnet18.pt")                      # {"conv1.weight": tensor, ...}, on the CPU
state = read_state("checkpoint.pt", key="ema")         # where the file holds several
"""

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from toughen.storage.limits import check_safetensors, check_zip, shown

_HTML = re.compile(rb"\s*(?:<!doctype|<html|<head|<\?xml|<!--)", re.IGNORECASE)
_ASKED = re.compile(r"GLOBAL ([A-Za-z_][\w.]*) (?:was not an allowed|whose module \S+ is blocked)")

_MAPPINGS = 1000
_DEEPEST = 2
_LONGEST = 1000


def read_state(path: str | Path, *, key: str | None = None) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU.

    No code from the file is run: torch's format is read with `weights_only=True`.

    Args:
        path: a safetensors file, or one that `torch.save` wrote (`.pt`, `.pth`, `.ckpt`), of any name.
        key: the entry that holds the weights, such as `ema` or `models.ema`; needed where several do.

    Raises:
        ValueError: the file is missing, empty, cut short, a web page, a pointer of Git LFS, or needs a pickle; it holds
            no tensors or several state dicts; there is no such key.
    """
    path = Path(path)
    if not path.is_file():
        kind = "is a folder, not a file of weights; give the file in it" if path.is_dir() else ""
        raise ValueError(f"{path} {kind}" if kind else f"there is no file {path}; check the path")
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise ValueError(f"{path} is empty; fetch it again")
    if _HTML.match(start):
        raise ValueError(f"{path} is a web page, not weights: the download failed; fetch it again with a browser")
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a pointer of Git LFS, not the weights; run git lfs pull where it comes from")
    if path.suffix == ".safetensors" or start[8:10] == b'{"':
        return _from_safetensors(path, key)
    return pick_state(_from_torch(path), str(path), key)


def _from_safetensors(path: Path, key: str | None) -> dict[str, Tensor]:
    if key is not None:
        raise ValueError(f"{path} is a safetensors file, which holds one state dict; leave out key={key!r}")
    check_safetensors(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or cut short ({error}); fetch it again") from None


def _from_torch(path: Path) -> Any:
    # torch.save compresses nothing.
    check_zip(path, ratio=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol, for developers of torch
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = _ASKED.search(str(error))
        # Of these torch itself asks for allowed ones only; another is one whose name was cut short.
        if asked is None or asked[1].startswith("torch._utils."):
            raise ValueError(f"{path} is damaged or cut short, or no file of weights; fetch it again") from None
        raise ValueError(
            f"{path} holds more than weights: it asks for {asked[1]} through pickle, which may run any code, and is "
            "not opened; where you trust it, load it with the code that made it and write its state_dict() alone "
            "with torch.save or safetensors"
        ) from None
    except Exception as error:  # noqa: BLE001  # torch's unpickler calls what it allows with whatever the file gives it
        if "TorchScript" in str(error):
            raise ValueError(
                f"{path} is a TorchScript program, not weights; write torch.jit.load(...).state_dict() with torch.save"
            ) from None
        raise ValueError(f"{path} is damaged or cut short, or no file of weights; fetch it again") from None


def pick_state(content: Any, path: str, key: str | None = None) -> dict[str, Tensor]:
    """The one state dict in what a file held, or the one that is asked for.

    Args:
        content: a state dict, or mappings of mappings with state dicts in them; entries of other kinds are passed over.
        path: what to call it in errors.
        key: the dotted path to the one that is meant.

    Raises:
        ValueError: there is none, there are several and no `key`, or none under `key`.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict")
    found = dict(_state_dicts(content, path))
    if key is not None:
        if key not in found:
            raise ValueError(f"{path} has no state dict under key={key!r}; {_listed(found)}")
        return found[key]
    if not found:
        entries = shown(list(content)) or "nothing"
        raise ValueError(
            f"{path} holds no state dict; its entries are {entries}; "
            "write the network's state_dict() with torch.save or safetensors, and give that"
        )
    if "" in found:
        return found[""]
    if len(found) > 1:
        raise ValueError(f"{path} holds several state dicts ({shown(found)}); choose one with key=")
    return next(iter(found.values()))


def _listed(found: Mapping[str, Any]) -> str:
    names = [name for name in found if name]
    return f"it has {shown(names)}" if names else "leave it out: the file is one state dict"


def _state_dicts(content: Mapping[Any, Any], path: str) -> list[tuple[str, dict[str, Tensor]]]:
    """Mappings from text to tensors, one of which at least has two dimensions, with the dotted path to each.

    Raises:
        ValueError: there are more mappings than any checkpoint has, or tensors that no network has.
    """
    found: list[tuple[str, dict[str, Tensor]]] = []
    waiting: list[tuple[str, Mapping[Any, Any], int]] = [("", content, _DEEPEST)]
    for _ in range(_MAPPINGS):
        if not waiting:
            return found
        above, mapping, depth = waiting.pop()
        tensors = {key: value for key, value in mapping.items() if isinstance(key, str) and isinstance(value, Tensor)}
        if any(value.ndim >= 2 for value in tensors.values()):
            _check_plain(tensors, path)
            found.append((above, tensors))
        elif depth:
            inside = [
                (key, value) for key, value in mapping.items() if isinstance(key, str) and isinstance(value, Mapping)
            ]
            if len(waiting) + len(inside) > _MAPPINGS:
                break
            # Backwards, for the last one is taken first.
            waiting += [(f"{above}.{key}" if above else key, value, depth - 1) for key, value in reversed(inside)]
    raise ValueError(f"{path} holds more than {_MAPPINGS} mappings, which no file of weights does; it is not used")


def _check_plain(tensors: Mapping[str, Tensor], path: str) -> None:
    """Refuse names and tensors that cost more than their bytes: of no memory, of few numbers repeated, compressed."""
    for name, value in tensors.items():
        if len(name) > _LONGEST:
            raise ValueError(f"{path} holds a tensor whose name has {len(name):,} characters; it is not used")
        plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
        if not plain or value.is_nested or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(
                f"{path} holds {shown([name])}, which is sparse, quantised, repeated or without numbers; write the "
                "network's state_dict() of plain tensors"
            )
