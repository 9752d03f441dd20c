"""What every attack in the registry promises, on one model; a new attack is a row here by being registered."""

import inspect

import pytest
import torch
from torch import Tensor, nn

from toughen.attacks import ATTACKS, AttackSpec, bim, fgsm, pgd
from toughen.counting import counted
from toughen.noise import Stream, fixed
from toughen.threat import L2, Linf, Threat

THREATS = [Linf(8 / 255), L2(0.5), Linf(torch.linspace(0, 0.3, 8)), L2(torch.linspace(0, 2, 8))]
SOME_SETTINGS = {"pgd-restarts": {"name": "pgd", "steps": 3, "restarts": 3}, "pgd-kl": {"name": "pgd", "loss": "kl"}}
SPECS = {**{name: {"name": name} for name in ATTACKS}, **SOME_SETTINGS}


@pytest.fixture(params=list(SPECS))
def spec(request) -> AttackSpec:
    return AttackSpec(**SPECS[request.param])


@pytest.fixture(params=THREATS, ids=["linf", "l2", "linf-each", "l2-each"])
def threat(request) -> Threat:
    return request.param


@pytest.fixture
def images(x: Tensor) -> Tensor:
    """In float32, with black and white pixels."""
    return (x.float() * 1.5 - 0.25).clamp(0, 1)


@pytest.fixture
def labels() -> Tensor:
    return torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])


def direct(spec: AttackSpec, model, x: Tensor, y: Tensor, threat: Threat, noise: Stream) -> Tensor:
    """The registered function called as users call it."""
    attack = ATTACKS[spec.name]
    given = {"threat": threat, "noise": noise}
    takes = inspect.signature(attack).parameters
    return attack(model, x, y, **{k: v for k, v in given.items() if k in takes}, **spec.settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_type_box_and_ball(spec, threat, normed, images, labels, dtype):
    x = images.to(dtype)
    x_adv = spec(normed.to(dtype), x, labels, threat=threat)
    assert (x_adv.shape, x_adv.dtype, x_adv.device) == (x.shape, dtype, x.device)
    assert not x_adv.requires_grad
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    size = type(threat)(0).size(x_adv.double() - x.double())
    room = torch.as_tensor(threat.eps).double() * (1 if threat.norm == "linf" else 1 + 1e-6) + 6e-8
    assert (size <= room).all()
    # and it uses the room it has
    assert (size >= 0.5 * torch.as_tensor(threat.eps).double()).all()


def test_the_same_noise_gives_the_same_result(spec, threat, normed, images, labels):
    noise = Stream(("contract",), torch.arange(8))
    torch.manual_seed(1)
    first = spec(normed, images, labels, threat=threat, noise=noise)
    torch.manual_seed(2)
    assert torch.equal(spec(normed, images, labels, threat=threat, noise=noise), first)
    default = spec(normed, images, labels, threat=threat)
    assert torch.equal(spec(normed, images, labels, threat=threat, noise=fixed(8)), default)
    draws = "noise" in inspect.signature(ATTACKS[spec.name]).parameters
    assert torch.equal(default, first) != draws


def test_a_spec_is_the_function(spec, threat, normed, images, labels):
    noise = Stream(("contract",), torch.arange(8))
    expected = direct(spec, normed, images, labels, threat, noise)
    assert torch.equal(spec(normed, images, labels, threat=threat, noise=noise), expected)


@pytest.mark.parametrize("attack_bn", ["eval", "batch"])
def test_everything_is_left_as_it_was_found(spec, threat, normed, images, labels, attack_bn):
    model = normed.train()
    model[0].eval()
    model[4].bias.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    asks = [parameter.requires_grad for parameter in model.parameters()]
    x, y, rng = images.clone(), labels.clone(), torch.get_rng_state()
    AttackSpec(**{**spec.model_dump(), "attack_bn": attack_bn})(model, images, labels, threat=threat)
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(images, x)
    assert torch.equal(labels, y)
    assert [module.training for module in model.modules()] == flags
    assert [parameter.requires_grad for parameter in model.parameters()] == asks
    assert all(torch.equal(parameter.grad, torch.full_like(parameter, 7)) for parameter in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model[1].track_running_stats


def test_the_callers_gradient_mode_does_not_matter(spec, threat, normed, images, labels):
    expected = spec(normed, images, labels, threat=threat)
    with torch.no_grad():
        assert torch.equal(spec(normed, images, labels, threat=threat), expected)
    asking = images.clone().requires_grad_()
    assert torch.equal(spec(normed, asking, labels, threat=threat), expected)
    assert asking.grad is None


def test_the_result_belongs_to_nobodys_graph(spec, threat, normed, images, labels):
    assert not spec(normed, images.clone().requires_grad_(), labels, threat=threat).requires_grad


@pytest.mark.parametrize("n", [0, 1])
def test_empty_and_single_batches(spec, threat, normed, images, labels, n):
    part = slice(0, n)
    x_adv = direct(spec, normed, images[part], labels[part], threat[part], fixed(n))
    assert x_adv.shape == (n, 2, 4, 4)
    assert x_adv.dtype == torch.float32


@pytest.mark.parametrize("ball", [Linf, L2])
@pytest.mark.parametrize("eps", [0.0, torch.zeros(8)], ids=["number", "each"])
def test_no_radius_is_no_change(spec, normed, images, labels, ball, eps):
    assert torch.equal(spec(normed, images, labels, threat=ball(eps)), images)


def test_the_labels_of_the_model_itself_as_probabilities(spec, normed, images, labels):
    """One-hot probabilities are the classes they stand for."""
    one_hot = torch.nn.functional.one_hot(labels, 4).float()
    soft = spec(normed.double(), images.double(), one_hot, threat=Linf(0.1))
    torch.testing.assert_close(soft, spec(normed, images.double(), labels, threat=Linf(0.1)), rtol=0, atol=1e-12)


def test_channels_last_images(spec, normed, images, labels):
    laid_out = images.double().to(memory_format=torch.channels_last)
    found = spec(normed.double(), laid_out, labels, threat=L2(0.5))
    torch.testing.assert_close(found, spec(normed, images.double(), labels, threat=L2(0.5)), rtol=0, atol=1e-12)


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
