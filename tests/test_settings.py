"""What users type: names, numbers and settings, and the sentences they get back."""

import math
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from toughen.settings import (
    Count,
    Decay,
    NamedCall,
    NonNegative,
    Number,
    OpenShare,
    Positive,
    Settings,
    Share,
    format_number,
    known,
    nearest,
    parse_number,
    settings_of,
)


def messages(error: pytest.ExceptionInfo[ValidationError]) -> dict[str, str]:
    return {".".join(map(str, e["loc"])): e["msg"] for e in error.value.errors()}


# --- names


def test_the_nearest_name():
    assert nearest("pgf", ["fgsm", "pgd"]) == "; did you mean 'pgd'?"
    assert nearest("zzz", ["fgsm", "pgd"]) == ""
    assert nearest("x", []) == ""


def test_a_known_name_is_itself():
    assert known("pgd", {"pgd": 1}, "attack") == "pgd"


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(ValueError, match=r"^'pgf' is not a known attack; allowed: fgsm, pgd; did you mean 'pgd'\?$"):
        known("pgf", (name for name in ("fgsm", "pgd")), "attack")
    with pytest.raises(ValueError, match=r"^'q' is not a known loss; allowed: kl$"):
        known("q", ["kl"], "loss")


# --- numbers


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8/255", 8 / 255),
        ("8.8/255", 8.8 / 255),
        ("0.03", 0.03),
        ("1e-3", 0.001),
        ("-2", -2.0),
        (" 8 / 255 ", 8 / 255),
        ("1/3", 1 / 3),
        ("0", 0.0),
    ],
)
def test_numbers_are_read(text, value):
    assert parse_number(text) == value


@pytest.mark.parametrize("text", ["", "/", "8/", "/255", "eight", "8/255/2", "8/0", "0/0", "1,5", "0x10"])
def test_what_is_no_number_is_refused(text):
    with pytest.raises(ValueError, match=r"is not a number; write it like 0\.03, 1e-3 or 8/255") as caught:
        parse_number(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999", "inf/2", "1e308/1e-308"])
def test_what_is_not_finite_is_refused(text):
    with pytest.raises(ValueError, match="is not finite; write a number like"):
        parse_number(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (8 / 255, "8/255"),
        (0.01, "0.01"),
        (8.8 / 255, "8.8/255"),
        (0.2, "0.2"),
        (0.5, "0.5"),
        (1.0, "1.0"),
        (0.0, "0.0"),
        (-8 / 255, "-8/255"),
        (1 / 255, "1/255"),
        (math.nextafter(8 / 255, 1), repr(math.nextafter(8 / 255, 1))),
        (1e-30, "1e-30"),
        (1e300, "1e+300"),
    ],
)
def test_numbers_are_written_shortly(value, text):
    assert format_number(value) == text


@given(st.floats(-1e300, 1e300))
def test_every_number_survives_its_text(value):
    assert parse_number(format_number(value)) == value


@given(st.integers(0, 100))
def test_every_number_of_grey_levels_survives_its_text(levels):
    assert parse_number(format_number(levels / 255)) == levels / 255


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Number, ["8/255", -1, 0.5], ["x", None]),
        (Positive, ["8/255", 1], [0, -1, "0"]),
        (NonNegative, [0, "0", 2], [-1e-9, "-8/255"]),
        (Share, [0, 1, "1/2"], [-0.1, 1.1, "256/255"]),
        (OpenShare, [0.5], [0, 1]),
        (Decay, [0, 0.99], [1, -0.1]),
        (Count, [1, 7], [0, -1, 1.5, "x"]),
    ],
)
def test_kinds_of_number(kind, good, bad):
    adapter = TypeAdapter(kind)
    for value in good:
        assert adapter.validate_python(value) == (parse_number(value) if isinstance(value, str) else value)
    for value in bad:
        with pytest.raises(ValidationError):
            adapter.validate_python(value)


# --- settings


class Mine(Settings, frozen=True):
    steps: Count = 3
    rate: Positive = 0.1


class Nothing(Settings, frozen=True):
    pass


def test_settings_are_filled_in_and_frozen():
    mine = Mine.model_validate({"rate": "2/255"})
    assert (mine.steps, mine.rate) == (3, 2 / 255)
    with pytest.raises(ValidationError, match="frozen"):
        mine.steps = 4  # pyright: ignore[reportAttributeAccessIssue]


def test_an_unknown_setting_is_refused_with_the_nearest():
    with pytest.raises(ValidationError) as caught:
        Mine.model_validate({"step": 3})
    assert messages(caught) == {"step": "unknown; allowed: steps, rate; did you mean 'steps'?"}
    with pytest.raises(ValidationError) as caught:
        Nothing.model_validate({"zzz": 3})
    assert messages(caught) == {"zzz": "unknown; allowed: nothing"}


def test_all_errors_are_told_at_once():
    with pytest.raises(ValidationError) as caught:
        Mine.model_validate({"steps": 0, "rate": "fast", "rte": 1})
    found = messages(caught)
    assert found.keys() == {"steps", "rate", "rte"}
    assert "greater than or equal to 1" in found["steps"]
    assert "'fast' is not a number" in found["rate"]
    assert "did you mean 'rate'?" in found["rte"]


@pytest.mark.parametrize("rate", [math.nan, math.inf])
def test_settings_are_finite(rate):
    with pytest.raises(ValidationError, match="finite number"):
        Mine(rate=rate)


def example(model, x, *, threat, steps: Count = 5, rate: Positive, loss: str = "kl"): ...


def test_the_settings_of_a_function_are_its_arguments():
    kind = settings_of(example, ("model", "x", "threat"))
    assert dict(kind.model_validate({"rate": "1/2"})) == {"steps": 5, "rate": 0.5, "loss": "kl"}
    with pytest.raises(ValidationError) as caught:
        kind.model_validate({"steps": 0, "threat": 1})
    assert messages(caught) == {
        "steps": "Input should be greater than or equal to 1",
        "rate": "Field required",
        "threat": "unknown; allowed: steps, rate, loss; did you mean 'rate'?",
    }


def test_what_a_partial_has_filled_in_is_given():
    kind = settings_of(partial(example, rate=1), ("model", "x", "threat"))
    assert list(kind.model_fields) == ["steps", "loss"]


# --- named calls


CALLS = {"example": example}


class Call(NamedCall, frozen=True):
    given = ("model", "x", "threat")

    @classmethod
    def find(cls, name: str):
        return CALLS[known(name, CALLS, "example")]


def test_a_named_call_says_all_there_is_to_know():
    call = Call.model_validate({"name": "example", "rate": "8/255"})
    assert call.settings == {"steps": 5, "rate": 8 / 255, "loss": "kl"}
    assert call.model_dump() == {"name": "example", **call.settings}
    assert Call.model_validate(call.model_dump()) == call
    assert Call.model_validate_json(call.model_dump_json()) == call
    assert Call.model_validate(call) is call
    assert call != Call.model_validate({"name": "example", "rate": "9/255"})


@pytest.mark.parametrize("value", [{"name": "exmple", "rate": 1}, {"name": "exmple"}, "exmple"])
def test_a_call_of_an_unknown_name(value):
    with pytest.raises(ValidationError, match=r"'exmple' is not a known example.*did you mean 'example'\?"):
        Call.model_validate(value)


def test_text_alone_is_a_name_with_defaults(monkeypatch):
    monkeypatch.setitem(CALLS, "easy", lambda model, x, *, steps=2: None)
    assert Call.model_validate("easy").model_dump() == {"name": "easy", "steps": 2}
    with pytest.raises(ValidationError, match="rate"):
        Call.model_validate("example")


@pytest.mark.parametrize("value", [{}, {"steps": 3}, {"name": "example", "rate": 1, "stpes": 2}])
def test_calls_that_are_refused(value):
    with pytest.raises(ValidationError, match=r"name is missing|unknown; allowed.*did you mean 'steps'\?"):
        Call.model_validate(value)


@pytest.mark.parametrize("value", [3, None, ["example"]])
def test_what_is_no_call_is_refused(value):
    with pytest.raises(ValidationError, match="write a name, or a mapping with a name and its settings"):
        Call.model_validate(value)
