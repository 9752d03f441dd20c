"""What a device has and what it lacks: the one file that tells kinds of accelerators apart.

    device = best()                  # a GPU by CUDA, else Apple's by MPS, else Intel's by XPU, else the CPU
    absence(device, "cuda:3")        # "cuda:3 is not available on this machine, where torch 2.13 finds cpu and ..."
    wide = in_float64(values)        # there, or on the host where the device has no float64
    rows = sent(rows, device)        # from the host, which does not wait until the device has them
    with own_draws(device): ...      # torch's random state as it was, on the host and on this one device

torch names nearly all that is asked here after the kind (`torch.cuda.synchronize`, `torch.mps.synchronize`).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import TypeVar

import torch
from torch import Tensor, nn

from toughen.settings import shown

Model = TypeVar("Model", bound=nn.Module)

KINDS: dict[str, ModuleType] = {"cuda": torch.cuda, "mps": torch.mps, "xpu": torch.xpu}
"""Accelerators, by torch's name, and the module in which torch keeps what is to be done with them; the best first."""


QUEUED = ("cuda", "xpu")
"""Kinds that take copies from the host into their queue."""

STAGED = 64 * 1024
"""Bytes up to which CUDA takes a copy of pageable memory at once; for more it may wait for what is queued."""

HIDING = {"cuda": ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"), "xpu": ("ZE_AFFINITY_MASK",)}
"""Variables by which some accelerators of a kind are hidden from a process, or all of them."""

EXCHANGES = {"cuda": "nccl", "xpu": "xccl"}
"""What processes exchange tensors by that lie on accelerators of a kind; those of other kinds cannot."""


def is_there(kind: str) -> bool:
    """Whether this machine and this build of torch offer a kind of accelerator."""
    module = torch.backends.mps if kind == "mps" else KINDS[kind]
    return module.is_available()


def best() -> torch.device:
    """The best kind of device that is there, without a number."""
    return torch.device(next((kind for kind in KINDS if is_there(kind)), "cpu"))


def count(kind: str) -> int:
    """How many accelerators of a kind there are."""
    return KINDS[kind].device_count() if is_there(kind) else 0


def absence(device: torch.device, name: str) -> str:
    """That a device is not there, as a clause that says what is, and what may hide it; empty where it is there.

    Args:
        device: the one that is meant.
        name: what the user calls it.
    """
    if device.type == "cpu" or (device.index or 0) < count(device.type):
        return ""
    names = ["cpu", *(f"{kind}:{number}" for kind in KINDS for number in range(count(kind)))]
    found = f"{', '.join(names[:-1])} and {names[-1]}" if names[1:] else "cpu alone"
    hiding = [variable for variable in HIDING.get(device.type, ()) if variable in os.environ]
    hidden = f" ({', '.join(f'{variable} is {shown(os.environ[variable])}' for variable in hiding)})" if hiding else ""
    return f"{name} is not available on this machine, where torch {torch.__version__} finds {found}{hidden}"


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


def in_float64(values: Tensor | float) -> Tensor:
    """The values in float64: where they are if that device has it, else on the host, where a plain number is too."""
    if not isinstance(values, Tensor):
        return torch.tensor(values, dtype=torch.float64)
    # In two steps: torch would convert on the device before it copies.
    return values.double() if has_float64(values.device) else values.cpu().double()


def widest(device: torch.device | str) -> torch.dtype:
    """The type of a device's widest floats: float64, or float32 where it has none."""
    return torch.float64 if has_float64(device) else torch.float32


def sent(values: Tensor, device: torch.device | str) -> Tensor:
    """The values on a device, float64 as float32 where it has none; the host does not wait for what it sends itself.

    It may change them at once all the same: by then they have been copied, to the driver or to pinned memory.
    """
    if values.dtype == torch.float64:
        values = values.to(widest(device))
    ahead = torch.device(device).type in QUEUED and values.device.type == "cpu" and not values.is_pinned()
    if ahead and values.nbytes > STAGED:
        values = values.pin_memory()
    return values.to(device, non_blocking=ahead)


def float64_home(device: torch.device | str) -> torch.device:
    """Where numbers of 64 bits about a device's tensors lie: on it, or on the host where it has none."""
    return torch.device(device if has_float64(device) else "cpu")


def placed(model: Model, device: torch.device) -> Model:
    """A model moved to a device.

    Raises:
        ValueError: it holds numbers of 64 bits, which the device has not.
    """
    wide = (torch.float64, torch.complex128)
    held = (name for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor) and tensor.dtype in wide)
    if not has_float64(device) and (name := next(held, None)):
        raise ValueError(
            f"the model is in float64 ({shown(name)}), which {device} does not have; give it in float32: model.float()"
        )
    return model.to(device)


def skips_steps(device: torch.device) -> bool:
    """Whether torch's fused optimisers can leave out a step there that turns out to be bad; MPS's refuse to be told."""
    return device.type != "mps"


def computes_bf16(device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16 faster than in float32, as far as torch can tell."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "xpu" and torch.xpu.is_bf16_supported()


def peak_memory(device: torch.device) -> int:
    """Bytes of an accelerator at the fullest moment; on MPS those that torch has taken and not given back."""
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return KINDS[device.type].max_memory_allocated(device)


def forget_cache(device: torch.device) -> None:
    """Give an accelerator's memory back that torch holds and nobody uses."""
    if device.type in KINDS:
        KINDS[device.type].empty_cache()


def random_states() -> list[Tensor]:
    """The states of torch's own generators: of the host, and of all accelerators in use."""
    found = [torch.get_rng_state()]
    if is_there("mps"):
        found.append(torch.mps.get_rng_state())
    for module in (torch.cuda, torch.xpu):
        # Asking would begin it, and take memory.
        found += module.get_rng_state_all() if module.is_available() and module.is_initialized() else []
    return found


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
