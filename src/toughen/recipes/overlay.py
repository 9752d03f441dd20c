"""One recipe's text laid over another's, section by section.

Example:
    laid_over({"model": {"name": "wrn-28-10", "activation": "silu"}}, {"model": "resnet18"})["model"]
    # {"name": "resnet18"}: another network starts its section anew
"""

from collections.abc import Mapping
from typing import Any

# The sections that text may stand for, and the field that it then is.
PRIMARY = {
    "data": "source",
    "model": "name",
    "method": "name",
    "schedule": "name",
    "attack": "name",
    "selector": "name",
    "selection": "suite",
    "extra": "source",
}
# The sections themselves lie in none.
TOP = ""
# A section whose other fields belong to its name, so that another name starts it anew.
TAGGED = ("model", "method", "schedule", "attack", "selector")


def laid_over(base: Mapping[str, Any], mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The base with every value of the mapping in place of its own, section by section.

    Text in place of a section sets its main field and keeps the rest, but another model, method, schedule or attack
    starts its section anew.
    """
    return _over(base, mapping, TOP)


def section(mapping: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A section as a mapping, also where text stands for it; empty where there is none."""
    value = _written_out(key, mapping.get(key))
    return value if isinstance(value, dict) else {}


def _over(base: Mapping[str, Any], mapping: Mapping[str, Any], inside: str) -> dict[str, Any]:
    return {**base, **{key: _laid(key, base.get(key), value, inside) for key, value in mapping.items()}}


def _laid(key: str, before: Any, value: Any, inside: str) -> Any:
    # IAAT's method has a selection too, which is a word.
    if key != "selection" or inside == TOP:
        before, value = _written_out(key, before), _written_out(key, value)
    if not (isinstance(before, dict) and isinstance(value, dict)):
        return value
    renamed = key in TAGGED and value.get("name", before.get("name")) != before.get("name")
    return value if renamed else _over(before, value, key)


def _written_out(key: str, value: Any) -> Any:
    # An extra set may be several files.
    short = isinstance(value, str) or (key == "extra" and isinstance(value, list | tuple))
    return {PRIMARY[key]: value} if key in PRIMARY and short else value
