"""What every attack in the registry promises: a new one is a row here by being registered.

The promises stand in `toughen.testing`, for everybody's attacks; here is what further holds of ours.
"""

import inspect

import pytest
import torch
from torch import Tensor, nn

from toughen.attacks import ATTACKS, AttackSpec, bim, fgsm, pgd
from toughen.counting import counted
from toughen.noise import Stream
from toughen.testing import Promise, attack_promises
from toughen.testing.attack_subject import Strength
from toughen.threat import L2, Linf, Threat

THREATS = {
    "linf": Linf(8 / 255),
    "l2": L2(0.5),
    "linf-each": Linf(torch.linspace(0, 0.3, 8)),
    "l2-each": L2(torch.linspace(0, 2, 8)),
}
# Enough work for a promise to be broken, where an attack's own settings are those of an evaluation.
SHORT = {
    "multi_targeted": {"steps": 5, "restarts": 4},
    "apgd": {"steps": 8, "restarts": 2},
    "apgd_targeted": {"steps": 5, "targets": 3},
    "fab": {"steps": 4, "restarts": 2},
    "deepfool": {"steps": 10},
    "carlini_wagner": {"steps": 12, "learning_rate": 0.1, "initial_const": 10, "binary_search_steps": 2},
    "carlini_wagner_linf": {"steps": 5},
    "square": {"queries": 30},
    "spsa": {"steps": 4, "samples": 8},
}
VARIANTS = {
    "pgd-restarts": {"name": "pgd", "steps": 3, "restarts": 3},
    "pgd-highest": {"name": "pgd", "steps": 3, "restarts": 2, "keep": "highest_loss", "loss": "margin-50"},
    "pgd-kl": {"name": "pgd", "loss": "kl"},
    "pgd-dlr": {"name": "pgd", "steps": 3, "loss": "dlr"},
    "rs_fgsm-kl": {"name": "rs_fgsm", "loss": "kl", "random_start": "gaussian"},
    "adam_pgd-restarts": {"name": "adam_pgd", "steps": 4, "restarts": 3, "loss": "margin", "drops": (0.5, 0.75)},
    "targeted-restarts": {"name": "targeted_pgd", "steps": 3, "restarts": 3},
    "targeted-confusing": {"name": "targeted_pgd", "steps": 3, "target": "most_confusing", "loss": "margin"},
    "multi_targeted-all": {"name": "multi_targeted", "steps": 3, "restarts": 2, "targets": "all"},
    "apgd-dlr": {"name": "apgd", "steps": 8, "loss": "dlr"},
    "fab-targeted": {"name": "fab", "steps": 4, "targets": 3},
    "fab-inside": {"name": "fab", "steps": 4, "stop_inside": True},
    "deepfool-inside": {"name": "deepfool", "steps": 10, "stop_inside": True},
    "carlini_wagner-inside": {"name": "carlini_wagner", **SHORT["carlini_wagner"], "stop_inside": True},
}
SPECS = {
    **{name: {"name": name, **SHORT.get(name, {})} for name in ATTACKS},
    **{label: settings for label, settings in VARIANTS.items() if settings["name"] in ATTACKS},
}
# These look for the worst point of the ball and let nobody leave; others return a broken example where it broke.
STAY = {"fgsm", "r_fgsm", "rs_fgsm", "bim", "mi_fgsm", "ni_fgsm", "pgd", "adam_pgd", "targeted_pgd"}
# Their steps have a length of their own, which need not reach the surface.
SHY = {"carlini_wagner_linf", "spsa"}
ONE_NORM = {"carlini_wagner": "l2", "carlini_wagner_linf": "linf"}


def norm_of(label: str, preferred: str) -> str:
    """The norm in which a row of `SPECS` is run: the only one it has, or the one preferred."""
    return ONE_NORM.get(SPECS[label]["name"], preferred)


# Random targets and directions, or no gradients: they need not break what FGSM breaks. KL does not look at the label.
STRENGTH: dict[str, Strength] = {"r_fgsm": "search", "targeted_pgd": "search", "square": "search", "spsa": "search"}
ROWS = [(label, norm) for label in SPECS for norm in ("linf", "l2") if norm_of(label, norm) == norm]


def promises_of(label: str, norm: str, **changes: object) -> list[Promise]:
    spec = AttackSpec(**{**SPECS[label], **changes})
    strength = "none" if spec.settings.get("loss") == "kl" else STRENGTH.get(spec.name, "gradient")
    return attack_promises(spec, norms=[norm], strength=strength)


EVERY = [
    pytest.param(promise, id=f"{label}-{norm}-{promise.name}")
    for label, norm in ROWS
    for promise in promises_of(label, norm)
]
LEFT = ("random state", "modes", "parameters", "buffers", "inputs")
ON_BATCH_STATISTICS = [
    pytest.param(promise, id=f"{name}-{promise.name}")
    for name in ATTACKS
    if "attack_bn" in inspect.signature(ATTACKS[name]).parameters
    for promise in promises_of(name, norm_of(name, "linf"), attack_bn="batch")
    if promise.name in LEFT
]
CASES = {
    f"{label}-{key}": (AttackSpec(**SPECS[label]), threat)
    for label in SPECS
    for key, threat in THREATS.items()
    if threat.norm == norm_of(label, threat.norm)
}
in_every_ball = pytest.mark.parametrize(("spec", "threat"), list(CASES.values()), ids=list(CASES))


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
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_room_there_is_is_used(spec, threat, normed, images, labels, dtype):
    """As far as black and white pixels let it."""
    x, model = images.to(dtype), normed.to(dtype)
    if spec.minimal_norm or spec.name in SHY:
        return
    x_adv = spec(model, x, labels, threat=threat)
    broken = model(x_adv).argmax(1) != labels
    size = type(threat)(0).size(x_adv.double() - x.double())
    eps = torch.as_tensor(threat.eps).double().expand(8)
    assert ((size >= 0.4 * eps) | (broken if spec.name not in STAY else False)).all()


@in_every_ball
def test_other_noise_gives_another_result(spec, threat, normed, images, labels):
    """Others may draw for further restarts alone, or find the same point from anywhere."""
    if spec.name in STAY or not takes(spec, "noise"):
        first = spec(normed, images, labels, threat=threat, noise=Stream(("contract",), torch.arange(8)))
        assert torch.equal(spec(normed, images, labels, threat=threat), first) != takes(spec, "noise")


ROOMY = [
    (AttackSpec(**SPECS[label]), THREATS["l2-each" if norm_of(label, "l2") == "l2" else "linf-each"]) for label in SPECS
]


@pytest.mark.parametrize(("spec", "threat"), ROOMY, ids=list(SPECS))
def test_a_spec_is_the_function(spec, threat, normed, images, labels):
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
