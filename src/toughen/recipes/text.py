"""Recipes as text: YAML files built on one another, `key=value` changes, and errors that say what to type instead.

Example:
    recipe = load("cifar10-free", ["method.replays=4", "threat=linf:4/255"])
    text = dump(recipe)                          # starts the same run again

A file with `base: cifar10-free`, or with several bases in a list, says only what it changes: see `laid_over`. Every
recipe has a small twin, `cifar10-free-small` or `mine-small.yaml`, by a rule: see `toughen.recipes.twins`.
"""

import copy
import functools
import glob
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ValidationError

from toughen.data import DATA
from toughen.errors import Command, UsageError
from toughen.recipes import twins
from toughen.recipes.overlay import laid_over
from toughen.recipes.schema import Recipe
from toughen.settings import SHOWN, nearest, shown

# A recipe has 40 lines; what is larger or deeper than this is something else.
LONGEST = 1 << 20
STOREYS = 32
DEEPEST = 10
# What a file may say at its top.
BESIDE = ("base", twins.SECTION)
BASED = (*BESIDE, *Recipe.model_fields)
# A file of this kind is a part for others to build on, no recipe by itself.
PART = "_"

KEYS = {"size": "data.size", "weights": "model.weights", "key": "model.key"}
"""What a recipe calls options that have other names elsewhere."""

LISTING = Command("list", "recipes")


class RecipeError(UsageError):
    """What is wrong with a recipe: one line for each fault, with its path, what is allowed and the nearest name."""

    names = KEYS


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
        raise RecipeError(f"{where} is not readable as YAML; see `{LISTING}` for examples") from None


_parse_shipped = functools.cache(parse_yaml)
"""Once for each shipped text: hundreds of recipes lie over the same few bases."""


class _File(NamedTuple):
    """What a name or path stands for.

    Attributes:
        where: its name or path.
        text: what it holds.
        folder: where its bases' relative paths start; None for a shipped recipe, whose bases are shipped too.
        small: whether its twin is meant.
    """

    where: str
    text: str
    folder: Path | None
    small: bool


@functools.cache
def _texts() -> dict[str, str]:
    folders = (folder for folder in resources.files("toughen.recipes").iterdir() if folder.is_dir())
    files = (file for folder in folders for file in folder.iterdir() if file.name.endswith(".yaml"))
    texts = {file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8") for file in files}
    return dict(sorted(texts.items()))


def shipped() -> dict[str, str]:
    """The recipes that come with the package: name -> text. Their twins have none: see `twinned`."""
    return {name: text for name, text in _texts().items() if not name.startswith(PART)}


def twinned() -> list[str]:
    """The shipped recipes with a twin besides: all that are not small themselves and start from no trained weights."""
    read_in = {name: read(name) for name in shipped()}
    return [n for n, recipe in read_in.items() if not (twins.is_small(recipe) or twins.starts_from_weights(recipe))]


def read(recipe: str, *, small: bool = False) -> dict[str, Any]:
    """The mapping that a shipped recipe's name or a file's path stands for, laid over its bases.

    Args:
        recipe: a name or path, of a twin too.
        small: the recipe's twin in any case.

    Raises:
        RecipeError: there is no such recipe, it is none, or has no twin.
    """
    found = _from_file(Path(recipe)) if _is_path(recipe) or os.path.exists(recipe) else _from_package(recipe)
    return _resolved(found._replace(small=small or found.small))


def _is_path(recipe: str) -> bool:
    return recipe.endswith((".yaml", ".yml")) or "/" in recipe or os.sep in recipe


def _from_package(recipe: str) -> _File:
    texts = _texts()
    original = recipe.removesuffix(twins.ENDING)
    name = recipe if recipe in texts else original
    if name not in texts:
        guess = nearest(recipe, [*shipped(), *(f"{name}{twins.ENDING}" for name in twinned())])
        guess = guess or f"; see `{LISTING}`"
        raise RecipeError(f"{shown(recipe)} is no shipped recipe{guess} (or give the path of a YAML file)")
    return _File(name, texts[name], None, name != recipe)


def _from_file(path: Path) -> _File:
    try:
        original = path.with_stem(path.stem.removesuffix(twins.ENDING)) if path.suffix else path
        small = not os.path.exists(path) and os.path.exists(original)
        path = original if small else path / "recipe.yaml" if path.is_dir() else path
        with path.open(encoding="utf-8") as file:
            return _File(str(path), file.read(LONGEST + 1), path.parent, small)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or ("not text" if isinstance(error, UnicodeError) else "no path")
        raise RecipeError(f"recipe file {_printed(str(path))} cannot be read: {reason}; check the path") from None


def _resolved(file: _File, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe's mapping over those of its bases, or its twin's.

    Args:
        file: the recipe.
        above: the recipes that build on it, the outermost first.
    """
    where, _, folder, small = file
    chain = (*above, where)
    if len(chain) > DEEPEST:
        raise RecipeError(f"{chain[0]} has more than {DEEPEST - 1} bases one below the other; put some into one file")
    mapping, bases, own = _parts(file)
    result: dict[str, Any] = {}
    for base in bases:
        found = _from_file(folder / base) if folder is not None and _is_path(base) else _within(where, base)
        found = found._replace(where=os.path.normpath(found.where))
        if found.where in map(os.path.normpath, chain):
            raise RecipeError(f"{where}: base {base} leads back to {found.where}; leave one of these bases out")
        result = laid_over(result, _resolved(found, chain))
    result = laid_over(result, mapping)
    return _twin(where, result, own) if small else result


def _parts(file: _File) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    """What a recipe says of itself, the names of its bases, and what it says of its twin."""
    where, text, folder, _ = file
    mapping = parse_yaml(text, where) if folder is not None else copy.deepcopy(_parse_shipped(text, where))
    if not isinstance(mapping, dict):
        raise RecipeError(f"{where} holds no mapping; write lines like `data: mnist5k`")
    bases, own = mapping.pop("base", []), mapping.pop(twins.SECTION, {})
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise RecipeError(f"{where}: base is no name, path or list of them; write `base: cifar10-free`")
    if not isinstance(own, dict):
        raise RecipeError(f"{where}: {twins.SECTION} is no section; write it like `small: {{steps: 800}}`")
    # Another key is left to the schema, which knows neither.
    for key in map(str, mapping):
        guess = nearest(key, BASED) if key not in Recipe.model_fields else ""
        if guess.endswith(tuple(f"{known!r}?" for known in BESIDE)):
            raise RecipeError(f"{where}: {_printed(key)}: unknown{guess}")
    return mapping, bases, own


def _within(where: str, base: str) -> _File:
    try:
        return _from_package(base)
    except RecipeError as error:
        raise RecipeError(f"{where}: base {error}") from None


def _twin(where: str, mapping: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    if twins.starts_from_weights(mapping) and not twins.is_small(mapping):
        raise RecipeError(
            f"{where} has no small twin, for it starts from trained weights, which fit no other network; take {where} "
            "itself, with fewer steps, like steps=200"
        )
    return twins.twin(mapping, own)


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


def _absolute(source: Any) -> Any:
    if not isinstance(source, str):
        return tuple(map(_absolute, source))
    path = os.path.expanduser(source)
    if glob.has_magic(path) and glob.glob(path):
        return os.path.abspath(path)
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
