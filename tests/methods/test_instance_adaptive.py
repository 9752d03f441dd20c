from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from oracles import Affine, linear_problem
from steps import CLASSES, N, batch, network, sgd_steps, spec
from toughen.attacks import AttackSpec
from toughen.data import Batch
from toughen.losses import cross_entropy
from toughen.methods import AdversarialTraining, Spec
from toughen.methods.instance_adaptive import InstanceAdaptive
from toughen.methods.radii import remember, smoothed, three_way
from toughen.models.batched import predict
from toughen.models.cost import counted
from toughen.modes import evaluating
from toughen.noise import Stream
from toughen.threat import L2, Linf, Threat

BALL = Linf(0.1)
TWO = AttackSpec(name="pgd", steps=2, step_size=0.04)
TEN = AttackSpec(name="pgd", steps=10, step_size=0.02)


def iaat(**settings: Any) -> InstanceAdaptive:
    return InstanceAdaptive.model_validate({"threat": BALL, "attack": TWO, "gamma": 0.03, **settings})


def later(method: InstanceAdaptive, radius: Tensor | float = -1.0) -> dict[str, Tensor]:
    """The state after the warm-up, with these radii remembered."""
    state = method.typical_state(spec())
    state["radius"][: radius.numel() if isinstance(radius, Tensor) else None] = radius
    return state


def test_algorithm_2_by_hand():
    eps, no, yes = torch.tensor([0.1, 0.1, 0.1, 0.02], dtype=torch.float64), False, True
    wider, same = torch.tensor([yes, no, no, no]), torch.tensor([no, yes, no, no])
    candidate = three_way(eps, 0.03, wider, same)
    assert torch.allclose(candidate, torch.tensor([0.13, 0.1, 0.07, -0.01], dtype=torch.float64), rtol=0, atol=1e-15)
    expected = torch.tensor([0.103, 0.1, 0.097, 0.017], dtype=torch.float64)
    assert torch.allclose(smoothed(eps, candidate, 0.1), expected, rtol=0, atol=1e-15)
    assert torch.equal(smoothed(eps, candidate, 0.1, 0.1), smoothed(eps, candidate, 0.1).clamp(min=0.1))
    assert smoothed(torch.zeros(1), torch.tensor([-0.03]), 0.1) == 0
    assert torch.equal(smoothed(eps, candidate, 0.0), eps)


@pytest.mark.parametrize("selection", ["candidates", "reuse"])
def test_radii_move_to_where_a_linear_model_withstands_the_attack(selection: str):
    # Between two classes the worst perturbation is exactly eps times the signs, which three full steps reach: the
    # prediction withstands radius r if and only if <w, x> + b > r ||w||_1.
    problem = linear_problem(n=60, dtype=torch.float64, inner=True)
    two = Affine(problem.model.weight[:2].detach(), problem.model.bias[:2].detach())
    gaps = two(problem.x).detach().diff(dim=1).squeeze(1)
    y = (gaps > 0).long()
    critical = gaps.abs() / (two.weight[1] - two.weight[0]).abs().sum().detach()
    gamma = float(critical.median()) / 3
    rows = torch.arange(60)
    # In turn: eps + gamma within reach, only eps, neither; never nearer to the edge than a quarter of gamma.
    place = rows % 3
    memory = torch.stack([critical - 1.25 * gamma, critical - 0.5 * gamma, critical + 0.25 * gamma]).gather(
        0, place.unsqueeze(0)
    )[0]
    sound = memory > 0
    memory = memory.clamp(min=0)
    attack = AttackSpec(name="pgd", steps=6, step_size=1.0)
    method = iaat(attack=attack, gamma=gamma, beta=0.5, selection=selection, misclassified="attack")
    one = Batch(problem.x, y, rows, Stream((0,), rows, block=60), 60, 2)
    state = {"radius": memory.clone(), "step": torch.tensor(0)}
    losses = next(iter(method.losses(two, one, state)))()
    moved = (memory + 0.5 * gamma * (1 - place.double())).clamp(min=0)
    assert sound.sum() > 30
    assert torch.allclose(state["radius"][sound], moved[sound], rtol=0, atol=1e-12)
    # log(1 + exp(-margin)) at the corner of the ball.
    worst = (gaps.abs() - moved * (two.weight[1] - two.weight[0]).abs().sum().detach()).neg().exp().log1p()
    assert torch.allclose(losses[sound], worst[sound], rtol=0, atol=1e-10)


def by_hand_pgd(
    model: nn.Module, x: Tensor, y: Tensor, eps: Tensor, draws: Stream, steps: list[Tensor], clip: bool = True
) -> Tensor:
    """PGD with a radius and a step size for each example, on a model in the mode wanted."""
    eps = eps.reshape(-1, 1, 1, 1)
    adv = x + draws.child("pgd", 0).uniform(tuple(x.shape[1:]), dtype=torch.float64) * eps
    adv = adv.clamp(0, 1) if clip else adv
    for step in steps:
        adv = adv.detach().requires_grad_()
        (g,) = torch.autograd.grad(nn.functional.cross_entropy(model(adv), y, reduction="sum"), adv)
        delta = adv.detach() - x + step.reshape(-1, 1, 1, 1) * g.sign()
        adv = (x + torch.maximum(torch.minimum(delta, eps), -eps)).clamp(0, 1)
    return adv.detach()


def check_step(model: nn.Module, hand: nn.Module, loss: Tensor) -> None:
    weights = [*hand.parameters()]
    for p, q, w in zip(model.parameters(), weights, torch.autograd.grad(loss, weights), strict=True):
        assert torch.allclose(p, q - 0.1 * w, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("misclassified", ["clean_loss", "decay", "attack"])
def test_one_step_by_hand(misclassified: str, scaled: bool):
    start = "unclipped" if scaled else True
    attack = AttackSpec(name="pgd", steps=4, step_size=0.03, random_start=start)
    method = iaat(
        attack=attack, gamma=0.05, beta=0.3, misclassified=misclassified, step_rule="scaled" if scaled else "fixed"
    )
    mem = torch.tensor([0.01, 0.2, 0.05, 0.12, 0.0, 0.3], dtype=torch.float64)
    model, hand, one = network(), network(), batch()
    state = later(method, mem)
    sgd_steps(method, model, [one], state)

    hand.eval()
    x, y = one.x, one.y

    def attacked(eps: Tensor, purpose: str) -> Tensor:
        step = (eps / 2).clamp(min=0.03) if scaled else torch.full_like(eps, 0.03)
        return by_hand_pgd(hand, x, y, eps, one.noise.child(purpose), [step] * 4, clip=not scaled)

    def right(images: Tensor) -> list[bool]:
        return (hand(images).argmax(1) == y).tolist()

    correct, wider, same = right(x), right(attacked(mem + 0.05, "wider")), right(attacked(mem, "same"))
    assert 0 < sum(correct) < N
    expected = []
    for i, eps in enumerate(mem.tolist()):
        new = eps + 0.05 if wider[i] else eps if same[i] else eps - 0.05
        if misclassified == "decay":
            new = max(new, 0) if correct[i] else 0.0
        expected.append(max(0.7 * eps + 0.3 * new, 0.0))
    radius = torch.tensor(expected, dtype=torch.float64)
    assert torch.allclose(state["radius"][:N], radius, rtol=0, atol=1e-12)
    x_adv = attacked(radius, "attack")
    if misclassified == "clean_loss":
        x_adv = torch.where(torch.tensor(correct)[:, None, None, None], x_adv, x)
    hand.train()
    loss = nn.functional.cross_entropy(hand(x_adv), y)
    check_step(model, hand, loss)


@pytest.mark.parametrize("misclassified", ["clean_loss", "decay", "attack"])
def test_the_warm_up_by_hand_counted_in_steps(misclassified: str):
    method = iaat(warmup=1, warmup_radius=0.07, misclassified=misclassified)
    model, hand, one = network(), network(), batch()
    state = method.init(spec())
    sgd_steps(method, model, [one], state)
    hand.eval()
    correct = hand(one.x).argmax(1) == one.y
    radius = torch.full((N,), 0.07, dtype=torch.float64) * (correct if misclassified == "decay" else 1)
    x_adv = by_hand_pgd(hand, one.x, one.y, radius, one.noise.child("attack"), [torch.full_like(radius, 0.04)] * 2)
    if misclassified != "attack":
        # The clean loss, and an attack of radius 0, which is the image.
        x_adv = torch.where(correct[:, None, None, None], x_adv, one.x)
    hand.train()
    loss = nn.functional.cross_entropy(hand(x_adv), one.y)
    check_step(model, hand, loss)
    assert torch.equal(state["radius"][:N], radius)
    assert (state["radius"][N:] == -1).all()
    # Three more steps: selection begins at the second step, whatever the examples.
    with counted(model) as passes:
        sgd_steps(method, model, [batch(1, n=2)], state)
    assert passes.forwards == {"clean_loss": 10, "decay": 10, "attack": 9}[misclassified]
    assert int(state["step"]) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5)])
@pytest.mark.parametrize("warmup", [0, 2])
def test_with_radii_held_fast_it_is_adversarial_training_bit_for_bit(dtype: torch.dtype, threat: Threat, warmup: int):
    method = iaat(threat=threat, gamma=0, beta=0, misclassified="attack", warmup=warmup)
    plain = AdversarialTraining(attack=TWO, threat=threat)
    ours, theirs = network().to(dtype), network().to(dtype)
    batches = [replace(one, x=one.x.to(dtype)) for one in (batch(0), batch(1), batch(2, n=4), batch(3), batch(4))]
    state = method.init(replace(spec(), dtype=dtype))
    a = sgd_steps(method, ours, batches, state)
    b = sgd_steps(plain, theirs, batches, {})
    assert all(torch.equal(one, other) for one, other in zip(a, b, strict=True))
    for one, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert int(state["step"]) == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [Linf, L2])
def test_equal_radii_as_a_tensor_are_the_number_bit_for_bit(kind: type[Threat], dtype: torch.dtype):
    x, noise = batch().x.to(dtype), batch().noise
    for eps in (0.1, 8 / 255, 1 / 3):
        one, many = kind(eps), kind(1.0).of_radius(torch.full((N,), eps, dtype=dtype))
        assert torch.equal(one.sample(x, noise), many.sample(x, noise))
        assert torch.equal(one.project(x - 0.5), many.project(x - 0.5))


def test_costs_are_exact():
    def passes(**settings: Any):
        found = iaat(attack=TEN, warmup=3, **settings).passes()
        return found.forwards, found.input_backwards, found.full_backwards

    assert passes() == passes(misclassified="decay", step_rule="scaled") == (34, 30, 1)
    assert passes(misclassified="attack") == (33, 30, 1)
    thirty = AttackSpec(name="pgd", steps=30, step_size=1 / 255)
    assert iaat(attack=thirty, selector=TEN).passes().forwards == 1 + 2 * 11 + 31
    # largest / grid further attacks, each with a look at its end point.
    assert passes(selection="line_search", grid=0.1, largest=0.3) == (1 + 3 * 11 + 11, 40, 1)
    # Half of K steps are shared, then half of K in each branch, in one of them less one.
    assert passes(selection="reuse") == (1 + 5 + 5 + 1 + 4 + 1 + 1, 14, 1)
    assert passes(selection="reuse", misclassified="attack") == (17, 14, 1)
    ten = iaat(attack=TEN, selection="reuse")
    assert ten.passes().natural_steps == pytest.approx(34 / 3)
    assert ten.passes().natural_steps < 0.52 * iaat(attack=TEN).passes().natural_steps


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_reuse_of_short_attacks(steps: int):
    method = iaat(attack=AttackSpec(name="pgd", steps=steps), selection="reuse", misclassified="attack")
    found = method.passes()
    taken = steps + max(steps // 2 - 1, 1)
    assert (found.forwards, found.input_backwards) == (taken + 3, taken)


def test_a_run_is_predicted_with_its_cheaper_warm_up():
    for settings, clean in (({}, 1), ({"misclassified": "attack"}, 0)):
        method = iaat(attack=TEN, warmup=4, **settings)
        model, state = network(), method.init(spec())
        with counted(model) as passes:
            sgd_steps(method, model, [batch(i) for i in range(7)], state)
        assert passes.forwards == 4 * (11 + clean) + 3 * (33 + clean)
        assert method.predicted(7) == pytest.approx(passes.natural_steps)
    assert iaat(attack=TEN, warmup=9).predicted(2) == pytest.approx(2 * (23 / 3 + 1 / 3))


@pytest.mark.parametrize(("attack_bn", "tracked"), [("train", 34), ("eval", 1), ("batch", 1)])
def test_running_statistics_move_with_every_forward_in_training_mode_alone(attack_bn: str, tracked: int):
    attack = AttackSpec(name="pgd", steps=10, step_size=0.02, attack_bn=attack_bn)
    method, model = iaat(attack=attack), network().train()
    for objective in method.losses(model, batch(), later(method)):
        objective()
    assert int(model.get_buffer("1.num_batches_tracked")) == tracked


@pytest.mark.parametrize("selection", ["candidates", "reuse"])
def test_radii_belong_to_examples_in_any_order_and_any_batch(selection: str):
    # attack_bn is eval and the weights stay, so that an example's radius is its own affair.
    method = iaat(selection=selection, beta=0.5, attack=AttackSpec(name="pgd", steps=2, random_start=False))
    model, one = network().train(), batch(n=N)
    numbers = torch.tensor([40, 7, 99, 0, 23, 58])
    whole, parts = later(method), later(method)

    def visit(state: dict[str, Tensor], rows: list[int]) -> None:
        i = torch.tensor(rows)
        some = replace(one, x=one.x[i], y=one.y[i], index=numbers[i], noise=one.noise[i], size=len(rows))
        next(iter(method.losses(model, some, state)))

    for _ in range(3):
        visit(whole, [0, 1, 2, 3, 4, 5])
    for rows in ([5, 0, 3], [2, 4, 1], [1], [0, 2, 5, 4, 3], [4, 3, 2, 1, 0, 5]):
        visit(parts, rows)
    assert torch.equal(whole["radius"], parts["radius"])
    assert len(whole["radius"][numbers].unique()) > 1
    assert set((whole["radius"] >= 0).nonzero().flatten().tolist()) == set(numbers.tolist())


def test_an_unseen_example_begins_with_the_warm_up_radius_and_one_without_a_label_keeps_its_own():
    for settings, first in (({}, 0.1), ({"warmup_radius": 0.06}, 0.06), ({"radius_scale": 1.2}, 0.12)):
        method = iaat(gamma=0, **settings)
        state = later(method)
        next(iter(method.losses(network(), batch(), state)))
        assert state["radius"][:N].tolist() == pytest.approx([first] * N, abs=1e-12)
    one = batch()
    missing = replace(one, y=torch.where(torch.arange(N) < 2, -1, one.y))
    for settings in ({"misclassified": "decay", "selection": "reuse"}, {}, {"warmup": 1}, {"misclassified": "attack"}):
        method = iaat(**settings)
        state = method.init(spec())
        state["radius"][1:3] = 0.05
        losses = next(iter(method.losses(network(), missing, state)))()
        assert (losses[:2] == 0).all()
        assert (losses[2:] > 0).all()
        assert state["radius"][:2].tolist() == [-1, 0.05]
        assert (state["radius"][3:N] >= 0).all()


@pytest.mark.parametrize("selection", ["candidates", "reuse", "line_search"])
@pytest.mark.parametrize("misclassified", ["clean_loss", "decay"])
def test_radii_are_clipped_from_below_and_the_example_lies_in_its_ball(selection: str, misclassified: str):
    method = iaat(selection=selection, misclassified=misclassified, lower=0.06, grid=0.1, largest=0.2, beta=1)
    model, one, seen = network().train(), batch(), []
    state = later(method, torch.full((N,), 0.06, dtype=torch.float64))
    objective = next(iter(method.losses(model, one, state)))
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    objective()
    assert (state["radius"][:N] >= 0.06).all()
    assert (BALL.size(seen[0] - one.x) <= state["radius"][:N] + 1e-12).all()
    assert ((seen[0] >= 0) & (seen[0] <= 1)).all()


def test_line_search_takes_the_largest_radius_that_is_withstood():
    method = iaat(selection="line_search", grid=0.1, largest=0.3, misclassified="attack", beta=0)
    model, one = network().train(), batch()
    state = later(method, torch.full((N,), 0.05, dtype=torch.float64))
    next(iter(method.losses(model, one, state)))
    model.eval()
    expected = []
    for i in range(3):
        radius = torch.full((N,), 0.1 * (i + 1), dtype=torch.float64)
        draws = one.noise.child(f"search-{i + 1}")
        x_adv = by_hand_pgd(model, one.x, one.y, radius, draws, [torch.full_like(radius, 0.04)] * 2)
        expected.append(torch.where(model(x_adv).argmax(1) == one.y, radius, 0))
    assert torch.equal(state["radius"][:N], torch.stack(expected).amax(0))
    assert len(state["radius"][:N].unique()) > 1


def test_reuse_decides_as_candidates_do_and_hands_over_examples_as_strong():
    # A small model trained with noise, so that decisions are neither all alike nor mere chance; 600 examples.
    draw, n = Stream(("reuse",), torch.arange(600), block=600), 600
    centres = Stream(("centres",), torch.arange(CLASSES), block=CLASSES).uniform((1, 8, 8), dtype=torch.float64)
    y = draw.child("y").integers(CLASSES)
    x = (0.5 + 0.3 * centres[y] + 0.2 * draw.normal((1, 8, 8), dtype=torch.float64)).clamp(0, 1)
    rows = torch.arange(n)
    model = network()

    def of(seed: int) -> Batch:
        return Batch(x, y, rows, Stream((seed,), rows, block=n), n, CLASSES)

    attack = AttackSpec(name="pgd", steps=10, step_size=0.04)
    ball = Linf(0.15)
    sgd_steps(AdversarialTraining(attack=TEN, threat=ball), model, [of(100 + i) for i in range(25)], {}, lr=0.2)
    memory = 0.15 + 0.1 * draw.child("memory").uniform((), dtype=torch.float64)

    def chosen(selection: str, seed: int) -> tuple[Tensor, float]:
        method = iaat(threat=ball, attack=attack, gamma=0.03, selection=selection)
        state, seen = {"radius": memory.clone(), "step": torch.tensor(0)}, []
        objective = next(iter(method.losses(model, of(seed), state)))
        with evaluating(model):
            handle = model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
            objective()
            handle.remove()
            return ((state["radius"] - memory) / 0.003).round(), float(cross_entropy(predict(model, seen[0]), y).mean())

    (a, loss), (b, _), (c, reused) = chosen("candidates", 1), chosen("candidates", 2), chosen("reuse", 3)
    assert all(float((a == move).double().mean()) > 0.05 for move in (-1, 0, 1))
    agreement = float((a == b).double().mean())
    assert abs(float((a == c).double().mean()) - agreement) < 0.03
    assert abs(float((c - a).mean())) < 0.03
    assert abs(reused / loss - 1) < 0.03


def test_a_rank_without_rows():
    method, none = iaat(), batch(n=0)
    for selection in ({}, {"selection": "reuse"}, {"misclassified": "decay"}):
        method = iaat(**selection)
        state = later(method)
        model = network().eval()
        assert next(iter(method.losses(model, none, state)))().shape == (0,)
        remember(state["radius"], none, torch.empty(0, dtype=torch.float64))
        assert (state["radius"] == -1).all()


def test_settings_that_contradict_each_other_are_refused():
    for settings, sentence in (
        ({"attack": {"name": "deepfool"}}, "looks for the nearest example"),
        ({"attack": {"name": "pgd", "steps": 3}, "step_rule": "scaled"}, "needs an attack with a step_size"),
        ({"attack": {"name": "fgsm"}, "step_rule": "scaled"}, "needs an attack with a step_size"),
        ({"selection": "line_search"}, "give both, like grid"),
        ({"selection": "line_search", "grid": 0.2, "largest": 0.1}, "give both, like grid"),
        ({"selection": "reuse", "attack": {"name": "fgsm"}}, "continues one ascent of pgd"),
        ({"selection": "reuse", "attack": {"name": "pgd", "restarts": 2}}, "continues one ascent of pgd"),
        ({"selection": "reuse", "selector": TEN}, "leave selector out"),
        ({"warmup": -1}, "warmup"),
    ):
        with pytest.raises(ValueError, match=sentence):
            iaat(**settings)
    soft = iaat().losses(network(), replace(batch(), y=torch.eye(CLASSES)[batch().y]), iaat().init(spec()))
    with pytest.raises(ValueError, match="needs class numbers"):
        next(soft)


def test_the_state_is_of_the_weights_type_and_its_counter_on_the_cpu():
    given = Spec(shape=(1, 8, 8), slots=2, examples=5, classes=3, device="meta")
    state = iaat().init(given)
    assert (state["radius"].device.type, state["radius"].dtype, state["radius"].shape) == ("meta", torch.float32, (5,))
    assert (state["step"].device.type, state["step"].dtype) == ("cpu", torch.int64)
    assert iaat().state_kinds == {"radius": "index", "step": "replicated"}
