"""A property of networks out of the field's idioms: whatever is done for speed, the verdicts are the same."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import FULL
from strangers.random_networks import CHANNELS, SIDE, Network, random_network
from toughen.attacks import AttackSpec
from toughen.evaluation import evaluate
from toughen.models import prepared
from toughen.models.adapted import adapt
from toughen.models.folding import Folding
from toughen.modes import attacking, foldable
from toughen.threat import Linf

# What torch says of itself while it compiles.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")

SUITE = {
    "apgd": AttackSpec(name="apgd", steps=4),
    "square": AttackSpec(name="square", queries=6),
    "apgd-t": AttackSpec(name="apgd_targeted", steps=3, targets=2),
}
N = 8
FEW, MANY = range(30), range(30, 400)


def logits_of(model: Any, x: Tensor) -> Tensor:
    """What torch alone says, on a copy of the images, for some networks write into them."""
    with torch.no_grad():
        return adapt(model)(x.clone())


def examples(number: int, model: Any) -> tuple[Tensor, Tensor]:
    x = torch.rand(N, CHANNELS, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
    return x, logits_of(model, x).argmax(1)


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Evaluate with nothing done for speed."""

    def run(*given: Any, **settings: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(prepared, "supports_channels_last", lambda *given: False)
            patch.setattr(prepared, "fused", lambda model, x: model)
            return evaluate(*given, **settings)

    return run


@pytest.mark.parametrize("number", [*FEW, *(pytest.param(number, marks=FULL) for number in MANY)])
def test_what_is_done_for_speed_changes_no_verdict(number: int, slowly: Any):
    network = random_network(number)
    x, y = examples(number, network.model)
    given = {"threat": Linf(0.02), "suite": SUITE, "audit": False, "chunk_size": N}
    before = copy.deepcopy(network.model.state_dict()), x.clone()
    quick, plain = evaluate(network.model, x, y, **given), slowly(network.model, x, y, **given)
    assert torch.equal(x, before[1])
    assert all(torch.equal(value, before[0][key]) for key, value in network.model.state_dict().items())
    for column in ("index", "prediction", "survived", "forwards", "backwards"):
        assert getattr(quick.outcomes, column).tolist() == getattr(plain.outcomes, column).tolist(), (
            column,
            network.idioms,
        )
    assert abs(quick.outcomes.margin - plain.outcomes.margin).max() < 1e-9, network.idioms
    assert quick.clean_accuracy == 1


def test_the_networks_are_of_every_idiom_and_mean_something():
    networks = [random_network(number) for number in FEW]
    said = " ".join(" ".join(network.idioms.values()) for network in networks)
    for idiom in ("view", "in-place", "clamp_", "functional", "BatchNorm", "adaptive pool", "residual", "shared"):
        assert idiom in said
    fast = [is_fast(number, network) for number, network in zip(FEW, networks, strict=True)]
    assert {True, False} == set(fast)
    robust = [
        evaluate(net.model, *examples(number, net.model), threat=Linf(0.02), suite=SUITE, audit=False).robust_accuracy
        for number, net in zip(FEW[:12], networks, strict=False)
    ]
    assert 0 < sum(robust) / len(robust) < 1


def is_fast(number: int, network: Network) -> bool:
    return prepared.prepare(network.model, examples(number, network.model)[0], None, N).fast


@pytest.mark.parametrize("number", FEW)
def test_an_attack_in_training_that_runs_folded_is_the_same(number: int):
    model = random_network(number).model
    model = adapt(model)
    x, y = examples(number, model)
    folding = Folding.of(model, x[:2])

    def gradient() -> Tensor:
        with attacking(model, "eval"):
            leaf = x.clone().requires_grad_()
            loss = nn.functional.cross_entropy(model(leaf), y, reduction="sum")
            return torch.autograd.grad(loss, leaf)[0]

    expected = gradient()
    with foldable(model, folding):
        torch.testing.assert_close(gradient(), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient(), expected, rtol=0, atol=0)
