import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from hand import EPS, PGD, assert_close, attacked, descend, drawn, soft_loss
from steps import CLASSES, N, batch, network, sgd_steps
from toughen.attacks import AttackSpec
from toughen.losses import cross_entropy
from toughen.methods.interpolated import Interpolated
from toughen.models.cost import counted
from toughen.parallel import ranks
from toughen.threat import Linf

METHOD = Interpolated(attack=AttackSpec(**PGD), alpha=0.8, threat=Linf(EPS))


def test_the_step_on_both_mixed_halves_worked_out_by_hand():
    model, one = network(), batch()
    hand = copy.deepcopy(model)
    (losses,) = sgd_steps(METHOD, model, [one], {})

    onehot = torch.eye(CLASSES, dtype=torch.float64)[one.y]
    x_adv = attacked(hand, one.x, lambda logits: soft_loss(logits, onehot), one.noise)
    halves = []
    draws = [drawn(0.8, N, "interpolated", half) for half in ("clean", "robust")]
    for images, (share, order) in zip((one.x, x_adv), draws, strict=True):
        y = share * onehot + (1 - share) * onehot[order]
        halves.append(soft_loss(hand(share * images + (1 - share) * images[order]), y))
    assert draws[0] != draws[1]
    assert torch.allclose(losses, (halves[0] + halves[1]) / 2, rtol=0, atol=1e-10)
    descend(hand, ((halves[0] + halves[1]) / 2).mean())
    assert_close(model, hand)


@pytest.mark.parametrize("steps", [1, 7])
def test_it_costs_k_and_two_passes_either_way(steps: int):
    method = Interpolated(attack=AttackSpec(name="pgd", steps=steps), threat=Linf(EPS))
    passes = method.passes()
    assert (passes.forwards, passes.input_backwards, passes.full_backwards) == (steps + 2, steps, 2)
    with counted(model := network()) as seen:
        sgd_steps(method, model, [batch()], {})
    assert seen.natural_steps == passes.natural_steps == pytest.approx((2 * steps + 6) / 3)


def test_with_alpha_0_it_is_half_clean_half_adversarial_training():
    method = METHOD.model_copy(update={"alpha": 0.0})
    model, one = network().train(), batch()
    x_adv = METHOD.attack(model, one.x, one.y, threat=Linf(EPS), noise=one.noise.child("attack"))
    (objective,) = method.losses(model, one, {})
    expected = (cross_entropy(model(one.x), one.y) + cross_entropy(model(x_adv), one.y)) / 2
    assert torch.equal(objective(), expected)
    assert (method.forwards, METHOD.forwards) == (("clean", "robust"), ())


def test_the_radius_is_scaled_and_running_statistics_move_with_the_two_halves_alone():
    model, one = network().train(), batch()
    norm = model.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm2d)
    wide = Interpolated(attack=AttackSpec(name="fgsm"), threat=Linf(EPS), radius_scale=1.2, alpha=0)
    seen = []
    handle = model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    (objective,) = wide.losses(model, one, {})
    assert norm.num_batches_tracked == 0
    first = objective()
    handle.remove()
    assert norm.num_batches_tracked == 2
    assert torch.equal(first, objective())
    assert (seen[-1] - one.x).abs().amax().item() == pytest.approx(1.2 * EPS, abs=1e-12)


def test_probabilities_missing_labels_and_an_unresolved_threat():
    one = batch()
    soft = replace(one, y=torch.eye(CLASSES, dtype=torch.float64)[one.y])
    (a,), (b,) = sgd_steps(METHOD, network(), [one], {}), sgd_steps(METHOD, network(), [soft], {})
    assert torch.allclose(a, b, rtol=0, atol=1e-12)
    (none,) = sgd_steps(METHOD, network(), [replace(one, y=torch.full((N,), -1))], {})
    assert torch.equal(none, torch.zeros(N, dtype=torch.float64))
    with pytest.raises(ValueError, match="interpolated has no threat model"):
        next(Interpolated().losses(network(), one, {}))


@pytest.mark.parametrize(("n", "world"), [(N, 2), (1, 2)])
def test_ranks_together_are_one_and_partners_come_from_the_attacked_images_of_all(
    monkeypatch: pytest.MonkeyPatch, n: int, world: int
):
    # Without BatchNorm, whose statistics ranks do not share.
    torch.manual_seed(0)
    model, one = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)).double(), batch(n=n)
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(ranks, "gather", lambda rows, n: (seen.append(rows), rows)[1])
    (whole,) = METHOD.losses(model, one, {})
    for rank in range(world):
        given = iter(seen.copy())

        def gather(rows: torch.Tensor, n: int, given=given, rank: int = rank) -> torch.Tensor:
            every = next(given)
            assert torch.allclose(every[rank::world], rows, rtol=0, atol=1e-12)
            return every

        monkeypatch.setattr(ranks, "gather", gather)
        mine = slice(rank, None, world)
        part = replace(one, x=one.x[mine], y=one.y[mine], index=one.index[mine], noise=one.noise[mine])
        (objective,) = METHOD.losses(model, part, {})
        assert torch.allclose(objective(), whole()[mine], rtol=0, atol=1e-12)
    assert not torch.equal(seen[0], seen[2])
