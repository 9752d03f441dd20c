"""What users type, names, numbers and settings, and the sentence they get where it is not understood.

Example:
    known("pgf", ATTACKS, "attack")             # ValueError: 'pgf' is not a known attack; ... did you mean 'pgd'?
    parse_number("8/255")
    class Mine(Settings, frozen=True): ...      # refuses unknown fields by name, with the nearest one
"""

import difflib
import functools
import inspect
import math
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Self, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError, core_schema

SHOWN = 100
"""Characters of a value that an error shows."""

MOST = 2**53
"""No whole number is larger: beyond it a float, in which costs are told, is no exact count."""


def shown(value: Any) -> str:
    """A value as an error shows it: on one line, and no longer than anybody reads."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 20]}...{text[-10:]}"


@contextmanager
def at_key(key: str) -> Iterator[None]:
    """Errors from within name the key of the recipe that they are about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def nearest(name: str, allowed: Iterable[str]) -> str:
    """The question that ends an error message, like `; did you mean "free"?`, or nothing when no name is close."""
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def known(name: str, allowed: Iterable[str], what: str) -> str:
    """The name itself.

    Raises:
        ValueError: when it is not among `allowed`; the sentence lists them and the nearest.
    """
    names = list(allowed)
    if name not in names:
        raise ValueError(f"{shown(name)} is not a known {what}; allowed: {', '.join(names)}{nearest(name, names)}")
    return name


def parse_number(text: str) -> float:
    """A finite number from text such as `0.03`, `1e-3` or `8/255`; the last is how the field writes pixel units."""
    numerator, slash, denominator = text.partition("/")
    try:
        value = float(numerator) / float(denominator) if slash else float(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{shown(text)} is not a number; write it like 0.03, 1e-3 or 8/255") from None
    if not math.isfinite(value):
        raise ValueError(f"{shown(text)} is not finite; write a number like 0.03, 1e-3 or 8/255")
    return value


def format_number(value: float) -> str:
    """The shortest text that `parse_number` turns into exactly this value, in 255ths where that is shorter."""
    scaled = Fraction(value * 255).limit_denominator(100)
    in_255ths = f"{float(scaled):g}/255"
    return in_255ths if len(in_255ths) < len(repr(value)) and parse_number(in_255ths) == value else repr(value)


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"{value} is not a number")
    return value


def as_number(value: Any) -> Any:
    """A number from text; anything else as it is, but for true and false, which are refused."""
    value = _no_truth(value)
    return parse_number(value) if isinstance(value, str) else value


Number = Annotated[float, BeforeValidator(as_number)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
OpenShare = Annotated[Number, Field(gt=0, lt=1)]
Decay = Annotated[Number, Field(ge=0, lt=1)]


def _some(values: Any) -> Any:
    if not values:
        raise ValueError("it is empty; give one or more")
    return values


Some = AfterValidator(_some)
"""Of a list: that there is something in it."""

Whole = Annotated[int, BeforeValidator(_no_truth)]
NonNegativeCount = Annotated[Whole, Field(ge=0, le=MOST)]
Count = Annotated[Whole, Field(ge=1, le=MOST)]


class Settings(BaseModel, frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False):
    """A frozen record of settings that refuses unknown names, with what is allowed and the nearest.

    Attributes:
        beside: names that whoever writes the settings may also use, for what is read before them.
    """

    beside: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="wrap")
    @classmethod
    def _explain_unknown(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(value)
        except ValidationError as error:
            raise ValidationError.from_exception_data(
                error.title, [cls._explained(e) for e in cls._told_once(error.errors(), value)]
            ) from None

    @classmethod
    def _told_once(cls, errors: Iterable[ErrorDetails], value: Any) -> Iterator[ErrorDetails]:
        """The errors, with one for a field that may be several things, where pydantic has one for each of these."""
        told: dict[Any, ErrorDetails] = {}
        for error in errors:
            loc = error["loc"]
            given = value.get(loc[0]) if loc and isinstance(value, Mapping) else None
            keys = [*given] if isinstance(given, Mapping) else []
            named_by_user = len(loc) > 1 and (loc[1] in keys or (keys and error["type"] == "missing"))
            if len(loc) < 2 or named_by_user or not _is_choice(cls.model_fields.get(str(loc[0]))):
                yield error
            elif loc[0] not in told:
                told[loc[0]] = {**error, "type": "choice", "loc": loc[:1], "ctx": {}}
            # Nobody writes a tensor or a function in a recipe.
            elif error["type"] not in ("is_instance_of", "callable_type") and "Input" in told[loc[0]]["msg"]:
                told[loc[0]]["msg"] += error["msg"].replace("Input should be", ", or", 1)
        yield from told.values()

    @classmethod
    def _explained(cls, error: ErrorDetails) -> InitErrorDetails:
        kind: str | PydanticCustomError = error["type"]
        if kind == "extra_forbidden" and len(error["loc"]) == 1:
            fields = [*cls.model_fields, *cls.beside]
            message = f"unknown; allowed: {', '.join(fields) or 'nothing'}{nearest(str(error['loc'][0]), fields)}"
            kind = PydanticCustomError("unknown_setting", "{message}", {"message": message})
        elif kind not in list_type_errors() or (kind == "value_error" and "error" not in error.get("ctx", {})):
            named = error["type"]
            kind = PydanticCustomError(named, "{message}", {"message": error["msg"]})  # pyright: ignore[reportArgumentType]
        return InitErrorDetails(type=kind, loc=error["loc"], input=error["input"], ctx=error.get("ctx", {}))


def _is_choice(field: Any) -> bool:
    """Whether a field may be one of several things, of which null is none: pydantic puts their names into the path."""
    kinds = get_args(field.annotation) if field and get_origin(field.annotation) in (Union, types.UnionType) else ()
    return len([kind for kind in kinds if kind is not type(None)]) > 1


@functools.cache
def list_type_errors() -> frozenset[str]:
    """The kinds of error that pydantic itself knows; those of other validators carry their own sentence."""
    return frozenset(get_args(core_schema.ErrorType))


@functools.lru_cache(maxsize=256)
def settings_of(function: Callable[..., Any], given: tuple[str, ...], beside: tuple[str, ...] = ()) -> type[Settings]:
    """The settings of a function as a model: its arguments with their annotations and defaults, but for those given.

    What a `functools.partial` has filled in is given too. `beside` is as in `Settings`.
    """
    fields: dict[str, Any] = {}
    skipped = {*given, *getattr(function, "keywords", {})}
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD) and name not in skipped:
            # Plain numbers mean numbers, where pydantic would take true for 1.
            kind = Any if parameter.annotation is parameter.empty else parameter.annotation
            kind = {int: Whole, float: Number}.get(kind, kind) if isinstance(kind, type) else kind
            fields[name] = (kind, ... if parameter.default is parameter.empty else parameter.default)
    made = create_model(getattr(function, "__name__", "settings"), __base__=Settings, **fields)
    made.beside = beside
    return made


def named(value: Any) -> dict[str, Any]:
    """A name, or a mapping with a name and its settings, as such a mapping.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(value, str | Mapping):
        raise ValueError(f"write a name, or a mapping with a name and its settings; it is {shown(value)}")
    settings = {"name": value} if isinstance(value, str) else dict(value)
    if "name" not in settings:
        near = difflib.get_close_matches("name", [key for key in settings if isinstance(key, str)], n=1, cutoff=0.5)
        guess = f"; {shown(near[0])} is unknown, did you mean 'name'?" if near else "; write {name: ...} with it"
        raise ValueError(f"name is missing{guess}")
    return settings


class NamedCall(BaseModel, frozen=True, extra="allow"):
    """A function by its registered name, with settings checked against its signature.

    Every setting is filled in, defaults too, so that a record of it says all there is to know. A subclass says where
    names are looked up and which arguments the caller gives. Text alone is a name with default settings.
    """

    name: str

    @classmethod
    def find(cls, name: str) -> Callable[..., Any]:
        """The function of that name, or a ValueError that says which there are."""
        raise NotImplementedError

    given: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="wrap")
    @classmethod
    def _check(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(value, cls):
            return value
        settings = named(value)
        name = str(settings.pop("name"))
        own = {key: settings.pop(key) for key in cls.model_fields if key in settings}
        checked = settings_of(cls.find(name), cls.given, tuple(cls.model_fields)).model_validate(settings)
        found = handler({"name": name, **own, **dict(checked)})
        # What was said and what is by default can be told apart afterwards: `model_fields_set` holds the former alone.
        object.__setattr__(found, "__pydantic_fields_set__", {"name", *own, *checked.model_fields_set})
        return found

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword arguments, without the name."""
        return dict(self.__pydantic_extra__ or {})
