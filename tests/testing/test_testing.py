"""The public contract suites: what is sound passes, and each seeded fault is told by the promise that it breaks.

That every promise holds for what toughen ships: `attacks/test_contract.py`, `methods/test_contract.py`,
`models/networks/test_networks.py`.
"""

import inspect
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from foreign import Network, Patient, TwoStep, bisection, lottery, told, zigzag
from toughen.attacks import attack, deepfool, fgsm, minimal_norm, pgd
from toughen.losses import cross_entropy
from toughen.noise import Stream
from toughen.settings import Count
from toughen.testing import (
    BrokenPromise,
    attack_promises,
    check_attack,
    check_method,
    check_model,
    parametrize,
)
from toughen.testing.attacks import LINEAR_BALLS
from toughen.testing.toys import Linear, inner_images
from toughen.threat import Threat

SMALL = (3, 8, 8)


# --- what is sound


@parametrize(attack_promises(zigzag))
def test_a_sound_attack_by_gradients(promise):
    promise()


def test_sound_attacks_of_other_kinds():
    check_attack(lottery, strength="search")
    check_attack(bisection)
    check_attack(fgsm, norms=["linf"])


@pytest.mark.parametrize("method", [Patient(share=0.25), TwoStep])
def test_sound_methods(method):
    check_method(method)


def test_sound_models():
    check_model(Network, shape=SMALL, classes=5)
    check_model(Network(3).train(), shape=SMALL)


def test_nothing_that_was_given_or_is_global_is_changed():
    model, states = Network().train(), (torch.get_rng_state(), repr(np.random.get_state()), random.getstate())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_model(model, shape=SMALL)
    check_attack(zigzag, settings={"steps": 1}, norms=["linf"])
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert repr(np.random.get_state()) == states[1]
    assert random.getstate() == states[2]


def test_pytest_is_imported_by_those_who_use_it_alone():
    code = "import sys, toughen.testing; print('pytest' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"norms": ["l1"]}, r"norms are \['l1'\]; allowed: linf, l2"), ({"strength": "great"}, "allowed: gradient")],
)
def test_arguments_that_are_refused(arguments: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        check_attack(fgsm, **arguments)


# --- attacks with a fault each: PGD, changed


def changed(after: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """PGD of three steps, and something done to what it returns, and to what it was given."""

    @attack
    def faulty(
        model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, steps: Count = 3, noise: Stream | None = None
    ) -> Tensor:
        x_adv = inspect.unwrap(pgd)(model, x, y, threat=threat, steps=steps, noise=noise)
        return after(model=model, x=x, y=y, x_adv=x_adv, threat=threat)

    return faulty


def descending(model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat) -> Tensor:
    return fgsm(model, x, y, threat=threat, loss=lambda logits, y: -cross_entropy(logits, y))


def mixing(x: Tensor, x_adv: Tensor, **rest: Any) -> Tensor:
    """The batch's mean shortens each perturbation: in the ball, but nobody's own affair."""
    return x + (0.9 + 0.1 * x.mean()) * (x_adv - x)


def unclean(x_adv: Tensor, model: nn.Module, do: Callable[[nn.Module], object], **rest: Any) -> Tensor:
    do(model)
    return x_adv


def backward(model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat) -> Tensor:
    """FGSM as in many a tutorial."""
    was = model.training
    model.eval()
    at = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        nn.functional.cross_entropy(model(at), y).backward()
    model.train(was)
    assert at.grad is not None
    return (x + torch.as_tensor(threat.eps).reshape(-1, 1, 1, 1) * threat.steepest(at.grad)).clamp(0, 1).detach()


def as_it_comes(model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat) -> Tensor:
    """FGSM with BatchNorm in whatever mode the model is."""
    at = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        (grad,) = torch.autograd.grad(nn.functional.cross_entropy(model(at), y), at)
    return (x + torch.as_tensor(threat.eps).reshape(-1, 1, 1, 1) * threat.steepest(grad)).clamp(0, 1).detach()


def any_steps(model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, steps: int = 1) -> Tensor:
    return fgsm(model, x, y, threat=threat)


@minimal_norm
@attack
def far_away(model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat) -> Tensor:
    found = fgsm(model, x, y, threat=type(threat)(3.0))
    return torch.where((model(found).argmax(1) != y)[:, None, None, None], found, x)


BAD_ATTACKS = {
    "outside-the-box": (changed(lambda x_adv, **_: x_adv + 1e-5), "box", "pixels are in ["),
    "outside-the-ball": (changed(lambda x, x_adv, **_: (x + 1.1 * (x_adv - x)).clamp(0, 1)), "ball", "of length"),
    "one-radius-for-all": (
        changed(lambda x, x_adv, threat, **_: x_adv if isinstance(threat.eps, float) else (x + 0.2).clamp(0, 1)),
        "ball",
        "where the radius is 0 (linf:per-example)",
    ),
    "double": (changed(lambda x_adv, **_: x_adv.double()), "output", "torch.float64"),
    "nan": (changed(lambda x_adv, **_: x_adv / x_adv), "output", "not finite"),
    "not-detached": (changed(lambda x_adv, **_: x_adv.requires_grad_()), "output", "asks for a gradient"),
    "start-at-zero-radius": (changed(lambda x_adv, **_: (x_adv - 3e-8).clamp(0, 1)), "radius zero", "differ by up to"),
    "global-noise": (changed(lambda x_adv, **_: x_adv * (1 - 1e-4 * torch.rand_like(x_adv))), "same again", "differ"),
    "seeding": (
        changed(lambda x_adv, **_: unclean(x_adv, nn.Identity(), lambda _: torch.manual_seed(0))),
        "random state",
        "moved a global",
    ),
    "numpy": (changed(lambda x_adv, **_: x_adv + 0 * float(np.random.rand())), "random state", "moved a global"),
    "eval-for-ever": (
        changed(lambda model, x_adv, **_: unclean(x_adv, model, lambda m: m.eval())),
        "modes",
        "another mode",
    ),
    "train-for-ever": (
        changed(lambda model, x_adv, **_: unclean(x_adv, model, lambda m: m.train())),
        "modes",
        "another mode",
    ),
    "hook": (
        changed(
            lambda model, x_adv, **_: unclean(
                x_adv, model, lambda m: [c.register_forward_hook(lambda *_: None) for c in m.children()]
            )
        ),
        "modes",
        "hooks are left",
    ),
    "zero-grad": (
        changed(lambda model, x_adv, **_: unclean(x_adv, model, lambda m: m.zero_grad())),
        "parameters",
        "gradients of parameters",
    ),
    "frozen": (
        changed(lambda model, x_adv, **_: unclean(x_adv, model, lambda m: m.requires_grad_(False))),
        "parameters",
        "requires_grad",
    ),
    "thawed": (
        changed(lambda model, x_adv, **_: unclean(x_adv, model, lambda m: m.requires_grad_(True))),
        "parameters",
        "requires_grad",
    ),
    "backward": (attack(backward), "parameters", "gradients of parameters"),
    "statistics": (
        changed(lambda model, x, x_adv, **_: unclean(x_adv, model, lambda m: m(x))),
        "buffers",
        "1.running_mean",
    ),
    "in-place": (changed(lambda x, x_adv, **_: x.data.copy_(x_adv)), "inputs", "written into the images"),
    "mode-of-the-model": (attack(as_it_comes), "training mode", "differ"),
    "no-grad": (
        attack(lambda model, x, y, *, threat: fgsm(model, x, y, threat=threat) if torch.is_grad_enabled() else x),
        "gradient mode",
        "inside torch.no_grad()",
    ),
    "empty": (
        changed(lambda x_adv, **_: unclean(x_adv, nn.Identity(), lambda _: x_adv.max())),
        "small batches",
        "it raised",
    ),
    "mean-of-the-batch": (changed(mixing), "batch mates", "examples"),
    "row-numbers": (
        attack(lambda model, x, y, *, threat, noise=None: pgd(model, x, y, threat=threat, steps=2)),
        "batch mates",
        "in another order",
    ),
    "a-layer-by-name": (
        attack(lambda model, x, y, *, threat: unclean(fgsm(model, x, y, threat=threat), model, lambda m: m.first)),
        "in pieces",
        "AttributeError",
    ),
    "view": (
        changed(lambda x, x_adv, **_: unclean(x_adv, nn.Identity(), lambda _: x.view(-1))),
        "layout",
        "it raised RuntimeError: view size",
    ),
    "soft-labels": (
        attack(lambda model, x, y, *, threat: fgsm(model, x, y if y.ndim == 1 else y.argmin(1), threat=threat)),
        "probabilities",
        "other examples are found",
    ),
    "unchecked": (backward, "bad input", "images in [0, 255] is taken"),
    "settings-without-types": (
        attack(lambda model, x, y, *, threat, strength=1: fgsm(model, x, y, threat=threat)),
        "settings",
        "strength=object() is taken",
    ),
    "no-steps": (attack(any_steps), "settings", "steps=0 is taken"),
    "heals": (attack(descending), "what is broken stays broken", "come back classified correctly"),
    "descends": (attack(descending), "as strong as one step", "it breaks 0 of 100 images in linf:0.05"),
    "nothing": (
        attack(lambda model, x, y, *, threat: x.detach().clone()),
        "as strong as one step",
        "it breaks 0 of 100",
    ),
    "half": (
        attack(lambda model, x, y, *, threat: fgsm(model, x, y, threat=threat.scaled(0.5))),
        "as strong as one step",
        "FGSM 36",
    ),
    "one-norm": (
        attack(
            lambda model, x, y, *, threat: fgsm(model, x, y, threat=threat) if threat.norm == "linf" else x / (1 // 0)
        ),
        "norms",
        "ZeroDivisionError",
    ),
    "far": (far_away, "near", "times as far as need be"),
    "always-changed": (
        minimal_norm(attack(lambda model, x, y, *, threat: (x + 1e-4).clamp(0, 1))),
        "adversarial or unchanged",
        "changed but classified correctly",
    ),
}


@pytest.mark.parametrize("case", BAD_ATTACKS.values(), ids=BAD_ATTACKS.keys())
def test_a_bad_attack_is_told(case):
    faulty, name, words = case
    told(attack_promises(faulty), name, words)
    with pytest.raises(BrokenPromise):
        check_attack(faulty)


def test_each_promise_has_a_fault_that_breaks_it():
    broken = {name for _, name, _ in BAD_ATTACKS.values()} | {"stronger than chance"}
    every = {*attack_promises(fgsm), *attack_promises(fgsm, strength="search"), *attack_promises(far_away)}
    assert broken == {promise.name for promise in every}


@pytest.mark.parametrize("threat", LINEAR_BALLS.values(), ids=LINEAR_BALLS)
def test_the_yardstick_is_fgsm_and_the_distance_the_true_one(threat: Threat):
    model, x = Linear(), inner_images()
    y = model(x).argmax(1)
    torch.testing.assert_close(model.one_step(x, y, threat), fgsm(model, x, y, threat=threat), rtol=0, atol=1e-6)
    distance = model.distance(x, threat)
    found = deepfool(model, x, y, threat=threat, steps=50)
    torch.testing.assert_close(threat.size(found - x), distance, rtol=0.1, atol=1e-4)


def test_a_search_that_finds_nothing_is_told():
    faulty = attack(lambda model, x, y, *, threat: x.detach().clone())
    told(attack_promises(faulty, strength="search"), "stronger than chance", "it breaks 0 of 100")
