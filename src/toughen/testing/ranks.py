"""Several ranks as threads of one process, for looking at what a method does on them: nothing is started, all is exact.

    weights = as_ranks(2, lambda rank: train(rank))         # [what rank 0 returned, what rank 1 returned]

While it runs, torch.distributed's collectives that toughen and methods use are those of these threads.
"""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
_REDUCTIONS: dict[Any, Callable[[Tensor], Tensor]] = {
    dist.ReduceOp.SUM: lambda values: values.sum(0),
    dist.ReduceOp.MAX: lambda values: values.amax(0),
    dist.ReduceOp.MIN: lambda values: values.amin(0),
}


class OutOfStep(RuntimeError):
    """Ranks called different collectives, or one ended while another waits for it."""


class _Ranks:
    def __init__(self, world: int) -> None:
        self.world = world
        self.own = threading.local()
        # Ranks are processes, which share no global state: here only one runs at a time.
        self.turn = threading.Lock()
        self.barrier = threading.Barrier(world, timeout=60)
        self.box: list[Any] = [None] * world

    def exchange(self, kind: str, value: Any) -> list[Any]:
        """What each rank passes in, by rank."""
        self.box[self.own.rank] = (kind, value)
        self.turn.release()
        try:
            self.barrier.wait()
            found = list(self.box)
            self.barrier.wait()
        finally:
            self.turn.acquire()
        if len({kind for kind, _ in found}) > 1:
            raise OutOfStep(f"ranks are out of step: {', '.join(kind for kind, _ in found)}")
        return [value for _, value in found]

    def all_gather(self, parts: list[Tensor], tensor: Tensor) -> None:
        for part, value in zip(parts, self.exchange(f"all_gather {tuple(tensor.shape)}", tensor.clone()), strict=True):
            part.copy_(value)

    def all_reduce(self, tensor: Tensor, op: Any = dist.ReduceOp.SUM) -> None:
        values = self.exchange(f"all_reduce {tuple(tensor.shape)}", tensor.clone())
        tensor.copy_(_REDUCTIONS[op](torch.stack(values)))

    def all_gather_object(self, box: list[Any], value: Any) -> None:
        box[:] = self.exchange("all_gather_object", value)

    def broadcast_object_list(self, box: list[Any], src: int = 0) -> None:
        box[:] = self.exchange("broadcast_object_list", list(box))[src]

    def patches(self) -> dict[str, Callable[..., Any]]:
        return {
            "is_initialized": lambda: True,
            "get_rank": lambda: self.own.rank,
            "get_world_size": lambda: self.world,
            "get_backend": lambda: "gloo",
            "barrier": lambda: self.exchange("barrier", None),
            "all_gather": self.all_gather,
            "all_reduce": self.all_reduce,
            "all_gather_object": self.all_gather_object,
            "broadcast_object_list": self.broadcast_object_list,
        }


def as_ranks(world: int, work: Callable[[int], T]) -> list[T]:
    """Run `work(rank)` for every rank at once; what each returns.

    Raises:
        OutOfStep: their collectives do not meet.
        Exception: whatever the first rank that failed raised.
    """
    ranks = _Ranks(world)
    results: dict[int, T] = {}
    errors: list[Exception] = []

    def run(rank: int) -> None:
        ranks.own.rank = rank
        ranks.turn.acquire()
        try:
            results[rank] = work(rank)
            ranks.exchange("the end", None)
        except threading.BrokenBarrierError:
            pass  # another rank has failed, and says why
        except Exception as error:  # noqa: BLE001  # raised again in the thread that waits for this one
            errors.append(error)
            ranks.barrier.abort()
        finally:
            ranks.turn.release()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(world)]
    with ExitStack() as stack:
        for name, function in ranks.patches().items():
            stack.enter_context(patch.object(dist, name, function))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
    return [results[rank] for rank in range(world)]
