"""torch's own random state is kept in one way, which asks no other device than the one in question."""

import ast
from pathlib import Path

import torch

import toughen
from toughen.devices import begun
from toughen.models.cost import count_on_toy
from toughen.testing.promises import own_randomness

SOURCES = sorted(Path(toughen.__file__).parent.rglob("*.py"))


def test_nothing_asks_every_device_for_its_random_state():
    """As `torch.random.fork_rng` does without devices: slow with many GPUs, and it warns."""
    named = {
        path.name
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute | ast.alias)
        and getattr(node, "attr", getattr(node, "name", "")) == "fork_rng"
    }
    assert len(SOURCES) > 150
    assert named == set()


def test_toys_are_drawn_on_the_host_alone(monkeypatch):
    """torch.manual_seed would seed every GPU too."""
    monkeypatch.setattr(torch, "manual_seed", None)
    before = torch.get_rng_state()
    count_on_toy(lambda model, x, y: model(x), channels=1, classes=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_promises_leave_a_device_alone_that_nobody_has_begun_to_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", None)
    assert begun() == torch.device("cpu")
    with own_randomness():
        torch.rand(1)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert begun() == torch.device("cuda")
