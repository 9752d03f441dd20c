"""The loop: the only place that touches the optimiser. It knows no method by name.

    job = Job(...)
    for number in range(batches):
        train_batch(job, data[number])

Between batches, when a method's generator is exhausted, a job is fully described by its tensors and counters; that is
where the run saves, validates and stops.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from toughen.data import Batch
from toughen.devices import own_draws
from toughen.methods import Method, Objective, State
from toughen.models.cost import Passes
from toughen.models.folding import Folding
from toughen.modes import batch_statistics, foldable
from toughen.noise import derive
from toughen.optim.awp import gradient, perturbable, perturbed
from toughen.optim.ema import Averages
from toughen.optim.schedules import Factor
from toughen.parallel import ranks, sharding
from toughen.recipes.schema import WeightPerturbation
from toughen.training.acceleration import Acceleration, Graphs
from toughen.training.activation_checkpointing import recomputed
from toughen.training.micro_batches import MicroBatch, divided
from toughen.training.monitors import Finite, Meters


@dataclass
class Job:
    """All that changes while a run trains, and what changes it.

    Attributes:
        model: the plain classifier.
        wrapped: the same, averaging gradients over ranks.
        method: the training method, its threat model resolved.
        state: the method's tensors.
        optimizer: with a `base_lr` in every group.
        factor: share of the budget -> factor of the base rates.
        averages: of the weights.
        perturbation: of the weights around each step, or None.
        seed: of whatever the model itself draws, such as dropout.
        total_steps: the budget.
        ways: in which it computes faster.
        graphs: of the network, where it is compiled.
        folding: of its BatchNorms during attacks, where they are folded.
        micro_batch: images of each rank in one pass; None for all.
        least: images of each rank that a pass needs.
        recomputed: blocks of the model whose activations are computed again in backward passes.
        step: optimiser steps done.
        number: minibatches done.
        passes: of the model in training so far, on this rank.
        meters: loss and accuracy since the last line of the log.
        finite: whether every loss and gradient so far was finite.
    """

    model: nn.Module
    wrapped: nn.Module
    method: Method
    state: State
    optimizer: torch.optim.Optimizer
    factor: Factor
    averages: Averages
    perturbation: WeightPerturbation | None
    seed: int
    total_steps: int
    ways: Acceleration
    graphs: Graphs | None
    folding: Folding | None
    micro_batch: int | None
    least: int
    recomputed: Sequence[nn.Module]
    finite: Finite
    step: int = 0
    number: int = 0
    passes: Passes = field(default_factory=Passes)
    meters: Meters = field(default_factory=Meters)


def train_batch(job: Job, batch: Batch) -> None:
    """Take every optimiser step that the method asks of one minibatch."""
    with _training(job, batch, job.state, job.micro_batch) as parts:
        for objectives in objectives_of(job, parts):
            job.optimizer.zero_grad(set_to_none=True)
            with _at_worst_weights(job, batch, objectives):
                losses, seen = backward(job, batch, objectives)
            job.meters.add(losses, seen, batch.y, job.method.forwards)
            job.finite.guard(job.optimizer, losses, batch.x, batch.index, job.step)
            set_rate(job.optimizer, job.factor(job.step / job.total_steps))
            job.optimizer.step()
            ranks.average_statistics(job.model)
            job.averages.update(job.model, job.step)
            job.step += 1
    job.number += 1


@contextmanager
def _training(job: Job, batch: Batch, state: State, rows: int | None) -> Iterator[list[MicroBatch]]:
    """The batch in parts of so many rows, with the model as it is in training."""
    job.model.train()
    # What a model draws by itself comes from the global generator; keyed by the batch, a resumed run need not replay.
    torch.manual_seed(derive(job.seed, "model", job.number, ranks.rank()))
    graphs = job.graphs.on(len(batch)) if job.graphs else nullcontext()
    with (
        graphs,
        foldable(job.model, job.folding),
        recomputed(job.recomputed),
        divided(job.method, batch, state, rows, job.least) as parts,
    ):
        yield parts


def rehearse(job: Job, batch: Batch, rows: int | None) -> None:
    """The first step of a batch up to its gradients; all is left as it was.

    Ranks exchange no gradients, so that what only one of them raises holds up no other.
    """
    buffers = [(buffer, buffer.clone()) for buffer in job.model.buffers()]
    state = {name: value.clone() for name, value in job.state.items()}
    try:
        with (
            own_draws(batch.x.device),
            ranks.unsynchronised(job.wrapped),
            _training(job, batch, state, rows) as parts,
        ):
            objectives = next(objectives_of(job, parts))
            if job.perturbation:
                # As for the gradient by which weights are perturbed, now or later in the run.
                with batch_statistics(job.model):
                    backward(job, batch, objectives)
            backward(job, batch, objectives)
    finally:
        job.model.zero_grad(set_to_none=True)
        for buffer, before in buffers:
            buffer.copy_(before)


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the learning rate of every parameter group to `factor` times its base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def objectives_of(job: Job, parts: Sequence[MicroBatch]) -> Iterator[list[Objective]]:
    """For each step the method's objectives, one a part, its own work (attacks) done in the run's precision."""
    generators = [part.method.losses(job.wrapped, part.batch, part.state) for part in parts]
    while True:
        objectives = []
        for generator, part in zip(generators, parts, strict=True):
            # Entered anew for each: autocast keeps copies of the weights, which a step makes stale.
            with _precision(job, part.batch), sharding.gathered(job.model):
                objectives.append(next(generator, None))
        if objectives[0] is None:
            return
        yield objectives


def backward(job: Job, batch: Batch, objectives: Sequence[Objective]) -> tuple[Tensor, list[Tensor]]:
    """Gradients of the global mean; losses (N,) and the logits of each forward pass."""
    losses: list[Tensor] = []
    logits: list[list[Tensor]] = []
    for objective in objectives:
        # Ranks exchange what has been added up, once a step.
        alone = nullcontext() if objective is objectives[-1] else ranks.unsynchronised(job.wrapped)
        with alone:
            with _precision(job, batch), job.meters.watching(job.model) as seen:
                own = objective()
            _global_mean(own, batch).backward()
        losses.append(own.detach())
        logits.append(seen)
    return torch.cat(losses), [torch.cat(parts) for parts in zip(*logits, strict=True)]


def _global_mean(losses: Tensor, batch: Batch) -> Tensor:
    # Over the global batch, and DistributedDataParallel divides by the ranks: a mean per rank would be wrong on a
    # short last batch.
    return losses.sum() * (ranks.world() / batch.size)


@contextmanager
def _at_worst_weights(job: Job, batch: Batch, objectives: Sequence[Objective]) -> Iterator[None]:
    """The weights moved against these objectives, where the recipe asks for it."""
    if job.perturbation is None or job.step < job.perturbation.start * job.total_steps:
        yield
        return

    def loss(objective: Objective) -> Tensor:
        with _precision(job, batch):
            return _global_mean(objective(), batch)

    weights = perturbable(job.model)
    found = gradient(job.wrapped, weights, [partial(loss, objective) for objective in objectives])
    with perturbed(weights, found, job.perturbation.gamma):
        yield


@contextmanager
def _precision(job: Job, batch: Batch) -> Iterator[None]:
    with torch.autocast(batch.x.device.type, torch.bfloat16, enabled=job.ways.bf16):
        yield
