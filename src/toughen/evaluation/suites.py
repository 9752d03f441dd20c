"""Suites: the attacks of an evaluation by name, in the order in which they are run.

A suite is a dict from a label to an `AttackSpec`, a Python function with an attack's signature, or a `SideAttack`.
`SUITES`
holds them in plain sight; a key with `K` or `R` in it stands for any number of steps or restarts.

    find("pgd-20-r5", Linf(8 / 255))                    # {"pgd-20-r5": AttackSpec(name="pgd", steps=20, ...)}
    SUITES["mine"] = {"short": AttackSpec(name="pgd", steps=5), "own": my_attack}
    SUITES["bim-K"] = lambda threat, K: {f"bim-{K}": AttackSpec(name="bim", steps=K)}
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from toughen.attacks import AttackSpec
from toughen.attacks.contract import Attack, check_norm
from toughen.errors import Option, UsageError
from toughen.evaluation.adaptive import Adaptive
from toughen.evaluation.exhaustive import exhaustive_rounds
from toughen.evaluation.plan import UNBOUNDED, SideAttack
from toughen.outcomes import CLEAN
from toughen.settings import nearest, shown
from toughen.threat import L2, Linf, Threat

Suite = Mapping[str, AttackSpec | Attack | SideAttack]
Builder = Callable[..., Suite | Adaptive]
"""(threat, K=..., R=..., side=...) -> suite, with those of K and R in its key, and the images' side if it asks."""

STEP_SIZES = {"linf": 2 / 255, "l2": 15 / 255}
"""Step sizes of the pattern suites in pixel units: Limits, section 3.1, at radii 8/255 and 128/255."""

LARGE = 64
"""Images with a longer side than this are stepped through as ImageNet's are: 1/255 in Linf (Free, tables 3 to 10)."""


def step_size(threat: Threat, steps: int, side: int = 0) -> float | None:
    """The customary step where `steps` of it cross the radius, else 2.5 eps / steps (Madry et al. 2018).

    None, an attack's name for the second rule, where the radii differ between examples and the largest is out of reach.
    """
    usual, eps = STEP_SIZES.get(threat.norm, 0.0), threat.eps
    if threat.norm == Linf.norm and side > LARGE:
        usual = 1 / 255
    largest = float(eps.max()) if isinstance(eps, Tensor) else eps
    # 3 * (2/255) may fall short of 6/255 by rounding.
    if steps * usual >= largest * (1 - 1e-6):
        # A radius of 0 in a norm without a customary step: any positive step will do.
        return usual or 1.0
    return None if isinstance(eps, Tensor) and eps.ndim else 2.5 * largest / steps


def _spec(name: str, **settings: Any) -> AttackSpec:
    return AttackSpec.model_validate({"name": name, **settings})


def _pgd(
    threat: Threat, steps: int, *, side: int, restarts: int = 1, loss: str = "cross_entropy", **more: Any
) -> AttackSpec:
    return _spec("pgd", steps=steps, step_size=step_size(threat, steps, side), restarts=restarts, loss=loss, **more)


def _label(family: str, K: int, R: int) -> str:
    return f"{family}-{K}" if R == 1 else f"{family}-{K}-r{R}"


def pgd(threat: Threat, K: int, R: int = 1, side: int = 0) -> Suite:
    """K steps of PGD on the cross-entropy from R random starts."""
    return {_label("pgd", K, R): _pgd(threat, K, restarts=R, side=side)}


def cw(threat: Threat, K: int, R: int = 1, side: int = 0) -> Suite:
    """K steps of PGD on the margin, the field's "CW" attack, from R random starts."""
    return {_label("cw", K, R): _pgd(threat, K, restarts=R, side=side, loss="margin")}


def pgd_margin(threat: Threat, K: int, side: int = 0) -> Suite:
    """K steps of PGD on the margin, as Limits names it (table 2, "PGD-40 margin")."""
    return {f"pgd-{K}-margin": _pgd(threat, K, side=side, loss="margin")}


def autoattack(threat: Threat) -> dict[str, AttackSpec]:
    """AutoAttack, standard: Croce & Hein 2020, section 6, with the budgets of its code."""
    return {
        "apgd-ce": _spec("apgd", steps=100, loss="cross_entropy"),
        "apgd-t": _spec("apgd_targeted", steps=100, targets=9),
        "fab-t": _spec("fab", steps=100, targets=9, stop_inside=True),
        "square": _spec("square", queries=5000, stretch=False),
    }


def autoattack_plus(threat: Threat) -> Suite:
    """AutoAttack, "plus": five restarts of the untargeted attacks, then the targeted ones."""
    return {
        "apgd-ce": _spec("apgd", steps=100, restarts=5, loss="cross_entropy"),
        "apgd-dlr": _spec("apgd", steps=100, restarts=5, loss="dlr"),
        "fab": _spec("fab", steps=100, restarts=5, stop_inside=True),
        "square": _spec("square", queries=5000, stretch=False),
        "apgd-t": _spec("apgd_targeted", steps=100, targets=9),
        "fab-t": _spec("fab", steps=100, targets=9, stop_inside=True),
    }


def square(threat: Threat) -> Suite:
    """Square alone, with AutoAttack's 5,000 queries: a black-box attack, which needs no gradient."""
    return {"square": _spec("square", queries=5000, stretch=False)}


def aa_mt(threat: Threat) -> Suite:
    """AA+MT: AutoPGD on two losses, then MultiTargeted (Limits, section 3.1)."""
    return {
        "apgd-ce": _spec("apgd", steps=100, restarts=5, loss="cross_entropy"),
        "apgd-dlr": _spec("apgd", steps=100, restarts=5, loss="dlr"),
        "multi-targeted": _spec("multi_targeted", steps=200, restarts=10),
    }


def iaat(threat: Threat, side: int = 0) -> Suite:
    """The white-box attacks of IAAT's tables 1 to 3, with the settings of its code."""
    return {
        "pgd-10-r5": _pgd(threat, 10, restarts=5, side=side),
        "pgd-100-r5": _pgd(threat, 100, restarts=5, side=side),
        "pgd-1000-r2": _pgd(threat, 1000, restarts=2, side=side),
        "mi-fgsm-40": _spec("mi_fgsm", steps=40),
        "deepfool": _spec("deepfool", refine=0),
        "cw-40": _spec("carlini_wagner_linf", steps=40),
    }


def free(threat: Threat, side: int = 0) -> Suite:
    """The attacks of Free's tables 1 and 2 by its code: of the restarts the highest loss counts, and CW stops at 0."""
    return {
        "pgd-20": _pgd(threat, 20, side=side),
        "pgd-100": _pgd(threat, 100, side=side),
        "cw-100": _pgd(threat, 100, side=side, loss="margin-0"),
        "pgd-20-r10": _pgd(threat, 20, restarts=10, side=side, keep="highest_loss"),
    }


def bilateral(threat: Threat, side: int = 0) -> Suite:
    """The white-box attacks of Bilateral's tables 1 and 3.

    The L2 attacks know no ball, so they run aside: their accuracy is the share of images for which they find nothing.
    """
    everywhere = L2(UNBOUNDED)
    return {
        "fgsm": _spec("fgsm"),
        **{f"ce-{K}": _pgd(threat, K, side=side) for K in (20, 100, 1000)},
        **{f"cw-{K}": _pgd(threat, K, side=side, loss="margin-50") for K in (100, 1000)},
        "pgd-100-r100": _pgd(threat, 100, restarts=100, side=side),
        "mi-fgsm": _spec("mi_fgsm", steps=10, step_size=None if _each(threat) else threat.eps / 5 or None),
        "cw-l2-100": SideAttack(
            _spec("carlini_wagner", initial_const=100, learning_rate=0.1, steps=100, refine=0), everywhere
        ),
        "cw-l2-1000": SideAttack(
            _spec("carlini_wagner", initial_const=100, learning_rate=0.01, steps=1000, refine=0), everywhere
        ),
        "deepfool-l2": SideAttack(_spec("deepfool", refine=0), everywhere),
    }


def random_target(threat: Threat, K: int, side: int = 0) -> Suite:
    """K steps of PGD towards random classes (Xie et al. 2019, section 6.1; IAAT, figure 9)."""
    step = step_size(threat, K, side)
    return {f"random-target-{K}": _spec("targeted_pgd", target="random", steps=K, step_size=step)}


def iaat_imagenet(threat: Threat) -> Suite:
    """PGD-1000 towards random classes at 4, 8, 12 and 16 of 255 (IAAT, table 4), aside, and in the ball itself."""
    attack = _spec("targeted_pgd", target="random", steps=1000, step_size=1 / 255)
    others = [k for k in (4, 8, 12, 16) if threat != Linf(k / 255)]
    return {"random-target-1000": attack, **{f"at {k}/255": SideAttack(attack, Linf(k / 255)) for k in others}}


def quick(threat: Threat) -> Suite:
    """Two short attacks that need no setting: a first look, in seconds."""
    return {"apgd-ce": _spec("apgd", steps=20), "apgd-margin": _spec("apgd", steps=20, loss="margin")}


def adaptive(threat: Threat) -> Adaptive:
    """The verdict of AutoAttack at a fraction of its passes: our own, see `evaluation.adaptive`."""
    return Adaptive()


def exhaustive(threat: Threat) -> Adaptive:
    """The last word on a few images, at several times AutoAttack's passes: our own, see `evaluation.exhaustive`."""
    return Adaptive(exhaustive_rounds(autoattack(threat)))


def _each(threat: Threat) -> bool:
    return isinstance(threat.eps, Tensor)


SUITES: dict[str, Suite | Builder] = {
    "pgd-K": pgd,
    "pgd-K-rR": pgd,
    "pgd-K-margin": pgd_margin,
    "cw-K": cw,
    "cw-K-rR": cw,
    "random-target-K": random_target,
    "autoattack": autoattack,
    "autoattack-plus": autoattack_plus,
    "aa+mt": aa_mt,
    "iaat": iaat,
    "free": free,
    "bilateral": bilateral,
    "iaat-imagenet": iaat_imagenet,
    "quick": quick,
    "adaptive": adaptive,
    "exhaustive": exhaustive,
    "square": square,
}


def find(name: str, threat: Threat, *, side: int = 0) -> dict[str, AttackSpec | Attack | SideAttack] | Adaptive:
    """The suite of that name: an entry of `SUITES` or one that its patterns stand for.

    Args:
        name: such as "pgd-20", "pgd-100-r5", "cw-30", or the key of a suite of one's own.
        threat: the ball, on which step sizes depend.
        side: the longer side of the images in pixels, on which they depend too.

    Returns:
        The attacks by label, in order; or a plan that chooses them as it goes.

    Raises:
        ValueError: for another name; the sentence lists what is allowed and the nearest.
    """
    for key, suite in SUITES.items():
        if isinstance(suite, Mapping):
            if key == name:
                return check_norms(check(suite), threat)
        elif match := _pattern(key).fullmatch(name):
            numbers = {letter: int(number) for letter, number in match.groupdict().items()}
            if "side" in inspect.signature(suite).parameters:
                numbers["side"] = side
            found = suite(threat, **numbers)
            if isinstance(found, Adaptive):
                return found
            with _unchangeable(name):
                return check_norms(check(found), threat)
    raise ValueError(
        f"{shown(name)} is not a known suite; allowed: {', '.join(SUITES)}, with numbers K and R of at least 1, "
        f"like pgd-20{nearest(name, SUITES)}"
    )


@contextmanager
def _unchangeable(name: str) -> Iterator[None]:
    """What is refused in a suite that comes with the library is refused by its name, and not changed in it."""
    try:
        yield
    except ValueError as error:
        raise UsageError(f"suite {name}: {error} in a suite of your own, or give another ", Option("suite")) from None


def with_step(suite: Suite | Adaptive, step_size: float) -> dict[str, AttackSpec | Attack | SideAttack]:
    """The suite with another step size in each attack that has one.

    Raises:
        ValueError: none has.
    """
    members = {} if isinstance(suite, Adaptive) else dict(suite)
    stepped: dict[str, AttackSpec | Attack | SideAttack] = {}
    for label, member in members.items():
        attack = member.attack if isinstance(member, SideAttack) else member
        if isinstance(attack, AttackSpec) and "step_size" in attack.settings:
            changed = _spec(attack.name, **{**attack.settings, "step_size": step_size})
            stepped[label] = SideAttack(changed, member.threat) if isinstance(member, SideAttack) else changed
    if not stepped:
        raise UsageError("no attack of this suite has a step size; leave ", Option("step_size"), " out")
    return members | stepped


def check_norms(
    suite: dict[str, AttackSpec | Attack | SideAttack], threat: Threat
) -> dict[str, AttackSpec | Attack | SideAttack]:
    """The suite itself, of which no attack is for balls of another norm than its own.

    Raises:
        ValueError: one is.
    """
    for member in suite.values():
        attack, ball = (member.attack, member.threat) if isinstance(member, SideAttack) else (member, threat)
        check_norm(attack.find(attack.name) if isinstance(attack, AttackSpec) else attack, ball)
    return suite


DLR_CLASSES = {"apgd": 3, "pgd": 3, "targeted_pgd": 3, "apgd_targeted": 4}
"""What an attack on DLR needs: it divides by a difference to the third class, towards a target to the fourth too."""


def fit_classes(
    suite: dict[str, AttackSpec | Attack | SideAttack], classes: int
) -> tuple[dict[str, AttackSpec | Attack | SideAttack], tuple[str, ...]]:
    """A suite for a model of few classes, and what was changed in it.

    Where classes are lacking for DLR the margin stands in, which is DLR without its division.
    """
    fitted, said = dict(suite), ()
    for label, member in suite.items():
        attack = member.attack if isinstance(member, SideAttack) else member
        if not isinstance(attack, AttackSpec) or attack.settings.get("loss") != "dlr":
            continue
        needed = DLR_CLASSES.get(attack.name, 3)
        if classes >= needed:
            continue
        margin = _spec(attack.name, **{**attack.settings, "loss": "margin"})
        fitted[label] = SideAttack(margin, member.threat) if isinstance(member, SideAttack) else margin
        said += (f"{label}: loss margin in place of dlr, which needs {needed} classes; the model has {classes}",)
    return fitted, said


def _pattern(key: str) -> re.Pattern[str]:
    number = "(?P<{}>[1-9][0-9]{{0,8}})"
    parts = {"K": number.format("K"), "rR": "r" + number.format("R")}
    return re.compile("-".join(parts.get(part, re.escape(part)) for part in key.split("-")))


def check(suite: Suite) -> dict[str, AttackSpec | Attack | SideAttack]:
    """The suite itself, as a dict.

    Raises:
        ValueError: it is empty; a label is "clean" or no text; a member cannot be called; or a spec attacks with
            BatchNorm in another mode than "eval", in which the model that is evaluated does not predict.
    """
    if not suite:
        raise ValueError("the suite holds no attack, and robustness against none is not defined; give at least one")
    for label, member in suite.items():
        if not isinstance(label, str) or label in ("", CLEAN):
            raise ValueError(f"an attack is labelled {label!r}; give a text other than {CLEAN!r}, which is taken")
        attack = member.attack if isinstance(member, SideAttack) else member
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
