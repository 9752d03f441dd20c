"""What every attack in the registry promises, on one model; a new attack is a row here by being registered."""

import inspect

import pytest
import torch
from torch import Tensor, nn

from toughen.attacks import ATTACKS, AttackSpec, bim, fgsm, pgd
from toughen.counting import counted
from toughen.noise import Stream, fixed
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
STAY = {"fgsm", "r_fgsm", "rs_fgsm", "bim", "mi_fgsm", "pgd", "adam_pgd", "targeted_pgd"}
# Their steps have a length of their own, which need not reach the surface.
SHY = {"carlini_wagner_linf", "spsa"}
ONE_NORM = {"carlini_wagner": "l2", "carlini_wagner_linf": "linf"}


def norm_of(label: str, preferred: str) -> str:
    """The norm in which a row of `SPECS` is run: the only one it has, or the one preferred."""
    return ONE_NORM.get(SPECS[label]["name"], preferred)


CASES = {
    f"{label}-{key}": (AttackSpec(**SPECS[label]), threat)
    for label in SPECS
    for key, threat in THREATS.items()
    if threat.norm == norm_of(label, threat.norm)
}
in_every_ball = pytest.mark.parametrize(("spec", "threat"), list(CASES.values()), ids=list(CASES))


def in_a_ball(**balls: Threat):
    """Each attack in the ball of the first norm named, or of the norm that it has."""
    first = next(iter(balls))
    rows = [(AttackSpec(**SPECS[label]), balls[norm_of(label, first)]) for label in SPECS]
    return pytest.mark.parametrize(("spec", "threat"), rows, ids=list(SPECS))


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


@in_every_ball
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_type_box_and_ball(spec, threat, normed, images, labels, dtype):
    x, model = images.to(dtype), normed.to(dtype)
    x_adv = spec(model, x, labels, threat=threat)
    assert (x_adv.shape, x_adv.dtype, x_adv.device) == (x.shape, dtype, x.device)
    assert not x_adv.requires_grad
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    broken = model(x_adv).argmax(1) != labels
    same = (x_adv == x).flatten(1).all(1)
    if spec.minimal_norm:
        assert (broken | same).all()
        return
    size = type(threat)(0).size(x_adv.double() - x.double())
    eps = torch.as_tensor(threat.eps).double().expand(8)
    assert (size <= eps * (1 if threat.norm == "linf" else 1 + 1e-6) + 6e-8).all()
    # and it uses the room it has, as far as black and white pixels let it
    if spec.name not in SHY:
        assert ((size >= 0.4 * eps) | (broken if spec.name not in STAY else False)).all()


@in_every_ball
def test_what_is_misclassified_already(spec, threat, normed, images, labels):
    """It is its own nearest adversarial example; in a ball it is broken, wherever the attack leaves it."""
    x_adv, wrong = spec(normed, images, labels, threat=threat), [2, 6]
    # KL alone does not look at the label
    assert spec.settings.get("loss") == "kl" or (normed(x_adv).argmax(1) != labels)[wrong].all()
    assert not spec.minimal_norm or torch.equal(x_adv[wrong], images[wrong])


@in_every_ball
def test_the_same_noise_gives_the_same_result(spec, threat, normed, images, labels):
    noise = Stream(("contract",), torch.arange(8))
    torch.manual_seed(1)
    first = spec(normed, images, labels, threat=threat, noise=noise)
    torch.manual_seed(2)
    assert torch.equal(spec(normed, images, labels, threat=threat, noise=noise), first)
    default = spec(normed, images, labels, threat=threat)
    assert torch.equal(spec(normed, images, labels, threat=threat, noise=fixed(8)), default)
    # others may draw for further restarts alone, or find the same point from anywhere
    if spec.name in STAY or not takes(spec, "noise"):
        assert torch.equal(default, first) != takes(spec, "noise")


@in_a_ball(l2=L2(torch.linspace(0, 2, 8)), linf=Linf(torch.linspace(0, 0.3, 8)))
def test_a_spec_is_the_function(spec, threat, normed, images, labels):
    noise = Stream(("contract",), torch.arange(8))
    expected = direct(spec, normed, images, labels, threat, noise)
    assert torch.equal(spec(normed, images, labels, threat=threat, noise=noise), expected)


@in_every_ball
def test_everything_is_left_as_it_was_found(spec, threat, normed, images, labels):
    if takes(spec, "attack_bn"):
        spec = AttackSpec(**{**spec.model_dump(), "attack_bn": "batch"})
    model = normed.train()
    model[0].eval()
    model[4].bias.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    asks = [parameter.requires_grad for parameter in model.parameters()]
    x, y, rng = images.clone(), labels.clone(), torch.get_rng_state()
    spec(model, images, labels, threat=threat)
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(images, x)
    assert torch.equal(labels, y)
    assert [module.training for module in model.modules()] == flags
    assert [parameter.requires_grad for parameter in model.parameters()] == asks
    assert all(torch.equal(parameter.grad, torch.full_like(parameter, 7)) for parameter in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model[1].track_running_stats
    assert not any(module._forward_hooks for module in model.modules())


@in_a_ball(linf=Linf(torch.linspace(0, 0.3, 8)), l2=L2(torch.linspace(0, 2, 8)))
def test_the_callers_gradient_mode_does_not_matter(spec, threat, normed, images, labels):
    expected = spec(normed, images, labels, threat=threat)
    with torch.no_grad():
        assert torch.equal(spec(normed, images, labels, threat=threat), expected)
    asking = images.clone().requires_grad_()
    found = spec(normed, asking, labels, threat=threat)
    assert torch.equal(found, expected)
    assert not found.requires_grad
    assert asking.grad is None


@in_every_ball
@pytest.mark.parametrize("n", [0, 1])
def test_empty_and_single_batches(spec, threat, normed, images, labels, n):
    part = slice(0, n)
    x_adv = direct(spec, normed, images[part], labels[part], threat[part], fixed(n))
    assert x_adv.shape == (n, 2, 4, 4)
    assert x_adv.dtype == torch.float32


@in_every_ball
def test_no_radius_is_no_change(spec, threat, normed, images, labels):
    found = spec(normed, images, labels, threat=threat.scaled(0))
    assert spec.minimal_norm or torch.equal(found, images)


@in_a_ball(linf=Linf(0.1), l2=L2(0.5))
def test_the_labels_of_the_model_itself_as_probabilities(spec, threat, normed, images, labels):
    """One-hot probabilities are the classes they stand for."""
    one_hot = torch.nn.functional.one_hot(labels, 4).float()
    soft = spec(normed.double(), images.double(), one_hot, threat=threat)
    torch.testing.assert_close(soft, spec(normed, images.double(), labels, threat=threat), rtol=0, atol=1e-12)


@in_a_ball(l2=L2(0.5), linf=Linf(0.1))
def test_channels_last_images(spec, threat, normed, images, labels):
    laid_out = images.double().to(memory_format=torch.channels_last)
    found = spec(normed.double(), laid_out, labels, threat=threat)
    torch.testing.assert_close(found, spec(normed, images.double(), labels, threat=threat), rtol=0, atol=1e-12)


# --- independence of batch mates


class Rowwise(nn.Module):
    """A network whose sums run over one row alone, so that not even rounding knows of the batch."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(5)
        self.first = nn.Parameter(torch.randn(6, 32, generator=draw, dtype=torch.float64) / 2)
        self.last = nn.Parameter(torch.randn(4, 6, generator=draw, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        hidden = ((x - 0.5).flatten(1).unsqueeze(1) * self.first).sum(2).tanh()
        return (hidden.unsqueeze(1) * self.last).sum(2)


@in_every_ball
def test_an_example_does_not_depend_on_its_batch_mates(spec, threat, images):
    """Bit for bit in float64: in another order, and in parts."""
    model, x, noise = Rowwise(), images.double(), Stream(("run",), 10 + torch.arange(8))
    y = model(x).argmax(1)
    y[[2, 6]] = (y[[2, 6]] + 1) % 4
    whole = spec(model, x, y, threat=threat, noise=noise)
    order = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    assert torch.equal(spec(model, x[order], y[order], threat=threat[order], noise=noise[order]), whole[order])
    parts = [slice(0, 3), slice(3, 4), slice(4, 8)]
    found = [spec(model, x[part], y[part], threat=threat[part], noise=noise[part]) for part in parts]
    assert torch.equal(torch.cat(found), whole)


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
