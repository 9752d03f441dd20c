"""What messages name for the reader to give, and whether it is there where they stand.

    missing("error: ...; give --suite square", "analyse")      # ["--suite is no option of analyse"]

`conftest` asks this of every error that a command of any test ends with.
"""

import re
from functools import cache
from typing import Any

import typer

from toughen.cli.app import app

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
COMMAND = re.compile(r"\btoughen ([a-z]+)(?: ([a-z]+))?([^;,.()]*)")
KEY = re.compile(r"\b(?:data|model|method|optimizer|schedule|selection)\.[a-z_]+(?:\.[a-z_]+)*(?==)")

RECIPES = ("train", "finetune", "run", "create")
"""Commands that take keys of a recipe."""


@cache
def options() -> dict[str, set[str]]:
    """The options of every command by its name; of one of `study`, like `study run`."""
    found: dict[str, set[str]] = {}

    def add(command: Any, name: str) -> None:
        found[name] = {"--help"}
        for parameter in command.params:
            found[name] |= {*parameter.opts, *parameter.secondary_opts}
        for child, inner in getattr(command, "commands", {}).items():
            add(inner, f"{name} {child}".strip())

    add(typer.main.get_command(app), "")
    return found


def missing(message: str, command: str) -> list[str]:
    """What a message of a command names that is not there.

    Args:
        message: of one line.
        command: its name, as in `options`.
    """
    wrong, rest = [], message
    for match in COMMAND.finditer(message):
        verb, noun, tail = match[1], match[2] or "", match[3]
        name = f"{verb} {noun}" if f"{verb} {noun}" in options() else verb
        if name not in options():
            wrong.append(f"there is no command {name}")
            continue
        wrong += [
            f"{option} is no option of {name}" for option in OPTION.findall(tail) if option not in options()[name]
        ]
        rest = rest.replace(match[0], "")
    wrong += [
        f"{option} is no option of {command}" for option in OPTION.findall(rest) if option not in options()[command]
    ]
    if command.split()[-1:] and command.split()[-1] not in RECIPES:
        wrong += [f"{key} is a recipe's, which {command} takes none of" for key in KEY.findall(rest)]
    return wrong
