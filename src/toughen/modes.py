"""Context managers that put a model into a state and take it back out: each restores exactly what it found.

with attacking(model, "eval"):          # parameters frozen, BatchNorm in inference mode
    grad = torch.autograd.grad(loss(model(x)).sum(), x)
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from toughen.precision import products

AttackBN = Literal["eval", "train", "batch"]


def plain(model: Any) -> Any:
    """The module inside a DistributedDataParallel wrapper, or the model itself.

    Attacks go through it: their backward passes must not wait for other ranks.
    """
    return model.module if isinstance(model, DistributedDataParallel) else model


@contextmanager
def _training_flags(model: nn.Module) -> Iterator[None]:
    # What torch.jit froze has no modes.
    found = [(module, module.training) for module in model.modules() if hasattr(module, "training")]
    try:
        yield
    finally:
        for module, training in found:
            module.training = training


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inference mode for every module."""
    with _training_flags(model):
        to_inference(model)
        yield


def to_inference(model: nn.Module) -> None:
    """Put every module into inference mode; what torch.export made keeps the mode that it was made in."""
    try:
        model.eval()
    except NotImplementedError:
        for module in reversed(list(model.modules())):
            with suppress(NotImplementedError):
                module.eval()


@contextmanager
def training(model: nn.Module) -> Iterator[None]:
    """Training mode, as the model itself takes it."""
    with _training_flags(model):
        model.train()
        yield


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient, so that a backward pass computes the input's alone."""
    found = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in found:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in found:
            parameter.requires_grad_(True)


@contextmanager
def attacking(model: nn.Module, attack_bn: AttackBN) -> Iterator[None]:
    """The state of a model during an attack: parameters frozen and BatchNorm as named.

    Code bases differ in this habit and papers rarely say, so it is a named choice: see docs/methods/README.md,
    BatchNorm during an attack.

    In inference mode a model that is being trained runs folded, see `folding.Folding`.

    Args:
        model: the classifier.
        attack_bn: "eval", inference mode for the whole model (TRADES, MART); "train", the model's own training mode,
            running statistics moved by every pass (Madry et al., IAAT); "batch", inference mode but BatchNorm on the
            batch's statistics, running ones untouched (Gowal et al.'s release).

    Raises:
        ValueError: for another name.
    """
    if attack_bn not in get_args(AttackBN):
        raise ValueError(f"attack_bn is {attack_bn!r}; it must be one of {', '.join(get_args(AttackBN))}")
    with _training_flags(model), frozen(model):
        if attack_bn == "train":
            model.train()
            yield
            return
        to_inference(model)
        if attack_bn == "eval":
            folding = getattr(model, "folding", None)
            with folding.on() if folding is not None else nullcontext():
                yield
            return
        for module in model.modules():
            if isinstance(module, _BatchNorm) and module.track_running_stats:
                module.training = True
        with batch_statistics(model):
            yield


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """BatchNorm layers that are in training mode leave their running statistics alone."""
    tracking = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    try:
        for module in tracking:
            module.track_running_stats = False
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


@contextmanager
def foldable(model: nn.Module, folding: Any) -> Iterator[None]:
    """Let attacks on the model in inference mode run it folded, until the context ends; `folding` may be None."""
    object.__setattr__(model, "folding", folding)
    try:
        yield
    finally:
        object.__delattr__(model, "folding")


@contextmanager
def backends(*, tf32: bool | None = None, **cudnn: bool) -> Iterator[None]:
    """torch's choice of kernels on a GPU, and afterwards what it was.

    Args:
        tf32: whether convolutions and matrix products of float32 numbers keep 10 bits, see `precision`; None for as it
            is.
        cudnn: its `benchmark` and `deterministic`.
    """
    flags = torch.backends.cudnn
    found = {name: getattr(flags, name) for name in cudnn}
    with nullcontext() if tf32 is None else products("tf32" if tf32 else "ieee"):
        try:
            for name, value in cudnn.items():
                setattr(flags, name, value)
            yield
        finally:
            for name, value in found.items():
                setattr(flags, name, value)


@contextmanager
def float32(device: torch.device) -> Iterator[None]:
    """Float32 as its name says: no autocast, and no products of fewer bits (TF32 is torch's default on a GPU)."""
    with backends(tf32=False), torch.autocast(device.type, enabled=False):
        yield


NO_SUCH_KERNEL = r"(?:(\S+) does not have a deterministic implementation|Deterministic behavior was enabled)"
"""How torch says that an operation, or cuBLAS as it was begun, does not sum alike each time."""


@contextmanager
def deterministic() -> Iterator[None]:
    """Kernels that sum alike each time, of all operations for which torch has such; on the others, silence.

    A user who has asked torch to refuse those has them refused.
    """
    memory: Any = torch.utils.deterministic
    found = torch.are_deterministic_algorithms_enabled()
    lenient, filled = torch.is_deterministic_algorithms_warn_only_enabled(), memory.fill_uninitialized_memory
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", NO_SUCH_KERNEL)
        try:
            torch.use_deterministic_algorithms(True, warn_only=lenient or not found)
            # What nothing reads need not be filled.
            memory.fill_uninitialized_memory = False
            yield
        finally:
            torch.use_deterministic_algorithms(found, warn_only=lenient)
            memory.fill_uninitialized_memory = filled


@contextmanager
def running(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another function in place of the module's `forward`; its name, its hooks and its parameters stay."""
    found = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if found is not None:
            module.forward = found


@contextmanager
def channels_last(model: nn.Module) -> Iterator[None]:
    """Convolution weights on the CPU laid out with channels last, so that images follow; the values are the same.

    Passes of convolutional networks are 5 to 40 % cheaper so, and none that was measured is dearer
    (`benchmarks/results/evaluation.md`). Nothing is done on other devices.
    """
    tensors = [*model.parameters(), *model.buffers()]
    found = [(tensor, tensor.data) for tensor in tensors if tensor.ndim == 4 and tensor.device.type == "cpu"]
    try:
        for tensor, data in found:
            # Not `contiguous`: a layer of one channel is both, and keeps strides that lead convolutions the slow way.
            tensor.data = torch.empty_like(data, memory_format=torch.channels_last).copy_(data)
        yield
    finally:
        for tensor, data in found:
            tensor.data = data
