"""One of several ranks: `python many.py FOLDER WHAT...`, with torchrun's variables set. See `test_many.py`."""

import itertools
import os
import signal
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.distributed._functional_collectives import all_reduce
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

from conftest import tiny_data
from killed_runs import digest
from killed_runs import recipe as killed_recipe
from toughen.data import DATA, load
from toughen.evaluation import evaluate
from toughen.models import MODELS
from toughen.parallel import ranks, sharding
from toughen.recipes.schema import ModelSpec
from toughen.recipes.text import build
from toughen.storage import files
from toughen.training import loop, setup, train
from toughen.training.loop import Job, train_batch
from toughen.training.setup import set_up, splits
from toughen.training.state import capture
from toughen.workflows.run_folder import open_run

PGD = {"name": "pgd", "steps": 2, "step_size": 0.04}
SHARDED: dict[str, dict[str, Any]] = {
    "natural": {"name": "natural"},
    # Whom the first start breaks is not attacked again: ranks run passes of their own number.
    "adversarial": {"name": "adversarial", "attack": {**PGD, "restarts": 2}},
    "free": {"name": "free", "replays": 2},
    "trades": {"name": "trades", "attack": PGD},
}
SYNCHRONISED: dict[str, dict[str, Any]] = {
    "train": {"name": "adversarial", "attack": {**PGD, "attack_bn": "train"}},
    "batch": {"name": "adversarial", "attack": {**PGD, "restarts": 2, "attack_bn": "batch"}},
    "replays": {"name": "free", "replays": 2},
    "two-passes": {"name": "trades", "attack": PGD},
}
COUNTED: dict[str, dict[str, Any]] = {
    "adversarial": {"name": "adversarial"},
    "trades": {"name": "trades"},
    "instance_adaptive": {"name": "instance_adaptive", "warmup": 0},
    "free": {"name": "free"},
}


def blocky(*, num_classes: int, in_channels: int, norm: bool = False) -> nn.Module:
    """Residual blocks in a row, of sizes that no number of ranks divides."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(5, 5, 3, padding=1), nn.BatchNorm2d(5) if norm else nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return x + self.norm(self.conv(x)).relu()

    rows = nn.Sequential(Block(), Block())
    return nn.Sequential(
        nn.Conv2d(in_channels, 5, 3), rows, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, num_classes)
    )


class Synchronised(nn.SyncBatchNorm):
    """What torch's does on GPUs, for the CPU, by its definition."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return nn.functional.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False)
        count = torch.tensor(float(input.numel() // input.shape[1]), dtype=input.dtype)
        sums = torch.cat([input.sum((0, 2, 3)), input.square().sum((0, 2, 3)), count[None]])
        sums = all_reduce(sums, "sum", dist.distributed_c10d._get_default_group()) if ranks.world() > 1 else sums
        n = sums[-1]
        mean, square = (sums[:-1] / n).chunk(2)
        variance = square - mean.square()
        if self.track_running_stats:
            own: Any = self
            with torch.no_grad():
                own.running_mean += own.momentum * (mean - own.running_mean)
                own.running_var += own.momentum * (variance * n / (n - 1) - own.running_var)
        shape = (1, -1, 1, 1)
        found = (input - mean.view(shape)) / (variance + self.eps).sqrt().view(shape)
        return found * self.weight.view(shape) + self.bias.view(shape)


def convert(model: nn.Module) -> nn.Module:
    found = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in found.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.__class__ = Synchronised
    return found


def job_of(method: dict[str, Any], **changes: Any) -> tuple[Job, list[Any]]:
    # 134 training images in batches of 13: the last has four, so that it leaves four ranks one each.
    recipe = build(
        {
            "data": {"source": "tiny", "validation": 16, "pad": 1, "flip": True},
            "model": {"name": "blocky"},
            "method": method,
            "threat": "linf:0.1",
            "batch_size": 13,
            "steps": 60,
            "averages": [0.9],
            **changes,
        }
    )
    data = load("tiny")
    split, _, index = splits(recipe, data)
    job, batches = set_up(recipe, data, split, index, torch.device("cpu"), dtype=torch.float64)
    # The first of an epoch, the short one at its end, and the first of the next.
    found = (batches[i] for i in (0, 1, 2, len(batches) - 1, len(batches)))
    return job, [replace(batch, x=batch.x.double()) for batch in found]


def train_in_float64(folder: Path, method: dict[str, Any], **changes: Any) -> None:
    job, batches = job_of(method, **changes)
    spread = changes.get("sharding") == "full" and ranks.world() > 1
    assert all(sharding.is_sharded(model) == spread for model in (job.model, *job.averages.models().values()))
    kept = sum(p.numel() for group in job.optimizer.param_groups for p in group["params"])
    every = sum(p.numel() for p in job.model.parameters())
    assert sum(ranks.from_every(kept)) == every * (1 if spread else ranks.world())
    for batch in batches:
        train_batch(job, batch)
    job.finite.check()
    tensors, _ = capture(job, slots=13)
    passes = ranks.from_every(job.passes)
    if "norm" in changes.get("model", {}):
        # Those of synchronised BatchNorm wait for all ranks.
        assert all(own == passes[0] for own in passes)
    if ranks.is_main():
        folder.mkdir()
        for group, members in tensors.items():
            save_file({name: t.contiguous() for name, t in members.items()}, folder / f"{group}.safetensors")


def sharded(folder: Path) -> None:
    for name, method in SHARDED.items():
        train_in_float64(folder / name, method, sharding="full")
    train_in_float64(folder / "parts", SHARDED["trades"], sharding="full", micro_batch=4)
    train_in_float64(folder / "recomputed", SHARDED["trades"], sharding="full", activation_checkpointing=True)


def synchronised(folder: Path) -> None:
    """With BatchNorm over all ranks, as if they were GPUs."""
    setup.synchronises = lambda model, device: True
    ranks.synchronised = convert
    DistributedDataParallel._passing_sync_batchnorm_handle = lambda self, module: None
    model = {"name": "blocky", "norm": True}
    for name, method in SYNCHRONISED.items():
        train_in_float64(folder / name, method, batchnorm="synchronised", model=model)


def noted(buckets: list[int], bucket: GradBucket) -> torch.futures.Future[Tensor]:
    buckets.append(bucket.index())
    return allreduce_hook(None, bucket)  # pyright: ignore[reportArgumentType]


def counted(folder: Path) -> None:
    """Exchanges of one batch, by kind."""
    found: list[dict[str, Any]] = []
    for name, method in COUNTED.items():
        for k, rows in ((1, None), (4, None), (4, 2)):
            own = {"replays": k} if name == "free" else {"attack": {**PGD, "steps": k}}
            job, batches = job_of({**method, **own}, micro_batch=rows, model={"name": "blocky", "norm": True})
            buckets: list[int] = []
            wrapped: Any = job.wrapped
            wrapped.register_comm_hook(buckets, noted)
            # The reducer lays out its buckets anew at the second step.
            train_batch(job, batches[0])
            train_batch(job, batches[1])
            buckets.clear()
            before = job.step
            with profile(activities=[ProfilerActivity.CPU]) as seen:
                train_batch(job, batches[2])
            calls = Counter(e.name.removeprefix("c10d::") for e in seen.events() or () if e.name.startswith("c10d::"))
            what = {"method": name, "k": k, "rows": rows, "steps": job.step - before}
            found.append({**what, "gradients": len(buckets), "calls": calls})
    if ranks.is_main():
        files.write_json(folder / "calls.json", found)


def survive(folder: Path, spread: str) -> None:
    """A run that dies amid its way and is resumed, and one that does not."""
    recipe = killed_recipe({"method": {"name": "adversarial", "attack": {"name": "pgd", "steps": 2}}})
    model = ModelSpec.model_validate({"name": "blocky", "norm": True})
    selection = recipe.selection.model_copy(update={"every": 8})
    changes = {"sharding": spread, "model": model, "steps": 16, "selection": selection, "overfitting_every": 8}
    recipe = recipe.model_copy(update=changes)
    child = os.fork()
    if child == 0:
        original, taken = loop.set_rate, itertools.count(1)

        def deadly(*given: Any) -> None:
            if next(taken) == 12:
                os.kill(os.getpid(), signal.SIGKILL)
            original(*given)

        loop.set_rate = deadly
        try:
            train(recipe, folder / "killed")
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert status != 0
    # Not before all are dead: the first one's store would take who comes back for one of the old group.
    (folder / f"dead-{os.environ['RANK']}").touch()
    while len(list(folder.glob("dead-*"))) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.02)
    with ranks.group(torch.device("cpu")):
        train(recipe, folder / "killed")
        train(recipe, folder / "whole")
    if os.environ["RANK"] == "0":
        run = folder / "whole"
        _, validation, _ = splits(recipe, load("tiny"))
        # One process evaluates what two have trained and validated.
        found = evaluate(
            open_run(run).model, validation.images, validation.labels, threat=recipe.threat, suite="pgd-2", audit=False
        )
        best = files.read_json(run / "summary.json")["best"]["average-0.9"]
        accuracies = {"clean_accuracy": found.clean_accuracy, "robust_accuracy": found.robust_accuracy}
        digests = {name: digest(folder / name) for name in ("killed", "whole")}
        files.write_json(folder / "found.json", {**digests, "alone": accuracies, "best": best})


if __name__ == "__main__":
    torch.set_num_threads(1)
    DATA["tiny"] = tiny_data
    MODELS["blocky"] = blocky
    out, what = Path(sys.argv[1]), sys.argv[2:]
    if what[0] == "survive":
        survive(out, what[1])
    else:
        with ranks.group(torch.device("cpu")):
            for name in what:
                {"sharded": sharded, "synchronised": synchronised, "counted": counted}[name](out)
