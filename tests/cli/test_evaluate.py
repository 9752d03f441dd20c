"""`toughen evaluate` on models and suites of the user's own, and what it says when something does not fit."""

import json
import textwrap
from pathlib import Path

import pytest
from safetensors.torch import load_file

from cli.test_app import TINY, done, everything, failed
from toughen import recipes, train
from toughen.attacks import ATTACKS
from toughen.workflows.user_code import imported

MINE = """
import torch
from toughen.attacks import AttackSpec

def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4)).eval()

def other():
    return build()[:1].append(torch.nn.Linear(64, 4)).eval()

def too_far(model, x, y):
    return 1 - x

def lookup():
    return 3

SUITE = {"short": AttackSpec(name="fgsm"), "long": AttackSpec(name="apgd", steps=5)}
UNSOUND = {"far": too_far}
BAD = {"far": 3}
"""


@pytest.fixture
def mine(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    return "mine.py"


def test_a_model_and_a_suite_of_ones_own(mine: str):
    text = done("evaluate", f"{mine}:build", "--data", "tiny", "--threat", "linf:0.1", "--suite", f"{mine}:SUITE")
    folder = Path("evaluation/mine-py-build/mine-py-SUITE_linf-0.1")
    assert f"results: {folder / 'result.json'}" in text
    result = json.loads((folder / "result.json").read_text())
    assert [row["attack"] for row in result["attacks"]] == ["clean", "short", "long"]
    assert (result["suite"], result["n"], result["threat"]) == ("custom", 40, "linf:0.1")
    assert result["audit"]["examples"] == 40
    before = everything(folder)
    done("evaluate", f"{mine}:build", "--data", "tiny", "--threat", "linf:0.1", "--suite", f"{mine}:SUITE")
    assert everything(folder) == before


def test_a_folder_of_another_model_is_refused_and_left_alone(mine: str):
    given = ("--data", "tiny", "--threat", "linf:0.1", "--suite", "quick", "--out", "here")
    done("evaluate", f"{mine}:build", *given)
    before = everything(Path("here"))
    said = failed("evaluate", f"{mine}:other", *given)
    assert "EV271 here holds an evaluation of another model" in said
    assert "give another folder, or delete it" in said
    assert everything(Path("here")) == before


def test_examples_are_kept_and_the_step_size_is_recorded(mine: str):
    given = ("--data", "tiny", "--threat", "linf:0.1", "--suite", "pgd-5", "--step-size", "8/255", "--keep", "uint8")
    done("evaluate", f"{mine}:build", *given, "--independent", "--limit", 30)
    (folder,) = Path("evaluation/mine-py-build").iterdir()
    assert folder.name == "pgd-5_linf-0.1_step-8over255_n30_independent_uint8"
    result = json.loads((folder / "result.json").read_text())
    assert result["attacks"][1]["settings"]["step_size"] == 8 / 255
    kept = [load_file(path) for path in (folder / "adversarial").iterdir()]
    assert sum(len(tensors["index"]) for tensors in kept) == result["attacks"][1]["broken"] > 0


def test_what_does_not_fit_is_said_in_a_sentence(mine: str):
    model = ("evaluate", f"{mine}:build")
    whole = (*model, "--data", "tiny", "--threat", "linf:0.1")
    assert "is a model without data; give --data" in failed(*model)
    assert "does not say within which ball; give --threat" in failed(*model, "--data", "tiny")
    assert "mine.py has no 'bild'" in failed("evaluate", "mine.py:bild", "--data", "tiny")
    assert "cannot be imported" in failed("evaluate", "yours.py:build", "--data", "tiny")
    assert "cannot be imported" in failed("evaluate", "no.such.module:build", "--data", "tiny")
    assert "gave int; it must be or return a torch.nn.Module" in failed("evaluate", f"{mine}:lookup", "--data", "tiny")
    assert "it must be a dict" in failed(*whole, "--suite", f"{mine}:build")
    assert "attack 'far' is 3" in failed(*whole, "--suite", f"{mine}:BAD")
    assert "attack 'far' left the ball on example" in failed(*whole, "--suite", f"{mine}:UNSOUND")
    assert "no attack of this suite has a step size" in failed(*whole, "--suite", "quick", "--step-size", "1/255")
    assert "is not a number" in failed(*whole, "--step-size", "little")
    assert "allowed: float32, uint8" in failed(*whole, "--keep", "png")
    assert "did you mean 'autoattack'?" in failed(*whole, "--suite", "autoatack")
    said = failed(*whole, "--suite", "adaptive", "--independent")
    assert "follows what broke before" in said


def test_the_audit_speaks_up(mine: str):
    Path(mine).write_text(
        MINE
        + textwrap.dedent(
            """
        def soft():
            return build().append(torch.nn.Softmax(1))
        """
        )
    )
    given = ("--data", "tiny", "--threat", "linf:0.1", "--suite", "quick")
    text = " ".join(done("evaluate", f"{mine}:soft", *given).split())
    assert "UNRELIABLE EV224 All 40 rows of the output are probabilities" in text


def test_a_run_keeps_its_evaluations_apart(mine: str):
    Path("tiny.yaml").write_text(TINY)
    done("train", "tiny.yaml", "--out", "run")
    done("evaluate", "run", "--suite", "quick", "--limit", 20)
    done("evaluate", "run", "--suite", "pgd-2", "--limit", 5)
    assert {path.name for path in Path("run/evaluation").iterdir()} == {"quick_n20", "pgd-2_n5"}
    assert "a run is evaluated on the data it was trained on" in failed("evaluate", "run", "--data", "tiny")


OWN = """
from toughen.attacks import ATTACKS, AttackSpec, fgsm

def mine(model, x, y, *, threat, noise=None):
    return fgsm(model, x, y, threat=threat)

ATTACKS["mine"] = mine
SUITE = {"mine": AttackSpec(name="mine")}
"""


def test_the_file_of_a_suite_may_hold_the_attack_that_a_run_was_trained_with(mine: str):
    Path("own.py").write_text(OWN)
    Path("tiny.yaml").write_text(TINY.replace("free, replays: 3", "adversarial, attack: {name: mine}"))
    try:
        imported("own.py:SUITE")
        train(recipes.load("tiny.yaml"), Path("run"))
        del ATTACKS["mine"]
        assert "'mine'" in failed("evaluate", "run", "--suite", "quick")
        assert "mine" in done("evaluate", "run", "--suite", "own.py:SUITE")
    finally:
        ATTACKS.pop("mine", None)
