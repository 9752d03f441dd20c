"""A job as named tensors and plain data, and back: everything that the future of a run depends on.

    tensors, state = capture(job)
    restore(job, checkpoint)

Nothing random is in it: every draw is a function of the seed and the counters.
"""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from toughen.attacks import AttackSpec
from toughen.losses import LOSSES
from toughen.methods.wrapper import nested
from toughen.models.reached_code import reached
from toughen.modes import plain
from toughen.parallel import ranks, sharding
from toughen.storage.checkpoint import Checkpoint
from toughen.training.early_stopping import candidates
from toughen.training.loop import Job

Tensors = dict[str, dict[str, Tensor]]


def capture(job: Job, *, slots: int) -> tuple[Tensors, dict[str, Any]]:
    """Tensors by group (each a file) and counters; the same on every rank.

    Args:
        job: between two batches.
        slots: rows of the global batch.
    """
    tensors: Tensors = {name: sharding.full_state(model) for name, model in candidates(job).items()}
    kinds = job.method.state_kinds
    tensors["method"] = {
        name: ranks.gather(value, slots) if kinds[name] == "slot" else value for name, value in job.state.items()
    }
    optimizer, weights = job.optimizer.state_dict()["state"], stepped(job)
    tensors["optimizer"] = {
        f"{i}.{key}": sharding.full_like(weights[i], value)
        for i, entry in sorted(optimizer.items())
        for key, value in sorted(entry.items())
        if value is not None
    }
    counters = {"step": job.step, "number": job.number, "passes": asdict(job.passes)}
    counters |= {"meters": ranks.from_every(job.meters.state())}
    return tensors, counters | {"micro_batch": job.micro_batch, "ways": asdict(job.ways), "code": code_of(job)}


def code_of(job: Job) -> dict[str, str]:
    """Hashes of what a run is made of outside installed packages: network, method, attacks and losses."""
    parts: list[object] = []
    for method in nested(job.method):
        parts.append(method)
        for value in vars(method).values():
            parts += [value.find(value.name)] if isinstance(value, AttackSpec) else [LOSSES.get(str(value))]
    return reached(model=plain(job.model), parts=parts).code


def stepped(job: Job) -> list[Tensor]:
    """What the optimiser steps, in the order in which it numbers them."""
    return [p for group in job.optimizer.param_groups for p in group["params"]]


def restore(job: Job, checkpoint: Checkpoint) -> None:
    """Put a freshly built job where `capture` found one."""
    for name, model in candidates(job).items():
        sharding.load_full_state(model, checkpoint.tensors(name))
    method = checkpoint.tensors("method")
    if method.keys() != job.state.keys():
        # What is not there would begin anew in silence, as Free's perturbation at zero.
        raise ValueError(f"the method keeps {sorted(job.state)}, and {sorted(method)} are there")
    for name, value in method.items():
        job.state[name].copy_(ranks.shard(value) if job.method.state_kinds[name] == "slot" else value)
    entries: dict[int, dict[str, Tensor]] = {}
    weights = stepped(job)
    for key, value in checkpoint.tensors("optimizer").items():
        i, _, name = key.partition(".")
        weight = weights[int(i)]
        value = sharding.part_like(weight, value)
        # In the weight's own layout: torch's fused step takes both to be laid out alike.
        same = value.shape == weight.shape
        if not same and value.numel() > 1:
            raise ValueError(f"{key} of the optimizer has shape {list(value.shape)}, not {list(weight.shape)}")
        entries.setdefault(int(i), {})[name] = (
            torch.empty_like(weight, dtype=value.dtype).copy_(value) if same else value
        )
    job.optimizer.load_state_dict({"state": entries, "param_groups": job.optimizer.state_dict()["param_groups"]})
    job.step, job.number = checkpoint.state["step"], checkpoint.state["number"]
    # Where it was found by trying, another one would give other bits.
    job.micro_batch = checkpoint.state.get("micro_batch", job.micro_batch)
    vars(job.passes).update(checkpoint.state["passes"])
    # Of each rank by itself, for a sum of sums would round otherwise; other ranks than those are one sum.
    meters = checkpoint.state.get("meters", [])
    if len(meters) == ranks.world():
        job.meters.restore(meters[ranks.rank() :][:1])
    elif ranks.is_main():
        job.meters.restore(meters)
