"""One of two ranks, each with a pretended GPU: `python two_devices.py FOLDER`, with torchrun's variables set.

NCCL is pretended, too: what it would exchange lies in the host's memory, where gloo exchanges it.
"""

import os
import sys
from pathlib import Path
from typing import Any

import pretended

if __name__ == "__main__":
    # Behind the folder of all tests, whose `conftest` is meant below.
    sys.path.append(sys.path.pop(0))
    pretended.begin(Path(os.environ["PRETENDED"]))

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import _create_work_from_future  # pyright: ignore[reportAttributeAccessIssue]

from conftest import tiny_data
from tiny_runs import tiny_recipe
from toughen.data import DATA
from toughen.parallel import ranks
from toughen.training import train

RECIPES: dict[str, dict[str, Any]] = {
    "free": {},
    "trades": {"micro_batch": 5, "method": {"name": "trades", "attack": {"name": "pgd", "steps": 2}}},
}


def host(value: Any) -> Any:
    """Tensors of the device as the host's, of the same memory; in lists too."""
    if isinstance(value, (list, tuple)):
        return [host(each) for each in value]
    return torch.ops.pretended.host(value) if isinstance(value, torch.Tensor) else value


class Exchange(dist.ProcessGroup):
    """A group that exchanges tensors of the device, and of the host, by gloo."""

    def __init__(self, gloo: Any, rank: int, world: int) -> None:
        super().__init__(rank, world)  # pyright: ignore[reportCallIssue]
        self._gloo = gloo

    def getBackendName(self) -> str:  # noqa: N802  # torch's name
        return "pretended"

    def _done(self, name: str, *given: Any) -> Any:
        getattr(self._gloo, name)(*map(host, given)).wait()
        done: torch.futures.Future[Any] = torch.futures.Future()
        done.set_result(given[0])
        return _create_work_from_future(done)


def _by_gloo(name: str) -> Any:
    return lambda self, *given, **options: self._done(name, *given, *options.values())


for _name in ("allreduce", "broadcast", "allgather", "gather", "scatter", "reduce_scatter", "barrier"):
    setattr(Exchange, _name, _by_gloo(_name))


def made(store: Any, rank: int, world: int, timeout: Any) -> Exchange:
    """The group, as torch asks a backend for it."""
    return Exchange(dist.ProcessGroupGloo(store, rank, world, timeout=timeout), rank, world)


def main() -> None:
    """Train on this rank's device."""
    torch.set_num_threads(1)
    DATA["tiny"] = tiny_data
    dist.Backend.register_backend("pretended", made, devices=["cpu", "cuda"])
    begin = dist.init_process_group
    dist.init_process_group = lambda backend, **given: begin("pretended", **given)
    with ranks.group(own := ranks.local_device(torch.device("cuda"))):
        for name, changes in RECIPES.items():
            for device in ("cuda", "cpu"):
                recipe = tiny_recipe(device=device, fast="off", steps=12, save_every=12, **changes)
                train(recipe, Path(sys.argv[1]) / f"{name}-{device}")
        assert torch.cuda.current_device() == own.index == int(os.environ["LOCAL_RANK"])
        assert torch.cuda.max_memory_allocated() > 0


if __name__ == "__main__":
    main()
    # Not by the interpreter's end, which waits for threads that autograd has for each device.
    os._exit(0)
