"""Never a stale number: what was corrected is refused by name or computed anew, whatever it was and whoever asks."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cli.test_app import done, failed
from toughen.corruptions import CORRUPTIONS
from toughen.evaluation import Evaluation, evaluate
from toughen.evaluation.corruption.evaluate import corruption_accuracy
from toughen.evaluation.work_unit import EvaluationTask
from toughen.models.cost import counted
from toughen.noise import Stream
from toughen.storage import files
from toughen.threat import Linf, Threat

X = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(20) % 4


def net(**changes: Any) -> nn.Module:
    """A network with these methods and attributes in place of its own."""
    torch.manual_seed(0)
    linear = nn.Linear(192, 4)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = linear
            self.gains = [1.0]

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.flatten(1) - 0.5) * self.gains[0]

    for name, value in changes.items():
        setattr(Net, name, value) if callable(value) else None
    model = Net()
    for name, value in changes.items():
        None if callable(value) else setattr(model, name, value)
    return model


def corrected(self: Any, x: Tensor) -> Tensor:
    return self.linear((x.flatten(1) - 0.5) / 0.25) * self.gains[0]


def detached(self: Any, x: Tensor) -> Tensor:
    return self.linear(x.detach().flatten(1) - 0.5) * self.gains[0]


def same(self: Any, x: Tensor) -> Tensor:
    """The same as it was typed in first, with other words around it."""
    # Less a half.
    return self.linear(x.flatten(1) - 0.5) * self.gains[0]


def attacked(folder: Path | None, model: nn.Module | None = None, **changes: Any) -> Evaluation:
    given = {"threat": "linf:0.1", "suite": "pgd-2", "audit": False} | changes
    return evaluate(model or net(), X, Y, folder=folder, **given)


def corrupted(folder: Path, model: nn.Module) -> Any:
    images = (X * 255).to(torch.uint8)
    return corruption_accuracy(model, images, Y, corruptions=CORRUPTIONS[:1], severities=[1], folder=folder)


@pytest.mark.parametrize("run", [attacked, corrupted])
@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"forward": corrected}, "other code of corrected, Net.forward"),
        ({"forward": detached}, "other code of detached, Net.forward"),
        ({"gains": [2.0]}, "another value of gains"),
        ({"gains": torch.tensor([2.0])}, "another value of gains"),
        ({"extra": {"a": 1}}, "another value of extra"),
    ],
)
def test_what_was_corrected_is_refused_by_name(run: Callable[..., Any], change: dict[str, Any], names: str, tmp_path):
    run(tmp_path / "here", net())
    before = {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}
    with pytest.raises(ValueError, match=rf"EV271 .*here holds an evaluation of {names}; give another folder, or"):
        run(tmp_path / "here", net(**change))
    assert {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()} == before
    run(tmp_path / "here", net())


class Hidden(nn.Module):
    """What it computes lies where nobody looks: in a C object without a value."""

    shift: Callable[[], float]

    def __init__(self, shift: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.shift = nn.Linear(192, 4), iter([shift] * 1000).__next__

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1)) + torch.tensor([self.shift(), 0.0, 0.0, 0.0])


def test_logits_tell_what_no_source_does(tmp_path):
    attacked(tmp_path, Hidden(0.0))
    attacked(tmp_path, Hidden(1e-5))
    with pytest.raises(ValueError, match=r"EV271 .* of a model that gave other logits for the same images: up to 0\.5"):
        attacked(tmp_path, Hidden(0.5))


class Masked(Linf):
    """A ball of one's own, whose text says nothing of its mask."""

    mask: Tensor

    def __init__(self, eps: float, mask: Tensor) -> None:
        super().__init__(eps)
        object.__setattr__(self, "mask", mask)

    def project(self, delta: Tensor) -> Tensor:
        return super().project(delta) * self.mask

    def sample(self, x: Tensor, noise: Stream) -> Tensor:
        return self.project(super().sample(x, noise))


class Doubled(Linf):
    """Another ball under the same text."""


def half(n: int) -> Tensor:
    return torch.arange(n).remainder(2).float()


def test_balls_of_one_text_are_told_apart(tmp_path):
    assert Masked(0.1, half(8)) == Masked(0.1, half(8))
    assert Masked(0.1, half(8)) != Masked(0.1, 1 - half(8))
    assert Doubled(0.1) != Linf(0.1)
    ball = Masked(0.1, half(8))
    attacked(tmp_path, threat=ball)
    attacked(tmp_path, threat=Masked(0.1, half(8)))
    for other in (Masked(0.1, 1 - half(8)), Linf(0.1), Doubled(0.1)):
        with pytest.raises(ValueError, match=r"EV271 .* of another threat model"):
            attacked(tmp_path, threat=other)


SIGNS = [1.0]


def step(x: Tensor, threat: Threat) -> Tensor:
    return (x + SIGNS[0] * float(threat.eps)).clamp(0, 1)


def mine(model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat) -> Tensor:
    return step(x, threat)


def test_what_a_suites_function_calls_counts(tmp_path, monkeypatch):
    attacked(tmp_path, suite={"mine": mine})
    attacked(tmp_path, suite={"mine": mine})
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "SIGNS", [-1.0])
        with pytest.raises(ValueError, match=r"EV271 .* of another value of SIGNS;"):
            attacked(tmp_path, suite={"mine": mine})
    monkeypatch.setitem(globals(), "step", lambda x, threat: (x - float(threat.eps)).clamp(0, 1))
    with pytest.raises(ValueError, match=r"EV271 .* of other code of"):
        attacked(tmp_path, suite={"mine": mine})


def test_an_attack_of_ones_own_by_name_counts_by_its_code(tmp_path, monkeypatch):
    from toughen.attacks import ATTACKS, AttackSpec
    from toughen.attacks.contract import attack

    monkeypatch.setitem(ATTACKS, "mine", attack(mine))
    suite = {"mine": AttackSpec(name="mine")}
    attacked(tmp_path, suite=suite)
    attacked(tmp_path, suite=suite)
    monkeypatch.setitem(globals(), "SIGNS", [-1.0])
    with pytest.raises(ValueError, match=r"EV271 .* of another value of SIGNS;"):
        attacked(tmp_path, suite=suite)


def without_logits(folder: Path) -> None:
    (folder / "clean_logits.safetensors").unlink()


def damaged(folder: Path) -> None:
    (folder / "clean_logits.safetensors").write_bytes(b"no tensors")


def of_another_form(folder: Path) -> None:
    save_file({"model": torch.zeros(())}, folder / "clean_logits.safetensors")


def of_before(folder: Path) -> None:
    """As the library wrote it when it looked at no code."""
    result = files.read_json(folder / "result.json")
    for name in ("code", "values", "changing", "made"):
        del result["identity"][name]
    files.write_json(folder / "result.json", result)


def of_another_python(folder: Path) -> None:
    result = files.read_json(folder / "result.json")
    result["identity"] |= {"made": "Python 3.99, torch 9.0", "code": {"Net.forward": "0123456789abcdef"}}
    files.write_json(folder / "result.json", result)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (without_logits, "keeps no clean logits of its model"),
        (damaged, "keeps no clean logits of its model"),
        (of_another_form, "keeps no clean logits of its model"),
        (of_before, "says nothing of the code of its model"),
        (of_another_python, r"was made with Python 3\.99, torch 9\.0, whose code cannot be compared"),
    ],
)
def test_what_cannot_be_told_is_kept_and_computed_anew(spoil: Callable[[Path], None], says: str, tmp_path):
    folder = tmp_path / "here"
    first = attacked(folder)
    for number in (1, 2):
        spoil(folder)
        kept = {path.name: path.read_bytes() for path in folder.iterdir()}
        model = net()
        with counted(model) as passes:
            again = attacked(folder, model)
        assert passes.backwards > 0
        assert again.summary()["attacks"] == first.summary()["attacks"]
        (note,) = [text for text in again.notes if "before" in text]
        assert f"it is kept as here.before-{number}, and this was computed anew" in note
        assert re.search(says, note)
        aside = tmp_path / f"here.before-{number}"
        assert {path.name: path.read_bytes() for path in aside.iterdir()} == kept
    assert attacked(folder).notes == again.notes


def test_a_model_that_draws_at_random_is_known_by_weights_and_code(tmp_path):
    import numpy as np

    def noisy(self: Any, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1) + torch.from_numpy(np.random.normal(size=192)).float())

    # The audit says that it is random, without which the referee would refuse what its attacks find.
    first = attacked(tmp_path, net(forward=noisy), audit=True)
    assert attacked(tmp_path, net(forward=noisy), audit=True).summary() == first.summary()
    with pytest.raises(ValueError, match=r"EV271 .* of other code of"):
        attacked(tmp_path, net(), audit=True)


def test_a_models_own_memory_is_no_other_model(tmp_path):
    def counting(self: Any, x: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        self.seen = self.linear(x.flatten(1))
        return self.seen

    model = net(forward=counting)
    first = attacked(tmp_path, model)
    assert attacked(tmp_path, model).summary() == first.summary()
    assert attacked(tmp_path, net(forward=counting)).summary() == first.summary()


def test_words_around_the_code_change_nothing(tmp_path):
    same.__qualname__ = type(net()).forward.__qualname__
    first = attacked(tmp_path)
    assert attacked(tmp_path, net(forward=same)).summary() == first.summary()


MODEL = """
import torch
import helper

def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4), Scale()).eval()

class Scale(torch.nn.Module):
    def forward(self, x):
        return helper.scaled(x)

def attack(model, x, y, *, threat):
    return helper.moved(x, threat)

SUITE = {"mine": attack}
"""
HELPER = """
def scaled(x):
    return x * 1.0

def moved(x, threat):
    return (x + threat.eps).clamp(0, 1)
"""
BALL = ("--data", "tiny", "--threat", "linf:0.1")
COMMANDS = {
    "evaluate": ("evaluate", "mine.py:build", *BALL, "--suite", "pgd-2", "--limit", 12),
    "corruptions": ("evaluate", "mine.py:build", "--data", "tiny", "--suite", "corruptions", "--limit", 1),
    "analyse": ("analyse", "mine.py:build", *BALL, "--only", "gradients", "--limit", 12),
    "label": (
        "label",
        "tiny",
        "--scorer",
        "mine.py:build",
        "--against",
        "tiny",
        "--count",
        12,
        "--threshold",
        0.01,
        "--out",
        "extra",
    ),
    "suite": ("evaluate", "mine.py:build", *BALL, "--suite", "mine.py:SUITE", "--limit", 12),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_corrected_helper_is_seen_by_every_command(command: str, tiny: str, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def written(helper: str) -> None:
        sys.modules.pop("helper", None)
        (tmp_path / "mine.py").write_text(MODEL)
        (tmp_path / "helper.py").write_text(helper)

    written(HELPER)
    done(*COMMANDS[command])
    written(HELPER + "# The end.\n")
    done(*COMMANDS[command])
    old, new = ("x + threat", "x - threat") if command == "suite" else ("x * 1.0", "(x * 1.0).detach()")
    written(HELPER.replace(old, new))
    said = failed(*COMMANDS[command])
    assert "EV271" in said
    assert f"of other code of {'moved' if command == 'suite' else 'scaled'};" in said
    sys.modules.pop("helper", None)


def test_a_command_says_where_the_old_result_is(tiny: str, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MODEL.replace("import helper\n", "").replace("helper.scaled(x)", "x"))
    done(*COMMANDS["analyse"])
    folder = Path("analysis/mine-py-build")
    without_logits(folder)
    assert "it is kept as mine-py-build.before-1" in " ".join(done(*COMMANDS["analyse"]).split())
    done(*COMMANDS["evaluate"])
    (folder,) = Path("evaluation/mine-py-build").iterdir()
    without_logits(folder)
    assert f"it is kept as {folder.name}.before-1" in " ".join(done(*COMMANDS["evaluate"]).split())
    assert json.loads((folder / "result.json").read_text())["notes"][0].startswith(str(folder))


def test_a_model_typed_at_a_prompt_goes_on_where_it_was_killed(tmp_path, monkeypatch):
    typed = "class Net(nn.Module):\n    def forward(self, x):\n        return x.flatten(1)[:, :4] * 3.0\n"
    done: list[str] = []

    def model() -> nn.Module:
        place: dict[str, Any] = {"nn": nn}
        exec(typed, place)
        return place["Net"]()

    clean, attack = EvaluationTask.clean, EvaluationTask.run
    monkeypatch.setattr(EvaluationTask, "clean", lambda self, rows: (done.append("clean"), clean(self, rows))[1])
    monkeypatch.setattr(EvaluationTask, "run", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        attacked(tmp_path / "here", model(), chunk_size=10)
    monkeypatch.setattr(EvaluationTask, "run", lambda *given: (done.append("pgd"), attack(*given))[1])
    found = attacked(tmp_path / "here", model(), chunk_size=10)
    assert done == ["clean"] * 2 + ["pgd"] * (len(done) - 2)
    assert found.summary()["attacks"] == attacked(None, model(), chunk_size=10).summary()["attacks"]
    assert not [path for path in tmp_path.iterdir() if "before" in path.name]
