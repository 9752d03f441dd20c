import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hand import EPS, PGD, assert_close, attacked, descend, drawn, soft_loss
from steps import CLASSES, N, batch, network, sgd_steps, spec
from toughen.attacks import AttackSpec
from toughen.data import Batch
from toughen.losses import probabilities
from toughen.methods import METHODS, AdversarialTraining, Free, Method, Natural
from toughen.methods.interpolated import Interpolated
from toughen.methods.label_smoothing import LabelSmoothing
from toughen.methods.mixup import Mixup, mixing
from toughen.methods.wrapper import Wrapper, nested
from toughen.noise import Stream
from toughen.parallel import ranks
from toughen.recipes import Recipe, RecipeError
from toughen.recipes.text import build, change, dump, parse_yaml
from toughen.threat import Linf

BALL = Linf(EPS)
WRAPPERS = {"mixup": Mixup, "label_smoothing": LabelSmoothing, "interpolated": Interpolated}


class Hard(Method, frozen=True):
    """Takes class numbers alone."""

    soft_labels = False
    name: str = "hard"


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kind in {**WRAPPERS, "hard": Hard}.items():
        monkeypatch.setitem(METHODS, name, kind)


def recipe(method: object, **changes: object) -> Recipe:
    base = {"data": "mnist5k", "model": "small_cnn", "threat": "linf:0.1", "steps": 8}
    return build({**base, "method": method, **changes})


def fault(method: object, **changes: object) -> str:
    with pytest.raises(RecipeError) as caught:
        recipe(method, **changes)
    return str(caught.value)


def equal_runs(a: Method, b: Method) -> None:
    batches = [batch(0), batch(1), batch(2, n=4)]
    one, other = network(), network()
    state, same = a.init(spec()), b.init(spec())
    losses = sgd_steps(a, one, batches, state)
    for x, y in zip(losses, sgd_steps(b, other, batches, same), strict=True):
        assert torch.equal(x, y)
    for x, y in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(x, y)
    assert all(torch.equal(state[name], same[name]) for name in state)


def test_mixup_is_mix_first_then_attack_the_mixed_loss_worked_out_by_hand():
    method = Mixup(alpha=1.4, method=AdversarialTraining(attack=AttackSpec(**PGD), threat=BALL))
    model, one = network(), batch()
    hand = copy.deepcopy(model)
    sgd_steps(method, model, [one], {})

    share, order = drawn(1.4, N, "mixup")
    assert 0 < share < 1
    assert order != list(range(N))
    x = share * one.x + (1 - share) * one.x[order]

    def loss(logits: Tensor) -> Tensor:
        # As Rice et al.'s code has it: two cross-entropies, weighed.
        ce = nn.functional.cross_entropy
        return share * ce(logits, one.y, reduction="none") + (1 - share) * ce(logits, one.y[order], reduction="none")

    x_adv = attacked(hand, x, loss, one.noise.child("mixed"))
    descend(hand, loss(hand(x_adv)).mean())
    assert_close(model, hand)


def test_the_mixed_batch_by_hand_with_missing_labels_and_probabilities():
    one = batch()
    one = replace(one, y=torch.tensor([0, -1, 2, 1, -1, 0]))
    share, order = drawn(0.7, N, "mixup")
    rows = [[1, 0, 0], [0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 0], [1, 0, 0]]
    expected = [[share * a + (1 - share) * b for a, b in zip(rows[i], rows[order[i]], strict=True)] for i in range(N)]
    found = Mixup(alpha=0.7).changed(one)
    assert torch.allclose(found.y, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)
    assert found.y.dtype == found.x.dtype == torch.float64
    assert torch.equal(found.index, one.index)
    soft = replace(one, y=torch.tensor(rows, dtype=torch.float64))
    assert torch.equal(Mixup(alpha=0.7).changed(soft).y, found.y)
    single = Mixup(alpha=0.7).changed(replace(one, x=one.x.float()))
    assert single.x.dtype == single.y.dtype == torch.float32


def test_each_batch_has_a_lambda_and_an_order_of_its_own_and_the_lambdas_are_beta_distributed():
    rows = torch.arange(32)
    mixes = [mixing(Stream((0, "train", i, "mixup"), rows, block=32), 32, 1.4) for i in range(2000)]
    shares = np.array([mix.share for mix in mixes])
    assert len(set(shares)) == 2000
    # Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)); the bounds are five standard errors.
    assert abs(shares.mean() - 0.5) < 5 * (1 / (4 * 3.8) / 2000) ** 0.5
    assert abs(shares.var() - 1 / (4 * 3.8)) < 0.008
    assert all(mix.partners.sort().values.equal(rows) for mix in mixes[:50])
    assert not torch.equal(mixes[0].partners, mixes[1].partners)


@pytest.mark.parametrize(
    "method",
    [Natural(replays=2), AdversarialTraining(attack=AttackSpec(**PGD), threat=BALL), Free(replays=3, threat=BALL)],
)
def test_with_alpha_0_it_is_the_method_itself_bit_for_bit(method: Method):
    equal_runs(Mixup(alpha=0, method=method), method)
    one = batch()
    assert Mixup(alpha=0, method=method).changed(one) is one
    assert Mixup(alpha=0, method=method).forwards == method.forwards
    assert Mixup(alpha=0.1, method=method).forwards == ()


def test_mixup_within_mixup_mixes_independently():
    outer = Mixup(method=Mixup(method=Natural()))
    assert isinstance(outer.method, Mixup)
    one = batch()
    share, order = drawn(1.0, N, "mixup")
    again, further = drawn(1.0, N, "mixed", "mixup")
    assert share != again
    once = share * one.x + (1 - share) * one.x[order]
    twice = outer.method.changed(outer.changed(one))
    assert torch.allclose(twice.x, again * once + (1 - again) * once[further], rtol=0, atol=1e-15)


def test_free_within_mixup_keeps_its_state_and_replays_one_mixed_batch():
    method = Mixup(alpha=1, method=Free(replays=3)).resolved(BALL)
    assert (method.steps_per_batch, method.state_kinds) == (3, {"delta": "slot"})
    model, state = network(), method.init(spec())
    batches = [batch(0), batch(1, n=4)]
    sgd_steps(method, model, batches, state)

    hand = copy.deepcopy(network()).train()
    delta = torch.zeros_like(state["delta"])
    for number, one in enumerate(batches):
        n = len(one)
        share, order = drawn(1.0, n, "mixup", number=number)
        x = share * one.x + (1 - share) * one.x[order]
        onehot = torch.eye(CLASSES, dtype=torch.float64)[one.y]
        y = share * onehot + (1 - share) * onehot[order]
        for _ in range(3):
            d = delta[:n].clone().requires_grad_()
            loss = soft_loss(hand((x + d).clamp(0, 1)), y).mean()
            (g,) = torch.autograd.grad(loss, d, retain_graph=True)
            descend(hand, loss)
            delta[:n] = (delta[:n] + EPS * g.sign()).clamp(-EPS, EPS)
    assert delta.abs().amax() > 0
    assert torch.allclose(state["delta"], delta, rtol=0, atol=1e-10)
    assert_close(model, hand)


def faked_ranks(monkeypatch: pytest.MonkeyPatch, one: Batch, world: int, change) -> tuple[Batch, list[Batch]]:
    """What `change` makes of a batch, and of each rank's rows of it, where `gather` knows the rows of all ranks."""
    seen: list[Tensor] = []
    monkeypatch.setattr(ranks, "gather", lambda rows, n: (seen.append(rows), rows)[1])
    whole, parts = change(one), []
    for rank in range(world):
        given = iter(seen.copy())

        def gather(rows: Tensor, n: int, given=given, rank: int = rank) -> Tensor:
            every = next(given)
            assert len(every) == n
            assert torch.equal(every[rank::world], rows)
            return every

        monkeypatch.setattr(ranks, "gather", gather)
        mine = slice(rank, None, world)
        parts.append(change(replace(one, x=one.x[mine], y=one.y[mine], index=one.index[mine], noise=one.noise[mine])))
    return whole, parts


@pytest.mark.parametrize(("n", "world"), [(N, 2), (5, 3), (1, 2)])
def test_ranks_together_mix_as_one_and_a_rank_may_be_empty(monkeypatch: pytest.MonkeyPatch, n: int, world: int):
    whole, parts = faked_ranks(monkeypatch, batch(n=n), world, Mixup(alpha=0.7).changed)
    for rank, part in enumerate(parts):
        assert torch.equal(part.x, whole.x[rank::world])
        assert torch.equal(part.y, whole.y[rank::world])
        assert part.y.shape == (len(part.x), CLASSES)
        assert part.size == n
    assert sum(map(len, parts)) == n


def test_it_adds_no_pass():
    def passes(method: Method):
        found = method.passes()
        return found.forwards, found.input_backwards, found.full_backwards

    inner = AdversarialTraining(attack=AttackSpec(name="pgd", steps=10))
    for method in (Mixup(method=inner), LabelSmoothing(method=inner), Mixup(method=LabelSmoothing(method=inner))):
        assert passes(method.resolved(BALL)) == (11, 10, 1)
        assert method.resolved(BALL).predicted(6) == inner.resolved(BALL).predicted(6)
    assert passes(Mixup(method=Free(replays=4)).resolved(BALL)) == (4, 0, 4)
    assert passes(Mixup(method=Natural())) == (1, 0, 1)


def test_the_objective_may_be_called_twice_and_the_global_random_state_is_left_alone():
    random = torch.get_rng_state()
    (objective,) = Mixup(method=AdversarialTraining(threat=BALL)).losses(network().train(), batch(), {})
    assert torch.equal(objective(), objective())
    assert torch.equal(random, torch.get_rng_state())


def test_resolving_reaches_the_innermost_method():
    method = Mixup(method=LabelSmoothing(method=Free())).resolved(BALL)
    *_, inner = nested(method)
    assert [one.name for one in nested(method)] == ["mixup", "label_smoothing", "free"]
    assert isinstance(inner, Free)
    assert inner.threat == BALL
    own = Mixup(method=Free(threat=Linf(0.2))).resolved(BALL).method
    assert isinstance(own, Free)
    assert own.threat == Linf(0.2)
    assert Mixup(method=Natural()).resolved(BALL) == Mixup(method=Natural())


@pytest.mark.usefixtures("registered")
def test_a_nested_method_survives_text_with_its_own_settings():
    attack = {"name": "pgd", "steps": 7, "step_size": "2/255"}
    inner = {"name": "adversarial", "attack": attack, "radius_scale": 1.1}
    found = recipe({"name": "mixup", "alpha": "1.4", "method": {"name": "label_smoothing", "method": inner}})
    mixup = found.method
    assert isinstance(mixup, Mixup)
    assert mixup.alpha == 1.4
    smoothing = mixup.method
    assert isinstance(smoothing, LabelSmoothing)
    assert smoothing.method == AdversarialTraining(
        attack=AttackSpec(name="pgd", steps=7, step_size=2 / 255), radius_scale=1.1
    )
    assert build(parse_yaml(dump(found), "dump")) == found
    # A method that has been resolved, too: its threat model is written inside.
    resolved = mixup.resolved(BALL)
    assert Mixup.model_validate(resolved.model_dump()) == resolved
    assert Mixup.model_validate(resolved.model_dump(mode="json")) == resolved
    assert found.natural_steps == pytest.approx(8 * (8 + 7 + 2) / 3)
    assert recipe("mixup").method == Mixup() == Mixup(method=AdversarialTraining())

    replaced = build(change(found.model_dump(mode="json"), ["method.method=free", "method.method.replays=4"]))
    assert replaced.method == Mixup(alpha=1.4, method=Free(replays=4))
    assert (replaced.batches, replaced.total_steps) == (2, 8)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("method", "path", "says"),
    [
        ({"name": "mixup", "alpha": -1}, "method.alpha", "greater than or equal to 0"),
        ({"name": "mixup", "alpha": "inf"}, "method.alpha", "not finite"),
        ({"name": "mixup", "method": "fre"}, "method.method", "did you mean 'free'"),
        ({"name": "mixup", "method": 3}, "method.method", "write a name"),
        ({"name": "mixup", "method": {"name": "free", "replay": 4}}, "method.method.replay", "did you mean 'replays'"),
        ({"name": "mixup", "method": {"name": "free", "threat": "linf:2"}}, "method.method.threat", "(0, 1]"),
        ({"name": "label_smoothing", "extra": 1}, "method.extra", "less than 1"),
        ({"name": "interpolated", "attack": "pgf"}, "method.attack", "did you mean 'pgd'"),
    ],
)
def test_a_fault_inside_is_one_line_with_its_path(method: dict[str, object], path: str, says: str):
    text = fault(method)
    assert len(text.splitlines()) == 1
    assert text.startswith(f"{path}: ")
    assert says in text


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", ["mixup", "label_smoothing"])
def test_a_method_that_needs_classes_is_refused_and_the_allowed_are_named(name: str):
    text = fault({"name": name, "method": {"name": "hard"}})
    assert len(text.splitlines()) == 1
    assert text.startswith("method.method: hard needs class numbers")
    allowed = text.partition("wrap one of ")[2].split(", ")
    assert {"natural", "adversarial", "free", "mixup", "label_smoothing", "interpolated"} <= set(allowed)
    assert "hard" not in allowed
    with pytest.raises(ValueError, match="hard needs class numbers"):
        Mixup(method=Hard())


def test_a_wrapper_says_what_to_write():
    with pytest.raises(NotImplementedError):
        Wrapper(name="nothing").changed(batch())
    labels = probabilities(torch.tensor([2, -1]), 3, torch.float32)
    assert torch.equal(labels, torch.tensor([[0.0, 0, 1], [0, 0, 0]]))
    assert probabilities(torch.empty(0, dtype=torch.int64), 3, torch.float32).shape == (0, 3)
