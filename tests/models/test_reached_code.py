"""What a result hangs on besides weights: what counts, by which name, and what does not."""

import functools
import importlib
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from toughen.models.reached_code import reached

LIBRARY = """
import torch
from torch import nn
import helper
from helper import scaled as renamed
from argparse import Namespace

SHIFT = 1.0
TABLE = {"a": [1, 2], "b": torch.zeros(2)}
args = Namespace(scale=2.0, output="here")

def inner(x):
    return x * SHIFT

def decorated(function):
    def wrapper(*given):
        return function(*given)
    return wrapper

class Base(nn.Module):
    offset = 0.5
    def features(self, x):
        return inner(x) + self.offset

class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()
    @staticmethod
    def backward(ctx, grad):
        return grad

class Net(Base):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        self.sizes = [1, 2]
        self.mean = torch.zeros(3)
        self.gate = make(3)
        self.aside = [nn.Linear(2, 2)]
        with torch.no_grad():
            self.aside[0].weight.fill_(1.0)
            self.aside[0].bias.fill_(1.0)

    @torch.no_grad()
    def look(self, x):
        return x + TABLE["b"]

    @property
    def factor(self):
        return 1.0

    @decorated
    def head(self, x):
        import lazy
        return lazy.last(x)

    def forward(self, x):
        # A comment.
        x = self.features(x) * args.scale * self.factor
        x = Straight.apply(helper.shifted(x)) + renamed(x)
        return self.head(self.body(self.gate(self.look(x))))

def make(times):
    def gate(x):
        return x * times
    return gate
"""

HELPER = """
import deeper
GAIN = 3
def shifted(x):
    return x - deeper.amount()
def scaled(x):
    return x * GAIN
def unused(x):
    return 0
"""

DEEPER = "def amount():\n    return 1\n"
LAZY = "def last(x):\n    return x\n"

CHANGES = {
    "a comment": ("library", "# A comment.", "# Another one.", set()),
    "where it stands": ("library", "SHIFT = 1.0", "\n\n\nSHIFT = 1.0", set()),
    "what is not reached": ("helper", "return 0", "return 1", set()),
    "another argument of the command": ("library", 'output="here"', 'output="there"', set()),
    "an argument": ("library", "scale=2.0", "scale=3.0", {"scale"}),
    "forward": ("library", "* args.scale", "/ args.scale", {"Net.forward"}),
    "a base class": ("library", "inner(x) + self", "inner(x) - self", {"Base.features"}),
    "a class attribute": ("library", "offset = 0.5", "offset = 0.6", {"Base.offset"}),
    "a function": ("library", "x * SHIFT", "x + SHIFT", {"inner"}),
    "a global": ("library", "SHIFT = 1.0", "SHIFT = 1.5", {"SHIFT"}),
    "in a table": ("library", "[1, 2], ", "[1, 3], ", {"TABLE"}),
    "a tensor in a table": ("library", "zeros(2)}", "ones(2)}", {"TABLE"}),
    "under no_grad": ("library", "x + TABLE", "x - TABLE", {"Net.look"}),
    "a property": ("library", "return 1.0", "return 1.5", {"Net.factor"}),
    "decorated": ("library", "lazy.last(x)", "lazy.last(-x)", {"Net.head", "decorated.<locals>.wrapper.function"}),
    "a decorator": ("library", "return function(*given)", "return -function(*given)", {"decorated.<locals>.wrapper"}),
    "a gradient of its own": ("library", "return grad", "return -grad", {"Straight.backward"}),
    "an attribute in a list": ("library", "self.sizes = [1, 2]", "self.sizes = [1, 4]", {"sizes", "Net.__init__"}),
    "a tensor that is no buffer": (
        "library",
        "self.mean = torch.zeros",
        "self.mean = torch.ones",
        {"mean", "Net.__init__"},
    ),
    "a closure": ("library", "make(3)", "make(4)", {"gate", "make.<locals>.gate.times", "Net.__init__"}),
    "what encloses": ("library", "return x * times", "return x + times", {"gate", "make.<locals>.gate", "make"}),
    "a hidden layer": ("library", "weight.fill_(1.0)", "weight.fill_(2.0)", {"aside", "Net.__init__"}),
    "an imported module": ("helper", "x - deeper", "x + deeper", {"shifted"}),
    "an imported name": ("helper", "GAIN = 3", "GAIN = 4", {"GAIN"}),
    "what that imports": ("deeper", "return 1", "return 2", {"amount"}),
    "what is imported when it runs": ("lazy", "return x", "return -x", {"lazy"}),
}


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Writes the files, with one text changed, and gives the network; as another process would find them."""
    texts = {"library": LIBRARY, "helper": HELPER, "deeper": DEEPER, "lazy": LAZY}
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(which: str = "", old: str = "", new: str = "") -> nn.Module:
        for name, text in texts.items():
            assert name != which or text.count(old) == 1
            (tmp_path / f"{name}.py").write_text(text.replace(old, new) if name == which else text)
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        torch.manual_seed(0)
        return importlib.import_module("library").Net()

    yield write
    for name in texts:
        sys.modules.pop(name, None)


def differing(one: Any, other: Any) -> set[str]:
    pairs = ((one.code, other.code), (one.values, other.values))
    return {name for a, b in pairs for name in a.keys() | b.keys() if a.get(name) != b.get(name)}


@pytest.mark.parametrize(("which", "old", "new", "names"), CHANGES.values(), ids=CHANGES)
def test_what_changed_is_named_and_nothing_else(written, which, old, new, names):
    before = reached(model=written())
    assert differing(before, reached(model=written())) == set()
    assert differing(before, reached(model=written(which, old, new))) == names


def test_what_is_typed_in_counts_by_what_it_does():
    def typed(text: str) -> Any:
        place: dict[str, Any] = {"nn": nn}
        exec(textwrap.dedent(text), place)
        return reached(model=place["Net"]())

    text = """
        class Net(nn.Module):
            def forward(self, x):
                return x.flatten(1) * 2
        """
    assert set(typed(text).code) == {"Net", "Net.forward"}
    assert typed(text) == typed(text.replace("return", "\n                return"))
    assert differing(typed(text), typed(text.replace("* 2", "* 3"))) == {"Net.forward"}
    assert differing(typed(text), typed(text.replace("x.flatten(1)", "x.detach().flatten(1)"))) == {"Net.forward"}


class Holder:
    __slots__ = ("kept",)

    def __init__(self, kept: Any) -> None:
        self.kept = kept


class Loop:
    def __init__(self) -> None:
        self.me = self


def test_values_of_every_kind_count_by_what_they_hold():
    array = np.arange(4.0)
    kinds: list[Callable[[int], Any]] = [
        lambda n: n,
        lambda n: [n],
        lambda n: {"a": (n, None)},
        lambda n: {n, 7},
        lambda n: torch.full((2,), n),
        lambda n: torch.eye(3).mul(n).to_sparse(),
        lambda n: array + n,
        lambda n: np.array([n, "text"], dtype=object),
        lambda n: Holder(n),
        lambda n: types.SimpleNamespace(a=n),
        lambda n: nn.Linear(n + 1, 1),
        lambda n: slice(n),
        lambda n: functools.partial(torch.add, n),
        lambda n: (lambda x: x) if n else (lambda x: -x),
        lambda n: [torch.float32, torch.float64][n],
        lambda n: [nn.BatchNorm2d, nn.GroupNorm][n],
        lambda n: [torch.relu, torch.tanh][n],
    ]
    for kind in kinds:
        torch.manual_seed(0)
        first = reached(it=kind(0))
        torch.manual_seed(0)
        assert reached(it=kind(0)) == first
        assert reached(it=kind(1)) != first
    assert reached(it=Loop()) == reached(it=Loop())


def test_plain_attributes_are_told_by_their_module():
    def net(slope: float) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.LeakyReLU(slope))

    assert differing(reached(model=net(0.1)), reached(model=net(0.2))) == {"1"}
    assert reached(model=net(0.1).train()) == reached(model=net(0.1).eval())


def test_a_method_that_was_put_into_an_installed_class_counts(monkeypatch: pytest.MonkeyPatch):
    def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x.detach()

    before = reached(model=nn.Sequential(nn.ReLU()))
    monkeypatch.setattr(nn.ReLU, "forward", forward)
    assert differing(before, reached(model=nn.Sequential(nn.ReLU()))) == {forward.__qualname__}
