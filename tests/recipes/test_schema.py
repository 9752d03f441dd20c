"""What recipes hold: the shipped ones, the papers' figures, parts from outside, and what is refused."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from toughen import recipes
from toughen.attacks import ATTACKS, AttackSpec
from toughen.data import DATA
from toughen.losses import cross_entropy
from toughen.methods import METHODS, Free, Method
from toughen.models import MODELS
from toughen.optim.schedules import SCHEDULES, Factor
from toughen.recipes import Recipe, RecipeError, dump
from toughen.recipes.text import build, parse_yaml
from toughen.settings import Positive
from toughen.threat import Linf

BASE = {"data": "mnist5k", "model": "small_cnn", "method": "free", "threat": "linf:0.1", "steps": 8}


def reloaded(recipe: Recipe) -> Recipe:
    return build(parse_yaml(dump(recipe), "dump"))


def fault(**changes: object) -> str:
    with pytest.raises(RecipeError) as caught:
        build({**BASE, **changes})
    return str(caught.value)


def test_free_has_the_settings_of_its_paper_and_code():
    recipe = recipes.load("cifar10-free")
    method, optimizer = recipe.method, recipe.optimizer
    assert isinstance(method, Free)
    assert (method.replays, method.threat) == (8, None)
    assert (recipe.steps, recipe.total_steps, recipe.batches, recipe.batch_size) == (80_000, 80_000, 10_000, 128)
    assert (optimizer.lr, optimizer.lr_batch_size, optimizer.warmup) == (0.1, None, 0)
    assert (optimizer.momentum, optimizer.nesterov) == (0.9, False)
    assert (optimizer.weight_decay, optimizer.decay_on) == (2e-4, "weights")
    assert recipe.threat == Linf(8 / 255)
    factor = recipe.schedule.factor()
    rates = [optimizer.lr * factor(step / 80_000) for step in (0, 39_999, 40_000, 59_999, 60_000, 79_999)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rel=1e-12)
    assert recipe.natural_steps == 80_000


def test_cost_and_rounding_to_whole_batches():
    recipe = build({**BASE, "steps": 17})
    assert (recipe.batches, recipe.total_steps, recipe.natural_steps) == (3, 24, 24)
    pgd = build({**BASE, "method": {"name": "adversarial", "attack": {"name": "pgd", "steps": 7}}, "steps": 3})
    assert pgd.natural_steps == pytest.approx(3 * (8 + 7 + 2) / 3)
    assert build({**BASE, "averages": ["0.995", 0.9]}).headline == "average-0.995"
    assert recipe.headline == "weights"


REFUSED = [
    ({"threat": "linf:0"}, "threat", r"\(0, 1\]"),
    ({"threat": "linf:1.01"}, "threat", r"\(0, 1\]"),
    ({"threat": "linf:-1/255"}, "threat", "not negative"),
    ({"threat": "linf:nan"}, "threat", "not finite"),
    ({"threat": "l2:inf"}, "threat", "not finite"),
    ({"threat": "l2:0"}, "threat", "must be positive"),
    ({"threat": "l7:1"}, "threat", "linf:RADIUS or l2:RADIUS"),
    ({"threat": "8/255"}, "threat", "linf:RADIUS"),
    ({"steps": 0}, "steps", "greater than or equal to 1; it is 0"),
    ({"steps": "nan"}, "steps", "integer"),
    ({"steps": "1.5"}, "steps", "integer"),
    ({"steps": True}, "steps", "True"),
    ({"batch_size": -3}, "batch_size", "greater than or equal to 1; it is -3"),
    ({"optimizer": {"lr": 0}}, "optimizer.lr", "greater than 0"),
    ({"optimizer": {"lr": "nan"}}, "optimizer.lr", "not finite"),
    ({"optimizer": {"lr": float("inf")}}, "optimizer.lr", "finite"),
    ({"optimizer": {"lr": True}}, "optimizer.lr", "True"),
    ({"optimizer": {"lr": 1, "momentum": 1.0}}, "optimizer.momentum", "less than 1"),
    ({"optimizer": {"lr": 1, "weight_decay": -1}}, "optimizer.weight_decay", "greater than or equal to 0"),
    ({"optimizer": {"lr": 1, "decay_on": "bias"}}, "optimizer.decay_on", "'all' or 'weights'; it is 'bias'"),
    ({"optimizer": {"lr": 1, "nesterov": True, "momentum": 0}}, "optimizer", "nesterov: true contradicts momentum: 0"),
    ({"optimizer": {"lr": 1, "momentun": 0}}, "optimizer.momentun", "did you mean 'momentum'"),
    ({"optimizer": {}}, "optimizer.lr", "is missing"),
    ({"method": {"name": "free", "replays": 0}}, "method.replays", "greater than or equal to 1; it is 0"),
    ({"method": {"name": "free", "replay": 4}}, "method.replay", "did you mean 'replays'"),
    ({"method": {"name": "free", "threat": "linf:2"}}, "method.threat", r"\(0, 1\]"),
    ({"method": "fre"}, "method", "allowed: natural, .*; did you mean 'free'"),
    ({"method": 3}, "method", "write a name"),
    ({"averages": [0.9, "0.9"]}, "averages", "the same rate twice"),
    ({"averages": [0.5, 1.0]}, "averages.1", "less than 1"),
    ({"averages": [-0.1]}, "averages.0", "greater than or equal to 0"),
    ({"seed": -1}, "seed", "greater than or equal to 0"),
    ({"seed": 2**63}, "seed", "less than"),
    ({"schedule": {"name": "multistep", "milestones": [0.5, 1]}}, "schedule.milestones.1", "less than 1"),
    ({"schedule": {"name": "multistep", "milestones": [0]}}, "schedule.milestones.0", "greater than 0"),
    ({"schedule": {"name": "multistep", "peak": 0.3}}, "schedule.peak", "unknown; allowed: milestones, decay"),
    ({"schedule": "cosin"}, "schedule", "did you mean 'cosine'"),
    ({"selection": "pdg-20"}, "selection.suite", "'pdg-20' is not a known suite; .* did you mean 'pgd-K'"),
    ({"selection": "pgd-0"}, "selection.suite", "at least 1"),
    ({"model": "smal_cnn"}, "model", "small_cnn"),
    ({"model": "wrn-17-4"}, "model", "6n \\+ 4"),
    ({"model": "wrn-600000004-1"}, "model", "1000 deep and 10000 wide at most"),
    ({"model": {"name": "small_cnn", "withd": 3}}, "model.withd", "did you mean 'width'"),
    ({"model": {"name": "small_cnn", "width": 0}}, "model", "width must be at least 1"),
    ({"model": {"name": "small_cnn", "width": 10**12}}, "model", "cannot be built"),
    ({"model": {"name": "small_cnn", "activation": "slu"}}, "model", "silu"),
    ({"method": {"name": "adversarial", "attack": "pgf"}}, "method.attack", "did you mean 'pgd'"),
    ({"method": {"name": "adversarial", "attack": {"name": "pgd", "loss": "margn"}}}, "method.attack.loss", "'margin'"),
    ({"method": {"name": "adversarial", "attack": {"name": "pgd", "stepz": 1}}}, "method.attack.stepz", "'steps'"),
    ({"device": "gpu"}, "device", "auto, cpu, cuda, cuda:NUMBER, mps, xpu or xpu:NUMBER"),
    ({"device": "meta"}, "device", "auto, cpu, cuda, cuda:NUMBER, mps, xpu or xpu:NUMBER"),
    ({"precision": "fp16"}, "precision", "'fp32' or 'bf16'; it is 'fp16'"),
    ({"data": {"source": "mnist5k", "fip": True}}, "data.fip", "did you mean 'flip'"),
    ({"data": {"source": "mnist5k", "flip": "maybe"}}, "data.flip", "boolean"),
    ({"normalize": {"mean": [0.5], "std": [0]}}, "normalize.std.0", "greater than 0"),
    ({"stepz": 3}, "stepz", "unknown; allowed: name, data, .*; did you mean 'steps'"),
]


@pytest.mark.parametrize(("changes", "path", "says"), REFUSED, ids=[str(row[0]) for row in REFUSED])
def test_a_fault_is_one_line_with_its_path_and_what_is_allowed(changes: dict[str, object], path: str, says: str):
    text = fault(**changes)
    assert len(text.splitlines()) == 1
    # The one check across entries of a list starts with them; every other sentence starts with the path.
    assert text.startswith((f"{path}: ", f"{path} ["))
    assert re.search(says, text)


def test_an_unknown_normalisation_is_one_sentence_that_lists_what_is_allowed():
    text = fault(normalize="dat")
    assert len(text.splitlines()) == 1
    assert text.startswith("normalize: ")
    assert all(allowed in text for allowed in ("none", "data", "per_image"))


def test_all_faults_are_told_at_once():
    text = fault(steps=0, optimizer={"lr": -1, "momentun": 1}, model="smal_cnn", stepz=1)
    paths = [line.partition(":")[0] for line in text.splitlines()]
    assert sorted(paths) == ["model", "optimizer.lr", "optimizer.momentun", "steps", "stepz"]


def test_the_largest_and_smallest_allowed_values_are_allowed():
    recipe = build({**BASE, "threat": "linf:1", "seed": 2**63 - 1, "steps": 1, "batch_size": 1, "averages": [0]})
    assert reloaded(recipe) == recipe
    assert float(build({**BASE, "threat": "l2:50"}).threat.eps) == 50


class Doubled(Method, frozen=True):
    """Twice the loss."""

    name: str = "doubled"
    scale: Positive = 2.0

    def losses(self, model, batch, state):
        yield lambda: self.scale * cross_entropy(model(batch.x), batch.y)


def nothing(model: nn.Module, x: torch.Tensor, y: torch.Tensor, *, threat, noise=None, strength: Positive = 1.0):
    """The clean image."""
    return x


def staircase(stairs: int = 3) -> Factor:
    """Down in equal stairs."""
    return lambda done: 1 - int(done * stairs) / stairs


class Flat(nn.Sequential):
    """A linear model of 8x8 images."""

    def __init__(self, num_classes: int, in_channels: int, *, gain: float = 1.0):
        super().__init__(nn.Flatten(), nn.Linear(64 * in_channels, num_classes))


def test_parts_from_outside_are_named_in_recipes_and_come_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(METHODS, "doubled", Doubled)
    monkeypatch.setitem(ATTACKS, "nothing", nothing)
    monkeypatch.setitem(MODELS, "flat", Flat)
    monkeypatch.setitem(SCHEDULES, "staircase", staircase)
    monkeypatch.setitem(DATA, "mine", DATA["mnist5k"])
    outside = {"data": "mine", "model": {"name": "flat", "gain": 0.5}, "schedule": {"name": "staircase", "stairs": 4}}
    recipe = build({**BASE, **outside, "method": {"name": "doubled", "scale": "3"}})
    assert isinstance(recipe.method, Doubled)
    assert (recipe.method.scale, recipe.model.settings, recipe.data.source) == (3.0, {"gain": 0.5}, "mine")
    assert recipe.schedule.factor()(0.5) == 0.5
    assert reloaded(recipe) == recipe

    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    changed = recipes.load(str(tmp_path), ["method=adversarial", "method.attack=nothing", "method.attack.strength=1/4"])
    assert changed.method.model_dump()["attack"] == {"name": "nothing", "strength": 0.25}
    assert isinstance(getattr(changed.method, "attack", None), AttackSpec)
    assert reloaded(changed) == changed
    assert "did you mean 'doubled'" in fault(method="doubld")
