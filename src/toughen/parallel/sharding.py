"""A model in parts, one on each rank, for those whose weights, gradients and momentum are too much for one device.

    shard(model, blocks(model), device)                    # in place; torch's fully_shard (FSDP2)
    optimizer = SGD(parts(model.parameters()), fused=True)  # each rank steps its own part, and keeps its momentum
    with gathered(model): attack(model, x, y)              # weights exchanged once, and no gradients
    whole(model)                                           # a plain copy, for passes that each rank does by itself

A pass gathers the weights of a block just before they are needed, and forgets them after; a backward pass leaves each
rank with its part of the gradient's mean. All ranks must therefore run the same passes.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
import torch.distributed as dist
from torch import Tensor, nn

_SKELETONS: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()
"""For each sharded model one of its kind without memory."""


def shard(model: nn.Module, blocks: Sequence[nn.Module], device: torch.device) -> None:
    """Spread the parameters of a model over all ranks, in place. Buffers stay whole.

    Args:
        model: with equal parameters on every rank, all laid out in the usual order.
        blocks: of the model; the weights of each are gathered together, those of the rest at the start.
        device: of the model.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    _SKELETONS[model] = copy.deepcopy(model).to("meta")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def is_sharded(model: nn.Module) -> bool:
    """Whether each rank has but a part of it."""
    return model in _SKELETONS


def parts(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """This rank's part of each parameter, as a parameter that an optimiser steps; of what is whole, itself.

    A part shares the memory of its parameter. Backward passes add its gradient up in `.grad` of the part.
    """
    return [_part(p) if _is_spread(p) else p for p in parameters]


def _part(parameter: Any) -> nn.Parameter:
    own: Any = nn.Parameter(parameter.detach().to_local())
    own.part_of = parameter
    # Weak, for Python cannot collect a circle that goes through a tensor's hooks, and this one holds the group.
    known = ref(own)

    def take(whole: Any) -> None:
        # Where the parts of a batch add up, torch may reduce the gradient of a block twice.
        part, found = known(), whole.grad.to_local()
        if part is not None:
            part.grad = found if part.grad is None else part.grad + found
        whole.grad = None

    parameter.register_post_accumulate_grad_hook(take)
    return own


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Passes of frozen weights, such as an attack's: the first one gathers the weights, the others exchange nothing."""
    if not is_sharded(model):
        yield
        return
    _keep(model, True)
    try:
        yield
    finally:
        _keep(model, False)
        for module in _units(model):
            module.reshard()


def _keep(model: nn.Module, keep: bool) -> None:
    for module in _units(model):
        module.set_reshard_after_forward(not keep, recurse=False)
        module.set_reshard_after_backward(not keep, recurse=False)


def _units(model: nn.Module) -> list[Any]:
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


@contextmanager
def accumulating(model: nn.Module) -> Iterator[None]:
    """Backward passes whose gradients stay on each rank, to be added to those of the next."""
    root: Any = model
    root.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        root.set_requires_gradient_sync(True)


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict, with every tensor whole and, where it was not, on the CPU; all ranks must ask for it."""
    return {name: _full(value) for name, value in model.state_dict().items()}


def load_full_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """The inverse of `full_state`."""
    own = model.state_dict()
    if lost := sorted(own.keys() - state.keys()):
        # torch itself lets BatchNorm's counters be missing.
        raise ValueError(f"{lost[0]} is missing")
    sharded = is_sharded(model)
    model.load_state_dict({name: _like(own.get(name), value) if sharded else value for name, value in state.items()})


def full_like(part: Tensor, value: Tensor) -> Tensor:
    """What an optimiser keeps for a part, such as its momentum, for the whole parameter; all ranks must ask for it."""
    parameter: Any = getattr(part, "part_of", None)
    if parameter is None or value.shape != part.shape:
        return value
    from torch.distributed.tensor import DTensor

    spread = DTensor.from_local(
        value,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    return _full(spread)


def part_like(part: Tensor, value: Tensor) -> Tensor:
    """The inverse of `full_like`."""
    parameter: Any = getattr(part, "part_of", None)
    if parameter is None or value.shape != parameter.shape:
        return value
    found: Any = _like(parameter, value)
    return found.to_local()


def _is_spread(value: Any) -> bool:
    if not _SKELETONS:
        return False
    # Only where it is needed: the import takes a second.
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def _full(value: Any) -> Tensor:
    return value.detach().full_tensor().cpu() if _is_spread(value) else value


def _like(parameter: Any, value: Tensor) -> Tensor:
    if not _is_spread(parameter):
        return value
    from torch.distributed.tensor import distribute_tensor

    # Every rank has the whole and takes its own: nothing is sent.
    value = value.to(parameter.device)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def whole(model: nn.Module) -> nn.Module:
    """A plain copy of a sharded model, on the same device; any other model itself. All ranks must ask for it."""
    if not is_sharded(model):
        return model
    found: dict[str, Any] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    device = next(iter(found.values())).device
    plain = copy.deepcopy(_SKELETONS[model]).to_empty(device=device)
    with torch.no_grad():
        for name, into in (*plain.named_parameters(), *plain.named_buffers()):
            into.copy_(found[name].full_tensor() if _is_spread(found[name]) else found[name])
    return plain.train(model.training)
