import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from steps import CLASSES, SHAPE, N, batch, network, sgd_steps, spec
from toughen.attacks import AttackSpec, pgd
from toughen.counting import counted
from toughen.losses import cross_entropy
from toughen.methods import METHODS, AdversarialTraining, Free, Method, Natural
from toughen.threat import L2, Linf, Threat


def test_passes_are_those_of_the_papers():
    def passes(method: Method):
        found = method.passes()
        return found.forwards, found.input_backwards, found.full_backwards

    threat = Linf(0.1)
    assert passes(Natural()) == (1, 0, 1)
    assert passes(Natural(replays=4)) == (4, 0, 4)
    for steps in (1, 7, 10):
        attack = AttackSpec(name="pgd", steps=steps)
        assert passes(AdversarialTraining(attack=attack, threat=threat)) == (steps + 1, steps, 1)
    for replays in (1, 8):
        assert passes(Free(replays=replays, threat=threat)) == (replays, 0, replays)
    ten = AdversarialTraining(attack=AttackSpec(name="pgd", steps=10), threat=threat)
    assert ten.passes().natural_steps == pytest.approx(23 / 3)


def test_free_with_eps_zero_is_natural_training_with_replay_bit_for_bit():
    natural, free = network(), network()
    batches = [batch(i) for i in range(3)] + [batch(3, n=4)]
    method = Free(threat=Linf(0), replays=3)
    a = sgd_steps(Natural(replays=3), natural, batches, {})
    b = sgd_steps(method, free, batches, method.init(spec()))
    assert all(torch.equal(one, other) for one, other in zip(a, b, strict=True))
    for one, other in zip(natural.state_dict().values(), free.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("threat", [Linf(0.07), L2(0.4)])
def test_free_is_algorithm_2_worked_out_by_hand(threat: Threat):
    model = network()
    method = Free(threat=threat, replays=3)
    state = method.init(spec())
    hand = copy.deepcopy(model)
    batches = [batch(0), batch(1), batch(2, n=4), batch(3)]
    sgd_steps(method, model, batches, state, lr=0.1)

    delta = torch.zeros(N, *SHAPE, dtype=torch.float64)
    for one in batches:
        hand.train()
        n = len(one.x)
        for _ in range(3):
            d = delta[:n].clone().requires_grad_()
            loss = nn.functional.cross_entropy(hand((one.x + d).clamp(0, 1)), one.y)
            *weights, g = torch.autograd.grad(loss, [*hand.parameters(), d])
            with torch.no_grad():
                for p, w in zip(hand.parameters(), weights, strict=True):
                    p -= 0.1 * w
            if isinstance(threat, Linf):
                moved = (delta[:n] + threat.eps * g.sign()).clamp(-0.07, 0.07)
            else:
                moved = delta[:n] + 0.4 * g / g.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
                norm = moved.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
                moved = moved * (0.4 / norm).clamp(max=1)
            delta[:n] = moved
    assert torch.allclose(state["delta"], delta, rtol=0, atol=1e-10)
    for p, q in zip(model.parameters(), hand.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-10)


def test_free_carries_its_perturbation_across_minibatches_and_a_short_batch_moves_the_first_slots_only():
    method, model = Free(threat=Linf(0.1), replays=2), network()
    state = method.init(spec())
    assert not state["delta"].any()
    starts = []
    for number, n in ((0, N), (1, 4), (2, N)):
        before = state["delta"].clone()
        generator = method.losses(model, batch(number, n), state)
        first = next(generator)
        seen = []

        def note(module: nn.Module, inputs: tuple[torch.Tensor], seen: list[torch.Tensor] = seen) -> None:
            seen.append(inputs[0].detach())

        handle = model.register_forward_pre_hook(note)
        first().mean().backward()
        handle.remove()
        # The very first forward of a minibatch sees the perturbation that the last one left.
        assert torch.equal(seen[0], (batch(number, n).x + before[:n]).clamp(0, 1))
        starts.append(before)
        for objective in generator:
            objective().mean().backward()
        assert torch.equal(state["delta"][n:], before[n:])
        assert (state["delta"][:n].abs() <= 0.1).all()
    assert all((a != b).any() for a, b in pairwise(starts))


def test_free_leaves_entries_alone_where_the_image_is_clipped():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)).double()
    method = Free(threat=Linf(0.1), replays=2)
    state = method.init(spec())
    one = batch()
    x = one.x.clone()
    x[:, 0, 0, 0] = 1.0
    state["delta"][:, 0, 0, 0] = 0.05
    for objective in method.losses(model, replace(one, x=x), state):
        objective().mean().backward()
    assert (state["delta"][:, 0, 0, 0] == 0.05).all()


def test_adversarial_training_is_the_loss_on_the_attack_with_the_batch_noise():
    model, one = network(), batch()
    attack = AttackSpec(name="pgd", steps=3, step_size=0.03)
    method = AdversarialTraining(attack=attack, threat=Linf(0.1))
    x_adv = pgd(model, one.x, one.y, threat=Linf(0.1), steps=3, step_size=0.03, noise=one.noise.child("attack"))
    losses = next(iter(method.losses(model, one, {})))()
    assert torch.equal(losses, cross_entropy(model(x_adv), one.y))


def test_attack_passes_of_training_compute_no_weight_gradients_and_leave_batchnorm_alone():
    model, one = network(), batch()
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    generator = AdversarialTraining(threat=Linf(0.1)).losses(model, one, {})
    with counted(model) as passes:
        next(generator)
    assert (passes.forwards, passes.input_backwards, passes.full_backwards) == (10, 10, 0)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    for name, value in model.named_buffers():
        assert torch.equal(value, buffers[name])


def test_a_method_takes_the_runs_threat_unless_it_has_its_own():
    assert Free().resolved(Linf(0.2)).threat == Linf(0.2)
    assert Free(threat=Linf(0.1)).resolved(Linf(0.2)).threat == Linf(0.1)
    assert Natural().resolved(Linf(0.2)) == Natural()
    with pytest.raises(ValueError, match="no threat model"):
        next(iter(Free().losses(network(), batch(), Free().init(spec()))))


@pytest.mark.parametrize("name", METHODS)
def test_contract(name: str):
    method = METHODS[name](name=name).resolved(Linf(0.1))
    assert METHODS[name].model_validate(method.model_dump()) == method
    model = network()
    state = method.init(spec())
    assert set(state) == set(method.state_kinds)
    random = torch.get_rng_state()
    losses = sgd_steps(method, model, [batch(0), batch(1, n=4)], state)
    assert torch.equal(random, torch.get_rng_state())
    assert len(losses) == 2 * method.steps_per_batch
    assert [len(one) for one in losses] == [N] * method.steps_per_batch + [4] * method.steps_per_batch
    assert all(one.isfinite().all() and one.ndim == 1 for one in losses)
    assert model.training
    again, other = network(), method.init(spec())
    for one, same in zip(losses, sgd_steps(method, again, [batch(0), batch(1, n=4)], other), strict=True):
        assert torch.equal(one, same)
    # Probabilities in place of classes are the same problem.
    soft = replace(batch(), y=nn.functional.one_hot(batch().y, CLASSES).double())
    a = sgd_steps(method, network(), [soft], method.init(spec()))
    for one, same in zip(a, losses, strict=False):
        assert torch.allclose(one, same, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="unknown; allowed"):
        METHODS[name].model_validate({"name": name, "no_such_field": 1})
