"""Hashes of models and tensors: whose weights, whose images.

hash_model(net), hash_tensor(images, labels)
"""

import hashlib
import io
import re
import zipfile

import torch
from torch import Tensor, nn


def hash_model(model: nn.Module) -> str:
    """SHA-256 over parameters and buffers with their names and, of each module, its type and how it shows itself.

    Of what torch.jit made the code counts too, which holds the weights of a frozen one. What else a module keeps, and
    its code, are told by `reached_code.reached`.
    """
    digest = hashlib.sha256()
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            digest.update(_hash_script(module).encode())
    for name, module in model.named_modules():
        digest.update(f"{name}:{type(module).__qualname__}:{module.extra_repr()};".encode())
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
