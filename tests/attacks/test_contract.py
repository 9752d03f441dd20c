"""What every attack in the registry promises, in every form of `attack_cases.CASES`.

The promises stand in `toughen.testing`, for everybody's attacks; here is what further holds of ours.
"""

import inspect

import pytest
import torch
from torch import Tensor, nn

from attack_cases import CASES, Case
from conftest import FULL
from toughen.attacks import ATTACKS, AttackSpec, bim, fgsm, pgd
from toughen.models.cost import counted
from toughen.noise import Stream
from toughen.testing import Promise, attack_promises
from toughen.threat import L2, Linf, Threat

THREATS = {
    "linf": Linf(8 / 255),
    "l2": L2(0.5),
    "linf-each": Linf(torch.linspace(0, 0.3, 8)),
    "l2-each": L2(torch.linspace(0, 2, 8)),
}


def promises_of(case: Case, norm: str, **changes: object) -> list[Promise]:
    return attack_promises(AttackSpec(**{**case.settings, **changes}), norms=[norm], strength=case.strength)


# What the norm of the ball decides, and what the settings decide beside it. The rest is how an attack goes about its
# passes: the tests ask it of one form of each attack in one norm, and `make faults` of every form in both.
BY_NORM = {"norms", "output", "box", "ball", "radius zero", "batch mates", "as strong as one step"}
BY_NORM |= {"stronger than chance", "near", "adversarial or unchanged", "what is broken stays broken"}
BY_SETTINGS = {*BY_NORM, "same again", "in pieces"}


def marks_of(label: str, norm: str, promise: str) -> list[pytest.MarkDecorator]:
    """None where the tests ask this promise of this form."""
    variant, first = CASES[label].settings["name"] != label, norm == CASES[label].norms[0]
    asked = {
        (False, True): {promise},
        (False, False): BY_NORM,
        (True, True): BY_SETTINGS,
        (True, False): {"batch mates"},
    }
    return [] if promise in asked[variant, first] else FULL


EVERY = [
    pytest.param(promise, id=f"{label}-{norm}-{promise.name}", marks=marks_of(label, norm, promise.name))
    for label, case in CASES.items()
    for norm in case.norms
    for promise in promises_of(case, norm)
]
LEFT = ("random state", "modes", "parameters", "buffers", "inputs")
ON_BATCH_STATISTICS = [
    pytest.param(promise, id=f"{name}-{promise.name}")
    for name in ATTACKS
    if "attack_bn" in inspect.signature(ATTACKS[name]).parameters and name in CASES
    for promise in promises_of(CASES[name], CASES[name].norms[0], attack_bn="batch")
    if promise.name in LEFT
]
IN_BALLS = {
    f"{label}-{key}": (case, threat)
    for label, case in CASES.items()
    for key, threat in THREATS.items()
    if threat.norm in case.norms
}
in_every_ball = pytest.mark.parametrize(("case", "threat"), list(IN_BALLS.values()), ids=list(IN_BALLS))


@pytest.fixture
def images(x: Tensor) -> Tensor:
    """In float32, with black and white pixels."""
    return (x.float() * 1.5 - 0.25).clamp(0, 1)


@pytest.fixture
def labels() -> Tensor:
    """The model's own, 2, but for two examples that are misclassified as they are."""
    return torch.tensor([2, 2, 0, 2, 2, 2, 1, 2])


def takes(spec: AttackSpec, argument: str) -> bool:
    return argument in inspect.signature(ATTACKS[spec.name]).parameters


def direct(spec: AttackSpec, model, x: Tensor, y: Tensor, threat: Threat, noise: Stream) -> Tensor:
    """The registered function called as users call it."""
    given = {key: value for key, value in {"threat": threat, "noise": noise}.items() if takes(spec, key)}
    return ATTACKS[spec.name](model, x, y, **given, **spec.settings)


def test_every_attack_has_a_row_of_its_name():
    missing = [name for name in ATTACKS if name not in CASES or CASES[name].settings["name"] != name]
    assert not missing, f"give each of these a row of its name in tests/attack_cases.py: {', '.join(missing)}"
    assert {case.settings["name"] for case in CASES.values()} == set(ATTACKS)


def test_the_fixtures_show_every_fate(normed, images, labels):
    """Some examples are misclassified as they are, some can be broken, and some cannot."""
    wrong = normed(images).argmax(1) != labels
    assert wrong.tolist() == [False, False, True, False, False, False, True, False]
    attack = AttackSpec(name="multi_targeted", steps=20, restarts=2, targets="all")
    broken = normed(attack(normed, images, labels, threat=L2(0.5))).argmax(1) != labels
    assert broken[~wrong].any()
    assert not broken.all()


@pytest.mark.parametrize("promise", EVERY)
def test_every_promise_holds(promise):
    promise()


@pytest.mark.parametrize("promise", ON_BATCH_STATISTICS)
def test_on_batch_statistics_everything_is_left_as_it_was_found(promise):
    promise()


@in_every_ball
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=FULL)])
def test_the_room_there_is_is_used(case, threat, normed, images, labels, dtype):
    """As far as black and white pixels let it."""
    attack, x, model = AttackSpec(**case.settings), images.to(dtype), normed.to(dtype)
    if attack.minimal_norm or case.fills == "none":
        return
    x_adv = attack(model, x, labels, threat=threat)
    broken = model(x_adv).argmax(1) != labels
    size = type(threat)(0).size(x_adv.double() - x.double())
    eps = torch.as_tensor(threat.eps).double().expand(8)
    assert ((size >= 0.4 * eps) | (broken if case.fills == "unbroken" else False)).all()


@in_every_ball
def test_other_noise_gives_another_result(case, threat, normed, images, labels):
    """Others may draw for further restarts alone, or find the same point from anywhere."""
    attack = AttackSpec(**case.settings)
    if case.fills == "all" or not takes(attack, "noise"):
        first = attack(normed, images, labels, threat=threat, noise=Stream(("contract",), torch.arange(8)))
        assert torch.equal(attack(normed, images, labels, threat=threat), first) != takes(attack, "noise")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_spec_is_the_function(case, normed, images, labels):
    spec, threat = AttackSpec(**case.settings), THREATS[f"{case.norms[-1]}-each"]
    noise = Stream(("contract",), torch.arange(8))
    expected = direct(spec, normed, images, labels, threat, noise)
    assert torch.equal(spec(normed, images, labels, threat=threat, noise=noise), expected)


# --- BatchNorm during an attack


def test_batch_statistics_and_training_mode_see_the_same_gradients(normed, images, labels):
    """Without dropout the two differ only in what becomes of the running statistics."""
    settings = {"threat": Linf(0.1), "steps": 4}
    by_batch = pgd(normed, images, labels, attack_bn="batch", **settings)
    by_running = pgd(normed, images, labels, attack_bn="eval", **settings)
    tracked = normed[1].num_batches_tracked.clone()
    by_training = pgd(normed, images, labels, attack_bn="train", **settings)
    assert torch.equal(by_batch, by_training)
    assert not torch.equal(by_batch, by_running)
    assert tracked == 0
    assert normed[1].num_batches_tracked == 4


def test_fgsm_on_batch_statistics_by_hand(normed, images, labels):
    conv, norm, *rest = normed.double()
    x = images.double().requires_grad_()
    z = conv(x)
    z = (z - z.mean((0, 2, 3), keepdim=True)) / (z.var((0, 2, 3), unbiased=False, keepdim=True) + norm.eps).sqrt()
    logits = nn.Sequential(*rest)(z * norm.weight.reshape(1, -1, 1, 1) + norm.bias.reshape(1, -1, 1, 1))
    (grad,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"), x)
    expected = x.detach() + 0.05 * grad / grad.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    inside = (expected >= 0) & (expected <= 1)
    assert inside.sum() > 100
    found = fgsm(normed, x.detach(), labels, threat=L2(0.05), attack_bn="batch")
    torch.testing.assert_close(found[inside], expected[inside], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("attack", "settings"), [(fgsm, {}), (bim, {"steps": 3}), (pgd, {"steps": 2, "restarts": 2})])
def test_training_mode_moves_the_statistics_once_a_forward(normed, images, labels, attack, settings):
    with counted(normed) as passes:
        attack(normed, images, labels, threat=Linf(0.01), attack_bn="train", **settings)
    assert normed[1].num_batches_tracked == passes.forwards
    assert not normed[1].training
