"""What there is, for `toughen list`: every registry in plain sight, with the first line of what each member says.

Example:
    lines = catalogue("methods")
"""

import inspect
from collections.abc import Callable

from toughen import recipes
from toughen.attacks import ATTACKS
from toughen.data import DATA
from toughen.evaluation import SUITES
from toughen.methods import METHODS
from toughen.models import MODELS
from toughen.naming import known
from toughen.threat import Linf


def first_line(member: object) -> str:
    """The first line of a member's documentation, or nothing."""
    text = (inspect.getdoc(member) or "") if callable(member) else ""
    return text.partition("\n")[0]


def _recipes() -> dict[str, str]:
    return {name: text.partition("\n")[0].removeprefix("#").strip() for name, text in recipes.shipped().items()}


def _methods() -> dict[str, str]:
    rows = {}
    for name, method in METHODS.items():
        settings = {"threat": Linf(0.1)} if "threat" in method.model_fields else {}
        each = method(name=name, **settings)
        cost = each.passes().natural_steps / each.steps_per_batch
        rows[name] = f"{first_line(method)} [{cost:.2f} natural steps per optimiser step by default]"
    return rows


def _documented(registry: dict) -> dict[str, str]:
    return {name: first_line(member) for name, member in registry.items()}


SECTIONS: dict[str, Callable[[], dict[str, str]]] = {
    "recipes": _recipes,
    "methods": _methods,
    "attacks": lambda: _documented(ATTACKS),
    "models": lambda: _documented(MODELS),
    "data": lambda: _documented(DATA) | {"FOLDER": "A folder of train-*.parquet and test-*.parquet files."},
    "suites": lambda: _documented(SUITES),
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
