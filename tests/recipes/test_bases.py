"""Recipes built on recipes: what is laid over what, and bases that lead nowhere or back."""

from pathlib import Path
from typing import Any

import pytest

from toughen.recipes import RecipeError, dump, load, shipped
from toughen.recipes.overlay import laid_over
from toughen.recipes.text import change, parse_yaml

BASE = """
data: {source: mnist5k, flip: true}
model: {name: small_cnn, width: 4}
method: free
threat: linf:0.1
steps: 8
"""


def put(folder: Path, **files: str) -> str:
    """Write NAME.yaml files; the path of the first."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return str(folder / f"{next(iter(files))}.yaml")


def refused(path: str, *changes: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(path, changes)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


PGD = {"name": "adversarial", "attack": {"name": "pgd", "steps": "7", "attack_bn": "train"}}
LAID: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ({"a": "1", "b": "2"}, {"b": "3", "c": "4"}, {"a": "1", "b": "3", "c": "4"}),
    ({"a": {"b": "1", "c": "2"}}, {"a": {"c": "3"}}, {"a": {"b": "1", "c": "3"}}),
    ({"a": ["1", "2"]}, {"a": ["3"]}, {"a": ["3"]}),
    ({"a": {"b": "1"}}, {"a": None}, {"a": None}),
    # The same method keeps its settings, another starts its section anew; likewise the attack within it.
    ({"method": PGD}, {"method": {"radius_scale": "2"}}, {"method": {**PGD, "radius_scale": "2"}}),
    (
        {"method": PGD},
        {"method": {"name": "adversarial", "attack": {"steps": "3"}}},
        {"method": {"name": "adversarial", "attack": {"name": "pgd", "steps": "3", "attack_bn": "train"}}},
    ),
    ({"method": PGD}, {"method": "natural"}, {"method": {"name": "natural"}}),
    ({"method": PGD}, {"method": {"name": "trades", "beta": "6"}}, {"method": {"name": "trades", "beta": "6"}}),
    (
        {"method": PGD},
        {"method": {"attack": {"name": "fgsm"}}},
        {"method": {"name": "adversarial", "attack": {"name": "fgsm"}}},
    ),
    (
        {"method": {"name": "mixup", "method": PGD}},
        {"method": {"method": {"attack": "fgsm"}}},
        {"method": {"name": "mixup", "method": {"name": "adversarial", "attack": {"name": "fgsm"}}}},
    ),
    # Text stands for the main field, on either side.
    ({"data": "a"}, {"data": {"pad": "4"}}, {"data": {"source": "a", "pad": "4"}}),
    ({"data": {"source": "a", "pad": "4"}}, {"data": "b"}, {"data": {"source": "b", "pad": "4"}}),
    ({"model": {"name": "m", "width": "4"}}, {"model": "n"}, {"model": {"name": "n"}}),
    (
        {"selection": {"suite": "pgd-40", "every": "9"}},
        {"selection": "pgd-1"},
        {"selection": {"suite": "pgd-1", "every": "9"}},
    ),
    ({"normalize": {"mean": ["0"]}}, {"normalize": "data"}, {"normalize": "data"}),
    ({"normalize": "data"}, {"normalize": {"mean": ["0"]}}, {"normalize": {"mean": ["0"]}}),
]


@pytest.mark.parametrize(("base", "over", "result"), LAID, ids=[str(over) for _, over, _ in LAID])
def test_what_is_laid_over_what(base: dict[str, Any], over: dict[str, Any], result: dict[str, Any]):
    before = str(base), str(over)
    assert laid_over(base, over) == result
    assert (str(base), str(over)) == before
    assert laid_over({}, result) == result


def test_a_change_is_a_base_with_one_value_laid_over():
    assert change({"method": PGD}, ["method.attack.steps=3"]) == laid_over(
        {"method": PGD}, {"method": {"attack": {"steps": "3"}}}
    )
    assert change({"optimizer": {"lr": "1"}}, ["optimizer={momentum: 0}"]) == {
        "optimizer": {"lr": "1", "momentum": "0"}
    }
    assert change({"normalize": {"mean": ["0"]}}, ["normalize=data"]) == {"normalize": "data"}


def test_a_file_says_only_what_it_changes(tmp_path: Path):
    recipe = load(put(tmp_path, mine="base: other.yaml\nmodel: {width: 2}\nseed: 3\n", other=BASE))
    assert (recipe.model.settings["width"], recipe.data.flip, recipe.seed, recipe.steps) == (2, True, 3, 8)
    # What is kept of a run holds everything itself.
    assert "base" not in parse_yaml(dump(recipe), "dump")
    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    assert load(str(tmp_path)) == recipe


def test_a_chain_across_folders_whose_paths_are_relative_to_the_file_that_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "a" / "b").mkdir(parents=True)
    put(tmp_path, root=BASE)
    put(tmp_path / "a", middle="base: ../root.yaml\nsteps: 16\nseed: 1\n")
    path = put(tmp_path / "a" / "b", leaf="base: ../middle.yaml\nseed: 2\n")
    for where in (tmp_path, tmp_path / "a" / "b"):
        monkeypatch.chdir(where)
        recipe = load(path)
        assert (recipe.steps, recipe.seed, recipe.model.settings["width"]) == (16, 2, 4)
    assert load("leaf.yaml") == recipe
    assert load(put(tmp_path, far=f"base: {path}\n")) == recipe


def test_several_bases_are_laid_over_one_another_in_order(tmp_path: Path):
    part = "model: {width: 3}\nsteps: 80\n"
    path = put(tmp_path, mine="base: [one.yaml, two.yaml]\nsteps: 24\n", one=BASE, two=part)
    recipe = load(path)
    assert (recipe.model.settings["width"], recipe.steps) == (3, 24)
    put(tmp_path, two=BASE, one="data: x\nmodel: {name: small_cnn, width: 3}\nsteps: 80\n")
    assert load(path).model.settings["width"] == 4
    # The same base twice, by two ways, is no circle.
    assert load(put(tmp_path, x="base: [y.yaml, z.yaml]", y="base: z.yaml\nsteps: 9", z=BASE)).steps == 8


def test_a_shipped_name_is_a_base_in_a_users_file_even_beside_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist-free").mkdir()
    recipe = load(put(tmp_path, mine="base: mnist-free\nname: mine\nmethod: {replays: 4}\n"))
    assert recipe == load("./mine.yaml")
    original = recipe.model_copy(
        update={"name": "mnist-free", "method": recipe.method.model_copy(update={"replays": 8})}
    )
    (tmp_path / "mnist-free").rmdir()
    assert original == load("mnist-free")


def test_parts_are_bases_and_no_recipes(tmp_path: Path):
    assert not [name for name in shipped() if name.startswith("_")]
    mine = load(put(tmp_path, mine="base: [cifar10-trades, _limits_extra]\nname: mine\n"))
    assert mine.data.extra is not None
    assert (mine.data.extra.labelled, mine.data.extra.limit, mine.batch_size) == (0.5, 500_000, 1024)
    with pytest.raises(RecipeError, match="method: is missing"):
        load("_limits_extra")


def test_bases_that_lead_nowhere(tmp_path: Path):
    text = refused(put(tmp_path, mine="base: mnist-fre\n"))
    assert text.startswith(str(tmp_path / "mine.yaml"))
    assert "did you mean 'mnist-free'" in text
    assert "no such file" in refused(put(tmp_path, mine="base: sub/other.yaml\n")).lower()
    assert "did you mean" not in refused(put(tmp_path, mine="base: zzzzzzzz\n"))
    assert "holds no mapping" in refused(put(tmp_path, mine="base: other.yaml\n", other="- a"))
    assert "line 2" in refused(put(tmp_path, mine="base: other.yaml\n", other="a: 1\na: 2"))
    for wrong in ("{a: b}", "[[a]]", "[a, null]", "true"):
        assert "base is no name, path or list of them" in refused(put(tmp_path, mine=f"base: {wrong}\n"))
    assert "unknown; allowed" in refused("mnist-free", "base=mnist-pgd")


def test_bases_that_lead_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert "leads back to" in refused(put(tmp_path, mine="base: mine.yaml\n"))
    assert "leads back to" in refused(put(tmp_path, mine="base: ./other.yaml\n", other="base: mine.yaml\n"))
    monkeypatch.chdir(tmp_path)
    assert "leads back to" in refused("mine.yaml")
    for i in range(30):
        put(tmp_path, **{f"deep{i}": f"base: deep{i + 1}.yaml\n"})
    assert "more than 9 bases one below the other" in refused("deep0.yaml")
