"""The only file that knows ranks: everything else asks it, and works unchanged where there is but one.

    with ranks.group(device):                       # started by torchrun: WORLD_SIZE and friends are set
        batches = Batches(..., rank=ranks.rank(), world=ranks.world())

Rank r of W takes rows r, r + W, r + 2W, ... of each global batch.
"""

import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from toughen import devices
from toughen.parallel import sharding

# A rank that gives no sign for this long is dead; torch's own limit is half an hour.
TIMEOUT = timedelta(seconds=120)
# For finding each other at the start.
MEETING = timedelta(seconds=60)
# Seconds in which a thread of the group lets go of what it holds.
SETTLED = 0.05
# What gloo and NCCL say in plain RuntimeErrors when another process is gone.
_GONE = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")


class Lost(RuntimeError):
    """Another rank has died or hangs (DD601); the same command goes on from the last checkpoint."""


class Diverged(RuntimeError):
    """Ranks no longer hold the same weights (DD602)."""


def cores() -> int:
    """Processor cores that this process may use; ranks of one machine share them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def rank() -> int:
    """This process's number, 0 when alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """The number of processes, 1 when alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the rank that writes."""
    return rank() == 0


def started() -> int:
    """How many processes torchrun started for this run; 1 without torchrun. Answers before they have met."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether torchrun calls this process its first; true without torchrun. Answers before the processes have met."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def group(device: torch.device) -> Iterator[None]:
    """Join the other processes that torchrun started, if any, until the context ends.

    Does nothing where the caller has set up a process group already.
    """
    if dist.is_initialized() or started() == 1:
        yield
        return
    by = devices.EXCHANGES.get(device.type)
    if by:
        # It sends plain objects through the current device, which would be the first one on every rank.
        devices.KINDS[device.type].set_device(device)
    try:
        _meet(f"cpu:gloo,{device.type}:{by}" if by else "gloo")
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or any(words in str(error) for words in _GONE):
            raise Lost(
                f"DD601 Rank {os.environ['RANK']} lost another one, which has died or given no sign for "
                f"{TIMEOUT.seconds} s. The same command goes on from the last checkpoint; torchrun gives it by itself "
                "with --max-restarts."
            ) from error
        raise
    finally:
        if dist.is_initialized():
            # A thread of the group may still let go of the tensors of what was exchanged last, for which it needs the
            # interpreter; whoever frees the group holds the interpreter, and waits for that thread: for ever.
            time.sleep(SETTLED)
            dist.destroy_process_group()
        # Wrapped models hold the group, and lie in cycles: left to the end of the interpreter, the group's threads
        # now and then abort the process ("terminate called without an active exception").
        gc.collect()


def _meet(backend: str) -> None:
    """Find the other processes. A function, so that no name here keeps the store beyond the group."""
    # torchrun's own store outlives a restart, and with it the keys of processes that are dead.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    meeting, own, ranks = next(rendezvous("env://", timeout=MEETING))
    store = PrefixStore(f"toughen/{attempt}", meeting)
    dist.init_process_group(backend, store=store, rank=own, world_size=ranks, timeout=TIMEOUT)


def local_device(device: torch.device) -> torch.device:
    """The accelerator that belongs to this process, where torchrun started several on a machine."""
    if device.type in devices.EXCHANGES and device.index is None:
        return torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")))
    return device


def exchanges(device: torch.device) -> bool:
    """Whether processes of this build of torch can exchange tensors that lie on such devices."""
    by = devices.EXCHANGES.get(device.type)
    return device.type in ("cpu", "cuda") or (by is not None and dist.is_backend_available(by))


def wrapped(model: nn.Module) -> nn.Module:
    """The model whose backward passes average gradients over ranks; itself when alone, and where it is sharded.

    Buffers are not sent from the first rank at every forward pass, as torch would: see `average_statistics`.
    """
    if world() == 1 or sharding.is_sharded(model):
        return model
    found = DistributedDataParallel(model)
    # Not as an argument, whose name torch 2.13 has changed.
    found.broadcast_buffers = False
    return found


@contextmanager
def unsynchronised(model: nn.Module) -> Iterator[None]:
    """Passes of a wrapped model whose gradients the caller averages over ranks."""
    if isinstance(model, DistributedDataParallel):
        alone = model.no_sync()
    else:
        alone = sharding.accumulating(model) if sharding.is_sharded(model) else nullcontext()
    with alone:
        yield


def synchronised(model: nn.Module) -> nn.Module:
    """The model with BatchNorm that normalises by the global batch, converted in place; parameters and names stay."""
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def average_statistics(model: nn.Module) -> None:
    """Give every rank the mean over ranks of BatchNorm's running statistics: one exchange, none without BatchNorm.

    Each rank moves them by its own part of the batch. Averaged after every optimiser step they are of all examples,
    and the same on every rank: so an attack in inference mode, validation and evaluation meet one model, and a
    checkpoint holds all that the future of a run depends on. (torch sends the first rank's before each forward pass
    through its wrapper instead. So ranks differ in between, and what the others have seen is lost.)
    """
    if world() == 1:
        return
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and not isinstance(m, nn.SyncBatchNorm)]
    statistics = [value for layer in layers for value in (layer.running_mean, layer.running_var) if value is not None]
    if not statistics:
        return
    flat = total(torch.cat(statistics)) / world()
    means = list(flat.split([len(value) for value in statistics]))
    torch._foreach_copy_(statistics, means)  # pyright: ignore[reportPrivateImportUsage]


def slots(n: int) -> int:
    """How many of n rows this rank takes."""
    return len(range(rank(), n, world()))


def shard(rows: Tensor) -> Tensor:
    """This rank's rows of (N, ...)."""
    return rows[rank() :: world()].clone()


def gather(rows: Tensor, n: int) -> Tensor:
    """All n rows, in order, from the shards of every rank: the inverse of `shard`."""
    if world() == 1:
        return rows
    longest = -(-n // world())
    padded = torch.zeros((longest, *rows.shape[1:]), dtype=rows.dtype, device=rows.device)
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(world())]
    dist.all_gather(parts, padded)
    return torch.stack(parts, 1).flatten(0, 1)[:n]


def total(value: Tensor) -> Tensor:
    """The sum over ranks of a tensor, in place."""
    if world() > 1:
        dist.all_reduce(value)
    return value


def any_rank(flag: Tensor) -> Tensor:
    """Whether a flag is set on any rank."""
    return total(flag.to(torch.int32)) > 0 if world() > 1 else flag


def largest(value: int) -> int:
    """The largest of the numbers that the ranks pass in; no device waits for it."""
    if world() == 1:
        return value
    # On the host, where the group can: a device would have to finish its work first.
    there = next((kind for kind, by in devices.EXCHANGES.items() if dist.get_backend() == by), "cpu")
    box = torch.tensor(value, device=there)
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return int(box)


def check_equal(model: nn.Module) -> None:
    """Compare a checksum of the weights and statistics of every rank.

    Raises:
        Diverged: they differ, though every rank takes the same steps (DD602).
    """
    if world() == 1 or sharding.is_sharded(model):
        return
    sums = [bits.sum(dtype=torch.int64) for bits in map(_bits, model.state_dict().values())]
    by_rank = from_every(torch.stack(sums).tolist())
    if others := [number for number, found in enumerate(by_rank) if found != by_rank[0]]:
        raise Diverged(
            f"DD602 Parameters differ between ranks 0 and {', '.join(map(str, others))}, which take the same steps: a "
            "device or its memory is faulty. The last checkpoint is sound; go on from it on other devices."
        )


def _bits(value: Tensor) -> Tensor:
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[value.element_size()]
    return value.detach().reshape(-1).view(whole)


def from_main(value: Any) -> Any:
    """What the first rank passes in, on every rank."""
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def from_every(value: Any) -> list[Any]:
    """What each rank passes in, by rank, on every rank."""
    if world() == 1:
        return [value]
    box: list[Any] = [None] * world()
    dist.all_gather_object(box, value)
    return box


def barrier() -> None:
    """Wait for every rank."""
    if world() > 1:
        dist.barrier()
