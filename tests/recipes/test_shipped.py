"""The recipes that come with the package: their names, sources, costs and small twins."""

import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from toughen import recipes
from toughen.cli.listing import catalogue
from toughen.data import load
from toughen.methods import Method
from toughen.methods.wrapper import nested
from toughen.recipes import Recipe, dump
from toughen.recipes.schema import DataSettings
from toughen.recipes.text import build, parse_yaml
from toughen.training.loop import train_batch
from toughen.training.setup import load_pseudo_labelled, set_up, splits

FOLDER = Path(recipes.__file__).parent
TEXTS = recipes.shipped()
SHIPPED = sorted(TEXTS)
# These have no twin besides.
OWN = {"finetune", "mnist-free", "mnist-natural", "mnist-pgd"}
PAPERS = [name for name in SHIPPED if name not in OWN]
TWINS = [f"{name}-small" for name in PAPERS]
PHOTOGRAPHS = [name for name in PAPERS if name.startswith("imagenet-")]
MIXED = [name for name in PAPERS if "-extra-" in name or name == "cifar10-rst"]
# The first ones, which have settings of their own and train on all images.
OLD = {"cifar10-free-small", "cifar10-natural-small", "cifar10-pgd-small"}
# What a twin may change of its method: how long it takes, never what it does.
LENGTHS = {"steps", "step_size", "warmup", "replays"}


@functools.cache
def loaded(name: str) -> Recipe:
    return recipes.load(name)


@pytest.mark.parametrize("name", SHIPPED + TWINS)
def test_a_recipe_loads_is_called_like_its_file_and_comes_back_from_its_dump(name: str):
    recipe = loaded(name)
    again = build(parse_yaml(dump(recipe), "dump"))
    assert recipe.name == name
    assert again == recipe
    assert recipes.differences(again, recipe) == []


def test_each_line_with_a_figure_says_where_it_is_from():
    part = (FOLDER / "limits" / "_limits_extra.yaml").read_text(encoding="utf-8")
    for name, text in {"_limits_extra": part, **{name: TEXTS[name] for name in PAPERS}}.items():
        # What a recipe has for its twin is ours.
        for line in text.partition("\nsmall:")[0].splitlines():
            setting, mark, source = line.partition("#")
            value = setting.partition(":")[2]
            if re.search(r"(?<![\w-])[0-9]", value) and not setting.startswith(("name:", "seed:", "base:")):
                assert mark, (name, line)
                assert source.strip(), (name, line)


def test_recipes_lie_in_folders_under_names_that_are_unique_and_no_twins():
    files = [path.relative_to(FOLDER) for path in FOLDER.rglob("*.yaml")]
    assert {len(path.parts) for path in files} == {2}
    assert sorted(path.stem for path in files) == sorted([*SHIPPED, "_limits_extra"])
    assert not [name for name in SHIPPED if name.endswith("-small")]
    # The package says whose figures lie where.
    assert recipes.__doc__ is not None
    for folder in {path.parts[0] for path in files}:
        assert re.search(rf"\n    .*\b{folder}\b", recipes.__doc__), folder


def test_every_line_is_short_and_every_recipe_has_a_line_of_its_own_in_the_list():
    for name, text in TEXTS.items():
        assert text.startswith("# "), name
        assert all(len(line) <= 120 and line == line.rstrip() for line in text.splitlines()), name
    lines = catalogue("recipes")[1:]
    assert [line.split()[0] for line in lines] == SHIPPED
    assert [line.split()[0] for line in lines if line.endswith(" [also as -small]")] == PAPERS
    assert len({line.split(maxsplit=1)[1] for line in lines}) == len(lines)


def test_the_cost_of_each_is_known():
    for name in SHIPPED + TWINS:
        recipe = loaded(name)
        assert recipe.natural_steps >= recipe.total_steps
        if name in TWINS and name not in OLD:
            # At 0.1 s a natural step, which a slow core takes for 64 images, three and a half minutes.
            assert recipe.natural_steps <= (500 if recipe.data.size else 2000), name


def mechanism(method: Method) -> dict[str, Any]:
    def without_lengths(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: without_lengths(inner) for key, inner in value.items() if key not in LENGTHS}

    return without_lengths(method.model_dump())


def test_every_recipe_of_a_paper_has_a_twin_and_every_twin_its_recipe():
    assert recipes.twinned() == PAPERS


def but_for_numbers(data: DataSettings) -> dict[str, Any]:
    """What a twin leaves as it is: all but how many images there are, and how large photographs are."""
    extra = data.extra and data.extra.model_copy(update={"limit": None})
    few = {"limit": None, "validation": None, "per_class": data.per_class and 1, "size": data.size and 1}
    return dict(data.model_copy(update={**few, "extra": extra}))


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_is_its_recipe_but_smaller(name: str):
    small, full = loaded(name), loaded(name.removesuffix("-small"))
    assert small.model.name == "small_cnn"
    assert small.steps < full.steps
    assert small.data.source == full.data.source
    for field in ("threat", "averages_warm_start", "weight_perturbation", "averages", "precision"):
        assert getattr(small, field) == getattr(full, field), field
    if name in OLD:
        assert [m.name for m in nested(small.method)] == [m.name for m in nested(full.method)]
        return
    assert mechanism(small.method) == mechanism(full.method)
    assert small.normalize == full.normalize
    assert but_for_numbers(small.data) == but_for_numbers(full.data)
    assert (small.data.size or 0) <= 64
    # A set of the user's may hold few images.
    assert small.data.limit == (4000 if small.data.size is None and small.data.per_class is None else None)
    assert small.data.extra is None or small.data.extra.limit is None
    if full.model.settings.get("activation") == "silu":
        assert small.model.settings["activation"] == "silu"


def test_what_a_recipe_needs_is_in_its_first_line():
    assert [name for name in SHIPPED if loaded(name).data.extra] == MIXED
    assert [name for name in PAPERS if loaded(name).data.size] == PHOTOGRAPHS
    for name in SHIPPED:
        first, recipe = TEXTS[name].partition("\n")[0], loaded(name)
        if recipe.data.extra:
            assert recipe.data.extra.source == "./extra"
            assert first.endswith(" Needs ./extra."), name


def attack_of(recipe: Recipe) -> dict[str, Any]:
    return list(nested(recipe.method))[-1].model_dump()["attack"]


# (recipe, epochs as its source counts them, epoch counted from 0 -> learning rate of that epoch's last step)
RATES = [
    ("cifar10-limits-at", 200, {98: 0.1, 101: 0.01, 148: 0.01, 151: 0.001}),
    ("cifar10-trades", 76, {0: 0.1, 73: 0.1, 74: 0.01, 75: 0.01}),
    ("cifar10-trades-awp", 200, {98: 0.1, 99: 0.01, 148: 0.01, 149: 0.001}),
    ("cifar10-mart", 90, {73: 0.1, 74: 0.01, 88: 0.01, 89: 0.001}),
    ("cifar10-mart-resnet18", 120, {73: 0.01, 74: 1e-3, 88: 1e-3, 89: 1e-4, 98: 1e-4, 99: 1e-5}),
    ("cifar10-rice", 200, {99: 0.1, 100: 0.01, 149: 0.01, 150: 0.001}),
    ("cifar10-iaat-resnet18", 200, {79: 0.1, 80: 0.01, 140: 1e-3, 169: 1e-3, 170: 1e-4}),
    ("cifar10-iaat-wrn-32-10", 110, {69: 0.1, 70: 0.02, 90: 0.004, 99: 0.004, 100: 0.0008}),
    ("cifar10-bilateral", 201, {99: 0.1, 100: 0.01, 149: 0.01, 150: 0.001}),
]


@pytest.mark.parametrize(("name", "epochs", "rates"), RATES, ids=[row[0] for row in RATES])
def test_the_learning_rate_falls_in_the_epochs_of_the_source(name: str, epochs: int, rates: dict[int, float]):
    recipe = loaded(name)
    factor = recipe.schedule.factor()
    for epoch, rate in rates.items():
        last = round((epoch + 1) / epochs * recipe.steps) - 1
        assert recipe.optimizer.lr * factor(last / recipe.steps) == pytest.approx(rate, rel=1e-12), epoch
        # A budget in epochs is whole epochs of 48,976 images, the short last batch counted.
        if name != "cifar10-limits-at":
            assert recipe.steps == epochs * -(-48_976 // recipe.batch_size)


def test_what_variants_inherit_and_what_they_change():
    base, trades, best = loaded("cifar10-limits-at"), loaded("cifar10-limits-trades"), loaded("cifar10-limits-best")
    assert (best.method, best.steps, best.threat) == (trades.method, 78_000, base.threat)
    assert (best.model.name, best.model.settings["activation"], best.averages) == ("wrn-70-16", "silu", (0.995,))
    assert loaded("cifar10-limits-best-wrn-34-20").model.name == "wrn-34-20"
    assert loaded("cifar10-limits-silu").model.name == "wrn-28-10"
    assert loaded("cifar10-limits-averages").headline == "average-0.995"
    assert len(loaded("cifar10-limits-averages").averages) == 9
    l2 = loaded("cifar10-limits-best-l2")
    assert (str(l2.threat), attack_of(l2)["step_size"], attack_of(l2)["steps"]) == ("l2:128/255", 15 / 255, 10)
    paper, code = loaded("cifar10-iaat-wrn-32-10-paper"), loaded("cifar10-iaat-wrn-32-10")
    assert recipes.differences(code, paper) == [
        "name: cifar10-iaat-wrn-32-10 there, cifar10-iaat-wrn-32-10-paper here",
        "method.warmup: 1920 there, 3830 here",
        "method.misclassified: decay there, clean_loss here",
        "method.step_rule: scaled there, fixed here",
        "batch_size: 256 there, 128 here",
        "steps: 21120 there, 42130 here",
        "selection.every: 1056 there, 2106 here",
    ]
    hundred, ten = loaded("cifar100-free-w32-10"), loaded("cifar10-free-w32-10")
    assert [line.partition(":")[0] for line in recipes.differences(hundred, ten)] == ["name", "data.source"]


TINY = ("data.source=tiny", "data.limit=null", "data.validation=null", "normalize=data", "model.width=2")
# The tiny images have one size, and stand for the extra ones too, four to a batch of eight.
AS_THEY_ARE = ("data.size=null", "data.per_class=null")
TINY_EXTRA = ("data.extra.source=tiny", "data.extra.labelled=0.5")


@pytest.mark.parametrize("name", TWINS)
def test_the_method_of_a_twin_trains_two_batches(name: str, tiny: str):
    # The second batch is past the warm-up; four classes have no nine wrong ones.
    fields = {"warmup": 1, "largest": 2}
    fitting = [f"method.{key}={value}" for key, value in fields.items() if getattr(loaded(name).method, key, None)]
    mixed = TINY_EXTRA if loaded(name).data.extra else ()
    recipe = recipes.load(name, [*TINY, *AS_THEY_ARE, *mixed, "batch_size=8", *fitting])
    data = load(tiny)
    train, _, index = splits(recipe, data)
    with torch.random.fork_rng():
        extra = load_pseudo_labelled(recipe, data)
        job, batches = set_up(recipe, data, train, index, torch.device("cpu"), extra=extra)
        before = [p.detach().clone() for p in job.model.parameters()]
        for number in range(2):
            train_batch(job, batches[number])
            job.number += 1
    job.finite.check()
    assert job.step == 2 * recipe.method.steps_per_batch
    assert any(not torch.equal(p, q) for p, q in zip(before, job.model.parameters(), strict=True))
