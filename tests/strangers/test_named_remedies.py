"""Every remedy that a message names is there: options, commands, keys, suites, functions.

`conftest` asks the same of every error that a command ends with, in any test, at the place where it is given.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import numpy
import pytest
import torch
from pydantic import BaseModel
from typer.testing import CliRunner

import toughen
from named_remedies import missing, options
from toughen.attacks import ATTACKS
from toughen.cli.app import app
from toughen.evaluation import SUITES
from toughen.evaluation.suites import find
from toughen.losses import LOSSES
from toughen.methods import METHODS
from toughen.models.pretrained import timm_hub
from toughen.models.registry import MODELS
from toughen.recipes import Recipe
from toughen.recipes.schema import ModelSpec
from toughen.settings import settings_of
from toughen.threat import Linf

SOURCE = Path(toughen.__file__).parent
IDENTIFIER = r"[A-Za-z_]\w*"


@cache
def read() -> tuple[list[tuple[str, str]], list[tuple[str, ast.Call]]]:
    """What messages are made of, with its file: every text with a space in it that is no docstring, and the calls by
    which errors name options and commands. The rest of a file's tree is not kept.
    """
    texts, calls = [], []
    for path in sorted(SOURCE.rglob("*.py")):
        name, parts = path.relative_to(SOURCE).as_posix(), list(ast.walk(ast.parse(path.read_text())))
        bodies = [node.body for node in parts if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
        first = {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}
        for node in parts:
            value = node.value if isinstance(node, ast.Constant) and id(node) not in first else None
            if isinstance(value, str) and " " in value:
                texts.append((name, value))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("Option", "Command"):
                calls.append((name, node))
    return texts, calls


def named(pattern: str) -> dict[tuple[str, ...], str]:
    """The groups of a pattern wherever a text has it, and the last file that does."""
    return {match.groups(): name for name, text in read()[0] for match in re.finditer(pattern, text)}


def calls(kind: str) -> Iterator[tuple[str, ast.Call]]:
    """Every call of a function of that name, with its file."""
    return ((name, call) for name, call in read()[1] if isinstance(call.func, ast.Name) and call.func.id == kind)


def test_options_and_commands_that_errors_are_made_of_are_there():
    shell = {option for of in options().values() for option in of}
    renamed = {"counts": "count", "formats": "format", "soft": "probabilities"}
    seen = 0
    for name, call in calls("Option"):
        if call.args and isinstance(call.args[0], ast.Constant) and call.args[0].value != "what":
            option = str(call.args[0].value)
            found = "." in option or f"--{renamed.get(option, option).replace('_', '-')}" in shell
            assert found, f"{name} names the option {option}, which no command has"
            seen += 1
    for name, call in calls("Command"):
        words = [str(word.value) for word in call.args if isinstance(word, ast.Constant)]
        verb = " ".join(words[:2]) if " ".join(words[:2]) in options() else words[0]
        assert verb in options(), f"{name} names the command {verb}"
        for keyword in call.keywords:
            assert f"--{str(keyword.arg).replace('_', '-')}" in options()[verb], f"{name}: {verb} has no {keyword.arg}"
        seen += 1
    assert seen > 50


def resolved(dotted: str) -> Any:
    """What a dotted name of the package stands for."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise AttributeError(dotted)


def test_functions_that_messages_name_are_there():
    places = named(rf"\b(toughen(?:\.{IDENTIFIER})+)")
    assert len(places) > 10
    for (dotted,), file in places.items():
        assert resolved(dotted) is not None, f"{file} names {dotted}"
    for (dotted,), file in named(rf"\b((?:torch|numpy)(?:\.{IDENTIFIER})+)\b(?!\*)").items():
        found: Any = {"torch": torch, "numpy": numpy}[dotted.split(".")[0]]
        for part in dotted.split(".")[1:]:
            assert hasattr(found, part), f"{file} names {dotted}"
            found = getattr(found, part)
    # Of a tensor or a module, like x.float().
    for (method,), file in named(rf"\b(?:x|y|images|labels|logits|model|delta|x_adv)\.({IDENTIFIER})\(").items():
        assert hasattr(torch.Tensor, method) or hasattr(torch.nn.Module, method), f"{file} names .{method}()"
    for (name,), file in named(rf"(?<![.\w])([A-Z]{IDENTIFIER})\((?=[a-z0-9])").items():
        known = {*toughen.__all__, "AttackSpec", "Normalize", "ResizeCrop"}
        assert name in known or hasattr(torch.nn, name), f"{file} names {name}()"


def keys_of(kind: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    for key, field in kind.model_fields.items():
        yield key, field.annotation
        for inner in (field.annotation, *get_args(field.annotation)):
            for part in (inner, *get_args(inner)):
                if isinstance(part, type) and issubclass(part, BaseModel) and part is not kind:
                    yield from ((f"{key}.{below}", annotation) for below, annotation in keys_of(part))


def recipe_keys() -> set[str]:
    """Every key of a recipe: its own, and those of methods, networks and attacks, which are looked up by name."""
    keys = {key for key, _ in keys_of(Recipe)}
    for method in METHODS.values():
        keys |= {f"method.{key}" for key, _ in keys_of(method)} | {key for key, _ in keys_of(method)}
    for model in (*MODELS.values(), timm_hub._from_timm):
        keys |= {f"model.{key}" for key in settings_of(model, ModelSpec.given).model_fields}
    for attack in ATTACKS.values():
        keys |= set(settings_of(attack, ("model", "x", "y", "threat", "noise")).model_fields)
    return keys


def test_keys_that_messages_name_are_there():
    keys, seen = recipe_keys(), set[str]()
    for (key,), file in named(r"\b((?:data|model|method|optimizer|schedule|selection)(?:\.[a-z_]+)+)=").items():
        assert key in keys, f"{file} names {key}="
        seen.add(key)
    for key, value in named(r"\buse ([a-z_]+): ([a-z_]+)"):
        assert key in keys, f"use {key}: {value}"
        if key == "loss":
            assert value in LOSSES
        seen.add(key)
    assert len(seen) > 8


def test_suites_that_messages_name_are_there():
    words = {"adaptive", "corruptions", "autoattack", "square"}
    seen = set[str]()
    for name, text in read()[0]:
        for suite in re.findall(r"\bsuite[ =]\"?([a-z]+(?:[+-][a-z0-9+-]+)?)", text):
            if suite in words or "-" in suite or "+" in suite:
                assert suite == "corruptions" or find(suite, Linf(0.1)), f"{name} names suite {suite}"
                seen.add(suite)
    assert {"autoattack", "square"} <= seen
    assert "square" in SUITES


@pytest.mark.parametrize(
    ("message", "command", "wrong"),
    [
        ("give --suite square", "evaluate", []),
        ("give --suite square", "analyse", ["--suite is no option of analyse"]),
        ("give the same toughen evaluate runs/a --suite square; then --only gradients", "analyse", []),
        ("first toughen analyze", "report", ["there is no command analyze"]),
        ("give data.size=224", "train", []),
        ("give data.size=224", "evaluate", ["data.size is a recipe's, which evaluate takes none of"]),
        ("toughen study run x --retry", "study status", []),
        ("toughen export runs/a --folder x", "evaluate", ["--folder is no option of export"]),
    ],
)
def test_what_is_not_there_where_it_is_named_is_found(message: str, command: str, wrong: list[str]):
    assert missing(message, command) == wrong


def test_every_error_of_a_command_is_looked_at(monkeypatch: pytest.MonkeyPatch):
    def refuse(*given: Any, **more: Any) -> Any:
        raise ValueError("give --suite square")

    monkeypatch.setattr("toughen.workflows.analyse", refuse)
    done = CliRunner().invoke(app, ["analyse", "runs/none"])
    assert isinstance(done.exception, AssertionError)
    assert "--suite is no option of analyse" in str(done.exception)
