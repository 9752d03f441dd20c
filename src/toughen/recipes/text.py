"""Recipes as text: YAML files built on one another, `key=value` changes, and errors that say what to type instead.

Example:
    recipe = load("cifar10-free", ["method.replays=4", "threat=linf:4/255"])
    text = dump(recipe)                          # starts the same run again

A file with `base: cifar10-free`, or with several bases in a list, says only what it changes: see `laid_over`.
"""

import copy
import functools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from toughen.data import DATA
from toughen.naming import SHOWN, nearest, shown
from toughen.recipes.schema import Recipe

# A recipe has 40 lines; what is larger or deeper than this is something else.
LONGEST = 1 << 20
STOREYS = 32
DEEPEST = 10
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
# What a file may say at its top.
BASED = ("base", *Recipe.model_fields)
# A file of this kind is a part for others to build on, no recipe by itself.
PART = "_"


class RecipeError(ValueError):
    """What is wrong with a recipe: one line for each fault, with its path, what is allowed and the nearest name."""


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: no aliases (they can grow without bound), no key twice, `no` is text, 1e-3 a number."""

    storey = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.storey > STOREYS:
            what = f"not readable, for it is nested more than {STOREYS} deep"
            raise yaml.MarkedYAMLError(None, None, what, self.peek_event().start_mark)
        if getattr(self.peek_event(), "tag", None) is not None:
            raise yaml.MarkedYAMLError(None, None, "tags are not allowed", self.peek_event().start_mark)
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(None, None, "aliases are not allowed", self.peek_event().start_mark)
        self.storey += 1
        node = super().compose_node(parent, index)
        self.storey -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(None, None, "a key must be text", key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(None, None, f"the key {key.value!r} is there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads `no` and `on` as truth values and 010 as eight; numbers are read where a field wants them.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# Only unquoted, so that a name "true" comes back from a dump.
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(?:true|false)\Z"), ["t", "f"])


def parse_yaml(text: str, where: str) -> Any:
    """Plain data from YAML text.

    Raises:
        RecipeError: when it is not YAML, longer than 1 MiB, nested too deeply, or repeats a key.
    """
    if len(text) > LONGEST:
        raise RecipeError(f"{where} is larger than 1 MiB, which no recipe is; check the path")
    try:
        return yaml.load(text, _Loader)  # _Loader is a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{where}{line}: {error.problem}; write YAML like `method: {{name: free}}`") from None
    except (yaml.YAMLError, RecursionError):
        raise RecipeError(f"{where} is not readable as YAML; see `toughen list recipes` for examples") from None


_parse_shipped = functools.cache(parse_yaml)
"""Once for each shipped text: hundreds of recipes lie over the same few bases."""


@functools.cache
def _texts() -> dict[str, str]:
    folder = resources.files("toughen.recipes")
    files = {f.name.removesuffix(".yaml"): f for f in folder.iterdir() if f.name.endswith(".yaml")}
    return {name: files[name].read_text(encoding="utf-8") for name in sorted(files)}


def shipped() -> dict[str, str]:
    """The recipes that come with the package: name -> text."""
    return {name: text for name, text in _texts().items() if not name.startswith(PART)}


def read(recipe: str) -> dict[str, Any]:
    """The mapping that a shipped recipe's name or a file's path stands for, laid over its bases."""
    if _is_path(recipe) or os.path.exists(recipe):
        return _resolved(*_from_file(Path(recipe)))
    return _resolved(recipe, _from_package(recipe), None)


def _is_path(recipe: str) -> bool:
    return recipe.endswith((".yaml", ".yml")) or "/" in recipe or os.sep in recipe


def _from_package(recipe: str) -> str:
    texts = _texts()
    if recipe not in texts:
        guess = nearest(recipe, shipped()) or "; see `toughen list recipes`"
        raise RecipeError(f"{shown(recipe)} is no shipped recipe{guess} (or give the path of a YAML file)")
    return texts[recipe]


def _from_file(path: Path) -> tuple[str, str, Path]:
    try:
        path = path / "recipe.yaml" if path.is_dir() else path
        with path.open(encoding="utf-8") as file:
            return str(path), file.read(LONGEST + 1), path.parent
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or ("not text" if isinstance(error, UnicodeError) else "no path")
        raise RecipeError(f"recipe file {_printed(str(path))} cannot be read: {reason}; check the path") from None


def _resolved(where: str, text: str, folder: Path | None, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe's mapping over those of its bases.

    Args:
        where: its name or path.
        text: what it holds.
        folder: where its bases' relative paths start; None for a shipped recipe, whose bases are shipped too.
        above: the recipes that build on it, the outermost first.
    """
    chain = (*above, where)
    if len(chain) > DEEPEST:
        raise RecipeError(f"{chain[0]} has more than {DEEPEST - 1} bases one below the other; put some into one file")
    mapping = parse_yaml(text, where) if folder is not None else copy.deepcopy(_parse_shipped(text, where))
    if not isinstance(mapping, dict):
        raise RecipeError(f"{where} holds no mapping; write lines like `data: mnist5k`")
    bases = mapping.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise RecipeError(f"{where}: base is no name, path or list of them; write `base: cifar10-free`")
    # Another key is left to the schema, which knows no bases.
    known = Recipe.model_fields
    if slip := next((k for k in mapping if k not in known and nearest(str(k), BASED).endswith("'base'?")), None):
        raise RecipeError(f"{where}: {_printed(str(slip))}: unknown; did you mean 'base'?")
    result: dict[str, Any] = {}
    for base in bases:
        if folder is not None and _is_path(base):
            found, held, inside = _from_file(folder / base)
            found = os.path.normpath(found)
        else:
            found, held, inside = base, _within(where, base), None
        if found in map(os.path.normpath, chain):
            raise RecipeError(f"{where}: base {base} leads back to {found}; leave one of these bases out")
        result = laid_over(result, _resolved(found, held, inside, chain))
    return laid_over(result, mapping)


def _within(where: str, base: str) -> str:
    try:
        return _from_package(base)
    except RecipeError as error:
        raise RecipeError(f"{where}: base {error}") from None


def laid_over(base: Mapping[str, Any], mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The base with every value of the mapping in place of its own, section by section.

    Text in place of a section sets its main field and keeps the rest, but another model, method, schedule or attack
    starts its section anew.
    """
    return _over(base, mapping, TOP)


def _over(base: Mapping[str, Any], mapping: Mapping[str, Any], section: str) -> dict[str, Any]:
    return {**base, **{key: _laid(key, base.get(key), value, section) for key, value in mapping.items()}}


def _laid(key: str, before: Any, value: Any, section: str) -> Any:
    # IAAT's method has a selection too, which is a word.
    if (main := PRIMARY.get(key)) and (key != "selection" or section == TOP):
        before, value = ({main: given} if isinstance(given, str) else given for given in (before, value))
    if not (isinstance(before, dict) and isinstance(value, dict)):
        return value
    renamed = key in TAGGED and value.get("name", before.get("name")) != before.get("name")
    return value if renamed else _over(before, value, key)


def change(mapping: Mapping[str, Any], changes: Iterable[str]) -> dict[str, Any]:
    """The mapping with each `path.to.key=value` laid over it: see `laid_over`."""
    result = dict(mapping)
    for item in changes:
        path, equals, text = item.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise RecipeError(f"{shown(item)} is not a change; write key=value, like method.replays=4")
        # A name cut short, like data=hub:, which YAML would take for a mapping.
        value: Any = text if re.fullmatch(r"\w+:", text) else parse_yaml(text, f"the value of {_printed(path)}")
        result = with_value(result, keys, value)
    return result


def with_value(mapping: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """The mapping with a value laid over it at a path of keys: see `laid_over`."""
    if len(path) > STOREYS:
        raise RecipeError(f"{shown('.'.join(path))} is more than {STOREYS} keys deep, which no recipe is")
    for key in reversed(path):
        value = {key: value}
    return laid_over(mapping, value)


def load(recipe: str, changes: Iterable[str] = ()) -> Recipe:
    """A recipe from a shipped name or a file, with changes.

    Raises:
        RecipeError: with every fault of the recipe, one line each.
    """
    return build(change(read(recipe), changes))


def build(mapping: Mapping[str, Any]) -> Recipe:
    """A recipe from plain data; what is a file or folder here becomes an absolute path, so that it works anywhere.

    Raises:
        RecipeError: with every fault of the recipe, one line each.
    """
    try:
        recipe = Recipe.model_validate(mapping)
    except ValidationError as error:
        raise RecipeError("\n".join(map(_sentence, error.errors()))) from None
    except RecursionError:
        raise RecipeError(f"the recipe is nested more than {STOREYS} deep; write it flatter") from None
    data, model = recipe.data, recipe.model
    if data.extra:
        data = data.model_copy(update={"extra": data.extra.model_copy(update={"source": _absolute(data.extra.source)})})
    data = data.model_copy(update={"source": _absolute(data.source)})
    if model.weights:
        # Also of a file that is gone by now: a run that began with it goes on without.
        try:
            model = model.model_copy(update={"weights": os.path.realpath(os.path.expanduser(model.weights))})
        except ValueError as error:
            raise RecipeError(f"model.weights: {shown(model.weights)} is no path: {error}; give a file") from None
    return recipe.model_copy(update={"data": data, "model": model})


def _absolute(source: str) -> str:
    path = os.path.expanduser(source)
    return source if source in DATA or not os.path.exists(path) else str(Path(path).resolve())


def _sentence(error: Any) -> str:
    path = ".".join(_printed(str(part)) for part in error["loc"])
    message, given = error["msg"].removeprefix("Value error, "), error["input"]
    value = "a section" if isinstance(given, dict) else "null" if given is None else shown(given)
    if error["type"] == "missing":
        message = "is missing; give it a value"
    elif error["type"] != "unknown_setting":
        own = error["type"] in ("value_error", "choice")
        if not own or message.startswith("Input "):
            message = f"{message[:1].lower()}{message[1:]}"
        # What checks several values at once says itself which.
        told = error["type"] == "value_error" and (value in message or isinstance(given, dict | BaseModel))
        message = re.sub(rf"\S{{{2 * SHOWN},}}", lambda word: shown(word[0])[1:-1], message)
        message = message if told else f"{message}; it is {value}"
    return f"{path}: {message}" if path else message


def _printed(text: str) -> str:
    """A key or path as it is, unless a terminal or a reader could not take it."""
    return text if text.isprintable() and len(text) <= SHOWN else shown(text)


def dump(recipe: Recipe) -> str:
    """The recipe as YAML with every field filled in."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, width=100)


def differences(a: Recipe, b: Recipe) -> list[str]:
    """The paths at which two recipes differ, with both values."""

    def flat(value: Any, path: str = "") -> dict[str, Any]:
        if not isinstance(value, dict):
            return {path: value}
        return {p: v for key, item in value.items() for p, v in flat(item, f"{path}.{key}".lstrip(".")).items()}

    one, other = flat(a.model_dump(mode="json")), flat(b.model_dump(mode="json"))
    missing = "nothing"
    return [
        f"{path}: {one.get(path, missing)} there, {other.get(path, missing)} here"
        for path in {**one, **other}
        if one.get(path, missing) != other.get(path, missing)
    ]
