"""What a device has and what it lacks: the one file that tells kinds of accelerators apart.

    device = best()                  # a GPU by CUDA, else Apple's by MPS, else Intel's by XPU, else the CPU
    wide = in_float64(values)        # there, or on the host where the device has no float64
    with own_draws(device): ...      # torch's random state as it was, on the host and on this one device

torch names nearly all that is asked here after the kind (`torch.cuda.synchronize`, `torch.mps.synchronize`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

KINDS: dict[str, ModuleType] = {"cuda": torch.cuda, "mps": torch.mps, "xpu": torch.xpu}
"""Accelerators, by torch's name, and the module in which torch keeps what is to be done with them; the best first."""


def is_there(kind: str) -> bool:
    """Whether this machine and this build of torch offer a kind of accelerator."""
    module = torch.backends.mps if kind == "mps" else KINDS[kind]
    return module.is_available()


def best() -> torch.device:
    """The best kind of device that is there, without a number."""
    return torch.device(next((kind for kind in KINDS if is_there(kind)), "cpu"))


def begun() -> torch.device:
    """The accelerator that this process has begun to use, else the CPU: to ask one that it has not would begin it."""
    in_use = (kind for kind in KINDS if (is_there(kind) if kind == "mps" else KINDS[kind].is_initialized()))
    return torch.device(next(in_use, "cpu"))


def has_float64(device: torch.device | str) -> bool:
    """Whether a device has numbers of 64 bits: MPS has none, nor have some of Intel's GPUs."""
    return _has_float64(str(device))


@cache
def _has_float64(device: str) -> bool:
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return False
    return True


def in_float64(values: Tensor) -> Tensor:
    """The values in float64: where they are if that device has it, else on the host."""
    return values.double() if has_float64(values.device) else values.cpu().double()


def computes_bf16(device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16 faster than in float32, as far as torch can tell."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "xpu" and torch.xpu.is_bf16_supported()


def wait(device: torch.device) -> None:
    """Until a device has done what it was given."""
    if device.type == "mps":
        # There is one of Apple's.
        torch.mps.synchronize()
    elif device.type in KINDS:
        KINDS[device.type].synchronize(device)


@contextmanager
def own_draws(device: torch.device | str = "cpu") -> Iterator[None]:
    """torch's random state is afterwards what it was, on the host and on one device.

    `torch.random.fork_rng` without devices keeps that of every GPU, and warns where there are many.
    """
    device = torch.device(device)
    module = KINDS.get(device.type)
    which = [] if device.type == "mps" else [device]
    host, there = torch.get_rng_state(), module and module.get_rng_state(*which)
    try:
        yield
    finally:
        torch.set_rng_state(host)
        if module:
            module.set_rng_state(there, *which)
