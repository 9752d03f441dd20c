"""Whose result lies in a folder: hashes of models, tensors and code, and the refusal of what belongs to another.

    identity = identity_of(model=hash_model(net), data=hash_tensor(x, y), threat=threat_in_full(ball), seed=0)
    claim(folder / "identity.json", identity, of="an evaluation")      # or ValueError: EV271, with what differs

A result is continued, or shown again, only for the identity that it was begun with.
"""

import functools
import hashlib
import inspect
import io
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toughen import __version__
from toughen.errors import Part, UsageError
from toughen.storage import files
from toughen.threat import Threat

Identity = dict[str, Any]

_DIFFERS = {
    "model": "another model (or other weights of it)",
    "data": "other images, labels or ids",
    "images": "another number of images",
    "threat": "another threat model",
    "settings": "other attacks, corruptions or settings",
    "code": "an attack whose code or radii have changed",
    "seed": "another seed",
    "order": "another order of the attacks (cascade or independent)",
    "chunk_size": "another chunk_size",
    "keep": "another choice of what to keep",
    "audit": "another choice of whether to audit",
    "radii": "other radii of the training images",
    "version": "another version of toughen",
}
"""What may differ between two identities, in the words of the refusal."""

_SHOWN = ("images", "threat", "seed", "chunk_size", "version", "order")
"""What is short enough to be shown; of a hash its first figures are."""


def identity_of(**parts: Any) -> Identity:
    """What a result is of, as it will be read back from JSON: the parts, and the version of toughen."""
    return files.decode(files.encode({"version": __version__, **parts}), Path("identity"))


def hash_model(model: nn.Module) -> str:
    """SHA-256 over parameters, buffers and, of each module, its type and its plain attributes (numbers and texts).

    What else a module keeps in Python is not seen. Of what torch.jit made the code counts too, which holds the weights
    of a frozen one.
    """
    digest = hashlib.sha256()
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            digest.update(_hash_script(module).encode())
    for name, module in model.named_modules():
        plain = {
            key: value
            for key, value in sorted(vars(module).items())
            if isinstance(value, bool | int | float | str) and not key.startswith("_") and key != "training"
        }
        digest.update(f"{name}:{type(module).__qualname__}:{module.extra_repr()}:{plain};".encode())
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()]):
        digest.update(name.encode())
        digest.update(hash_tensor(tensor).encode())
    return digest.hexdigest()


def _hash_script(module: torch.jit.ScriptModule) -> str:
    """SHA-256 over what torch.jit would save, but for where in the source it came from and how types are numbered."""
    saved = io.BytesIO()
    torch.jit.save(module, saved)
    digest = hashlib.sha256()
    with zipfile.ZipFile(saved) as archive:
        for name in sorted(archive.namelist()):
            if not name.endswith((".debug_pkl", "serialization_id")):
                content = name.partition("/")[2].encode() + archive.read(name)
                # A process numbers the types that it compiles, in its own order.
                digest.update(re.sub(rb"_*torch_mangle_[0-9]+\.?", b"", content))
    return digest.hexdigest()


def hash_tensor(*tensors: Tensor) -> str:
    """SHA-256 over types, shapes and bytes."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()


def hash_source(function: Callable[..., Any]) -> str:
    """SHA-256 over the source of a function, or of the class of an object that is called; "" where there is none.

    What wraps the function (`partial`, `functools.wraps`) is looked through; what it calls is not looked at.
    """
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    try:
        source = inspect.getsource(function if inspect.isroutine(function) else type(function))
    except (OSError, TypeError):
        # Typed in at a prompt, or not written in Python.
        return ""
    return hashlib.sha256(source.encode()).hexdigest()


def threat_in_full(threat: Threat) -> str:
    """The threat model as text that differs where it does."""
    return f"{threat} {hash_tensor(threat.eps)}" if isinstance(threat.eps, Tensor) else str(threat)


def refuse_other(
    folder: Path,
    found: Any,
    given: Identity,
    *,
    of: str = "an evaluation",
    remedy: Sequence[Part] = ("give another folder, or delete it",),
    **called: str,
) -> None:
    """Refuse a folder that belongs to another identity.

    Args:
        folder: what is refused.
        found: the identity that was read there, or anything else that a file may hold.
        given: the identity at hand.
        of: what the folder holds.
        remedy: what to do.
        called: other words for what may differ than the usual ones.

    Raises:
        ValueError: EV271, with the first thing that differs, in figures where they are short.
    """
    for name, value in given.items():
        was = found.get(name) if isinstance(found, dict) else None
        if was != value:
            figures = f" ({was}, given {value})" if name in _SHOWN else ""
            if name in ("model", "data") and was:
                figures = f" ({was[:8]}..., given {value[:8]}...)"
            said = f"EV271 {folder} holds {of} of {(_DIFFERS | called)[name]}{figures}; "
            raise UsageError(said, *remedy)


def claim(path: Path, identity: Identity, folder: Path, **words: Any) -> None:
    """Write the identity where there is none yet, or refuse the folder of another; see `refuse_other` for the words."""
    if path.is_file():
        refuse_other(folder, files.read_json(path), identity, **words)
    else:
        files.write_json(path, identity)
