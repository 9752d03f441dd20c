"""Recipes as text: what YAML means here, changes, files, and what hostile or broken text leads to."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toughen import recipes
from toughen.methods import Free
from toughen.recipes import RecipeError, dump, load
from toughen.recipes.text import build, change, parse_yaml, read
from toughen.threat import L2, Linf

BASE = {"data": "mnist5k", "model": "small_cnn", "method": "free", "threat": "linf:0.1", "steps": 8}
YAML = "data: mnist5k\nmodel: small_cnn\nmethod: free\nthreat: linf:0.1\nsteps: 8\n"


def written(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def refused(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_yaml(text, "mine.yaml")
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith("mine.yaml")
    return str(caught.value)


def test_numbers_as_people_write_them():
    given_text = ["optimizer.lr=1e-3", "optimizer.weight_decay=5e-4", "threat=linf:8/255", "steps=1_000", "seed=010"]
    recipe = load("mnist-free", given_text)
    assert (recipe.optimizer.lr, recipe.optimizer.weight_decay) == (1e-3, 5e-4)
    assert recipe.threat == Linf(8 / 255)
    assert (recipe.steps, recipe.seed) == (1000, 10)
    assert "threat: linf:8/255" in dump(recipe)
    assert load("mnist-free", ["optimizer.lr=8/255"]).optimizer.lr == 8 / 255
    assert load("mnist-free", ["threat=l2:128/255"]).threat == L2(128 / 255)


@pytest.mark.parametrize("text", ["no", "on", "off", "010", "1_000", "0x10", "1:30", "2001-01-01", "=", "<<", "1e3"])
def test_what_yaml_would_turn_into_something_else_stays_text(text: str):
    assert parse_yaml(f"a: {text}", "x") == {"a": text}
    assert load("mnist-free", [f"name={text}"]).name == text


def test_only_true_false_and_null_are_not_text():
    assert parse_yaml("[true, false, null, ~, True, 1]", "x") == [True, False, None, None, "True", "1"]


@pytest.mark.parametrize("name", ["true", "false", "null", "no", "1e3", "[red]", "a: b", "~", " x ", "#", "é"])
def test_any_name_comes_back_from_a_dump(name: str):
    recipe = build({**BASE, "name": name})
    assert build(parse_yaml(dump(recipe), "dump")) == recipe


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: &x 1\nb: *x", "line 2: aliases are not allowed"),
        ("a: &x [*x]", "line 1: aliases are not allowed"),
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' is there twice"),
        ("a: {b: 1, b: 2}", "line 1: the key 'b' is there twice"),
        ("a: !!python/object/apply:os.system [exit]", "tag"),
        ("a: !!python/name:os.system", "tag"),
        ("a: !mine 3", "tag"),
        ("a:\n\t- 1", "line 2"),
        ("a: [1", "line 1"),
        ("a: 1\n---\nb: 2", "another document"),
        ("a: \x07", "not readable"),
        ("? [1]\n: 2", "key"),
        ("a: {{b: 1}: 2}", "key"),
        ("a: !!float x", ""),
        ("a: !!int x", ""),
        ("a: !!bool x", ""),
        ("a: !!timestamp x", ""),
        ("a: !!map [1]", ""),
        ("[" * 20_000, "not readable"),
        ("{a: " * 20_000, "not readable"),
        ("- " * 20_000, "not readable"),
        ("x" * (2 << 20), "larger than 1 MiB"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_text_that_is_no_recipe_is_refused_in_a_sentence(text: str, says: str):
    assert says in refused(text)


def test_files_that_cannot_be_recipes(tmp_path: Path):
    for text in ("", "- a", "mnist5k"):
        with pytest.raises(RecipeError, match="holds no mapping"):
            load(written(tmp_path, text))
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    for name, says in (("bytes.yaml", "not text"), ("none.yaml", "No such file"), ("", r"recipe\.yaml")):
        with pytest.raises(RecipeError, match=says):
            load(str(tmp_path / name))
    with pytest.raises(RecipeError, match="larger than 1 MiB"):
        load(written(tmp_path, "#" * (2 << 20)))
    with pytest.raises(RecipeError):
        load("a" * 5000)


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(RecipeError, match=r"did you mean 'mnist-free'.*path of a YAML file"):
        load("mnist-fre")


def test_a_file_and_a_folder_are_recipes_too(tmp_path: Path):
    assert load(written(tmp_path, YAML)) == build(BASE)
    (tmp_path / "recipe.yaml").write_text(dump(build({**BASE, "seed": 7})))
    assert load(str(tmp_path)).seed == 7
    assert load(str(tmp_path), ["seed=8"]).seed == 8


def test_another_method_starts_its_section_anew_and_a_setting_keeps_the_rest():
    pgd = {"name": "adversarial", "attack": {"name": "pgd", "steps": "7"}}
    for item in ("method=natural", "method.name=natural"):
        assert change({"method": pgd}, [item]) == {"method": {"name": "natural"}}
    assert change({"method": pgd}, ["method=adversarial"]) == {"method": pgd}
    kept = {"method": {"name": "adversarial", "attack": {"name": "pgd", "steps": "3"}}}
    assert change({"method": pgd}, ["method.attack.steps=3"]) == kept
    assert change({"method": pgd}, ["method.attack=fgsm"])["method"]["attack"] == {"name": "fgsm"}
    assert pgd["attack"] == {"name": "pgd", "steps": "7"}  # the argument is left alone

    method = load("cifar10-free", ["method.replays=4"]).method
    assert isinstance(method, Free)
    assert method.replays == 4
    assert load("cifar10-free", ["method=natural"]).method.steps_per_batch == 1


def test_what_is_changed_in_a_recipe_that_was_read_stays_out_of_the_next():
    first = read("mnist-free")
    first["method"]["replays"] = 99
    first["data"] = "gone"
    assert read("mnist-free")["method"]["replays"] != 99
    assert build(read("mnist-free")) == load("mnist-free")


def test_a_name_cut_short_is_a_text():
    assert load("mnist-free", ["data=hub:"]).data.source == "hub:"


def test_changes_of_data_model_and_selection(tmp_path: Path):
    data = load("cifar10-free", [f"data={tmp_path}"]).data
    assert (data.source, data.pad, data.flip) == (str(tmp_path), 2, True)
    model = load("cifar10-free", ["model=wrn-16-4", "model.activation=silu"]).model
    assert (model.name, model.settings["activation"]) == ("wrn-16-4", "silu")
    before = load("cifar10-free-small").model.settings
    assert before["activation"] == "relu"
    small = load("cifar10-free-small", ["model.activation=silu"]).model.settings
    assert small == {**before, "activation": "silu"}
    assert "width" not in change({"model": {"name": "small_cnn", "width": 2}}, ["model=resnet18"])["model"]
    selection = load("cifar10-free", ["selection=pgd-10"]).selection
    assert (selection.suite, selection.every) == ("pgd-10", 4000)
    assert load("mnist-free", ["averages=[0.9, 0.99]"]).averages == (0.9, 0.99)
    assert load("mnist-free", ["seed=1", "seed=2"]).seed == 2
    assert load("mnist-free", ["name=a=b"]).name == "a=b"


@pytest.mark.parametrize("item", ["key", "", "=3", "a..b=3", ".a=3", "a.=3", "--steps"])
def test_a_change_that_is_none(item: str):
    with pytest.raises(RecipeError, match="is not a change; write key=value"):
        load("mnist-free", [item])


def test_a_relative_data_folder_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load("mnist-free", ["data=images"]).data.source == str(tmp_path / "images")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("mnist-free", ["data=~/images"]).data.source == str(tmp_path / "images")
    assert load("mnist-free", ["data=~nobody-of-this-name/images"]).data.source == "~nobody-of-this-name/images"
    # A folder that is called like a data set is the data set.
    (tmp_path / "mnist5k").mkdir()
    assert load("mnist-free").data.source == "mnist5k"
    assert load("mnist-free", ["data=./mnist5k"]).data.source == str(tmp_path / "mnist5k")


def test_differences_are_paths_with_both_values():
    a, b = build(BASE), build({**BASE, "seed": 1, "method": {"name": "free", "replays": 4}})
    assert recipes.differences(a, b) == ["method.replays: 8 there, 4 here", "seed: 0 there, 1 here"]
    assert recipes.differences(a, a) == []


FIELDS = ["name", "data", "model", "method", "threat", "steps", "optimizer", "schedule", "averages", "selection"]
FIELDS += ["source", "attack", "lr", "milestones", "replays", "device", "normalize", "mean", "std", "seed"]
# No huge integers: a wide ResNet of a million layers is a recipe too.
NAMES = ["free", "pgd", "adversarial", "natural", "small_cnn", "multistep", "linf:8/255", "true", "nan", "pgd-3"]
LEAVES = st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.sampled_from(NAMES) | st.text(max_size=6)
KEYS = st.sampled_from(FIELDS) | st.text(max_size=5)
VALUES = st.recursive(LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(KEYS, v, max_size=4), max_leaves=8)
CALM = [HealthCheck.too_slow]


@settings(max_examples=200, deadline=None, suppress_health_check=CALM)
@given(st.dictionaries(KEYS, VALUES, max_size=6), st.booleans())
def test_building_from_anything_raises_nothing_but_a_recipe_error(mapping: dict[str, Any], whole: bool):
    try:
        recipe = build({**BASE, **mapping} if whole else mapping)
    except RecipeError:
        return
    assert build(parse_yaml(dump(recipe), "dump")) == recipe


ITEMS = st.builds(
    lambda keys, equals, value: ".".join(keys) + equals + value,
    st.lists(KEYS, max_size=3),
    st.sampled_from(["=", "", "=="]),
    st.text(max_size=8) | st.text("[]{}:,'\"&*!?- ab1", max_size=10) | st.sampled_from(NAMES),
)


@settings(max_examples=100, deadline=None, suppress_health_check=CALM)
@given(st.lists(ITEMS, max_size=4))
def test_any_changes_raise_nothing_but_a_recipe_error(items: list[str]):
    mapping = {**BASE, "method": {"name": "free", "replays": "4"}}
    with suppress(RecipeError):
        build(change(mapping, items))
    assert mapping == {**BASE, "method": {"name": "free", "replays": "4"}}
