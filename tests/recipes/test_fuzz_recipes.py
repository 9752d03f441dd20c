"""Thousands of recipes that nobody should write: each is refused in sentences that help, or survives its dump."""

import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest

from recipes.fuzzed_recipes import (
    CONTRADICTIONS,
    NEVER,
    at,
    garbled,
    impossible,
    leaves,
    one_slip_apart,
    put,
    renamed,
    sections,
    slip,
    whole,
)
from toughen.attacks import ATTACKS
from toughen.methods import METHODS
from toughen.optim.schedules import SCHEDULES
from toughen.recipes import Recipe, RecipeError, dump, load, shipped, twinned
from toughen.recipes.text import build, change, parse_yaml, read
from toughen.threat import Linf

pytestmark = pytest.mark.faults

BASE = {"data": "mnist5k", "model": "small_cnn", "method": "free", "threat": "linf:0.1", "steps": 8, "batch_size": 32}
GOAL = "6 recipes"


def drawn(seed: str, n: int) -> Iterator[Random]:
    """Generators, one for each trial."""
    return (Random(f"{seed} {number}") for number in range(n))


def refusal(mapping: Mapping[str, Any]) -> str:
    """The sentences with which a recipe is refused: few, short and printable."""
    with pytest.raises(RecipeError) as caught:
        build(mapping)
    return sound(str(caught.value))


def sound(text: str) -> str:
    """The text itself, which people can read."""
    assert text.isprintable() or all(line.isprintable() for line in text.splitlines()), ascii(text)
    assert len(text.splitlines()) <= 40
    assert all(len(line) < 800 for line in text.splitlines()), text
    # Names of what is inside pydantic are no part of a recipe.
    assert not re.search(r"function-|is-instance|literal\[|pydantic|input_value|Traceback|<class", text), text
    return text


def comes_back(recipe: Recipe) -> None:
    """A recipe that is accepted is the same after its dump."""
    assert build(parse_yaml(dump(recipe), "dump")) == recipe
    assert math.isfinite(float(recipe.threat.eps))


def fine_or_refused(mapping: Any) -> bool:
    """Whether a recipe is accepted; it must not end otherwise than in sentences."""
    try:
        recipe = build(mapping)
    except RecipeError as error:
        sound(str(error))
        return False
    comes_back(recipe)
    return True


def line_on(text: str, path: tuple[Any, ...]) -> str:
    """The line about the value at a path: it begins with it, or with that of a section around it and names the rest."""
    for keys in range(len(path), -1, -1):
        dotted = ".".join(map(str, path[:keys]))
        for line in text.splitlines():
            named = keys == len(path) or str(path[-1]) in line[len(dotted) :]
            if named and re.match(rf"{re.escape(dotted)}(:| \[|\b)" if dotted else "", line):
                return line
    raise AssertionError(f"no line on {path} in {text}")


def tells(line: str, given: Any) -> bool:
    """Whether a line shows the value that was given, whole or its beginning."""
    if isinstance(given, dict):
        return "a section" in line or repr(given) in line
    shapes = {repr(given), str(given)}
    if isinstance(given, int | float) and -(2**60) < given < 2**60:
        shapes |= {repr(float(given)), repr(int(given))}
    if isinstance(given, str):
        try:
            top, _, below = given.partition("/")
            shapes |= {repr(float(top) / float(below or 1)), repr(int(top))}
        except (ValueError, ZeroDivisionError):
            pass
    return any(shape[:60] in line for shape in shapes)


HELPS = re.compile(r"should|must|allowed|write|give|needs|at least|at most|did you mean|exceeded")


def test_valid_recipes_come_back_from_their_dump(faults):
    n = faults.trials(small=25, full=1200)
    for draw in drawn("valid", n):
        comes_back(build(whole(draw)))
    names = [*shipped(), *(f"{name}-small" for name in twinned())][:: faults.trials(small=20, full=1)]
    for name in names:
        comes_back(load(name))
    faults.tell(GOAL, f"{n} drawn and {len(names)} shipped recipes: all equal after load(dump())")


def test_a_key_misspelt_by_one_letter_is_refused_and_the_right_one_named(faults):
    n, told = faults.trials(small=60, full=1500), 0
    for draw in drawn("misspelt", n):
        mapping = build(whole(draw)).model_dump(mode="json") if draw.random() < 0.5 else whole(draw)
        path = draw.choice(list(sections(mapping)))
        key = draw.choice(list(at(mapping, path)))
        wrong = slip(draw, key)
        text = refusal(renamed(mapping, path, key, wrong)) if wrong not in at(mapping, path) else ""
        if not text:
            continue
        line = line_on(text, (*path, wrong))
        assert "unknown" in line, (text, path, key)
        guess = re.search(r"did you mean '(\w+)'\?", line)
        assert guess, (key, line)
        assert guess[1] == key or one_slip_apart(guess[1], wrong), (key, line)
        told += 1
    assert told >= 0.9 * n
    faults.tell(GOAL, f"{told} keys misspelt by one letter, at every depth: {told} refused with the right key")


def test_any_unknown_key_is_refused(faults):
    n = faults.trials(small=30, full=700)
    for draw in drawn("unknown", n):
        mapping = whole(draw)
        path = draw.choice(list(sections(mapping)))
        key = draw.choice(list(at(mapping, path)))
        wrong = draw.choice(
            [slip(draw, slip(draw, f"{key}x")), "__class__", "", " ", "é\n", "x" * 5000, "a.b", "\0", "\x1b[1m"]
        )
        if wrong not in build(mapping).model_dump() and wrong not in at(mapping, path):
            text = refusal(put(mapping, (*path, wrong), draw.choice([1, None, {}, "a"])))
            assert re.search(r"unknown|no option|did you mean|name is missing", text), text


def test_a_misspelt_name_is_refused_and_the_right_one_named(faults):
    kinds = {
        "method": (METHODS, lambda name: {"method": name}),
        "schedule": (SCHEDULES, lambda name: {"schedule": {"name": name}}),
        "attack": (ATTACKS, lambda name: {"method": {"name": "adversarial", "attack": name}}),
    }
    for draw in drawn("names", faults.trials(small=60, full=300)):
        names, made = kinds[draw.choice(list(kinds))]
        name = draw.choice(list(names))
        wrong = slip(draw, name)
        if wrong not in names:
            guess = re.search(r"did you mean '(\w+)'\?", refusal(BASE | made(wrong)))
            assert guess, wrong
            assert guess[1] == name or one_slip_apart(guess[1], wrong), (name, wrong)


def numbers(mapping: dict[str, Any]) -> list[tuple[tuple[Any, ...], float]]:
    """Where numbers stand in a recipe, and which."""
    return [(p, v) for p, v in leaves(mapping) if isinstance(v, int | float) and not isinstance(v, bool)]


def is_refused(mapping: dict[str, Any], path: tuple[Any, ...], value: Any) -> None:
    """A value at a path is refused in a line with the path, the value and what is allowed."""
    line = line_on(refusal(put(mapping, path, value)), path)
    assert tells(line, value), (path, value, line)
    assert HELPS.search(line) or "is not" in line, line


def test_every_number_is_a_finite_number_and_no_truth_value():
    small = {"model": {"name": "small_cnn", "width": 2}, "schedule": "multistep", "weight_perturbation": {}}
    method = {"name": "adversarial", "attack": {"name": "pgd", "step_size": "2/255"}}
    mapping = build(BASE | small | {"method": method, "averages": [0.9], "micro_batch": 4}).model_dump(mode="json")
    assert len(numbers(mapping)) > 20
    for path, _ in numbers(mapping):
        for value in (True, False, 10**400, "nan", math.inf, "-1e999", [], {}, ""):
            is_refused(mapping, path, value)


def test_a_number_that_cannot_be_is_refused_with_its_path_its_value_and_what_is_allowed(faults):
    n, seen = faults.trials(small=80, full=1500), set()
    for draw in drawn("numbers", n):
        mapping = build(whole(draw)).model_dump(mode="json")
        path, number = draw.choice(numbers(mapping))
        is_refused(mapping, path, impossible(draw, path, number))
        seen.add(path)
    faults.tell(
        GOAL, f"{n} numbers that cannot be, in {len(seen)} fields: {n} refused with path, value and what is allowed"
    )


def test_a_ball_that_cannot_be_is_refused():
    for value in (
        *NEVER,
        "linf:0",
        "linf:-1/255",
        "linf:1.01",
        "linf:nan",
        "l2:inf",
        "l2:0",
        "linf:1e999",
        "linf:8/0",
        "linf:",
    ):
        for mapping in (BASE | {"threat": value}, BASE | {"method": {"name": "free", "threat": value}}):
            line = line_on(
                refusal(mapping), ("method", "threat") if isinstance(mapping["method"], dict) else ("threat",)
            )
            assert HELPS.search(line), line


def test_contradictions_are_refused_before_anything_is_computed(faults, monkeypatch: pytest.MonkeyPatch):
    def computed(*arguments: object, **keywords: object):
        raise AssertionError("computed something")

    monkeypatch.setattr("toughen.methods.base.count_on_toy", computed)
    monkeypatch.setattr(Recipe, "natural_steps", property(computed))
    for number, (changes, word) in enumerate(CONTRADICTIONS):
        assert word in refusal(BASE | changes)
        # And with the rest of a recipe around them.
        for draw in drawn(f"contradiction {number}", faults.trials(small=1, full=20)):
            assert word in refusal(whole(draw) | {"batch_size": 32, "sharding": "none", "threat": "linf:0.1"} | changes)


ODD: list[Any] = [
    *NEVER,
    None,
    0,
    -1,
    1,
    2**62,
    "a",
    "free",
    "pgd",
    "null",
    "true",
    "8/255",
    "1_000",
    "1e-3",
    "\0",
    "é",
    "~/x",
]
ODD += [
    ["a", "b"],
    [None],
    {"name": "free"},
    {"name": None},
    {"name": []},
    {None: 1},
    {1: 2},
    {"": ""},
    {"source": "a"},
    b"a",
    (1,),
    1j,
]
ODD += [
    {"name": "mixup", "method": {"name": "mixup", "method": {"name": "x"}}},
    "x" * 10_000,
    "pgd-" + "9" * 5000,
    "wrn-10-" + "9" * 5000,
]


def test_anything_in_place_of_anything_ends_in_sentences(faults):
    n = faults.trials(small=80, full=2000)
    accepted = 0
    for draw in drawn("anything", n):
        mapping = whole(draw)
        for _ in range(draw.choice([1, 1, 2, 4])):
            places = [*(path for path, _ in leaves(mapping)), *(path for path in sections(mapping) if path)]
            # A long attack is no fault, but a dry run or a model of a million channels would take its time.
            mapping = put(mapping, draw.choice(places), draw.choice(ODD))
        accepted += fine_or_refused(mapping)
    faults.tell(
        GOAL, f"{n} recipes with anything in place of anything: {n - accepted} refused in sentences, 0 tracebacks"
    )


def nested(depth: int) -> dict[str, Any]:
    method: Any = "natural"
    for _ in range(depth):
        method = {"name": "mixup", "method": method}
    return BASE | {"method": method}


def test_depths_and_paths(tmp_path: Path):
    for depth in (3, 30, 400, 3000):
        assert fine_or_refused(nested(depth)) is (depth < 100)
    for item in (
        "a" + ".a" * 5000 + "=1",
        "method=" + "{name: mixup, method: " * 40 + "natural" + "}" * 40,
        "x=" + "[" * 40 + "]" * 40,
    ):
        with pytest.raises(RecipeError, match=r"32 deep|32 keys deep"):
            load("mnist-free", [item])
    for path in ("a/" + "b" * 5000, "a\0/b.yaml", "~nobody-of-this-name/x.yaml", f"{tmp_path}/\udcff.yaml", "\ud800/x"):
        with pytest.raises(RecipeError, match="cannot be read"):
            load(path)
    for weights in ("~nobody-of-this-name/net.pt", "a\0b", "x" * 5000, "\udcff"):
        fine_or_refused(BASE | {"model": {"name": "small_cnn", "weights": weights}})
    (tmp_path / "mine.yaml").write_text("bas: mnist-free\n")
    with pytest.raises(RecipeError, match="bas: unknown; did you mean 'base'"):
        load(str(tmp_path / "mine.yaml"))


TRAPS: dict[str, float | None] = {
    "1e-3": 1e-3,
    "1E-3": 1e-3,
    "+1e-3": 1e-3,
    "1_000": 1e3,
    "1e3": 1e3,
    "010": 10,
    "1.": 1,
    ".5": 0.5,
    "'0.5'": 0.5,
    "8/255": 8 / 255,
    "8 / 255": 8 / 255,
    "1 # comment": 1,
    **dict.fromkeys(["0o10", "0x10", "1:30", "no", "on", "~", ".inf", ".nan", "2001-01-01", "true", "1e999", "[1]"]),
    **dict.fromkeys(["{a: 1}", "!!float 1", "", "__import__('os').getpid()", "1,5", "True", "falsehood", "true|"]),
}


@pytest.mark.parametrize("text", TRAPS)
def test_numbers_in_yaml_and_on_the_command_line(text: str, tmp_path: Path):
    """As people mean them, where YAML 1.1 has traps, and by no `eval`."""
    (tmp_path / "mine.yaml").write_text(f"base: mnist-free\noptimizer:\n  lr: {text}\n")
    for path, changes in ((str(tmp_path / "mine.yaml"), ()), ("mnist-free", (f"optimizer.lr={text}",))):
        if (expected := TRAPS[text]) is not None:
            assert load(path, changes).optimizer.lr == expected
        else:
            with pytest.raises(RecipeError, match=r"optimizer\.lr|tags are not allowed"):
                load(path, changes)
    with pytest.raises(RecipeError):
        load("mnist-free", [f"threat={text}"])
    assert load("mnist-free", ["threat=linf:8/255"]).threat == Linf(8 / 255)


def test_garbled_files_end_in_sentences(faults, tmp_path: Path):
    names = [name for name in shipped() if "imagenet" not in name][::10][:20]
    n, path, accepted = faults.trials(small=100, full=2000), tmp_path / "mine.yaml", 0
    for number, draw in enumerate(drawn("garbled", n)):
        name = names[number % len(names)]
        text = shipped()[name] if draw.random() < 0.5 else dump(build(whole(draw)))
        path.write_bytes(garbled(draw, text))
        try:
            recipe = load(str(path))
        except RecipeError as error:
            sound(str(error))
        else:
            comes_back(recipe)
            accepted += 1
    assert 0 < accepted < n
    faults.tell(GOAL, f"{n} garbled YAML files: {n - accepted} refused in sentences, {accepted} still recipes")


def test_changes_on_the_command_line_end_in_sentences(faults):
    n, base = faults.trials(small=100, full=2000), read("mnist-free")
    paths = [".".join(map(str, path)) for path, _ in leaves(build(base).model_dump(mode="json"))]
    values = [str(value) for value in NEVER] + [
        "null",
        "{}",
        "[",
        "'",
        "a: b",
        "- a",
        "*a",
        "&a 1",
        "!!int 1",
        "\udcff",
        "%",
        "@",
        "`",
    ]
    values += ["{name: free}", "1e-3", "8/255", "true", "\t", "\n\n", "? a", "|", ">", "~", "0", "-1", "1_000"]
    for draw in drawn("changes", n):
        keys = draw.choice(paths)
        key = draw.choice([keys, keys, slip(draw, keys), f"{keys}.x", f".{keys}", f"{keys}..", "", "=", "é"])
        item = draw.choice([f"{key}={draw.choice(values)}", f"{key}={draw.choice(values)}", key, f"{key}==", f"={key}"])
        try:
            recipe = build(change(base, [item]))
        except RecipeError as error:
            sound(str(error))
        else:
            comes_back(recipe)
    assert os.sep in dump(build(base | {"model": {"name": "small_cnn", "weights": "x"}}))
