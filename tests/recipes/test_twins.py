"""Small twins: what the rule makes of any recipe, and what it makes of each that is shipped, the same as ever."""

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest

from toughen import recipes
from toughen.recipes import RecipeError, dump, load
from toughen.recipes.text import build, parse_yaml, read
from toughen.recipes.twins import is_small, twin
from toughen.studies.grid import expand
from toughen.studies.schema import Study

README = Path(__file__).parents[2] / "README.md"
LARGE = """
name: mine
data: {source: cifar100, pad: 4, flip: true}
model: {name: wrn-28-10, activation: gelu}
method: {name: adversarial, radius_scale: 1.1, attack: {name: pgd, steps: 20, step_size: 1/255, attack_bn: train}}
threat: linf:8/255
batch_size: 1024
micro_batch: 64
activation_checkpointing: true
sharding: full
steps: 78000
optimizer: {lr: 0.4, lr_batch_size: 256, momentum: 0.8, weight_decay: 3e-4, warmup: 0.1}
schedule: {name: multistep, milestones: [0.5], decay: 0.2}
averages: [0.99]
selection: {suite: pgd-40, every: 1000}
seed: 3
"""


def of(text: str) -> dict[str, Any]:
    """The mapping of a recipe's twin, by the rule alone."""
    return twin(parse_yaml(text, "mine"), {})


def with_method(text: str, **others: Any) -> dict[str, Any]:
    """What the twin of `LARGE` with another method has for it."""
    recipe = parse_yaml(LARGE, "mine") | {"method": parse_yaml(text, "method")} | others
    return twin(recipe, {})["method"]


def refused(recipe: str, **given: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        build(read(recipe, **given))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_what_a_twin_keeps_and_what_it_changes():
    full, small = build(parse_yaml(LARGE, "mine")), build(of(LARGE))
    assert (small.model.name, small.model.settings) == (
        "small_cnn",
        {"width": 16, "norm": "batch", "activation": "gelu"},
    )
    assert [line for line in recipes.differences(full, small) if not line.startswith("model.")] == [
        "name: mine there, mine-small here",
        "data.limit: None there, 4000 here",
        "data.validation: None there, 512 here",
        "method.attack.steps: 20 there, 5 here",
        f"method.attack.step_size: {1 / 255} there, {4 / 255} here",
        "batch_size: 1024 there, 64 here",
        "micro_batch: 64 there, None here",
        "activation_checkpointing: True there, False here",
        "steps: 78000 there, 350 here",
        "optimizer.lr: 0.4 there, 0.1 here",
        "optimizer.lr_batch_size: 256 there, None here",
        "optimizer.warmup: 0.1 there, 0.0 here",
        "schedule.name: multistep there, one_cycle here",
        "schedule.milestones: [0.5] there, nothing here",
        "schedule.decay: 0.2 there, nothing here",
        "selection.suite: pgd-40 there, pgd-10 here",
        "selection.every: 1000 there, 400 here",
        "sharding: full there, none here",
        "schedule.peak: nothing there, 0.3 here",
    ]


PGD = "{name: adversarial, attack: {name: pgd, steps: %s, step_size: %s}}"


@pytest.mark.parametrize(
    ("threat", "steps", "length", "expected"),
    [
        # As far in fewer steps: 10 of 0.007 and 5 of 0.014.
        ("linf:0.031", "10", "0.007", (5, 0.014)),
        ("l2:128/255", "10", "15/255", (5, 30 / 255)),
        # 7/5 is rounded up.
        ("linf:8/255", "7", "2/255", (5, 4 / 255)),
        # No longer than half the radius, unless they were.
        ("linf:8/255", "30", "1/255", (5, 4 / 255)),
        ("linf:8/255", "10", "0.1", (5, 0.1)),
        # What is short stays.
        ("linf:8/255", "5", "1/255", ("5", "1/255")),
        ("linf:8/255", "1", "8/255", ("1", "8/255")),
    ],
)
def test_an_attack_goes_as_far_in_fewer_steps(threat: str, steps: str, length: str, expected: tuple[Any, Any]):
    attack = with_method(PGD % (steps, length), threat=threat)["attack"]
    assert (attack["steps"], attack["step_size"]) == expected


def test_every_attack_of_a_method_however_deep():
    inner = "{name: instance_adaptive, warmup: 9000, attack: {name: pgd, steps: 10, step_size: 2/255}"
    selector = "selector: {name: pgd, steps: 8, step_size: 1/255}"
    made = with_method(f"{{name: mixup, method: {{name: mixup, method: {inner}, {selector}}}}}}}")
    assert made == {
        "name": "mixup",
        "method": {
            "name": "mixup",
            "method": {
                "name": "instance_adaptive",
                "warmup": 40,
                "attack": {"name": "pgd", "steps": 5, "step_size": 4 / 255},
                "selector": {"name": "pgd", "steps": 5, "step_size": 2 / 255},
            },
        },
    }
    # A method's own ball counts; an attack without a length has the customary one.
    own = with_method("{name: adversarial, threat: linf:4/255, attack: {name: pgd, steps: 10, step_size: 1.5/255}}")
    assert own["attack"]["step_size"] == 2 / 255
    assert with_method("{name: trades, attack: {name: pgd, steps: 9}}")["attack"] == {"name": "pgd", "steps": 5}
    assert with_method("{name: adversarial, attack: fgsm}")["attack"] == {"name": "fgsm"}
    assert with_method("{name: adversarial, attack: null}") == {"name": "adversarial", "attack": None}


@pytest.mark.parametrize(
    ("method", "steps", "photographs"),
    [
        ("natural", 1600, 400),
        ("{name: free, replays: 8}", 1600, 400),
        ("bilateral", 600, 160),
        ("trades", 350, 160),
        ("{name: nobody-knows-it}", 350, 160),
        ("instance_adaptive", 160, 64),
        ("{name: adversarial, attack: rs_fgsm}", 1000, 250),
        ("{name: adversarial, alignment: 0.2, attack: fgsm}", 250, 100),
        ("{name: adversarial, alignment: 0, attack: fgsm}", 1000, 250),
        ("{name: label_smoothing, method: {name: mixup, method: natural}}", 1600, 400),
    ],
)
def test_the_budget_follows_the_cost_of_a_step(method: str, steps: int, photographs: int):
    recipe = parse_yaml(LARGE, "mine") | {"method": parse_yaml(method, "method")}
    assert twin(recipe, {})["steps"] == steps
    large = recipe | {"data": {"source": "imagenet", "size": "224", "resize": "256"}}
    made = twin(large, {})
    assert made["steps"] == photographs
    assert made["data"] == {"source": "imagenet", "size": 64, "resize": None, "limit": None, "validation": None}
    assert twin(recipe | {"weight_perturbation": {"gamma": "0.01"}}, {})["steps"] == 250
    assert twin(recipe | {"steps": "90"}, {})["steps"] == "90"


def test_what_is_as_small_stays():
    few = of(LARGE + "x: 1\n") | {"model": "wrn-16-4", "schedule": "constant"}
    assert twin(few, {}) == {
        **few,
        "name": "mine-small-small",
        "model": {"name": "small_cnn", "width": 16, "norm": "batch"},
        "schedule": {"name": "one_cycle", "peak": 0.3},
    }
    data = {"source": "cifar10", "limit": "200", "validation": "40"}
    assert twin(parse_yaml(LARGE, "mine") | {"data": data, "batch_size": "8"}, {})["data"] == data
    assert with_method("{name: free, replays: 2}") == {"name": "free", "replays": "2"}
    assert with_method("{name: free, replays: 9}") == {"name": "free", "replays": 4}


@pytest.mark.parametrize("source", ["mnist5k", "photos", "set.npz", "hub:ada/pets"])
def test_of_data_that_may_be_few_a_twin_takes_what_the_recipe_does(source: str):
    recipe = parse_yaml(LARGE, "mine")
    for data in (source, {"source": source}, {"source": source, "limit": "90000", "validation": "4000"}):
        made = twin(recipe | {"data": data}, {})["data"]
        assert made == (data if isinstance(data, dict) else {"source": source})
    each = twin(recipe | {"data": {"source": source, "per_class": "5000", "extra": "more.npz"}}, {})["data"]
    assert each == {"source": source, "limit": None, "per_class": 100, "extra": {"source": "more.npz", "limit": None}}


def test_what_is_no_number_or_ball_is_left_for_the_recipe_to_refuse(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text(LARGE.replace("steps: 78000", "steps: many").replace("20,", "few,"))
    with pytest.raises(RecipeError) as caught:
        load(str(tmp_path / "mine-small.yaml"))
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == ["method.attack.steps", "steps"]
    (tmp_path / "mine.yaml").write_text(LARGE.replace("linf:8/255", "linf:wide"))
    assert "'wide' is not a number" in refused(str(tmp_path / "mine-small.yaml"))
    for wrong in ("[]", "null", "{a: [b]}"):
        for key in ("data", "model", "method", "threat", "steps", "batch_size", "optimizer", "name"):
            mapping = parse_yaml(LARGE, "mine") | {key: parse_yaml(wrong, "wrong")}
            assert isinstance(twin(mapping, {}), dict)
    assert twin({}, {})["name"] == "custom-small"


def test_a_users_file_has_a_twin_with_lines_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(LARGE + "small: {steps: 90, model: {width: 4}, name: tiny}\n")
    small = load("mine-small.yaml")
    assert (small.name, small.steps, small.model.settings["width"], small.batch_size) == ("tiny", 90, 4, 64)
    assert load(str(tmp_path / "mine-small.yaml"), ["steps=80"]).steps == 80
    # The lines are the twin's alone, and neither the recipe's nor those of what builds on it.
    assert build(read("mine.yaml", small=True)) == small
    assert load("mine.yaml") == build(parse_yaml(LARGE, "mine"))
    Path("more.yaml").write_text("base: mine.yaml\nname: more\nthreat: linf:4/255\n")
    more = load("more-small.yaml")
    assert (more.name, more.steps, more.model.settings["width"]) == ("more-small", 350, 16)
    assert more.method.model_dump()["attack"]["step_size"] == 2 / 255
    # A twin is a base like any other, and a file of its name comes first.
    Path("other.yaml").write_text("base: mine-small.yaml\nseed: 7\n")
    assert load("other.yaml") == small.model_copy(update={"seed": 7})
    Path("third.yaml").write_text("base: cifar10-trades-small\nname: third\n")
    assert load("third.yaml") == load("cifar10-trades-small", ["name=third"])
    Path("mine-small.yaml").write_text("base: mnist-free\nname: written\n")
    assert load("mine-small.yaml").name == "written"
    assert build(read("mine-small.yaml", small=True)).name == "written"


def test_a_run_has_a_twin_in_a_study(tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text(dump(load("cifar10-trades", ["seed=4"])))
    assert build(read(str(tmp_path), small=True)) == load("cifar10-trades-small", ["seed=4"])


def test_twins_that_there_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("base: finetune\nname: mine\n")
    none = "has no small twin, for it starts from trained weights, which fit no other network; take "
    assert refused("finetune-small") == f"finetune {none}finetune itself, with fewer steps, like steps=200"
    assert refused("mine-small.yaml").startswith(f"mine.yaml {none}mine.yaml itself")
    for model in ("{name: 'timm:resnet50', pretrained: true}", "'hub:ada/net'", "{name: resnet18, weights: a.pt}"):
        Path("mine.yaml").write_text(f"base: cifar10-free\nmodel: {model}\n")
        assert none in refused("mine-small.yaml")
    Path("mine.yaml").write_text("base: cifar10-free\nmodel: 'timm:resnet50'\nnormalize: pretrained\n")
    assert none in refused("mine-small.yaml")
    assert "nothing-small.yaml cannot be read: No such file" in refused("nothing-small.yaml")
    assert "did you mean 'cifar10-free-small'?" in refused("cifar10-fre-small")
    assert "did you mean 'cifar10-free-small'?" in refused("cifar10-free-small-small")
    assert "finetune-small" not in refused("finetun-smal")


def test_lines_for_a_twin_that_are_none(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    for wrong in ("3", "null", "[a]", "tiny"):
        path.write_text(f"base: mnist-free\nsmall: {wrong}\n")
        assert refused(str(path)).endswith("mine.yaml: small is no section; write it like `small: {steps: 800}`")
    path.write_text("base: mnist-free\nsmal: {steps: 3}\n")
    assert refused(str(path)).endswith("mine.yaml: smal: unknown; did you mean 'small'?")
    path.write_text("base: mnist-free\nsmall: {stepz: 3}\n")
    assert "stepz: unknown" in refused(str(path), small=True)
    with pytest.raises(RecipeError, match="small: unknown; allowed"):
        load("mnist-free", ["small={steps: 3}"])


def test_a_twin_that_leads_back_to_its_own_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("base: mine-small.yaml\n")
    assert "base mine-small.yaml leads back to mine.yaml" in refused("mine.yaml")
    assert "leads back to mine.yaml" in refused("mine-small.yaml")


@pytest.mark.parametrize("name", ["mnist-free", "mnist-natural", "mnist-pgd"])
def test_what_is_small_already_is_its_own_twin(name: str):
    assert load(f"{name}-small") == load(name)
    assert name not in recipes.twinned()


def test_the_study_of_the_readme_runs_at_every_scale():
    text = next(block for block in re.findall(r"```yaml\n(.*?)```", README.read_text(), re.DOTALL) if "axes:" in block)
    study = Study.model_validate(parse_yaml(text, "README"))
    for scale in ("paper", "small", "toy"):
        plan = expand(study, scale)
        assert {row.error for row in plan.rows.values()} == {None}
        assert len(plan.trainings) == 8
    steps = {recipe.steps for recipe in expand(study, "small").trainings.values()}
    assert steps == {load("mnist-free").steps}


FROZEN = Path(__file__).with_name("twins.txt").read_text().splitlines()
TWINS = dict(line.split() for line in FROZEN if not line.startswith("#"))


def flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {p: v for key, inner in value.items() for p, v in flat(inner, f"{path}.{key}".lstrip(".")).items()}


def test_the_shipped_twins_are_those_they_were():
    assert [f"{name}-small" for name in recipes.twinned()] == [*TWINS]


@pytest.mark.parametrize("name", TWINS)
def test_a_shipped_twin_changes_what_it_always_changed(name: str):
    mapping = read(name)
    assert is_small(mapping)
    assert twin(mapping, {}) == mapping
    full = flat(load(name.removesuffix("-small")).model_dump(mode="json"))
    small = flat(build(mapping).model_dump(mode="json"))
    changed = [f"{path}={value}" for path, value in small.items() if path not in full or full[path] != value]
    assert hashlib.sha256("\n".join(changed).encode()).hexdigest()[:12] == TWINS[name], changed
