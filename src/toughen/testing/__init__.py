"""The contract tests of toughen for parts of your own: an attack, a training method or a model.

    from toughen.testing import check_attack

    check_attack(my_attack)               # raises on the first promise that it breaks, in one sentence

    @parametrize(attack_promises(my_attack, settings={"steps": 3}))
    def test_my_attack(promise):          # in pytest: each promise a test of its own
        promise()

What toughen ships goes through the same promises. They run on tiny models of their own, on the CPU, in seconds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from toughen.attacks import AttackSpec
from toughen.attacks.contract import Attack
from toughen.methods import Method
from toughen.testing.attacks import Strength, attack_promises
from toughen.testing.methods import method_promises
from toughen.testing.models import Builder, model_promises
from toughen.testing.promises import BrokenPromise, Promise, keep, parametrize
from toughen.threat import L2, Linf, Threat

__all__ = [
    "BrokenPromise",
    "Promise",
    "attack_promises",
    "check_attack",
    "check_method",
    "check_model",
    "method_promises",
    "model_promises",
    "parametrize",
]


def check_attack(
    attack: Attack | AttackSpec,
    *,
    settings: Mapping[str, Any] | None = None,
    norms: Sequence[str] = ("linf", "l2"),
    strength: Strength = "gradient",
) -> None:
    """Look at every promise of an attack: its examples, what it leaves behind, its independence, input and strength.

    Args:
        attack: a function (model, x, y, *, threat, ...) -> x_adv, registered or not, or an `AttackSpec`.
        settings: keyword arguments of every call, such as few steps, so that it takes seconds.
        norms: in whose balls it is run, of "linf" and "l2".
        strength: what it claims. "gradient": it climbs a loss of the label, and so breaks two thirds of what FGSM
            breaks on a linear model. "search": it looks for misclassified images in another way or short of the whole
            ball, and breaks more than chance. "none": it has another aim. Of a `@minimal_norm` attack the distances
            are looked at instead.

    Raises:
        BrokenPromise: the first that does not hold, in one sentence: which, what was found, what to do.
        ValueError: another norm or strength.
    """
    keep(attack_promises(attack, settings=settings, norms=norms, strength=strength))


def check_method(method: Method | type[Method], *, threats: Sequence[Threat] = (Linf(0.1), L2(0.5))) -> None:
    """Look at every promise of a training method: its steps, its state, its cost, resuming, ranks and parts of batches.

    Args:
        method: a method with its settings, or the class for its defaults; registered or not.
        threats: the runs' threat models, for a method that has none of its own; all but one promise look at the first.

    Raises:
        BrokenPromise: the first that does not hold, in one sentence: which, what was found, what to do.
    """
    keep(method_promises(method, threats=threats))


def check_model(
    model: nn.Module | Builder,
    *,
    shape: tuple[int, int, int] = (3, 32, 32),
    classes: int | None = None,
    data: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Look at every promise of a model: its logits, gradients, inference mode, state and training.

    Args:
        model: a classifier of images in [0, 1], which stays as it is; or a function without arguments that builds one,
            with which it is also seen that the state_dict holds everything.
        shape: of an image, (C, H, W).
        classes: K, where it is to be looked at.
        data: images (N, C, H, W), uint8 or floats in [0, 1], and classes (N,), for a trained model: then also whether
            it normalises for itself and knows the classes in this order.

    Raises:
        BrokenPromise: the first that does not hold, in one sentence: which, what was found, what to do.
    """
    keep(model_promises(model, shape=shape, classes=classes, data=data))
