"""What every training method promises; `toughen.testing.check_method` looks at it."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from toughen.data import Batch
from toughen.losses import probabilities as as_probabilities
from toughen.methods import Method, State
from toughen.models.cost import counted
from toughen.parallel import ranks
from toughen.testing import toys
from toughen.testing.method_under_test import MethodUnderTest, Waits, descent, normed, spec, train
from toughen.testing.promises import Promise, PromiseSuite, expect, random_states, refusal, seed_everything
from toughen.testing.ranks import as_ranks
from toughen.threat import L2, Linf, Threat

methods = PromiseSuite()
# Sums of other lengths round otherwise; what depends on the company does so by far more.
ROUNDING = 1e-10


def _batches(first: int = 0, last: int = 4) -> list[Batch]:
    """Whole batches, and a short one as at the end of an epoch."""
    return [toys.batch(i, 4 if i == 3 else toys.BATCH) for i in range(first, last)]


def _different(found: Sequence[Tensor], expected: Sequence[Tensor]) -> str:
    if len(found) != len(expected):
        return f"{len(found)} steps instead of {len(expected)}"
    steps = [i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if not torch.equal(a, b)]
    return f"losses of steps {steps[:5]} differ" if steps else ""


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _gap(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    gaps = {name: float((found[name].double() - value.double()).abs().max()) for name, value in expected.items()}
    worst = max(gaps, key=lambda name: gaps[name])
    return gaps[worst], worst


@methods.promise("write its settings as pydantic fields of a class with `frozen=True` and name: Literal['...'] = '...'")
def record(one: MethodUnderTest) -> None:
    """Its settings are a record that comes back from text, and that refuses what it does not know."""
    kind, method = type(one.given), one.given
    expect(kind.model_fields["name"].default == method.name, f"its name is {method.name!r} but not by default")
    expect(kind.model_validate(method.model_dump(mode="json")) == method, "it is another after model_dump")
    expect(kind.model_config.get("frozen"), "its fields can be changed")
    refusal(lambda: kind.model_validate({**method.model_dump(), "no_such_field": 1}), "the setting no_such_field=1")
    refusal(lambda: kind.model_validate({**method.model_dump(), "name": "no such name"}), "another method's name")


@methods.promise("yield one function for each step, which returns the losses (N,) without their mean")
def steps(one: MethodUnderTest) -> None:
    """It yields steps_per_batch objectives for each batch, and each returns finite losses (N,)."""
    sizes = [toys.BATCH, toys.BATCH, toys.BATCH, 4]
    for threat in one.threats:
        method = one.given.resolved(threat)
        state, model = method.init(spec()), normed()
        for batch in _batches():
            number = 0
            for objective in method.losses(model, batch, state):
                model.zero_grad()
                losses, number = objective(), number + 1
                shape = tuple(losses.shape)
                expect(shape == (len(batch),), f"an objective returned {shape} for {len(batch)} examples")
                expect(losses.isfinite().all(), f"an objective returned losses that are not finite ({threat})")
                expect(losses.requires_grad, "an objective's losses do not depend on the weights")
                expect(losses.dtype == torch.float64, f"losses are {losses.dtype} where the model is float64")
                losses.mean().backward()
            declared = method.steps_per_batch
            expect(number == declared, f"it yielded {number} objectives where steps_per_batch says {declared}")
        losses = train(method, normed(), _batches(), method.init(spec()))
        expect([len(x) for x in losses] == [n for n in sizes for _ in range(method.steps_per_batch)], "sizes differ")


@methods.promise("draw from batch.noise.child(...) alone, and keep nothing outside of `state`")
def same_again(one: MethodUnderTest) -> None:
    """A run from the same state gives the same losses to the bit, whatever the global random state is."""
    found = []
    for seed in (1, 2):
        seed_everything(seed)
        found.append(train(one.method, normed(), _batches(), one.method.init(spec())))
    expect(not _different(*found), _different(*found))


@methods.promise("draw from batch.noise.child(...), never from torch's, numpy's or Python's global generator")
def random_state(one: MethodUnderTest) -> None:
    """Global random states are left as they were found."""
    seed_everything(1)
    model, state = normed(), one.method.init(spec())
    before = random_states()
    train(one.method, model, _batches(), state)
    expect(random_states() == before, "a run has moved a global random state")


@methods.promise(
    "attack through toughen.modes.plain(model) with an attack that keeps its own promises (check_attack), and take "
    "torch.autograd.grad instead of backward()"
)
def outside_objectives(one: MethodUnderTest) -> None:
    """Outside of its objectives it leaves weights, gradients, modes and batch as they were found."""
    method, model, state = one.method, normed(), one.method.typical_state(spec())
    batch, fresh = toys.batch(), toys.batch()
    generator = method.losses(model, batch, state)
    while True:
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 7)
        before = _weights(model)
        objective = next(generator, None)
        moved = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
        if one.moves_statistics:
            moved = [name for name in moved if name in dict(model.named_parameters())]
        expect(not moved, f"it has moved {', '.join(moved)}")
        kept = all(p.grad is not None and bool((p.grad == 7).all()) for p in model.parameters())
        expect(kept, "the gradients of parameters are not what they were")
        expect(all(p.requires_grad for p in model.parameters()), "parameters no longer ask for gradients")
        expect(all(module.training for module in model.modules()), "modules are no longer in training mode")
        bn = model[1]  # pyright: ignore[reportIndexIssue]
        expect(bn.track_running_stats, "BatchNorm no longer tracks its statistics")
        same = all(torch.equal(getattr(batch, name), getattr(fresh, name)) for name in ("x", "y", "index"))
        expect(same, "it has written into the batch")
        if objective is None:
            return
        objective().mean().backward()


@methods.promise("compute everything random or changing before `yield`, and only losses in the objective")
def called_twice(one: MethodUnderTest) -> None:
    """An objective may be called twice, and gives the same losses (weight perturbation does so)."""
    model = normed()
    for objective in one.method.losses(model, toys.batch(), one.method.typical_state(spec())):
        first = objective()
        expect(torch.equal(first, objective()), "the second call gives other losses")
        first.mean().backward()


@methods.promise("make `passes` or `typical_state` say what a batch costs")
def passes(one: MethodUnderTest) -> None:
    """A batch costs the forward and backward passes that `Method.passes` predicts."""
    method, model = one.method, normed()
    with counted(model) as seen:
        for objective in method.losses(model, toys.batch(), method.typical_state(spec())):
            objective().mean().backward()
    alone = method.passes(classes=toys.CLASSES)
    for kind in ("forwards", "input_backwards", "full_backwards"):
        own, said = getattr(seen, kind), getattr(alone, kind)
        expect(own == said, f"{kind} are {own} where passes() says {said}")


@methods.promise(
    "let `forwards` name what each pass sees, like ('clean', 'robust') in their order, or nothing, as ()",
    lambda one: one.method.forwards,
)
def forwards(one: MethodUnderTest) -> None:
    """What `forwards` calls robust are other images than the batch's, and it names no more passes than there are."""
    method, model = one.method, normed()
    state, seen, called = method.typical_state(spec()), [], method.forwards
    handle = model.register_forward_hook(lambda module, inputs, logits: seen.append(inputs[0]))
    moved = dict.fromkeys((place for place, kind in enumerate(called) if kind == "robust"), False)
    for batch in _batches(0, 3):
        for objective in method.losses(model, batch, state):
            seen.clear()
            objective().mean().backward()
            expect(len(seen) >= len(called), f"{len(called)} are named, {called}, where an objective has {len(seen)}")
            for place in moved:
                moved[place] |= not torch.equal(seen[place], batch.x)
    handle.remove()
    for place, other in moved.items():
        expect(other, f"pass {place + 1} of an objective is called robust, but sees the batch's own images")


@methods.promise("set soft_labels = False and call toughen.methods.classes_only, or take toughen.losses.cross_entropy")
def probabilities(one: MethodUnderTest) -> None:
    """Labels as probabilities (N, K) are the same problem, or are refused where soft_labels is False."""
    method, hard = one.method, toys.batch()
    soft = replace(hard, y=nn.functional.one_hot(hard.y, toys.CLASSES).double())

    def losses(batch: Batch) -> list[Tensor]:
        return train(method, normed(), [batch], method.typical_state(spec()))

    if not method.soft_labels:
        refusal(lambda: losses(soft), "a batch of probabilities, with soft_labels = False,")
        return
    for a, b in zip(losses(hard), losses(soft), strict=True):
        expect(torch.allclose(a, b, rtol=0, atol=1e-12), f"losses differ by {float((a - b).abs().max()):.2g}")
    mixed = replace(hard, y=torch.full((toys.BATCH, toys.CLASSES), 1 / toys.CLASSES, dtype=torch.float64))
    expect(all(x.isfinite().all() for x in losses(mixed)), "losses of mixed labels are not finite")


@methods.promise(
    "take toughen.losses.cross_entropy, which gives such an example a loss of 0, and mask other losses of the label "
    "with toughen.losses.labelled(y)"
)
def without_a_label(one: MethodUnderTest) -> None:
    """Examples without a label do no harm, be it written as class -1 or as a row of zeros."""
    method, hard = one.method, toys.batch()
    missing = torch.where(torch.arange(toys.BATCH) < 2, -1, hard.y)

    def losses(y: Tensor) -> list[Tensor]:
        return train(method, normed(), [replace(hard, y=y)], method.typical_state(spec()))

    found = losses(missing)
    expect(all(x.isfinite().all() for x in found), "losses are not finite")
    if method.soft_labels:
        zeros = as_probabilities(missing, toys.CLASSES, torch.float64)
        for a, b in zip(found, losses(zeros), strict=True):
            gap = float((a - b).abs().max())
            expect(gap <= ROUNDING, f"with a row of zeros in place of class -1 losses differ by {gap:.2g}")


@methods.promise("make it all in `init`, on spec.device, and name each tensor in `state_kinds`")
def state(one: MethodUnderTest) -> None:
    """`init` returns a dict of tensors, each of which state_kinds calls slot, index or replicated, of that length."""
    method, given = one.method, spec()
    found = method.init(given)
    expect(isinstance(found, dict), f"init returned a {type(found).__name__}")
    for name, value in found.items():
        expect(isinstance(value, Tensor), f"{name} is a {type(value).__name__}")
    expect(set(found) == set(method.state_kinds), f"init made {sorted(found)}, {sorted(method.state_kinds)} are named")
    for name, kind in method.state_kinds.items():
        expect(kind in ("slot", "index", "replicated"), f"{name} is of the kind {kind!r}")
        if kind != "replicated":
            wanted, own = (given.slots if kind == "slot" else given.examples), tuple(found[name].shape)
            expect(own[:1] == (wanted,), f"{name} is of the kind {kind!r} and has shape {own}, not ({wanted}, ...)")


@methods.promise("write into the tensors, like state['delta'][...] = ...", lambda one: one.keeps)
def state_in_place(one: MethodUnderTest) -> None:
    """The state is changed in place: its tensors stay the same objects, of the same shapes, and finite."""
    found = one.method.init(spec())
    before = {name: (id(value), tuple(value.shape)) for name, value in found.items()}
    train(one.method, normed(), _batches(), found)
    after = {name: (id(value), tuple(value.shape)) for name, value in found.items()}
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    expect(not changed, f"{', '.join(changed)} was replaced")
    lost = [name for name, value in found.items() if not value.isfinite().all()]
    expect(not lost, f"{', '.join(lost)} is not finite")


@methods.promise(
    "read and write state[name][batch.index], not its first rows",
    lambda one: "index" in one.given.state_kinds.values(),
)
def positions(one: MethodUnderTest) -> None:
    """What belongs to a training example is changed for the examples of the batch alone."""
    method, batch = one.method, toys.batch(1)
    found = method.typical_state(spec())
    before = {name: value.clone() for name, value in found.items()}
    train(method, normed(), [batch], found)
    others = torch.ones(toys.EXAMPLES, dtype=torch.bool)
    others[batch.index] = False
    for name, kind in method.state_kinds.items():
        if kind == "index":
            same = torch.equal(found[name][others], before[name][others])
            expect(same, f"{name} has changed for examples that were not in the batch")


@methods.promise("keep all that lasts from batch to batch in `state`, not in attributes or globals")
def resuming(one: MethodUnderTest) -> None:
    """A run that goes on from saved weights, optimiser and state ends with the bits of one that never stopped."""
    method = one.method
    for origin in ("init", "typical_state"):
        whole, state = normed(), getattr(method, origin)(spec())
        expected = train(method, whole, _batches(0, 8), state)

        model, saved = normed(), getattr(method, origin)(spec())
        optimizer = descent(model)
        train(method, model, _batches(0, 3), saved, optimizer=optimizer)
        kept = save({name: value.clone() for name, value in saved.items()})
        weights, rest = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        # What is begun after saving is lost.
        train(method, model, _batches(3, 5), saved, optimizer=optimizer)

        fresh = type(one.given).model_validate(one.given.model_dump(mode="json")).resolved(one.threats[0])
        model, again = normed(), fresh.init(spec())
        model.load_state_dict(weights)
        optimizer = descent(model)
        optimizer.load_state_dict(rest)
        for name, value in load(kept).items():
            again[name].copy_(value)
        found = train(fresh, model, _batches(3, 8), again, optimizer=optimizer)
        tail = expected[len(expected) - len(found) :]
        expect(not _different(found, tail), f"after going on {_different(found, tail)}")
        for own, other, what in ((model.state_dict(), whole.state_dict(), "weight"), (again, state, "state")):
            gap = [name for name in other if not torch.equal(own[name], other[name])]
            expect(not gap, f"the {what} {', '.join(gap)} ends with other bits")


def _alone(one: MethodUnderTest, sizes: Sequence[int]) -> tuple[dict[str, Tensor], State]:
    model, state = toys.trained(), one.method.typical_state(spec())
    train(one.method, model, [toys.batch(i, n) for i, n in enumerate(sizes)], state)
    return _weights(model), state


def _close(found: dict[str, Tensor], expected: dict[str, Tensor], what: str) -> None:
    if expected:
        gap, worst = _gap(found, expected)
        expect(gap <= ROUNDING, f"{what}: {worst} differs by {gap:.2g}")


@methods.promise(
    "draw from batch.noise, divide by batch.size if at all, and exchange what is kept by training example or for all "
    "with toughen.parallel.ranks.gather and total"
)
def two_ranks(one: MethodUnderTest) -> None:
    """Two ranks that share each batch train as one does (in float64, to rounding), also where one has no example."""
    sizes = (toys.BATCH, toys.BATCH - 1, toys.BATCH, 1, toys.BATCH)
    weights, state = _alone(one, sizes)
    method = one.method

    twins = [toys.trained(), toys.trained()]

    def work(rank: int) -> tuple[dict[str, Tensor], State]:
        model, own = twins[rank], method.typical_state(spec(ranks.slots(toys.BATCH)))
        train(method, model, [toys.batch(i, n, rank=rank, world=2) for i, n in enumerate(sizes)], own)
        kinds = method.state_kinds
        whole = {
            name: ranks.gather(value, toys.BATCH) if kinds[name] == "slot" else value for name, value in own.items()
        }
        return _weights(model), whole

    for rank, (found, kept) in enumerate(as_ranks(2, work)):
        _close(found, weights, f"on rank {rank}")
        _close(kept, state, f"the state of rank {rank}")


@methods.promise(
    "let no row depend on another (means are the loop's), or set divisible = False where images of a batch meet",
    lambda one: one.method.divisible,
)
def in_parts(one: MethodUnderTest) -> None:
    """A batch given in parts of two images (micro_batch) trains as a whole one does (in float64, to rounding)."""
    sizes = (toys.BATCH, toys.BATCH - 1, toys.BATCH, 1, toys.BATCH)
    weights, state = _alone(one, sizes)
    model, own = toys.trained(), one.method.typical_state(spec())
    train(one.method, model, [toys.batch(i, n) for i, n in enumerate(sizes)], own, rows=2)
    _close(_weights(model), weights, "in parts")
    _close(own, state, "in parts the state")


@methods.promise(
    "use torch.where instead of masks and `if`, threat.of_radius(eps) for radii (N,), and keep a counter as an int64 "
    "tensor () on the CPU"
)
def no_waiting(one: MethodUnderTest) -> None:
    """No step asks for a value that a GPU is still computing: no float(), bool(), item(), no index by a mask."""
    method, model, own = one.method, normed(), one.method.typical_state(spec())
    counters = [value for value in own.values() if value.ndim == 0 and value.dtype == torch.int64]
    batches = [toys.batch(i) for i in range(3)]
    with Waits(counters) as waits:
        train(method, model, batches, own)
    expect(not waits.seen, f"it waits by {', '.join(sorted(set(waits.seen)))}")


def method_promises(
    method: Method | type[Method], *, threats: Sequence[Threat] = (Linf(0.1), L2(0.5))
) -> list[Promise]:
    """What `check_method` looks at, one by one; see there for the arguments."""
    given = method if isinstance(method, Method) else method()  # pyright: ignore[reportCallIssue]
    return methods.of(MethodUnderTest(given, tuple(threats)), type(given).__name__)
