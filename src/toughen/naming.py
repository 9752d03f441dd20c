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
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError, core_schema


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
        raise ValueError(f"{name!r} is not a known {what}; allowed: {', '.join(names)}{nearest(name, names)}")
    return name


def parse_number(text: str) -> float:
    """A finite number from text such as `0.03`, `1e-3` or `8/255`; the last is how the field writes pixel units."""
    numerator, slash, denominator = text.partition("/")
    try:
        value = float(numerator) / float(denominator) if slash else float(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{text!r} is not a number; write it like 0.03, 1e-3 or 8/255") from None
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not finite; write a number like 0.03, 1e-3 or 8/255")
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


def _read(value: Any) -> Any:
    value = _no_truth(value)
    return parse_number(value) if isinstance(value, str) else value


Number = Annotated[float, BeforeValidator(_read)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
OpenShare = Annotated[Number, Field(gt=0, lt=1)]
Decay = Annotated[Number, Field(ge=0, lt=1)]
Count = Annotated[int, BeforeValidator(_no_truth), Field(ge=1)]


class Settings(BaseModel, frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False):
    """A frozen record of settings that refuses unknown names, with what is allowed and the nearest."""

    @model_validator(mode="wrap")
    @classmethod
    def _explain_unknown(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(value)
        except ValidationError as error:
            raise ValidationError.from_exception_data(
                error.title, [cls._explained(e) for e in error.errors()]
            ) from None

    @classmethod
    def _explained(cls, error: ErrorDetails) -> InitErrorDetails:
        kind: str | PydanticCustomError = error["type"]
        if kind == "extra_forbidden" and len(error["loc"]) == 1:
            fields = list(cls.model_fields)
            message = f"unknown; allowed: {', '.join(fields) or 'nothing'}{nearest(str(error['loc'][0]), fields)}"
            kind = PydanticCustomError("unknown_setting", "{message}", {"message": message})
        elif kind not in list_type_errors() or (kind == "value_error" and "error" not in error.get("ctx", {})):
            kind = PydanticCustomError("value_error", "{message}", {"message": error["msg"]})
        return InitErrorDetails(type=kind, loc=error["loc"], input=error["input"], ctx=error.get("ctx", {}))


@functools.cache
def list_type_errors() -> frozenset[str]:
    """The kinds of error that pydantic itself knows; those of other validators carry their own sentence."""
    return frozenset(get_args(core_schema.ErrorType))


@functools.lru_cache(maxsize=256)
def settings_of(function: Callable[..., Any], given: tuple[str, ...]) -> type[Settings]:
    """The settings of a function as a model: its arguments with their annotations and defaults, but for those given.

    What a `functools.partial` has filled in is given too.
    """
    fields: dict[str, Any] = {}
    skipped = {*given, *getattr(function, "keywords", {})}
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD) and name not in skipped:
            kind = Any if parameter.annotation is parameter.empty else parameter.annotation
            fields[name] = (kind, ... if parameter.default is parameter.empty else parameter.default)
    return create_model(getattr(function, "__name__", "settings"), __base__=Settings, **fields)


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
        if not isinstance(value, str | Mapping):
            raise ValueError("write a name, or a mapping with a name and its settings")
        settings = {"name": value} if isinstance(value, str) else dict(value)
        name = str(settings.pop("name", ""))
        own = {key: settings.pop(key) for key in cls.model_fields if key in settings}
        checked = settings_of(cls.find(name), cls.given).model_validate(settings)
        return handler({"name": name, **own, **dict(checked)})

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword arguments, without the name."""
        return dict(self.__pydantic_extra__ or {})
