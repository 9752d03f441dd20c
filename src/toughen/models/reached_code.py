"""The code and the values that a model, an attack or a ball is made of, besides weights: what a result hangs on.

    found = reached(net)
    found.code["Net.forward"], found.values["layer.scale"]      # hashes, by the names of what they are of

Followed are functions, classes and modules outside installed packages, and what they name: the functions that they
call, their defaults and closures, the globals that they read, and the attributes of objects, whatever these hold. Code
counts by what Python made of it: a comment changes nothing, and what was typed in at a prompt counts like a file.
"""

import dis
import enum
import functools
import hashlib
import importlib.util
import re
import sys
import types
from argparse import Namespace
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, is_dataclass
from itertools import accumulate
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toughen.models.hashes import hash_model, hash_tensor
from toughen.models.refusals import INSTALLED, OURS

PLAIN = (
    bool, int, float, complex, str, bytes, type(None), type(...), range, slice, PurePath,
    torch.dtype, torch.device, torch.memory_format,
)  # fmt: skip
"""Types whose representation says all."""

TORCHS = frozenset(vars(nn.Module()))
"""Attributes that every `nn.Module` has: weights, other modules, a mode and hooks."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Those of them that hold functions which are run beside the module, under numbers that count registrations."""

DEPTH = 60
"""How deep values may lie in one another; what is deeper is not looked at."""


@dataclass(frozen=True)
class Reached:
    """What was found, as hashes.

    Attributes:
        code: of functions and classes, by their qualified names.
        values: of attributes, globals and closures, by where they are.
    """

    code: dict[str, str]
    values: dict[str, str]


def reached(**roots: object) -> Reached:
    """What is reached from some objects; for values these are named as they are given here, a module's by its path."""
    walk = _Walk()
    for name, root in roots.items():
        if isinstance(root, nn.Module):
            walk.attributes_of(root)
        else:
            walk.values.setdefault(name, set()).add(walk.fold(root))
    return Reached(_joined(walk.code), _joined(walk.values))


def _is_installed(module: str | None) -> bool:
    """Whether a module belongs to Python, to an installed package or to this library."""
    path = getattr(sys.modules.get(module or ""), "__file__", None) or ""
    return module in sys.builtin_module_names or path.startswith((*INSTALLED, OURS))


def _is_installed_class(kind: type) -> bool:
    # What is run from a text without a module's name has that of the builtins.
    made = bool(kind.__flags__ & 1 << 9)
    return _is_installed(kind.__module__) and not (made and kind.__module__ == "builtins")


def _is_installed_function(function: types.FunctionType) -> bool:
    # By its file first: what decorates a function goes by the module of what it decorates.
    file = function.__code__.co_filename
    return file.startswith((*INSTALLED, OURS, "<frozen")) or (
        file.startswith("<") and _is_installed(function.__module__)
    )


@dataclass
class _Walk:
    """One walk over what hangs together.

    Attributes:
        code: hashes by qualified name; two functions may share one.
        values: hashes by where a value is.
        done: of what was seen, by identity, the hash; kept with the object, whose place in memory another would take.
        classes: those that were seen.
        depth: of the value that is looked at.
    """

    code: dict[str, set[str]] = field(default_factory=dict)
    values: dict[str, set[str]] = field(default_factory=dict)
    done: dict[int, tuple[object, str]] = field(default_factory=dict)
    classes: set[type] = field(default_factory=set)
    depth: int = 0

    def fold(self, value: Any) -> str:
        """A hash of a value and of all that it holds; code on the way is noted."""
        if isinstance(value, enum.Enum):
            return _hash(type(value).__qualname__, value.name)
        if isinstance(value, PLAIN):
            return _hash(type(value).__name__, repr(value))
        if id(value) in self.done:
            return self.done[id(value)][1]
        if self.depth > DEPTH:
            return ""
        # What holds itself is, at its second sight, its type.
        self.done[id(value)] = value, _hash(type(value).__qualname__)
        self.depth += 1
        found = _hash(type(value).__qualname__, *self._parts(value))
        self.depth -= 1
        self.done[id(value)] = value, found
        return found

    def _parts(self, value: Any) -> Iterator[str]:
        """The hashes and names that a value is made of; of objects of installed packages mostly none."""
        kind = type(value)
        if isinstance(value, nn.Module):
            yield from self._parts_of_module(value)
        elif isinstance(value, Tensor):
            yield _hash_of_tensor(value)
        elif isinstance(value, np.ndarray | np.generic):
            yield f"{value.dtype}{value.shape}"
            yield from map(self.fold, value.ravel().tolist()) if value.dtype.hasobject else (_hash(value.tobytes()),)
        elif isinstance(value, Mapping):
            yield from (self.fold(item) for pair in value.items() for item in pair)
        elif isinstance(value, list | tuple | deque):
            yield from map(self.fold, value)
        elif isinstance(value, set | frozenset):
            yield from sorted(map(self.fold, value))
        elif isinstance(value, type):
            yield value.__qualname__
            self._note_class(value)
        elif isinstance(value, types.FunctionType):
            yield from self._parts_of_function(value)
        elif isinstance(value, types.MethodType):
            yield from (self.fold(value.__func__), self.fold(value.__self__))
        elif isinstance(value, functools.partial):
            yield from map(self.fold, (value.func, value.args, value.keywords))
        elif isinstance(value, staticmethod | classmethod):
            yield self.fold(value.__func__)
        elif isinstance(value, property):
            yield from map(self.fold, (value.fget, value.fset))
        elif isinstance(value, functools.cached_property):
            yield self.fold(value.func)
        elif isinstance(value, torch.jit.ScriptFunction):
            yield str(value.code)
        elif isinstance(value, re.Pattern):
            yield from map(self.fold, (value.pattern, value.flags))
        elif isinstance(value, types.BuiltinFunctionType):
            yield value.__qualname__
            self._note_file(value.__module__)
        elif isinstance(value, types.ModuleType):
            yield value.__name__
        elif hasattr(value, "__wrapped__"):
            yield self.fold(value.__wrapped__)
        elif self._is_looked_into(value):
            self._note_class(kind)
            yield from (f"{name}{self.fold(some)}" for name, some in sorted(_state(value).items()))

    def _is_looked_into(self, value: object) -> bool:
        """Whether an object counts with its attributes: one of the user's own, a plain record, or what transforms.

        Not what else packages keep (loggers, trainers, sessions), which changes with every process.
        """
        kind = type(value)
        record = is_dataclass(value) or isinstance(value, Namespace | types.SimpleNamespace)
        transforms = callable(value) and kind.__module__.partition(".")[0] != "torch"
        return record or transforms or not _is_installed_class(kind)

    def attributes_of(self, model: nn.Module) -> None:
        """Note the classes of the modules of a model, and their attributes, each where it is."""
        modules = dict(model.named_modules())
        for path, module in modules.items():
            self.done[id(module)] = module, path
        for path, module in modules.items():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            self._note_class(type(module))
            if isinstance(module, torch.fx.GraphModule):
                self._add(self.code, f"{path}.forward".lstrip("."), _hash(module.code))
            hooks = [hook for name in HOOKS for hook in vars(module)[name].values() if not _is_ours(hook)]
            own = {name: value for name, value in sorted(vars(module).items()) if name not in TORCHS}
            found = {name: self.fold(value) for name, value in own.items()} | (
                {"hooks": self.fold(hooks)} if hooks else {}
            )
            if _is_installed_class(type(module)):
                found = {"": _hash(*(f"{name}{some}" for name, some in found.items()))} if found else {}
            for name, some in found.items():
                self._add(self.values, f"{path}.{name}".strip(".") or "model", some)

    def _parts_of_module(self, module: nn.Module) -> Iterator[str]:
        """Of a module that is hidden from the model it is part of: weights too."""
        inner = _Walk(self.code, {}, self.done, self.classes, self.depth)
        inner.attributes_of(module)
        yield from (f"{name}{some}" for name, some in _joined(inner.values).items())
        yield hash_model(module)

    def _note_class(self, kind: type) -> None:
        """The methods and attributes of a class and of those it derives from; of installed ones what was put in."""
        for one in kind.__mro__:
            if one in self.classes:
                continue
            self.classes.add(one)
            if _is_installed_class(one):
                for value in vars(one).values():
                    if isinstance(value, types.FunctionType) and not _is_installed_function(value):
                        self.fold(value)
                continue
            self._add(self.code, one.__qualname__, _hash(*(base.__qualname__ for base in one.__bases__)))
            for name, value in vars(one).items():
                if isinstance(value, CODE):
                    self.fold(value)
                elif not name.startswith("__") and not isinstance(value, types.MemberDescriptorType):
                    self._add(self.values, f"{one.__qualname__}.{name}", self.fold(value))

    def _parts_of_function(self, function: types.FunctionType) -> Iterator[str]:
        """A function's code and what it names; of an installed one only what it encloses, as what decorates does."""
        name, code = function.__qualname__, function.__code__
        cells = {}
        for variable, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                cells[variable] = self.fold(cell.cell_contents)
            except ValueError:
                # Empty: it is filled later, or never.
                cells[variable] = ""
        # Of the class in which the function stands, which `super` asks for.
        cells.pop("__class__", None)
        yield name
        if _is_installed_function(function):
            return
        found = _hash_code(code)
        yield from (found, *cells.values())
        self._add(self.code, name, found)
        given = {"defaults": function.__defaults__, "keyword defaults": function.__kwdefaults__}
        for what, some in (cells | {what: self.fold(value) for what, value in given.items() if value}).items():
            self._add(self.values, f"{name}.{what}", some)
        names = set(_names(code))
        for variable in sorted(names & function.__globals__.keys()):
            self._note_named(variable, function.__globals__[variable], names)
        for module in _imported(code, function.__globals__.get("__package__") or ""):
            if (file := _file_of(module)) is not None:
                self._add(self.code, module, _hash(file.read_bytes()))

    def _note_named(self, name: str, value: Any, names: set[str]) -> None:
        """What a function names: of a module or a namespace only what the function asks of it."""
        if isinstance(value, types.ModuleType | Namespace | types.SimpleNamespace):
            if isinstance(value, types.ModuleType):
                if _is_installed(value.__name__):
                    return
                self._note_file(value.__name__)
            for asked in sorted(names & vars(value).keys() - {name}):
                self._note_named(asked, vars(value)[asked], names - {name})
        elif isinstance(value, CODE):
            self.fold(value)
        else:
            self._add(self.values, name, self.fold(value))

    def _note_file(self, module: str | None) -> None:
        """Compiled code of the user's own, which is told by the bytes of its file."""
        file = getattr(sys.modules.get(module or ""), "__file__", None) or ""
        if file.endswith((".so", ".pyd")) and not _is_installed(module):
            self._add(self.code, str(module), _hash(Path(file).read_bytes()))

    @staticmethod
    def _add(into: dict[str, set[str]], name: str, found: str) -> None:
        into.setdefault(name, set()).add(found)


CODE = (types.FunctionType, type, property, staticmethod, classmethod, functools.cached_property)
"""What stands by itself in `Reached.code`, wherever it is reached from."""


def _is_ours(hook: Any) -> bool:
    """Whether this library set a hook, to count passes."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    return str(getattr(hook, "__module__", "")).partition(".")[0] == "toughen"


def _joined(found: dict[str, set[str]]) -> dict[str, str]:
    """A short hash by name; of several that share a name over all of them."""
    return {name: _hash(*sorted(some))[:16] for name, some in sorted(found.items())}


def _hash(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _hash_of_tensor(value: Tensor) -> str:
    """A hash of any tensor; of one without values in this process its shape."""
    if value.layout is not torch.strided:
        return hash_tensor(value.to_dense())
    return f"{tuple(value.shape)}" if value.is_meta else hash_tensor(value)


def _hash_code(code: types.CodeType) -> str:
    """A hash of what Python made of a function: its steps, but for where in a file they stand."""
    steps = []
    for step in dis.get_instructions(code):
        value = step.argval
        if isinstance(value, types.CodeType):
            shown = _hash_code(value)
        elif isinstance(value, frozenset):
            shown = _hash(*sorted(map(repr, value)))
        else:
            shown = f"{type(value).__name__} {value!r}"
        steps.append(f"{step.opname} {shown}")
    takes = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_varnames)
    return _hash(repr(takes), code.co_exceptiontable, *steps)


def _names(code: types.CodeType) -> Iterator[str]:
    """The globals and attributes that a function names, and those that are defined in it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _imported(code: types.CodeType, package: str) -> Iterator[str]:
    """The modules that a function imports when it is run, and their parents, by full name."""
    steps = list(dis.get_instructions(code))
    for place, step in enumerate(steps):
        if step.opname == "IMPORT_NAME":
            # The two before it say how many packages up, and which names.
            level = steps[place - 2].argval if place > 1 and isinstance(steps[place - 2].argval, int) else 0
            with suppress(ImportError):
                name = importlib.util.resolve_name("." * level + str(step.argval), package)
                yield from accumulate(name.split("."), lambda above, part: f"{above}.{part}")
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _imported(constant, package)


def _file_of(module: str) -> Path | None:
    """Where a module that may not be imported yet lies, outside installed packages; nothing is run to find it."""
    top, *inside = module.split(".")
    with suppress(ImportError, ValueError, AttributeError):
        spec = importlib.util.find_spec(top)
        if spec is None or not spec.has_location or spec.origin is None or spec.origin.startswith((*INSTALLED, OURS)):
            return None
        places = [Path(spec.origin)]
        if inside:
            within = Path(spec.origin).parent.joinpath(*inside)
            places = [within.with_suffix(".py"), within / "__init__.py"]
        return next((place for place in places if place.is_file()), None)
    return None


def _state(value: object) -> dict[str, Any]:
    """The attributes of an object, also those in slots."""
    slots = {
        name: getattr(value, name)
        for kind in type(value).__mro__
        for name, item in vars(kind).items()
        if isinstance(item, types.MemberDescriptorType) and hasattr(value, name)
    }
    return slots | (vars(value) if hasattr(value, "__dict__") else {})
