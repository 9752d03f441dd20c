"""What the verbs say of a model on a pretended GPU is what they say of it on the CPU."""

import importlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from strangers.test_every_verb import NEEDS_GRADIENT, NEEDS_NO_GRADIENT
from strangers.test_models import Plain, made
from toughen.attacks import AttackSpec
from toughen.evaluation import evaluate, suites
from toughen.evaluation.adaptive import Adaptive
from toughen.evaluation.audit.model_check import check
from toughen.evaluation.corruption.evaluate import corruption_accuracy
from toughen.evaluation.plan import SideAttack
from toughen.evaluation.result import Evaluation
from toughen.evaluation.suites import find
from toughen.testing import toys
from toughen.threat import Linf

CUDA = torch.device("cuda", 0)
X = torch.rand(4, *toys.SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SUITES = [
    *("pgd-3", "pgd-3-r2", "pgd-3-margin", "cw-3", "cw-3-r2", "random-target-3", "quick", "free", "iaat", "aa+mt"),
    *("square", "autoattack", "autoattack-plus", "bilateral", "iaat-imagenet", "adaptive", "exhaustive"),
]
FEW = {"steps": 10, "queries": 40, "restarts": 2, "samples": 8, "targets": 3, "neighbours": 2, "binary_search_steps": 2}


def few(attack: Any) -> Any:
    """An attack of a suite with fewer steps, each of them the same."""
    if isinstance(attack, SideAttack):
        return replace(attack, attack=few(attack.attack))
    given = attack.settings
    less = {name: min(given[name], most) for name, most in FEW.items() if isinstance(given.get(name), int)}
    return AttackSpec.model_validate({"name": attack.name, **given, **less})


@pytest.fixture
def _shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    def shortened(name: str, threat: Any, **given: Any) -> Any:
        found = find(name, threat, **given)
        if isinstance(found, Adaptive):
            return found.with_attacks({label: few(attack) for label, attack in found.members.items()})
        return {label: few(attack) for label, attack in found.items()}

    monkeypatch.setattr(importlib.import_module("toughen.evaluation.evaluate"), "find", shortened)


def verdicts(found: Evaluation) -> list[Any]:
    """Who was attacked by what and what became of it, and what the audit says."""
    rows = [
        getattr(found.outcomes, name).tolist() for name in ("index", "attack", "prediction", "survived", "marginal")
    ]
    assert found.audit is not None
    return [*rows, [finding.code for finding in found.audit.findings], found.audit.standing, found.notes]


def labels() -> Tensor:
    """What the network says, but for the first image."""
    y = toys.normed(torch.float64)(X).argmax(1)
    y[0] = (y[0] + 1) % toys.CLASSES
    return y


def same(suite: str, folder: Path) -> None:
    """An evaluation on the device comes to the verdicts of the CPU's, and is shown again from images on the device."""
    y, there = labels(), toys.normed(torch.float64).to(CUDA)
    settings: dict[str, Any] = {"threat": Linf(0.04), "suite": suite}
    expected = evaluate(toys.normed(torch.float64), X, y, **settings)
    found = evaluate(there, X, y, folder=folder, keep="float32", **settings)
    assert found.device == "cuda:0"
    assert verdicts(found) == verdicts(expected)
    again = evaluate(there, X.to(CUDA), y.to(CUDA), folder=folder, keep="float32", **settings)
    assert verdicts(again) == verdicts(expected)


@pytest.mark.usefixtures("_shortened")
@pytest.mark.parametrize("suite", SUITES)
def test_an_evaluation_comes_to_the_same_verdicts(suite: str, tmp_path: Path) -> None:
    same(suite, tmp_path / "kept")


@pytest.mark.faults
@pytest.mark.full
@pytest.mark.parametrize("suite", SUITES)
def test_a_whole_suite_comes_to_the_same_verdicts(suite: str, tmp_path: Path) -> None:
    same(suite, tmp_path / "kept")


def test_every_suite_is_here() -> None:
    assert {pattern for pattern in suites.SUITES if not any(fits(pattern, suite) for suite in SUITES)} == set()


def fits(pattern: str, suite: str) -> bool:
    """Whether a key of `SUITES` stands for a suite."""
    return re.fullmatch(re.escape(pattern).replace("K", r"\d+").replace("R", r"\d+"), suite) is not None


def test_an_evaluation_that_ended_goes_on(tmp_path: Path) -> None:
    y, there = labels(), toys.normed(torch.float64).to(CUDA)

    class Ended(Exception):
        pass

    def end(status: Any) -> None:
        raise Ended

    settings: dict[str, Any] = {"threat": Linf(0.04), "suite": "quick", "chunk_size": 2, "batch_size": 2}
    with pytest.raises(Ended):
        evaluate(there, X, y, folder=tmp_path / "kept", progress=end, **settings)
    found = evaluate(there, X, y, folder=tmp_path / "kept", **settings)
    assert verdicts(found) == verdicts(evaluate(toys.normed(torch.float64), X, y, **settings))


@pytest.mark.parametrize(
    ("verb", "call"), (NEEDS_NO_GRADIENT | NEEDS_GRADIENT).items(), ids=NEEDS_NO_GRADIENT | NEEDS_GRADIENT
)
def test_a_verb_says_the_same(verb: str, call: Callable[[Any, Path], Any], tmp_path: Path) -> None:
    expected = call(made(Plain), tmp_path / "host")
    assert call(made(Plain).to(CUDA), tmp_path / "device") == expected


def test_corruptions_are_counted_the_same() -> None:
    torch.manual_seed(0)
    pixels, y = torch.randint(0, 256, (6, 1, 32, 32), dtype=torch.uint8), torch.arange(6) % 4
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, 4))
    settings: dict[str, Any] = {"corruptions": ["gaussian_noise", "fog"]}
    expected = corruption_accuracy(net, pixels, y, **settings)
    found = corruption_accuracy(net.to(CUDA), pixels, y, **settings)
    for severity in range(1, 6):
        for name in settings["corruptions"]:
            assert found.accuracy(name, severity) == expected.accuracy(name, severity)


def test_check_says_the_same() -> None:
    y = labels()
    expected, found = (check(toys.normed(torch.float64).to(device), X, y) for device in ("cpu", CUDA))
    assert [(item.what, item.verdict, item.code) for item in found.items] == [
        (item.what, item.verdict, item.code) for item in expected.items
    ]
    assert any("cuda:0" in item.evidence for item in found.items)


def test_nothing_is_left_on_the_device() -> None:
    held = torch.cuda.memory_allocated()
    evaluate(toys.normed().to(CUDA), X, labels(), threat=Linf(0.04), suite="quick")
    assert torch.cuda.memory_allocated() == held
