"""The public contract suite for methods: each seeded fault is told by the promise that it breaks."""

from collections.abc import Iterator, Mapping
from typing import Literal

import pytest
import torch
from torch import nn

from foreign import told
from toughen.data import Batch
from toughen.losses import cross_entropy
from toughen.methods import Kind, Method, Objective, Robust, Seen, Spec, State
from toughen.parallel import ranks
from toughen.testing import BrokenPromise, check_method, method_promises
from toughen.testing.method_under_test import Waits
from toughen.testing.ranks import OutOfStep, as_ranks

SMALL = (3, 8, 8)


# --- methods with a fault each: natural training, changed


class Faulty(Method, frozen=True):
    """Natural training; each subclass does one thing that no method may."""

    name: Literal["faulty"] = "faulty"

    def losses(self, model: nn.Module, batch: Batch, state: State) -> Iterator[Objective]:
        """The clean loss."""
        yield lambda: cross_entropy(model(batch.x), batch.y)


class Mean(Faulty, frozen=True):
    def losses(self, model: nn.Module, batch: Batch, state: State) -> Iterator[Objective]:
        yield lambda: cross_entropy(model(batch.x), batch.y).mean()


class Twice(Faulty, frozen=True):
    def losses(self, model: nn.Module, batch: Batch, state: State) -> Iterator[Objective]:
        yield from super().losses(model, batch, state)
        yield from super().losses(model, batch, state)


class Infinite(Faulty, frozen=True):
    def losses(self, model: nn.Module, batch: Batch, state: State) -> Iterator[Objective]:
        yield lambda: cross_entropy(model(batch.x), batch.y) / 0


class Detached(Faulty, frozen=True):
    def losses(self, model: nn.Module, batch: Batch, state: State) -> Iterator[Objective]:
        yield lambda: cross_entropy(model(batch.x), batch.y).detach()


class Nameless(Faulty, frozen=True):
    name: str = "faulty"  # pyright: ignore[reportIncompatibleVariableOverride]


class GlobalNoise(Faulty, frozen=True):
    def losses(self, model: nn.Module, batch: Batch, state: State) -> Iterator[Objective]:
        x = (batch.x + 0.1 * torch.rand_like(batch.x)).clamp(0, 1)
        yield lambda: cross_entropy(model(x), batch.y)


class RandomObjective(Faulty, frozen=True):
    def losses(self, model: nn.Module, batch: Batch, state: State) -> Iterator[Objective]:
        draws = iter(range(10))
        noise = batch.noise
        yield lambda: cross_entropy(model(batch.x + noise.child(next(draws)).uniform(batch.x.shape[1:])), batch.y)


MEMORY: dict[str, float] = {}


class Hoarder(Faulty, frozen=True):
    """Remembers the last batch outside of the state."""

    def losses(self, model: nn.Module, batch: Batch, state: State) -> Iterator[Objective]:
        last = MEMORY.get(self.name, 0.0)
        x = (batch.x + 0.1 * last).clamp(0, 1)
        MEMORY[self.name] = float(batch.x.mean())
        yield lambda: cross_entropy(model(x), batch.y)


class Backward(Robust, frozen=True):
    name: Literal["backward"] = "backward"

    def losses(self, model: nn.Module, batch: Batch, state: State) -> Iterator[Objective]:
        at = batch.x.clone().requires_grad_()
        cross_entropy(model(at), batch.y).sum().backward()
        assert at.grad is not None
        x = (batch.x + 0.1 * at.grad.sign()).clamp(0, 1)
        yield lambda: cross_entropy(model(x), batch.y)


class LeftInEval(Faulty, frozen=True):
    def losses(self, model: nn.Module, batch: Batch, state: State) -> Iterator[Objective]:
        model.eval()
        yield from super().losses(model, batch, state)


class Extra(Faulty, frozen=True):
    """A pass that depends on the data."""

    def losses(self, model: nn.Module, batch: Batch, state: State) -> Iterator[Objective]:
        if len(batch) > 2:
            model.eval()
            with torch.no_grad():
                model(batch.x)
            model.train()
        yield from super().losses(model, batch, state)


class MisnamedPass(Faulty, frozen=True):
    """The clean accuracy would be shown as a robust one."""

    @property
    def forwards(self) -> tuple[Seen, ...]:
        return ("robust",)


class NamedTwice(Faulty, frozen=True):
    @property
    def forwards(self) -> tuple[Seen, ...]:
        return ("clean", "clean")


class HardAlone(Faulty, frozen=True):
    def losses(self, model: nn.Module, batch: Batch, state: State) -> Iterator[Objective]:
        y = batch.y if batch.y.ndim == 1 else batch.y.argmin(1)
        yield lambda: cross_entropy(model(batch.x), y)


class Unlabelled(Faulty, frozen=True):
    def losses(self, model: nn.Module, batch: Batch, state: State) -> Iterator[Objective]:
        yield lambda: nn.functional.cross_entropy(model(batch.x), batch.y, reduction="none")


class ClassZero(Faulty, frozen=True):
    """An example without a label is trained on as one of class 0."""

    def losses(self, model: nn.Module, batch: Batch, state: State) -> Iterator[Objective]:
        y = batch.y.clamp(min=0) if batch.y.ndim == 1 else batch.y
        yield lambda: cross_entropy(model(batch.x), y)


class Keeping(Faulty, frozen=True):
    """Keeps something for each training example, as it should; a subclass does not."""

    kinds: Mapping[str, Kind] = {"seen": "index"}

    @property
    def state_kinds(self) -> Mapping[str, Kind]:
        """One number for each example."""
        return self.kinds

    def init(self, spec: Spec) -> State:
        """Nobody has been seen."""
        return {"seen": torch.zeros(spec.examples, dtype=spec.dtype)}

    def losses(self, model: nn.Module, batch: Batch, state: State) -> Iterator[Objective]:
        """Who was seen before weighs more."""
        weight = 1 + state["seen"][batch.index]
        self.note(batch, state)
        yield lambda: weight * cross_entropy(model(batch.x), batch.y)

    def note(self, batch: Batch, state: State) -> None:
        """Who is here has been seen, on every rank."""
        state["seen"][ranks.gather(batch.index, batch.size)] += 0.1


class ByRow(Keeping, frozen=True):
    def note(self, batch: Batch, state: State) -> None:
        state["seen"][: len(batch)] += 0.1


class OwnRankAlone(Keeping, frozen=True):
    def note(self, batch: Batch, state: State) -> None:
        state["seen"][batch.index] += 0.1


class Replacing(Keeping, frozen=True):
    def note(self, batch: Batch, state: State) -> None:
        state["seen"] = state["seen"].index_add(0, batch.index, torch.full((len(batch),), 0.1, dtype=torch.float64))


class WrongLength(Keeping, frozen=True):
    kinds: Mapping[str, Kind] = {"seen": "slot"}


class Unnamed(Keeping, frozen=True):
    kinds: Mapping[str, Kind] = {}


class Waiting(Faulty, frozen=True):
    def losses(self, model: nn.Module, batch: Batch, state: State) -> Iterator[Objective]:
        if batch.x.mean() > 2:
            return
        yield from super().losses(model, batch, state)


class Company(Faulty, frozen=True):
    """A loss divided by the mean of the rank's rows."""

    def losses(self, model: nn.Module, batch: Batch, state: State) -> Iterator[Objective]:
        weight = batch.x.mean() if len(batch) else 1.0
        yield lambda: cross_entropy(model(batch.x), batch.y) / weight


class OutOfTurn(Faulty, frozen=True):
    """Only the first rank exchanges anything."""

    def losses(self, model: nn.Module, batch: Batch, state: State) -> Iterator[Objective]:
        if ranks.is_main():
            ranks.total(torch.ones(()))
        yield from super().losses(model, batch, state)


BAD_METHODS: dict[str, tuple[type[Method], str, str]] = {
    "a-mean": (Mean, "steps", "an objective returned () for 6 examples"),
    "two-objectives": (Twice, "steps", "it yielded 2 objectives where steps_per_batch says 1"),
    "infinite": (Infinite, "steps", "not finite"),
    "detached": (Detached, "steps", "do not depend on the weights"),
    "nameless": (Nameless, "record", "another method's name is taken"),
    "global-noise": (GlobalNoise, "same again", "losses of steps [0, 1, 2, 3] differ"),
    "global-noise-moves": (GlobalNoise, "random state", "moved a global random state"),
    "random-objective": (RandomObjective, "called twice", "the second call gives other losses"),
    "memory-elsewhere": (Hoarder, "resuming", "after going on losses of steps"),
    "backward": (Backward, "outside objectives", "moved 1.running_mean"),
    "left-in-eval": (LeftInEval, "outside objectives", "no longer in training mode"),
    "another-cost": (Extra, "passes", "forwards are 2 where passes() says 1"),
    "misnamed-pass": (MisnamedPass, "forwards", "pass 1 of an objective is called robust, but sees the batch's own"),
    "named-twice": (NamedTwice, "forwards", "2 are named, ('clean', 'clean'), where an objective has 1"),
    "probabilities": (HardAlone, "probabilities", "losses differ by"),
    "unlabelled": (Unlabelled, "without a label", "IndexError"),
    "unlabelled-as-class-0": (ClassZero, "without a label", "with a row of zeros in place of class -1"),
    "by-row": (ByRow, "positions", "seen has changed for examples that were not in the batch"),
    "own-rank-alone": (OwnRankAlone, "two ranks", "on rank 0"),
    "replaced": (Replacing, "state in place", "seen was replaced"),
    "replaced-in-parts": (Replacing, "in parts", "differs by"),
    "wrong-length": (WrongLength, "state", "is of the kind 'slot' and has shape (40,), not (6, ...)"),
    "unnamed": (Unnamed, "state", "init made ['seen'], [] are named"),
    "waiting": (Waiting, "no waiting", "it waits by _local_scalar_dense"),
    "company-on-ranks": (Company, "two ranks", "on rank 0"),
    "company-in-parts": (Company, "in parts", "in parts"),
    "out-of-turn": (OutOfTurn, "two ranks", "OutOfStep"),
}


@pytest.mark.parametrize("case", BAD_METHODS.values(), ids=BAD_METHODS.keys())
def test_a_bad_method_is_told(case: tuple[type[Method], str, str]):
    faulty, name, words = case
    told(method_promises(faulty), name, words)
    with pytest.raises(BrokenPromise):
        check_method(faulty)


def test_each_promise_of_a_method_has_a_fault_that_breaks_it():
    assert {name for _, name, _ in BAD_METHODS.values()} == {promise.name for promise in method_promises(Keeping)}


@pytest.mark.parametrize("method", [Faulty, Keeping])
def test_without_its_fault_it_is_sound(method: type[Method]):
    check_method(method)


def test_waiting_is_seen():
    with Waits() as waits:
        float(torch.ones(()))
        torch.ones(2)[torch.tensor([True, False])]
        torch.ones(2).nonzero()
    assert waits.seen == ["_local_scalar_dense", "index by a mask", "nonzero"]


def test_ranks_as_threads():
    def work(rank: int) -> tuple[int, int, list[float], list[int]]:
        rows = torch.arange(5.0)[rank :: ranks.world()]
        total = ranks.total(rows.sum())
        return ranks.rank(), int(total), ranks.gather(rows, 5).tolist(), ranks.from_every(rank)

    assert as_ranks(2, work) == [(rank, 10, [0.0, 1.0, 2.0, 3.0, 4.0], [0, 1]) for rank in (0, 1)]
    assert ranks.world() == 1
    with pytest.raises(OutOfStep, match="all_reduce"):
        as_ranks(2, lambda rank: ranks.total(torch.ones(())) if rank else None)
    with pytest.raises(ZeroDivisionError):
        as_ranks(2, lambda rank: 1 // rank if rank == 0 else ranks.total(torch.ones(())))
    assert not torch.distributed.is_initialized()
