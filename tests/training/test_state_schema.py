"""Checkpoints that are whole, but not of this run: whatever a stranger puts into them is a sentence, never more."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from toughen.recipes import Recipe
from toughen.storage.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint
from toughen.storage.files import Damaged
from toughen.training import train
from toughen.training.state_schema import SavedState

OTHERS: list[object] = [None, -1, 1.5, True, "7", "../../x", [], [1], {}, {"a": 1}]


DEFAULTS = {"meters", "micro_batch", "ways", "code", "selected_by", "overfitting", "passes", "unvalidated"}
"""What may be missing, whole or in part."""


def recipe(steps: int) -> Recipe:
    return Recipe.model_validate(
        {
            "data": "tiny",
            "model": {"name": "small_cnn", "width": 2, "norm": "batch"},
            "method": {"name": "free", "replays": 3},
            "threat": "linf:0.1",
            "batch_size": 32,
            "steps": steps,
            "averages": [0.9],
            "selection": {"suite": "pgd-1"},
        }
    )


@pytest.fixture
def ended(tiny: str, tmp_path: Path) -> Checkpoint:
    train(recipe(12), tmp_path / "run")
    found = latest_checkpoint(tmp_path / "run", warn=print)
    assert found is not None
    return found


def groups(found: Checkpoint) -> dict[str, dict[str, torch.Tensor]]:
    return {name.removesuffix(".safetensors"): found.tensors(name[:-12]) for name in found.files if name[-1] == "s"}


def resumed(found: Checkpoint, tensors: dict[str, dict[str, torch.Tensor]], state: dict[str, Any]) -> None:
    run = found.path.parents[1]
    save_checkpoint(run, found.step, tensors, state, keep=1)
    train(recipe(12), run)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something can be put in another's place: everywhere but in what is only shown."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(*path, key) for key, _ in inner] + [place for key, part in inner for place in places(part, (*path, key))]


def spoilt(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The state with a value of another kind, or a value lost, or one too many, at one place after the other."""
    for *above, key in places(state):
        for value in (*OTHERS, "lost", "more"):
            found = copy.deepcopy(state)
            inner: Any = found
            for step in above:
                inner = inner[step]
            kinds = {type(inner[key]), type(value)}
            # Which other kinds are allowed: whole numbers for others, null for what may be missing, any in a list.
            if len(kinds) == 1 or kinds == {int, float} or type(None) in kinds or [*above, key][0] == "data":
                continue
            if value == "lost":
                if [*above, key][0] in DEFAULTS or above == ["best"]:
                    continue
                del inner[key]
            elif value == "more" and isinstance(inner[key], dict):
                # What is unknown there is left out.
                if key in DEFAULTS:
                    continue
                inner[key]["more"] = 1.5
            else:
                inner[key] = value
            yield found


def test_a_state_with_another_kind_of_value_anywhere_is_refused(ended: Checkpoint):
    tensors, refused = groups(ended), 0
    for number, state in enumerate(spoilt(ended.state)):
        with pytest.raises(Damaged, match=r"state.json is not a run's: [\w.-]+: \w"):
            SavedState.of(replace(ended, state=state))
        refused += 1
        if number % 60 == 0:
            with pytest.raises(Damaged, match=r"state.json is not a run's"):
                resumed(ended, tensors, state)
    assert refused > 200


def test_a_place_that_no_run_comes_by_is_refused(ended: Checkpoint):
    saved = SavedState.of(ended)
    saved.check_place(ended, batches=4, steps_per_batch=3)
    for given in ({"batches": 3, "steps_per_batch": 3}, {"batches": 4, "steps_per_batch": 4}):
        with pytest.raises(Damaged, match=r"state.json is at step 12 after 4 of"):
            saved.check_place(ended, **given)
    with pytest.raises(Damaged, match=r"state.json is at step 9 after 3 of 4"):
        resumed(ended, groups(ended), ended.state | {"step": 9, "number": 3})


def test_tensors_of_another_model_are_refused(ended: Checkpoint):
    whole = groups(ended)
    for group, members in whole.items():
        if group.startswith("best-"):
            continue
        for name in [*members][:: max(1, len(members) - 1)]:
            lacking = {**whole, group: {key: value for key, value in members.items() if key != name}}
            longer = {**whole, group: {**members, name: torch.zeros(7, 5)}}
            strange = {**whole, group: {**members, "__class__.x": torch.zeros(1)}}
            for what, tensors in {"lacking": lacking, "longer": longer, "strange": strange}.items():
                # A weight that gets no gradient has no momentum.
                if group == "optimizer" and what == "lacking":
                    continue
                with pytest.raises(Damaged, match=r"its tensors do not fit this run: \w+: "):
                    resumed(ended, tensors, ended.state)
    for group in ("weights", "method", "optimizer", "average-0.9"):
        with pytest.raises(Damaged, match="its tensors do not fit this run"):
            resumed(ended, {name: members for name, members in whole.items() if name != group}, ended.state)
