"""Which weights are kept as the best, by what, and what a run of an earlier version goes on with."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from hostile_folders import signed
from tiny_runs import Said, tiny_recipe
from toughen.methods import METHODS
from toughen.methods.base import Method
from toughen.methods.wrapper import nested
from toughen.recipes import Recipe
from toughen.recipes.text import build, load, shipped
from toughen.report import describe_training, predicted_cost
from toughen.report.blocks import Table
from toughen.report.page.page import build_entries, render_page
from toughen.storage.checkpoint import latest_checkpoint
from toughen.training import run as run_module
from toughen.training import train
from toughen.training.early_stopping import Accuracies, improved
from toughen.training.state_schema import SavedState
from toughen.workflows.run_folder import open_run

FREE = {"name": "free", "replays": 3}
Score = tuple[float, float]
"""Clean and robust accuracy."""


def chosen(method: object = FREE, **changes: Any) -> Recipe:
    """A run of four validations."""
    settings = {
        "averages": [],
        "steps": 24,
        "selection": {"suite": "pgd-1", "every": 6, **changes.pop("selection", {})},
    }
    return tiny_recipe(method=method, **settings, **changes)


def scored(monkeypatch: pytest.MonkeyPatch, *scores: Score) -> list[dict[str, torch.Tensor]]:
    """Let validations find these accuracies; the weights at each of them."""
    left, states = iter(scores), []

    def scripted(job: Any, split: object, **given: object) -> Accuracies:
        states.append({name: value.clone() for name, value in job.model.state_dict().items()})
        clean, robust = next(left)
        return {"weights": {"clean_accuracy": clean, "robust_accuracy": robust}}

    monkeypatch.setattr(run_module, "validate", scripted)
    return states


class Titled(Said):
    """Keeps the line about the run, too."""

    def __init__(self) -> None:
        super().__init__()
        self.titles: list[str] = []

    def start(self, title: str, step: int, total: int) -> None:
        self.titles.append(title)


def best_step(summary: dict[str, Any]) -> int:
    return summary["best"]["weights"]["step"]


def test_best_is_what_scored_best_on_the_validation_split_and_last_is_the_last(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    states = scored(monkeypatch, (1.0, 0.5), (0.9, 0.75), (1.0, 0.75), (1.0, 0.25))
    out, said = tmp_path / "run", Titled()
    summary = train(chosen(), out, display=said)
    # Of two that are equally robust the one of the higher clean accuracy.
    assert summary["best"]["weights"] == {"step": 18, "clean_accuracy": 1.0, "robust_accuracy": 0.75}
    assert summary["selected_by"] == "robust_accuracy"
    for checkpoint, state in (("best", states[2]), ("last", states[3])):
        found = open_run(out, checkpoint=checkpoint).model.state_dict()
        assert all(torch.equal(found[name], value) for name, value in state.items())
    assert open_run(out).step == 18
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [r["selected_by"] for r in records if "validation" in r] == ["robust_accuracy"] * 4
    assert any("held out, the best by robust accuracy), linf:0.1" in title for title in said.titles)
    assert predicted_cost(chosen()).endswith("every 6 steps, the best by robust accuracy")
    (table, *_) = describe_training(summary)
    assert isinstance(table, Table)
    assert table.columns[0] == "best by robust accuracy in validation"
    text = render_page(build_entries([out]))
    assert "Best by robust accuracy in validation (of the held-out split" in text


@pytest.mark.parametrize(
    ("scores", "robust", "clean"),
    [
        # Never robust, as natural training: not the first validation, but the most accurate, and of those the latest.
        ([(0.5, 0.0), (0.9, 0.0), (0.9, 0.0), (0.8, 0.0)], 18, 18),
        ([(0.9, 0.0), (0.5, 0.25), (0.9, 0.0), (0.8, 0.25)], 24, 18),
        ([(0.9, 0.5), (0.8, 0.5), (0.7, 0.5), (0.8, 0.25)], 6, 6),
        ([(0.9, 0.5), (0.9, 0.5), (0.9, 0.5), (0.9, 0.5)], 24, 24),
        ([(0.9, 0.5), (0.1, 0.0), (0.1, 0.0), (0.1, 0.0)], 6, 6),
    ],
)
def test_what_asks_for_no_robustness_is_chosen_by_clean_accuracy_and_the_latest_of_equals_stays(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: list[Score], robust: int, clean: int
):
    for name, method, step in (("free", FREE, robust), ("natural", {"name": "natural", "replays": 3}, clean)):
        scored(monkeypatch, *scores)
        assert best_step(train(chosen(method), tmp_path / name)) == step
    scored(monkeypatch, *scores)
    # And whatever the recipe asks for.
    assert best_step(train(chosen(selection={"by": "clean_accuracy"}), tmp_path / "asked")) == clean


def test_nan_is_never_better_and_never_in_the_way():
    nan = {"weights": {"clean_accuracy": math.nan, "robust_accuracy": math.nan}}
    zero = {"weights": {"clean_accuracy": 0.0, "robust_accuracy": 0.0}}
    for by in ("robust_accuracy", "clean_accuracy"):
        assert improved(nan, {}, by) == ["weights"]
        assert improved(zero, nan, by) == ["weights"]
        assert improved(nan, zero, by) == []


class _Silent(Method, frozen=True):
    name: Literal["silent"] = "silent"


@pytest.fixture
def silent() -> Iterator[None]:
    METHODS["silent"] = _Silent
    yield
    del METHODS["silent"]


@pytest.mark.parametrize(
    ("method", "robust"),
    [
        ({"name": "natural"}, False),
        ({"name": "natural", "replays": 8}, False),
        ({"name": "label_smoothing", "method": "natural"}, False),
        ({"name": "mixup", "method": "natural"}, False),
        ({"name": "mixup", "alpha": 0, "method": {"name": "label_smoothing", "method": "natural"}}, False),
        ({"name": "mixup", "method": {"name": "label_smoothing", "method": "trades"}}, True),
        ("mixup", True),
        ("label_smoothing", True),
        ("adversarial", True),
        ("interpolated", True),
        ("instance_adaptive", True),
        ("mart", True),
        ("bilateral", True),
        ("trades", True),
        ("free", True),
        # What the pages of these methods call natural training.
        ({"name": "trades", "beta": 0}, False),
        ({"name": "free", "replays": 1, "memory": "batch"}, False),
        # One of the user's own that says nothing.
        ("silent", True),
        ({"name": "mixup", "method": "silent"}, True),
    ],
)
@pytest.mark.usefixtures("silent")
def test_a_method_says_itself_whether_it_asks_for_robustness(method: object, robust: bool):
    recipe = build({"data": "tiny", "model": "small_cnn", "threat": "linf:0.1", "steps": 8, "method": method})
    assert recipe.selected_by == ("robust_accuracy" if robust else "clean_accuracy")


def test_of_the_shipped_recipes_natural_training_alone_is_chosen_by_clean_accuracy():
    by_clean = {name for name in shipped() if load(name).selected_by == "clean_accuracy"}
    assert by_clean == {name for name in shipped() if list(nested(load(name).method))[-1].name == "natural"}
    assert "cifar10-natural-w32-10" in by_clean


def test_a_run_that_an_earlier_version_began_keeps_the_rule_that_it_was_begun_with(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    scores = [(0.5, 0.0), (0.9, 0.0), (0.9, 0.0), (0.8, 0.0)]
    for name, method, step in (("free", FREE, 18), ("natural", {"name": "natural", "replays": 3}, 18)):
        for earlier in (False, True):
            out, said = tmp_path / f"{name}-{earlier}", Said()
            scored(monkeypatch, *scores[:2])
            with pytest.raises(StopIteration):
                train(chosen(method), out)
            newest = latest_checkpoint(out, warn=print)
            assert newest is not None
            rule = newest.state["selected_by"]
            assert rule == chosen(method).selected_by
            if earlier:
                state = json.loads((newest.path / "state.json").read_text())
                assert state["best"]["weights"]["step"] == 12
                # What the first rule had kept, in a state that does not say by what.
                state["best"]["weights"]["step"] = 6
                del state["selected_by"]
                (newest.path / "state.json").write_text(json.dumps(state))
                signed(newest.path)
            scored(monkeypatch, *scores[2:])
            summary = train(chosen(method), out, display=said)
            assert best_step(summary) == (6 if earlier else step)
            assert summary["selected_by"] == (None if earlier else rule)
            saved = latest_checkpoint(out, warn=print)
            assert saved is not None
            assert SavedState.of(saved).selected_by == summary["selected_by"]
            text = "as it was begun, the best is chosen by robust accuracy, the earliest of equals"
            assert (text in said.notes) is earlier
