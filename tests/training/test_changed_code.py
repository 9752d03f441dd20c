"""A run whose code is not what it was begun with says so."""

from collections.abc import Iterator
from typing import Literal

from torch import Tensor, nn

from tiny_runs import Said, tiny_recipe
from toughen.methods import METHODS
from toughen.methods.base import Batch, Objective, State
from toughen.methods.natural import Natural
from toughen.training import train


def weighed(losses: Tensor) -> Tensor:
    return losses


class Weighed(Natural, frozen=True):
    """A method of one's own."""

    name: Literal["weighed"] = "weighed"  # pyright: ignore[reportIncompatibleVariableOverride]

    def losses(self, model: nn.Module, batch: Batch, state: State) -> Iterator[Objective]:
        for objective in super().losses(model, batch, state):
            yield lambda objective=objective: weighed(objective())


def test_a_training_says_that_its_code_has_changed_since(tiny: str, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "weighed", Weighed)
    recipe = tiny_recipe(method={"name": "weighed"}, steps=3)
    train(recipe, tmp_path / "run")
    train(recipe, tmp_path / "run", display=(said := Said()))
    assert said.notes == [f"{tmp_path / 'run'} is complete"]
    monkeypatch.setitem(globals(), "weighed", lambda losses: losses * 2)
    train(recipe, tmp_path / "run", display=(said := Said()))
    assert said.notes[0].startswith(f"{tmp_path / 'run'} was begun with other code of ")
    assert said.notes[0].endswith("; to train with what it is now, give another folder")
