"""Errors in the words of whoever reads them, and that every remedy that is named anywhere exists."""

import ast
import inspect
import pickle
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from toughen import data, export, models, training, workflows
from toughen.cli.app import app
from toughen.errors import ARGUMENT, Command, Option, UsageError, image_size, in_shell, naming
from toughen.export import hub
from toughen.recipes import Recipe, RecipeError
from toughen.studies import create

ROOT = Path(__file__).resolve().parents[1] / "src" / "toughen"
OURS = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
FOREIGN = {"--max-restarts"}
"""Options of torchrun's."""

CALLED = (
    workflows.ModelSource, workflows.EvaluationSettings, workflows.evaluate, workflows.measure_corruptions,
    workflows.analyse, workflows.label, data.load, models.build, export.export, hub.push, training.train,
    create.create_folder,
)  # fmt: skip
"""What a Python caller calls, whose parameters errors may name."""

COMMANDS: Any = typer.main.get_command(app)


@pytest.mark.parametrize(
    ("option", "python", "shell"),
    [
        (Option("step_size"), "step_size", "--step-size"),
        (Option("threat", "linf:8/255"), 'threat="linf:8/255"', "--threat linf:8/255"),
        (Option("threat", like="l2:1"), 'threat, like threat="l2:1"', "--threat, like --threat l2:1"),
        (Option("data", "my set"), 'data="my set"', "--data 'my set'"),
        (Option("out", "FOLDER"), "out=FOLDER", "--out FOLDER"),
        (Option("public", True), "public=True", "--public"),
        (Option("formats"), "formats", "--format"),
        (Option("what", "timm:x=FILE"), 'what="timm:x=FILE"', "timm:x=FILE"),
        (Option("data.size", like=224), "data.size, like data.size=224", "data.size, like data.size=224"),
        (image_size(32), "view=ResizeCrop(32)", "--size 32"),
        (image_size(like=224), "view, like view=ResizeCrop(224)", "--size, like --size 224"),
    ],
)
def test_an_option_in_the_words_of_python_and_of_the_command_line(option: Option, python: str, shell: str):
    assert str(option) == python
    assert in_shell(UsageError("give ", option, ".")) == f"give {shell}."


def test_a_command_can_be_pasted():
    command = Command("evaluate", "my run", suite="autoattack", step_size="1/255", independent=True)
    assert str(command) == "toughen evaluate 'my run' --suite autoattack --step-size 1/255 --independent"
    assert shlex.split(str(command)) == command.words


def test_one_error_is_said_to_each_in_their_words():
    error = UsageError("run: ", Command("export", "x", out="FOLDER"), "; or give ", image_size(like=224))
    assert str(error) == "run: toughen export x --out FOLDER; or give view, like view=ResizeCrop(224)"
    assert in_shell(error) == "run: toughen export x --out FOLDER; or give --size, like --size 224"
    # A recipe's keys are called so in Python and by the command line.
    again = RecipeError("data: ", error)
    assert (
        str(again)
        == in_shell(again)
        == "data: run: toughen export x --out FOLDER; or give data.size, like data.size=224"
    )
    assert str(RecipeError(ValueError("{as} it --is"))) == "{as} it --is"
    copied = pickle.loads(pickle.dumps(again))
    assert (type(copied), str(copied)) == (RecipeError, str(again))
    assert in_shell(OSError("gone")) == "gone"


def test_a_caller_calls_options_otherwise():
    error = UsageError("give ", image_size(3), ", and ", Option("weights", "FILE"))
    with pytest.raises(UsageError) as caught, naming(size="size", weights=Option("what", "net=FILE")):
        raise error
    assert caught.value is error
    assert str(error) == 'give size=3, and what="net=FILE"'
    assert in_shell(error) == "give --size 3, and net=FILE"


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(ROOT.rglob("*.py")):
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def texts(module: ast.Module) -> Iterator[str]:
    """Every text of a module but its documentation."""
    expressions = {id(node.value) for node in ast.walk(module) if isinstance(node, ast.Expr)}
    for node in ast.walk(module):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in expressions:
            yield node.value


def calls(name: str) -> list[tuple[str, list[Any], dict[str, Any]]]:
    """Where something is built by that name, with its arguments as far as they are written down."""
    found = []
    for where, module in modules():
        for node in ast.walk(module):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
                words = [one.value if isinstance(one, ast.Constant) else ... for one in node.args]
                found.append((f"{where}:{node.lineno}", words, {one.arg: one.value for one in node.keywords}))
    return found


def command_of(words: list[Any]) -> Any:
    """The command that begins with these words."""
    command = COMMANDS
    for word in words:
        if not hasattr(command, "commands"):
            break
        command = command.commands[word]
    return command


def options_of(command: Any) -> set[str]:
    own = {option for parameter in command.params for option in parameter.opts}
    return own.union(*(options_of(one) for one in getattr(command, "commands", {}).values()))


def test_no_text_outside_the_command_line_names_an_option():
    found = [
        f"{where}: {text}"
        for where, module in modules()
        if not where.startswith("cli/")
        for text in texts(module)
        if set(OURS.findall(text)) - FOREIGN
    ]
    assert found == []


def test_every_command_that_a_text_names_exists():
    for where, module in modules():
        for text in texts(module):
            for words in re.findall(r"[`(]toughen ([a-z ]+)", text):
                assert command_of(words.split()), f"{where}: {text}"
    for where, words, options in calls("Command"):
        command = command_of(words)
        for name in options:
            assert Option(name).shell.split()[0] in options_of(command), where


def test_every_option_that_an_error_names_exists():
    parameters = {name for function in CALLED for name in inspect.signature(function).parameters}
    named = calls("Option")
    assert len(named) > 20
    for where, words, options in named:
        name = words[0] if words else ...
        if name is ... or where.startswith(("errors.py", "cli/")):
            continue
        if "." in name:
            section, key = name.split(".")
            assert key in getattr(Recipe.model_fields[section].annotation, "model_fields", ()), where
        else:
            assert name == ARGUMENT or Option(name).shell in options_of(COMMANDS), where
            assert "python" in options or name in parameters | {"retry"}, where
