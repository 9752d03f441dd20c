"""What is wrong with what the caller gave, said in the caller's own words.

    raise UsageError(f"{what} does not say within which ball; give ", Option("threat", like="linf:8/255"))

    str(error)         # ...; give threat, like threat="linf:8/255"
    in_shell(error)    # ...; give --threat, like --threat linf:8/255

An error is made of texts, options and commands. The library names its parameters, the command line its options, and
whoever reads recipes their keys (see `RecipeError` and `naming`): from one error, whose text is never searched.
"""

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

_SHELL = {"counts": "count", "formats": "format", "soft": "probabilities"}
"""Options of the command line that are called otherwise than the parameter."""

ARGUMENT = "what"
"""The parameter that the command line takes by its place."""


@dataclass(frozen=True)
class Option:
    """A setting that the caller may give, leave out, or change.

    Attributes:
        name: of the parameter; with a dot in it, of a recipe's key, which is called so everywhere.
        value: that it should have; a word in capitals stands for whatever the user has.
        like: an example of a value, besides the name.
        python: what a Python caller gives instead, where that is no parameter of this name.
    """

    name: str
    value: object = None
    like: object = None
    python: str = ""

    def __str__(self) -> str:
        if self.python:
            return self.python
        return self._spelt(self.name, self.name + "={}", str if "." in self.name else _literal)

    @property
    def shell(self) -> str:
        """As the command line calls it."""
        if "." in self.name:
            return str(self)
        if self.name == ARGUMENT:
            return self._spelt("", "{}", _quoted)
        option = "--" + _SHELL.get(self.name, self.name).replace("_", "-")
        return self._spelt(option, option if self.value is True else option + " {}", _quoted)

    def _spelt(self, name: str, given: str, spell: Callable[[object], str]) -> str:
        text = name if self.value is None else given.format(spell(self.value))
        return text if self.like is None else f"{text}, like {given.format(spell(self.like))}"


def image_size(value: object = None, *, like: object = None) -> Option:
    """The side that images are brought to: a view of `load`, `size` of a model's source, `data.size` of a recipe."""
    python = f"view=ResizeCrop({like if value is None else value})"
    return Option("size", value, like, python if like is None else f"view, like {python}")


def _quoted(value: object) -> str:
    return shlex.quote(str(value))


def _literal(value: object) -> str:
    if isinstance(value, str) and not re.fullmatch(r"[A-Z/]+", value):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)


class Command:
    """A command of toughen's, as text that can be pasted: `str(Command("evaluate", "runs/mine", suite="pgd-20"))`.

    Args:
        words: the verb and its arguments.
        options: by the names of their parameters; True for one without a value.
    """

    def __init__(self, *words: object, **options: object) -> None:
        self.words = ["toughen", *map(str, words)]
        for name, value in options.items():
            option = Option(name).shell
            self.words += [option] if value is True else [option, str(value)]

    def __str__(self) -> str:
        return shlex.join(self.words)


Part = str | Option | Command


class UsageError(ValueError):
    """What was given, what is allowed and what to do.

    Args:
        parts: of the sentence, in their order; another error stands for its own parts.
    """

    names: ClassVar[Mapping[str, str]] = {}
    """What options are called where this kind of error is read."""

    def __init__(self, *parts: Part | Exception) -> None:
        flat: list[Part] = []
        for part in parts:
            theirs = (
                part.args if isinstance(part, UsageError) else (str(part) if isinstance(part, Exception) else part,)
            )
            flat += theirs
        super().__init__(*(_renamed(part, self.names) for part in flat))

    def __str__(self) -> str:
        return "".join(map(str, self.args))


def in_shell(error: BaseException) -> str:
    """What an error says to whoever gave a command."""
    if not isinstance(error, UsageError):
        return str(error)
    return "".join(part.shell if isinstance(part, Option) else str(part) for part in error.args)


@contextmanager
def naming(**names: str | Option | Command) -> Iterator[None]:
    """Errors from within call these options otherwise, for what the caller here gives is called otherwise.

    Args:
        names: for the name of an option another name, or another option or a command in its place.
    """
    try:
        yield
    except UsageError as error:
        error.args = tuple(_renamed(part, names) for part in error.args)
        raise


def _renamed(part: Part, names: Mapping[str, str | Option | Command]) -> Part:
    if not isinstance(part, Option) or (name := names.get(part.name)) is None:
        return part
    return replace(part, name=name, python="") if isinstance(name, str) else name
