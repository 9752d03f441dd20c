"""What all tests share. Torch and the package are imported where they are used: xdist's first process runs no test."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch

    from toughen.data import ImageData, Split

# One thread: tests run side by side on two cores, and sums must not depend on the number of threads.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Import the tests and what they need: compiled once for all processes, and never looked through for garbage."""
    settings, cache = (sys.dont_write_bytecode, sys.pycache_prefix), getattr(session.config, "cache", None)
    if sys.dont_write_bytecode and not sys.pycache_prefix and cache:
        # Where nothing is to be written beside the sources, processes that tests begin would compile all of it anew.
        os.environ["PYTHONPYCACHEPREFIX"] = str(cache.mkdir("compiled"))
        sys.dont_write_bytecode, sys.pycache_prefix = False, os.environ["PYTHONPYCACHEPREFIX"]
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()
        sys.dont_write_bytecode, sys.pycache_prefix = settings


@pytest.fixture(autouse=True, scope="session")
def _no_cache_of_the_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOUGHEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _remedies_are_there() -> Iterator[None]:
    """Of every command that ends with an error: what its sentence tells the reader to give is there."""
    from typer._click.globals import get_current_context

    from named_remedies import missing
    from toughen.cli import errors

    fail = errors._fail

    def checked(message: str, code: int) -> None:
        context = get_current_context(silent=True)
        if context is not None:
            name = context.command_path.partition(" ")[2]
            wrong = missing(message, name)
            assert not wrong, f"{name}: {wrong} in {message!r}"
        fail(message, code)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(errors, "_fail", checked)
        yield


def tiny_split(name: str, n: int, classes: int = 4, side: int = 8) -> Split:
    """Images whose class is a bright quarter under noise: a small network learns them in a few steps."""
    import torch

    from toughen.data import Split
    from toughen.noise import generator

    draw = generator("tiny", name)
    labels = torch.arange(n) % classes
    images = torch.randint(0, 120, (n, 1, side, side), generator=draw, dtype=torch.uint8)
    half = side // 2
    for i, label in enumerate(labels.tolist()):
        row, column = divmod(label, 2)
        images[i, :, row * half : (row + 1) * half, column * half : (column + 1) * half] += 100
    return Split(images, labels)


def tiny_data() -> ImageData:
    """150 training and 40 test images of 8x8."""
    from toughen.data import ImageData

    classes = ("a", "b", "c", "d")
    return ImageData("tiny", tiny_split("train", 150), None, tiny_split("test", 40), classes)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a tiny data set."""
    from toughen.data import DATA

    monkeypatch.setitem(DATA, "tiny", tiny_data)
    return "tiny"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full-faults", metavar="FILE", help="Run the trials of faults in full; figures go to FILE.")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave what is marked `full` to `make faults`."""
    if config.getoption("--full-faults") is None:
        left = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if not item.get_closest_marker("full")]


FULL = [pytest.mark.faults, pytest.mark.full]
"""Marks of a row of a parametrised test, or of a test, that `make faults` alone runs."""


def few(*rows: Any, small: int = 1) -> list[Any]:
    """Rows of a parametrised test, of which the tests run the first ones and `make faults` all."""
    given = [row if isinstance(row, tuple) else (row,) for row in rows]
    return [pytest.param(*row, marks=[] if place < small else FULL) for place, row in enumerate(given)]


class Faults:
    """How often the trials of a goal of reliability are run, and where their figures go: `make faults` runs all."""

    def __init__(self, file: str | None) -> None:
        self.full, self._file = file is not None, file

    def trials(self, small: int, full: int) -> int:
        """So many in the tests, or so many in full."""
        return full if self.full else small

    def tell(self, goal: str, sentence: str) -> None:
        """One figure that was measured, for `benchmarks/results/faults.md`: of the issue's goal, like "3 damage"."""
        if self._file is not None:
            with open(self._file, "a", encoding="utf-8") as file:
                file.write(json.dumps({"goal": goal, "measured": sentence}) + "\n")


@pytest.fixture(scope="session")
def faults(request: pytest.FixtureRequest) -> Faults:
    """Whether trials of faults run in full. A test that takes it is marked `faults`."""
    return Faults(request.config.getoption("--full-faults"))


class Saving:
    """What the tests of run folders and checkpoints share: saving, looking, and stopping the writer."""

    class Fault(Exception):
        """Thrown at a point."""

    @staticmethod
    def groups(step: int) -> dict[str, dict[str, torch.Tensor]]:
        """The tensors that are saved at a step."""
        import torch

        values = torch.arange(12, dtype=torch.float32) + step
        return {
            "weights": {"conv.weight": values.view(3, 4), "bn.steps": torch.tensor(step)},
            "average-0.995": {"conv.weight": values.double()},
        }

    @classmethod
    def save(cls, run: Path, step: int, **keywords: Any) -> Path:
        """A checkpoint of a step."""
        from toughen.storage.checkpoint import save_checkpoint

        return save_checkpoint(run, step, cls.groups(step), {"step": step, "log": 7}, **keywords)

    @staticmethod
    def contents(folder: Path) -> dict[str, bytes]:
        """Every file below a folder."""
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    @staticmethod
    def leftovers(run: Path) -> list[Path]:
        """What a writer left behind."""
        return [*run.rglob(".tmp-*"), *run.rglob(".replaced-*")]

    @staticmethod
    def never(sentence: str) -> None:
        """A `warn` that nothing may call."""
        raise AssertionError(sentence)

    @classmethod
    def fail(cls) -> None:
        """An action for `stop_at`."""
        raise cls.Fault

    @staticmethod
    def stop_at(number: int, action: Callable[[], None]) -> Callable[[str], None]:
        """A `store.point` that acts at the point of that number."""
        reached = iter(range(10**6))
        return lambda _name: action() if next(reached) == number else None


@pytest.fixture
def saving() -> type[Saving]:
    """The helpers for tests of run folders and checkpoints."""
    return Saving
