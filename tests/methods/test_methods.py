import pytest

from steps import batch, network, spec
from toughen.attacks import AttackSpec
from toughen.methods import (
    AdversarialTraining,
    Bilateral,
    Free,
    InstanceAdaptive,
    Interpolated,
    LabelSmoothing,
    Mart,
    Method,
    Mixup,
    Natural,
    Trades,
)
from toughen.threat import Linf


def passes(method: Method) -> tuple[int, int, int]:
    found = method.resolved(Linf(0.1)).passes()
    return found.forwards, found.input_backwards, found.full_backwards


@pytest.mark.parametrize("k", [1, 7, 10])
def test_passes_of_a_batch_are_those_of_the_papers(k: int):
    attack = AttackSpec(name="pgd", steps=k)
    adversarial = AdversarialTraining(attack=attack)
    assert passes(Natural(replays=k)) == (k, 0, k)
    assert passes(Free(replays=k)) == (k, 0, k)
    assert passes(adversarial) == (k + 1, k, 1)
    assert passes(Trades(attack=attack)) == (k + 3, k, 2)
    assert passes(Trades(attack=attack, inner="cross_entropy")) == (k + 2, k, 2)
    assert passes(Mart(attack=attack)) == (k + 2, k, 2)
    assert passes(InstanceAdaptive(attack=attack)) == (3 * k + 4, 3 * k, 1)
    assert passes(Interpolated(attack=attack)) == (k + 2, k, 2)
    assert passes(Mixup(method=adversarial)) == passes(LabelSmoothing(method=adversarial)) == passes(adversarial)


def test_passes_of_one_step_methods():
    assert passes(Natural()) == (1, 0, 1)
    assert passes(Bilateral()) == (3, 1, 1)
    assert passes(InstanceAdaptive(attack=AttackSpec(name="pgd", steps=10))) == (34, 30, 1)
    reuse = InstanceAdaptive(attack=AttackSpec(name="pgd", steps=10), selection="reuse").resolved(Linf(0.1))
    assert reuse.passes().natural_steps < 22 * 0.7
    ten = AdversarialTraining(attack=AttackSpec(name="pgd", steps=10)).resolved(Linf(0.1))
    assert ten.passes().natural_steps == pytest.approx(23 / 3)


def test_weight_perturbation_runs_an_objective_twice():
    method = AdversarialTraining(attack=AttackSpec(name="pgd", steps=10)).resolved(Linf(0.1))
    once, twice = method.passes(), method.passes(calls=2)
    assert (twice.forwards, twice.full_backwards) == (once.forwards + 1, once.full_backwards + 1)
    assert twice.input_backwards == once.input_backwards


def test_a_method_takes_the_runs_threat_unless_it_has_its_own():
    assert Free().resolved(Linf(0.2)).threat == Linf(0.2)
    assert Free(threat=Linf(0.1)).resolved(Linf(0.2)).threat == Linf(0.1)
    assert Natural().resolved(Linf(0.2)) == Natural()
    with pytest.raises(ValueError, match="no threat model"):
        next(iter(Free().losses(network(), batch(), Free().init(spec()))))
