"""What there is, for `toughen list`: every registry in plain sight, with the first line of what each member says.

Example:
    lines = catalogue("methods")
"""

import inspect
from collections.abc import Callable

from toughen import recipes
from toughen.attacks import ATTACKS, AttackSpec
from toughen.data import DATA
from toughen.data.sources.registry import FORMS
from toughen.evaluation import SUITES
from toughen.methods import METHODS, Method
from toughen.models import MODELS
from toughen.settings import known
from toughen.threat import Linf


def first_line(member: object) -> str:
    """The first line of a member's documentation, or nothing."""
    text = (inspect.getdoc(member) or "") if callable(member) else ""
    return text.partition("\n")[0]


def _recipes() -> dict[str, str]:
    """Each recipe with its first line, and whether it has a twin for a small network and few images."""
    twinned = set(recipes.twinned())
    return {
        name: text.partition("\n")[0].removeprefix("#").strip() + (" [also as -small]" if name in twinned else "")
        for name, text in recipes.shipped().items()
    }


def _methods() -> dict[str, str]:
    return {name: f"{first_line(kind)} [{cost_formula(kind(name=name))}]" for name, kind in METHODS.items()}


def cost_formula(method: Method) -> str:
    """What an optimiser step costs in natural steps, in the K steps of the attack or the m replays, as counted.

    Example:
        cost_formula(AdversarialTraining())     # "(2K + 3)/3 natural steps: 7.67 with K = 10"
    """
    method = method.resolved(Linf(0.1))
    default = _thirds(method)
    attack, replays = _attack_of(method), method.steps_per_batch
    if attack is not None and "steps" in attack.settings:
        one, two, nine = (_thirds(_with_steps(method, steps)) for steps in (1, 2, 9))
        slope, constant = two - one, 2 * one - two
        if nine == constant + 9 * slope:
            whole = slope % 3 == constant % 3 == 0
            a, b = (slope // 3, constant // 3) if whole else (slope, constant)
            text = f"{a if a > 1 else ''}K + {b}"
            formula = text if whole else f"({text})/3"
            return f"{formula} natural steps: {default / 3:.2f} with K = {attack.settings['steps']}"
    each = default / 3 / replays
    text = "1 natural step" if each == 1 else f"{each:.2f} natural steps"
    return f"{text} a replay" if "replays" in type(method).model_fields else text


def _thirds(method: Method) -> int:
    """Cost of a minibatch in thirds of a natural step, which are whole."""
    return round(3 * method.passes().natural_steps)


def _attack_of(method: Method) -> AttackSpec | None:
    inner = getattr(method, "method", None)
    return _attack_of(inner) if isinstance(inner, Method) else getattr(method, "attack", None)


def _with_steps(method: Method, steps: int) -> Method:
    """The same method with an attack of so many steps."""
    inner = getattr(method, "method", None)
    if isinstance(inner, Method):
        return method.model_copy(update={"method": _with_steps(inner, steps)})
    attack = _attack_of(method)
    assert attack is not None
    return method.model_copy(
        update={"attack": AttackSpec.model_validate({"name": attack.name, **attack.settings, "steps": steps})}
    )


def _documented(registry: dict) -> dict[str, str]:
    return {name: first_line(member) for name, member in registry.items()}


SECTIONS: dict[str, Callable[[], dict[str, str]]] = {
    "recipes": _recipes,
    "methods": _methods,
    "attacks": lambda: _documented(ATTACKS),
    "models": lambda: _documented(MODELS),
    "data": lambda: _documented(DATA) | FORMS,
    "suites": lambda: (
        _documented(SUITES) | {"corruptions": "Accuracy under 19 common corruptions at five severities; no attack."}
    ),
}


def catalogue(what: str = "") -> list[str]:
    """Lines that list one section, or all.

    Raises:
        ValueError: for a section that does not exist.
    """
    chosen = [known(what, SECTIONS, "list")] if what else list(SECTIONS)
    lines = []
    for section in chosen:
        rows = SECTIONS[section]()
        width = max(map(len, rows), default=0)
        lines += [f"{section}:", *(f"  {name:<{width}}  {text}".rstrip() for name, text in rows.items()), ""]
    return lines[:-1]
