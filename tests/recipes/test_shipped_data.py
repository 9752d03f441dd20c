"""The recipes for photographs, for SVHN and with extra data: their figures, typed from the papers and their codes."""

import functools
import math
from typing import Any

import pytest

from toughen import recipes
from toughen.data.loading.batches import labelled_rows
from toughen.methods.wrapper import nested
from toughen.optim.schedules import warmed_up
from toughen.recipes import Recipe

IMAGENET, SVHN, HELD_OUT = 1_281_167, 73_257, 1_024
AFTER_WARM_UP = 1 / 3 + 2 * (20 / 3 + 1 / 3) + 20 + 1
"""IAAT's step on ImageNet: a clean forward, two PGD-10 with a check each, PGD-30, the step; 2/3 a step of PGD."""


@functools.cache
def loaded(name: str) -> Recipe:
    return recipes.load(name)


def epoch(images: int, batch_size: int) -> int:
    """Batches of an epoch, the short last one counted."""
    return math.ceil((images - HELD_OUT) / batch_size)


def attack_of(recipe: Recipe, field: str = "attack") -> dict[str, Any]:
    return list(nested(recipe.method))[-1].model_dump()[field]


# Recipe, network, radius * 255, replays or steps of the attack, batch size, epochs, natural steps an optimiser step.
FIGURES = [
    # Free, tables 3 to 10; main_free.py: 90 / m epochs, rounded up.
    ("imagenet-free", "resnet50", 4, 4, 256, 23, 1),
    ("imagenet-free-eps2", "resnet50", 2, 4, 256, 23, 1),
    ("imagenet-free-eps3", "resnet50", 3, 4, 256, 23, 1),
    ("imagenet-free-eps5", "resnet50", 5, 4, 256, 23, 1),
    ("imagenet-free-eps6", "resnet50", 6, 4, 256, 23, 1),
    ("imagenet-free-eps7", "resnet50", 7, 4, 256, 23, 1),
    ("imagenet-free-m2", "resnet50", 4, 2, 256, 45, 1),
    ("imagenet-free-m6", "resnet50", 4, 6, 256, 15, 1),
    ("imagenet-free-m8", "resnet50", 4, 8, 256, 12, 1),
    ("imagenet-free-resnet101", "resnet101", 4, 4, 256, 23, 1),
    ("imagenet-free-resnet152", "resnet152", 4, 4, 256, 23, 1),
    ("imagenet-natural", "resnet50", 4, 1, 256, 90, 1),
    ("imagenet-pgd", "resnet50", 4, 2, 256, 90, 7 / 3),
    # IAAT, table 11 and appendix E.2: 32 images on each of 64 or 128 GPUs; Xie et al.'s INSTRUCTIONS.md.
    ("imagenet-xie", "resnet152", 16, 30, 4096, 110, 21),
    ("imagenet-iaat-natural-resnet50", "resnet50", 16, 1, 2048, 110, 1),
    ("imagenet-iaat-natural-resnet101", "resnet101", 16, 1, 4096, 110, 1),
    ("imagenet-iaat-natural-resnet152", "resnet152", 16, 1, 4096, 110, 1),
    ("imagenet-iaat-at-resnet50", "resnet50", 16, 30, 2048, 110, 21),
    ("imagenet-iaat-at-resnet101", "resnet101", 16, 30, 4096, 110, 21),
    ("imagenet-iaat-at-resnet152", "resnet152", 16, 30, 4096, 110, 21),
    # 30 epochs of 110 warm up, with a clean forward and PGD-30.
    ("imagenet-iaat-resnet50", "resnet50", 16, 30, 2048, 110, (30 * (21 + 1 / 3) + 80 * AFTER_WARM_UP) / 110),
    ("imagenet-iaat-resnet101", "resnet101", 16, 30, 4096, 110, (30 * (21 + 1 / 3) + 80 * AFTER_WARM_UP) / 110),
    ("imagenet-iaat-resnet152", "resnet152", 16, 30, 4096, 110, (30 * (21 + 1 / 3) + 80 * AFTER_WARM_UP) / 110),
    # Bilateral's train.py: epochs 0 to 200; the supplement's section 4.
    ("svhn-bilateral", "madry-w32-10", 8, 1, 128, 201, 2),
    ("svhn-pgd", "madry-w32-10", 8, 7, 128, 201, 17 / 3),
    ("svhn-natural", "madry-w32-10", 8, 1, 128, 201, 1),
]


@pytest.mark.parametrize(("name", "model", "radius", "count", "batch", "epochs", "cost"), FIGURES)
def test_the_figures_of_photographs_and_house_numbers(
    name: str, model: str, radius: int, count: int, batch: int, epochs: int, cost: float
):
    recipe = loaded(name)
    replays = recipe.method.steps_per_batch
    kinds = {"free": replays, "natural": replays, "bilateral": 1}
    assert (recipe.model.name, str(recipe.threat)) == (model, f"linf:{radius}/255")
    assert (kinds.get(recipe.method.name) or attack_of(recipe)["steps"]) == count
    images = SVHN if name.startswith("svhn") else IMAGENET
    assert (recipe.batch_size, recipe.steps) == (batch, replays * epochs * epoch(images, batch))
    assert recipe.natural_steps == pytest.approx(cost * recipe.steps, rel=1e-12)
    # Whole epochs between validations.
    assert recipe.selection.every is not None
    assert recipe.selection.every % (replays * epoch(images, batch)) == 0


def test_every_recipe_of_the_tables_is_checked():
    tables = ("imagenet-", "svhn-")
    assert {row[0] for row in FIGURES} == {name for name in recipes.shipped() if name.startswith(tables)}


@pytest.mark.parametrize("name", [row[0] for row in FIGURES if row[0].startswith("imagenet-")])
def test_what_all_photographs_share(name: str):
    recipe = loaded(name)
    view = recipe.data.view
    assert view is not None
    assert (view.size, view.short_side, view.area, recipe.data.flip, recipe.data.pad) == (224, 256, 0.08, True, 0)
    assert recipe.model.settings["stem"] == "imagenet"
    optimizer = recipe.optimizer
    assert (optimizer.lr, optimizer.momentum, optimizer.weight_decay) == (0.1, 0.9, 1e-4)
    large = name.startswith(("imagenet-xie", "imagenet-iaat"))
    # main_free.py decays all parameters at a rate for 256 images; Xie et al.'s code scales it and spares BatchNorm.
    assert (optimizer.lr_batch_size, optimizer.nesterov, optimizer.decay_on) == (
        (256, True, "weights") if large else (None, False, "all")
    )


# (recipe, images, epochs, epoch counted from 0 -> learning rate of its last step)
XIE = {4: 1.6, 34: 1.6, 35: 0.16, 69: 0.16, 70: 0.016, 94: 0.016, 95: 0.0016, 109: 0.0016}
RATES = [
    ("imagenet-free", 23, {0: 0.1, 7: 0.1, 8: 0.01, 15: 0.01, 16: 1e-3, 22: 1e-3}),
    ("imagenet-free-m2", 45, {14: 0.1, 15: 0.01, 29: 0.01, 30: 1e-3, 44: 1e-3}),
    ("imagenet-free-m6", 15, {4: 0.1, 5: 0.01, 9: 0.01, 10: 1e-3, 14: 1e-3}),
    ("imagenet-free-m8", 12, {3: 0.1, 4: 0.01, 7: 0.01, 8: 1e-3, 11: 1e-3}),
    ("imagenet-pgd", 90, {29: 0.1, 30: 0.01, 59: 0.01, 60: 1e-3, 89: 1e-3}),
    ("imagenet-xie", 110, XIE),
    ("imagenet-iaat-resnet152", 110, XIE),
    ("imagenet-iaat-resnet50", 110, {at: rate / 2 for at, rate in XIE.items()}),
    ("svhn-bilateral", 201, {99: 0.1, 100: 0.01, 149: 0.01, 150: 1e-3}),
    ("cifar10-limits-extra-at", 4, {1: 0.1, 2: 0.01, 3: 1e-3}),
]


@pytest.mark.parametrize(("name", "epochs", "rates"), RATES, ids=[row[0] for row in RATES])
def test_the_learning_rate_falls_in_the_epochs_of_the_source(name: str, epochs: int, rates: dict[int, float]):
    recipe = loaded(name)
    settings = recipe.optimizer
    base = settings.lr * (recipe.batch_size / settings.lr_batch_size if settings.lr_batch_size else 1)
    factor = warmed_up(recipe.schedule.factor(), settings.warmup)
    for at, rate in rates.items():
        last = (at + 1) * recipe.steps // epochs - 1
        # Rising, the last step of the warm-up is a step short of the whole.
        assert base * factor(last / recipe.steps) == pytest.approx(rate, rel=1e-3 if settings.warmup else 1e-12), at
    assert recipe.steps % epochs == 0


def test_iaat_on_imagenet_is_its_table_11():
    method = loaded("imagenet-iaat-resnet152").method.model_dump()
    attack, selector = attack_of(loaded("imagenet-iaat-resnet152")), method["selector"]
    assert (attack["name"], attack["target"], attack["steps"], attack["step_size"]) == (
        "targeted_pgd",
        "random",
        30,
        1 / 255,
    )
    assert (selector["name"], selector["target"], selector["steps"]) == ("targeted_pgd", "random", 10)
    assert (method["gamma"], method["beta"], method["lower"], method["warmup"]) == (4 / 255, 0.1, 4 / 255, 30 * 313)
    assert (method["misclassified"], method["step_rule"], method["warmup_radius"]) == ("clean_loss", "fixed", None)
    assert loaded("imagenet-iaat-resnet50").method.model_dump()["warmup"] == 30 * 626
    # The baseline is Xie et al.'s, but for the smoothed labels that table 11 does not list.
    lines = recipes.differences(loaded("imagenet-iaat-at-resnet152"), loaded("imagenet-xie"))
    assert {line.partition(":")[0].partition(".")[0] for line in lines} == {"name", "method"}
    assert attack_of(loaded("imagenet-iaat-at-resnet152")) == attack_of(loaded("imagenet-xie"))
    assert [m.name for m in nested(loaded("imagenet-xie").method)] == ["label_smoothing", "adversarial"]


# Limits, tables 1 to 9: the recipe without extra data, labelled images of 1,024, extra images in all.
MIXED = {
    "cifar10-limits-extra-at": ("cifar10-limits-at", 512, 500_000),
    "cifar10-limits-extra-trades": ("cifar10-limits-trades", 512, 500_000),
    "cifar10-limits-extra-mart": ("cifar10-limits-mart", 512, 500_000),
    "cifar10-limits-extra-radius": ("cifar10-limits-radius", 512, 500_000),
    "cifar10-limits-extra-silu": ("cifar10-limits-silu", 512, 500_000),
    "cifar10-limits-extra-averages": ("cifar10-limits-averages", 512, 500_000),
    "cifar10-limits-extra-200k": ("cifar10-limits-at", 512, 200_000),
    "cifar10-limits-extra-1m": ("cifar10-limits-at", 512, 1_000_000),
    "cifar10-limits-extra-ratio": ("cifar10-limits-at", 307, 500_000),
    "cifar10-limits-extra-best": ("cifar10-limits-best", 307, 500_000),
    "cifar10-limits-extra-best-l2": ("cifar10-limits-best-l2", 307, 500_000),
    "cifar100-limits-extra-best": ("cifar100-limits-best", 307, 500_000),
}


@pytest.mark.parametrize("name", MIXED)
def test_extra_data_change_what_the_paper_says_and_nothing_else(name: str):
    without, rows, limit = MIXED[name]
    recipe, extra = loaded(name), loaded(name).data.extra
    assert extra is not None
    assert (recipe.batch_size, labelled_rows(recipe.batch_size, extra.labelled), extra.limit) == (1024, rows, limit)
    assert recipe.steps == 19_500
    changed = {line.partition(":")[0].partition(".")[0] for line in recipes.differences(recipe, loaded(without))}
    assert changed == {"name", "data", "batch_size", "steps", "selection", *(["schedule"] if "best" in name else [])}
    assert recipe.data.model_copy(update={"extra": None}) == loaded(without).data
    assert recipe.natural_steps / recipe.steps == pytest.approx(loaded(without).natural_steps / 78_000, rel=1e-12)
    assert recipe.schedule.name == ("cosine" if "best" in name else "multistep")


def test_the_best_recipe_with_extra_data_is_that_of_section_5():
    best, smaller = loaded("cifar10-limits-extra-best"), loaded("cifar10-limits-extra-best-wrn-28-10")
    assert (best.model.name, best.model.settings["activation"], best.averages) == ("wrn-70-16", "silu", (0.995,))
    assert best.method.name == "trades"
    assert [line.partition(":")[0] for line in recipes.differences(smaller, best)] == ["name", "model.name"]
    l2 = loaded("cifar10-limits-extra-best-l2")
    assert (str(l2.threat), attack_of(l2)["step_size"]) == ("l2:128/255", 15 / 255)


def test_the_release_with_extra_data_is_its_experiment():
    recipe, without = loaded("cifar10-limits-extra-release"), loaded("cifar10-limits-release")
    smoothing, trades = nested(recipe.method)
    assert (smoothing.name, smoothing.model_dump()["labelled"], smoothing.model_dump()["extra"]) == (
        "label_smoothing",
        0,
        0.1,
    )
    assert trades == without.method
    assert recipe.data.extra is not None
    # `_dataset` on 8 devices: 128 rows each, in four groups of 32, of which round(32 * 0.3) are labelled.
    assert labelled_rows(1024, recipe.data.extra.labelled) == 8 * 4 * round(32 * 0.3) == 320
    assert {line.partition(":")[0].partition(".")[0] for line in recipes.differences(recipe, without)} == {
        "name",
        "data",
        "method",
    }


def test_smoothed_labels_wrap_the_baseline():
    recipe, baseline = loaded("cifar10-limits-extra-smoothing"), loaded("cifar10-limits-extra-at")
    smoothing, inner = nested(recipe.method)
    assert (smoothing.name, smoothing.model_dump()["labelled"], smoothing.model_dump()["extra"]) == (
        "label_smoothing",
        0,
        0.1,
    )
    assert inner == baseline.method
    assert recipe.model_copy(update={"name": baseline.name, "method": inner}) == baseline


def test_robust_self_training_is_that_of_its_authors():
    recipe, trades = loaded("cifar10-rst"), loaded("cifar10-trades")
    # TRADES as its authors', on another network and schedule.
    assert (recipe.method, recipe.threat, recipe.normalize) == (trades.method, trades.threat, "none")
    assert recipe.data.extra is not None
    assert (recipe.batch_size, labelled_rows(256, recipe.data.extra.labelled)) == (256, 128)
    assert recipe.steps == 200 * math.ceil(50_000 / 256)
    assert (recipe.model.name, recipe.schedule.name, recipe.data.pad) == ("wrn-28-10", "cosine", 4)
    optimizer = recipe.optimizer
    assert (optimizer.lr, optimizer.momentum, optimizer.nesterov, optimizer.weight_decay) == (0.1, 0.9, True, 5e-4)
    # K = 10: ten steps at 2/3, the clean logits at 1/3, two passes for the outer loss.
    assert recipe.natural_steps / recipe.steps == pytest.approx(9, rel=1e-12)


@pytest.mark.parametrize(("each", "batches"), [(2000, 157), (500, 40)])
def test_fewer_images_of_each_class_for_as_many_epochs(each: int, batches: int):
    recipe, full = loaded(f"cifar10-bilateral-{each}-per-class"), loaded("cifar10-bilateral")
    assert batches == math.ceil(10 * each / recipe.batch_size)
    assert (recipe.data.per_class, recipe.steps) == (each, 201 * batches)
    changed = [line.partition(":")[0] for line in recipes.differences(recipe, full)]
    assert changed == ["name", "data.per_class", "steps", "selection.every"]


@pytest.mark.parametrize("data", ["cifar10", "cifar100"])
@pytest.mark.parametrize("network", ["resnet18", "wrn-32-10"])
def test_the_natural_rows_of_iaat_differ_in_the_method_alone(data: str, network: str):
    natural, attacked = loaded(f"{data}-iaat-natural-{network}"), loaded(f"{data}-iaat-at-{network}")
    assert natural.model_copy(update={"name": attacked.name, "method": attacked.method}) == attacked
    assert natural.method.name == "natural"
    assert natural.natural_steps == natural.steps


def test_house_numbers_are_treated_as_the_released_code_treats_them():
    for name, method in (("svhn-bilateral", "bilateral"), ("svhn-pgd", "adversarial"), ("svhn-natural", "natural")):
        recipe, cifar = loaded(name), loaded("cifar10-bilateral")
        assert recipe.method.name == method
        changed = {line.partition(":")[0].partition(".")[0] for line in recipes.differences(recipe, cifar)}
        assert changed - {"method"} == {"name", "data", "steps", "selection"}
        assert recipe.data.model_copy(update={"source": "cifar10"}) == cifar.data
    assert loaded("svhn-bilateral").method == loaded("cifar10-bilateral").method
    attack = attack_of(loaded("svhn-pgd"))
    assert (attack["steps"], attack["step_size"], attack["attack_bn"]) == (7, 2 / 255, "eval")
