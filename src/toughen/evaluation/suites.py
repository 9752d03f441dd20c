"""Suites: the attacks of an evaluation by name, in the order in which they are run.

A suite is a dict from a label to an `AttackSpec` or a Python function with an attack's signature. `SUITES` holds them
in plain sight; a key with `K` or `R` in it stands for any number of steps or restarts.

    find("pgd-20-r5", Linf(8 / 255))                    # {"pgd-20-r5": AttackSpec(name="pgd", steps=20, ...)}
    SUITES["mine"] = {"short": AttackSpec(name="pgd", steps=5), "own": my_attack}
    SUITES["bim-K"] = lambda threat, K: {f"bim-{K}": AttackSpec(name="bim", steps=K)}
"""

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from toughen.attacks import AttackSpec
from toughen.attacks.contract import Attack
from toughen.naming import nearest
from toughen.outcomes import CLEAN
from toughen.threat import Threat

Suite = Mapping[str, AttackSpec | Attack]
Builder = Callable[..., Suite]
"""(threat, K=..., R=...) -> suite, with those of K and R that its key holds."""

STEP_SIZES = {"linf": 2 / 255, "l2": 15 / 255}
"""Step sizes of the pattern suites in pixel units: 002, section 3.1, at radii 8/255 and 128/255."""


def step_size(threat: Threat, steps: int) -> float | None:
    """The customary step where `steps` of it cross the radius, else 2.5 eps / steps (Madry et al. 2018).

    None, an attack's name for the second rule, where the radii differ between examples and the largest is out of reach.
    """
    usual, eps = STEP_SIZES.get(threat.norm, 0.0), threat.eps
    largest = float(eps.max()) if isinstance(eps, Tensor) else eps
    # 3 * (2/255) may fall short of 6/255 by rounding.
    if steps * usual >= largest * (1 - 1e-6):
        # A radius of 0 in a norm without a customary step: any positive step will do.
        return usual or 1.0
    return None if isinstance(eps, Tensor) and eps.ndim else 2.5 * largest / steps


def pgd(threat: Threat, K: int, R: int = 1) -> Suite:
    """K steps of PGD on the cross-entropy from R random starts."""
    return _ascent("pgd", "cross_entropy", threat, K, R)


def cw(threat: Threat, K: int, R: int = 1) -> Suite:
    """K steps of PGD on the margin, the field's "CW" attack, from R random starts."""
    return _ascent("cw", "margin", threat, K, R)


def _ascent(family: str, loss: str, threat: Threat, K: int, R: int) -> Suite:
    label = f"{family}-{K}" if R == 1 else f"{family}-{K}-r{R}"
    settings = {"steps": K, "step_size": step_size(threat, K), "random_start": True, "restarts": R, "loss": loss}
    return {label: AttackSpec.model_validate({"name": "pgd", **settings})}


SUITES: dict[str, Suite | Builder] = {
    "pgd-K": pgd,
    "pgd-K-rR": pgd,
    "cw-K": cw,
    "cw-K-rR": cw,
}


def find(name: str, threat: Threat) -> dict[str, AttackSpec | Attack]:
    """The suite of that name: an entry of `SUITES` or one that its patterns stand for.

    Args:
        name: such as "pgd-20", "pgd-100-r5", "cw-30", or the key of a suite of one's own.
        threat: the ball, on which step sizes depend.

    Returns:
        The attacks by label, in order.

    Raises:
        ValueError: for another name; the sentence lists what is allowed and the nearest.
    """
    for key, suite in SUITES.items():
        if isinstance(suite, Mapping):
            if key == name:
                return check(suite)
        elif match := _pattern(key).fullmatch(name):
            numbers = {letter: int(number) for letter, number in match.groupdict().items()}
            return check(suite(threat, **numbers))
    raise ValueError(
        f"{name!r} is not a known suite; allowed: {', '.join(SUITES)}, with numbers K and R of at least 1, "
        f"like pgd-20{nearest(name, SUITES)}"
    )


def _pattern(key: str) -> re.Pattern[str]:
    number = "(?P<{}>[1-9][0-9]*)"
    parts = {"K": number.format("K"), "rR": "r" + number.format("R")}
    return re.compile("-".join(parts.get(part, re.escape(part)) for part in key.split("-")))


def check(suite: Suite) -> dict[str, AttackSpec | Attack]:
    """The suite itself, as a dict.

    Raises:
        ValueError: it is empty; a label is "clean" or no text; a member cannot be called; or a spec attacks with
            BatchNorm in another mode than "eval", in which the model that is evaluated does not predict.
    """
    if not suite:
        raise ValueError("the suite holds no attack, and robustness against none is not defined; give at least one")
    for label, attack in suite.items():
        if not isinstance(label, str) or label in ("", CLEAN):
            raise ValueError(f"an attack is labelled {label!r}; give a text other than {CLEAN!r}, which is taken")
        if not callable(attack):
            raise ValueError(
                f"attack {label!r} is {attack!r}; give an AttackSpec or a function (model, x, y, *, threat, noise)"
            )
        mode = attack.settings.get("attack_bn", "eval") if isinstance(attack, AttackSpec) else "eval"
        if mode != "eval":
            raise ValueError(
                f"attack {label!r} has attack_bn {mode!r}, but an evaluation attacks the model as it predicts; "
                "use attack_bn: eval"
            )
    return dict(suite)
