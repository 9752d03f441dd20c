"""Free training by hand, in the paper's form and in every other reading of it."""

import copy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steps import CLASSES, SHAPE, N, batch, network, sgd_steps, spec
from toughen.methods import Free, Natural
from toughen.threat import L2, Linf, Threat

FORMS: list[dict[str, Any]] = [
    {"memory": memory, "clip_delta": clip} for memory in ("slot", "batch", "image") for clip in (False, True)
]
forms = pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form['memory']}-{form['clip_delta']}")


def stream() -> list:
    """Four minibatches of six images, four of them in the third, with black and white pixels; some images return."""
    positions = [[0, 1, 2, 3, 4, 5], [17, 3, 99, 0, 8, 2], [2, 50, 17, 1], [99, 5, 4, 3, 0, 60]]
    made = [batch(number, len(index)) for number, index in enumerate(positions)]
    return [
        replace(one, x=(1.5 * one.x - 0.25).clamp(0, 1), index=torch.tensor(index))
        for one, index in zip(made, positions, strict=True)
    ]


def project(delta: Tensor, threat: Threat) -> Tensor:
    eps = float(threat.eps)
    if isinstance(threat, Linf):
        return delta.clamp(-eps, eps)
    return delta * (eps / delta.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)).clamp(max=1)


def clipped(seen: Tensor) -> Tensor:
    """In [0, 1], and on the bounds with the gradient that lies within: torch's `clamp` has none there from 2.14 on."""
    return torch.where((seen >= 0) & (seen <= 1), seen, seen.detach().clamp(0, 1))


@forms
@pytest.mark.parametrize("threat", [Linf(0.07), L2(0.4)], ids=str)
def test_four_minibatches_by_hand(threat: Threat, form: dict[str, Any]):
    """Algorithm 2, its perturbation kept for slot or image or not at all, clipped on its way or in itself."""
    model = network()
    method = Free(threat=threat, replays=3, **form)
    state = method.init(spec())
    hand = copy.deepcopy(model)
    found = sgd_steps(method, model, stream(), state, lr=0.1)

    kept = torch.zeros(100, *SHAPE, dtype=torch.float64)
    losses, outside = [], False
    for one in stream():
        hand.train()
        place = one.index if form["memory"] == "image" else torch.arange(len(one.x))
        if form["memory"] == "batch":
            kept.zero_()
        for _ in range(3):
            d = kept[place].clone().requires_grad_()
            seen = one.x + d
            outside |= bool((seen < -0.01).any() or (seen > 1.01).any())
            loss = nn.functional.cross_entropy(
                hand(seen if form["clip_delta"] else clipped(seen)), one.y, reduction="none"
            )
            losses.append(loss.detach())
            *weights, g = torch.autograd.grad(loss.mean(), [*hand.parameters(), d])
            with torch.no_grad():
                for p, w in zip(hand.parameters(), weights, strict=True):
                    p -= 0.1 * w
            length = g.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
            ascent = g.sign() if isinstance(threat, Linf) else g / length
            moved = project(d.detach() + float(threat.eps) * ascent, threat)
            if form["clip_delta"]:
                moved = torch.stack([(x + row).clamp(0, 1) - x for x, row in zip(one.x, moved, strict=True)])
            kept[place] = moved

    for a, b in zip(found, losses, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-10)
    for p, q in zip(model.parameters(), hand.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-10)
    if form["memory"] == "batch":
        assert not state
    else:
        rows = N if form["memory"] == "slot" else 100
        assert torch.allclose(state["delta"], kept[:rows], rtol=0, atol=1e-10)
        assert state["delta"].shape == (rows, *SHAPE)
    # The cases differ: but for deltas clipped for these very images, inputs would leave [0, 1].
    assert outside == (form["memory"] != "batch" or not form["clip_delta"])


@forms
def test_with_eps_zero_it_is_natural_training_with_replay_bit_for_bit(form: dict[str, Any]):
    natural, free = network(), network()
    batches = [batch(i) for i in range(3)] + [batch(3, n=4)]
    method = Free(threat=Linf(0), replays=3, **form)
    a = sgd_steps(Natural(replays=3), natural, batches, {})
    b = sgd_steps(method, free, batches, method.init(spec()))
    assert all(torch.equal(one, other) for one, other in zip(a, b, strict=True))
    for one, other in zip(natural.state_dict().values(), free.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@forms
@pytest.mark.parametrize("replays", [1, 8])
def test_it_costs_a_pass_a_replay(replays: int, form: dict[str, Any]):
    method = Free(replays=replays, threat=Linf(0.1), **form)
    found = method.passes()
    assert (found.forwards, found.input_backwards, found.full_backwards) == (replays, 0, replays)
    assert method.steps_per_batch == replays
    assert method.forwards == ("robust",)


def test_the_state_of_each_memory_is_what_it_says():
    given = spec()
    assert Free().state_kinds == {"delta": "slot"}
    assert Free(memory="batch").state_kinds == Free(memory="batch").init(given) == {}
    assert Free(memory="image").state_kinds == {"delta": "index"}
    for method, rows in ((Free(memory="slot"), given.slots), (Free(memory="image"), given.examples)):
        delta = method.init(given)["delta"]
        assert delta.shape == (rows, *SHAPE)
        assert delta.dtype == torch.float64
        assert not delta.any()


def first_input(model: nn.Module, objective) -> Tensor:
    """What the first forward pass of an objective sees."""
    seen: list[Tensor] = []
    handle = model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    objective().mean().backward()
    handle.remove()
    return seen[0]


def test_the_perturbation_is_carried_across_minibatches_and_a_short_batch_moves_the_first_slots_only():
    method, model = Free(threat=Linf(0.1), replays=2), network()
    state = method.init(spec())
    assert not state["delta"].any()
    starts = []
    for number, n in ((0, N), (1, 4), (2, N)):
        before = state["delta"].clone()
        generator = method.losses(model, batch(number, n), state)
        # The very first forward of a minibatch sees the perturbation that the last one left.
        assert torch.equal(first_input(model, next(generator)), (batch(number, n).x + before[:n]).clamp(0, 1))
        starts.append(before)
        for objective in generator:
            objective().mean().backward()
        assert torch.equal(state["delta"][n:], before[n:])
        assert (state["delta"][:n].abs() <= 0.1).all()
    assert all((a != b).any() for a, b in pairwise(starts))


def test_an_image_starts_from_what_it_was_left_with_wherever_it_stands():
    method, model = Free(threat=Linf(0.1), replays=2, memory="image"), network()
    state = method.init(spec())
    first, order = batch(), torch.tensor([3, 0, 5])
    sgd_steps(method, model, [replace(first, index=first.index + 40)], state)
    left = state["delta"].clone()
    assert left[40:46].flatten(1).any(1).all()
    assert not left[:40].any()
    assert not left[46:].any()
    again = replace(batch(1, 3), x=first.x[order], y=first.y[order], index=40 + order)
    generator = method.losses(model, again, state)
    assert torch.equal(first_input(model, next(generator)), (first.x[order] + left[40 + order]).clamp(0, 1))


def test_each_minibatch_starts_clean_without_a_memory():
    method, model = Free(threat=Linf(0.1), replays=2, memory="batch"), network()
    sgd_steps(method, model, [batch()], {})
    assert torch.equal(first_input(model, next(method.losses(model, batch(1), {}))), batch(1).x)


def test_entries_are_left_alone_where_the_image_is_clipped():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)).double()
    for clip, expected in ((False, {0.05}), (True, {-0.1, 0.0})):
        method = Free(threat=Linf(0.1), replays=2, clip_delta=clip)
        state = method.init(spec())
        one = batch()
        x = one.x.clone()
        x[:, 0, 0, 0] = 1.0
        state["delta"][:, 0, 0, 0] = 0.05
        for objective in method.losses(model, replace(one, x=x), state):
            objective().mean().backward()
        # Clipped itself, delta is at the border at once, or as far from it as the ball allows.
        assert set(state["delta"][:, 0, 0, 0].tolist()) == expected


@forms
def test_a_rank_without_rows_does_not_crash(form: dict[str, Any]):
    method, model = Free(threat=L2(0.1), replays=2, **form), network()
    state = method.init(spec())
    assert [len(losses) for losses in sgd_steps(method, model, [batch(0, 0)], state)] == [0, 0]
    assert not any(value.any() for value in state.values())


@pytest.mark.parametrize(("field", "value"), [("memory", "pixel"), ("clip_delta", 2), ("replays", 0)])
def test_settings_that_are_refused(field: str, value: object):
    with pytest.raises(ValueError, match=field):
        Free.model_validate({"name": "free", field: value})


@forms
def test_black_and_white_pixels_are_perturbed(form: dict[str, Any]):
    """At delta = 0 they lie on the bounds, where torch's `clamp` has no gradient from 2.14 on."""
    one = batch(0, 6)
    method, model = Free(threat=Linf(0.07), replays=2, **form), network()
    x = torch.zeros_like(one.x)
    x[::2] = 1
    seen: list[Tensor] = []
    handle = model.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach().clone()))
    sgd_steps(method, model, [replace(one, x=x)], method.init(spec()), lr=0.1)
    handle.remove()
    moved = (seen[-1] - x).abs()
    # Half of the directions lead out of [0, 1].
    assert 0.2 < (moved > 0.069).double().mean() < 0.8
