"""Files of weights: safetensors, and torch's own format without its pickle.

tensors = read_tensors("checkpoint.pt")                # {"state_dict.conv1.weight": tensor, ...}, on the CPU
state = read_state("resnet18.pt")                      # {"conv1.weight": tensor, ...}
state = read_state("checkpoint.pt", key="ema")         # where the file holds several
"""

import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from toughen.errors import Option, UsageError
from toughen.storage.limits import check_safetensors, check_zip, shown

_HTML = re.compile(rb"\s*(?:<!doctype|<html|<head|<\?xml|<!--)", re.IGNORECASE)
_ASKED = re.compile(r"GLOBAL ([A-Za-z_][\w.]*) (?:was not an allowed|whose module \S+ is blocked)")
# Where training codes keep their settings and best figures; nothing of them is imported, see `_Settings`.
_SETTINGS = re.compile(
    r"argparse\.Namespace|pathlib\.(?:_local\.)?\w*Path|numpy\.(?:_?core\.multiarray\.(?:scalar|_reconstruct)|dtype"
    r"|ndarray|dtypes\.\w+)|omegaconf\.[\w.]+|typing\.Any|ml_collections\.[\w.]+\.(?:Frozen)?ConfigDict"
    r"|builtins\.(?:dict|list|tuple|int|float|str|bool)"
)
# The same in kinds of dict, which torch's unpickler fills where they are ordered ones.
_DICTS = re.compile(
    r"yacs\.config\.CfgNode|easydict\.EasyDict|addict\.addict\.Dict|(?:pytorch_)?lightning\.[\w.]+\.AttributeDict"
)

SEVERAL = 32
"""Kinds of settings that a file may hold."""

NO_WEIGHTS = re.compile(r"(?:^|[._])(?:optim(?:izers?)?|opt|(?:lr_)?schedulers?|(?:grad_|amp_)?scaler)(?:[._]|$)")
"""Names of what an optimiser keeps, which may have the shapes of weights."""

_MAPPINGS = 20_000
_DEEPEST = 4
_LONGEST = 1000


def read_state(path: str | Path, *, key: str | None = None) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU.

    No code from the file is run: torch's format is read with `weights_only=True`.

    Args:
        path: a safetensors file, or one that `torch.save` wrote (`.pt`, `.pth`, `.ckpt`), of any name.
        key: the entry that holds the weights, such as `ema` or `models.ema`, or the beginning of their names; needed
            where several do.

    Raises:
        ValueError: as for `read_tensors`; it holds no tensors or several state dicts; there is no such key.
    """
    return pick_state(_content(Path(path)), str(path), key)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Every tensor in a file, on the CPU, by the dotted path of the entries that it lies in.

    Args:
        path: see `read_state`.

    Raises:
        ValueError: the file is missing, empty, cut short, a web page, a pointer of Git LFS, or needs a pickle; or holds
            no mapping.
    """
    return all_tensors(_content(Path(path)), str(path))


def _content(path: Path) -> Any:
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
        return _from_safetensors(path)
    return _from_torch(path)


def _from_safetensors(path: Path) -> dict[str, Tensor]:
    check_safetensors(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or cut short ({error}); fetch it again") from None


class _Settings:
    """What stands for settings in a file (`_SETTINGS`): torch's unpickler fills it, and nobody looks at it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take whatever a class of settings is made from."""

    def __setstate__(self, state: Any) -> None:
        """Take whatever it held."""


def _empty(*_: Any) -> OrderedDict[Any, Any]:
    """A dict, to be filled, whatever its defaults are made by."""
    return OrderedDict()


_STAND_INS: dict[re.Pattern[str], Callable[..., Any]] = {
    _SETTINGS: _Settings,
    _DICTS: OrderedDict,
    re.compile(r"collections\.defaultdict"): _empty,
}
"""What torch's unpickler is given for names in a file."""


def _from_torch(path: Path) -> Any:
    # torch.save compresses nothing.
    check_zip(path, ratio=1)
    stands: dict[str, Callable[..., Any]] = {}
    while True:
        try:
            safe = torch.serialization.safe_globals([(kind, name) for name, kind in stands.items()])
            with warnings.catch_warnings(), safe:
                warnings.simplefilter("ignore")  # about the pickle protocol, for developers of torch
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            asked = _ASKED.search(str(error))
            # Of these torch itself asks for allowed ones only; another is one whose name was cut short.
            if asked is None or asked[1].startswith("torch._utils."):
                raise _damaged(path) from None
            # Torch leaves out the module's name in these.
            name = asked[1] if "." in asked[1] else f"builtins.{asked[1]}"
            kind = next((kind for pattern, kind in _STAND_INS.items() if pattern.fullmatch(name)), None)
            if kind is None or name in stands or len(stands) == SEVERAL:
                raise ValueError(
                    f"{path} holds more than weights: it asks for {asked[1]} through pickle, which may run any code, "
                    "and is not opened; where you trust it, load it with the code that made it and write its "
                    "state_dict() alone with torch.save or safetensors"
                ) from None
            stands[name] = kind
        except Exception as error:  # noqa: BLE001  # torch's unpickler calls what it allows with whatever the file gives it
            if "TorchScript" in str(error):
                raise ValueError(
                    f"{path} is a TorchScript program, not weights; write torch.jit.load(...).state_dict() with "
                    "torch.save"
                ) from None
            raise _damaged(path) from None


def _damaged(path: Path) -> ValueError:
    return ValueError(f"{path} is damaged or cut short, or no file of weights; fetch it again")


def pick_state(content: Any, path: str, key: str | None = None) -> dict[str, Tensor]:
    """The one state dict in what a file held, or the one that is asked for.

    Args:
        content: a state dict, or mappings of mappings with state dicts in them; entries of other kinds are passed over.
        path: what to call it in errors.
        key: the dotted path to the one that is meant.

    Raises:
        ValueError: there is none, there are several and no `key`, or none under `key`.
    """
    entries = _entries(content, path)
    if key is not None:
        under = {name: tensor for name, tensor in _joined(entries).items() if name.startswith(f"{key}.")}
        if not under:
            raise no_such_key(path, key, [name for name in entries if name])
        return check_plain({name.removeprefix(f"{key}."): tensor for name, tensor in under.items()}, path)
    found = {
        name: tensors
        for name, tensors in entries.items()
        if any(tensor.ndim >= 2 for tensor in tensors.values()) and not NO_WEIGHTS.search(name)
    }
    if not found:
        raise no_weights(path, content)
    if "" in found:
        return check_plain(found[""], path)
    if len(found) > 1:
        raise UsageError(
            f"{path} holds several state dicts ({shown(found)}); say which is meant with ",
            Option("key", like=next(iter(found))),
        )
    return check_plain(next(iter(found.values())), path)


def no_weights(path: str, content: Mapping[Any, Any]) -> ValueError:
    """What to do about a file without weights."""
    entries = shown(list(content)) or "nothing"
    return ValueError(
        f"{path} holds no state dict; its entries are {entries}; "
        "write the network's state_dict() with torch.save or safetensors, and give that"
    )


def no_such_key(path: str, key: str, names: Iterable[str]) -> UsageError:
    """What to do about a key under which there is nothing, where these are."""
    there = list(dict.fromkeys(names))
    remedy = (f"it has {shown(there)}",) if there else ("leave out ", Option("key"), ": the file is one state dict")
    return UsageError(f"{path} has no weights under ", Option("key", key), "; ", *remedy)


def all_tensors(content: Any, path: str) -> dict[str, Tensor]:
    """The tensors in what a file held, by the dotted path of the entries that they lie in.

    Raises:
        ValueError: it is no mapping, or holds more than any checkpoint does.
    """
    found = _joined(_entries(content, path))
    if not found:
        raise no_weights(path, content)
    return found


def _joined(entries: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {
        f"{above}.{name}" if above else name: tensor
        for above, tensors in entries.items()
        for name, tensor in tensors.items()
    }


def _entries(content: Any, path: str) -> dict[str, dict[str, Tensor]]:
    """The tensors of every mapping, with the dotted path to it; elements of lists are called by their numbers.

    Raises:
        ValueError: it is no mapping, or there are more mappings than any checkpoint has.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__.lstrip('_')}, not a state dict")
    found: dict[str, dict[str, Tensor]] = {}
    waiting: list[tuple[str, Mapping[Any, Any], int]] = [("", content, _DEEPEST)]
    for _ in range(_MAPPINGS):
        if not waiting:
            return found
        above, mapping, depth = waiting.pop()
        if tensors := {str(key): value for key, value in mapping.items() if isinstance(value, Tensor)}:
            found.setdefault(above, tensors)
        inside = [
            (f"{above}.{key}" if above else str(key), numbered(value), depth - 1)
            for key, value in mapping.items()
            if isinstance(key, str | int) and isinstance(value, Mapping | list | tuple)
        ]
        if depth and len(waiting) + len(inside) > _MAPPINGS:
            break
        # Backwards, for the last one is taken first.
        waiting += reversed(inside) if depth else ()
    raise ValueError(f"{path} holds more than {_MAPPINGS} mappings, which no file of weights does; it is not used")


def numbered(value: Any) -> Mapping[Any, Any]:
    """A mapping, or a list as one."""
    return value if isinstance(value, Mapping) else dict(enumerate(value[:SEVERAL]))


def check_plain(tensors: dict[str, Tensor], path: str) -> dict[str, Tensor]:
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
    return tensors
