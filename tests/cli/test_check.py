"""`toughen check`: what it prints, and its exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest

from cli.test_app import TINY, done, failed, toughen

MINE = """
import torch
from torch import nn
from toughen.data import load


class Quarters(nn.Module):
    def __init__(self, wanted=lambda x: x):
        super().__init__()
        self.wanted = wanted

    def forward(self, x):
        return 8 * nn.functional.avg_pool2d(self.wanted(x), 4).flatten(1)


def sound():
    return Quarters().eval()


def softmax():
    return nn.Sequential(Quarters(), nn.Softmax(1)).eval()


def reversed_classes():
    return nn.Sequential(Quarters(lambda x: x.flip(2, 3))).eval()


def centred():
    # Right only on images that were normalised: the threshold is in their unit.
    return Quarters(lambda x: (x + 0.4).clamp(max=0.0)).eval()


def noisy():
    return Quarters(lambda x: x + torch.randn_like(x)).eval()


def training():
    return nn.Sequential(nn.Dropout(0.5), Quarters()).train()


def lookup():
    return 3
"""


@pytest.fixture
def mine(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    return "mine.py"


def flat(text: str) -> str:
    """A table's text without its lines and breaks."""
    return " ".join(text.replace("│", " ").split())


def found(*arguments: object) -> str:
    """What is printed where something is wrong."""
    result = toughen("check", *arguments)
    assert result.exit_code == 3, (result.output, result.exception)
    assert result.stderr == ""
    return flat(result.stdout)


def test_a_sound_model_of_ones_own(mine: str, tmp_path: Path):
    before = sorted(path.name for path in tmp_path.iterdir())
    text = flat(done("check", f"{mine}:sound", "--data", "tiny"))
    assert "nothing is wrong" in text
    assert "4 logits, labels 0..3, 4 classes" in text
    assert "passes of 40 images" in text
    assert "passes of 16 images" in flat(done("check", f"{mine}:sound", "--data", "tiny", "--limit", 16))
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == before


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("softmax", "EV224 All 40 rows of the output are probabilities"),
        ("reversed_classes", "EV223 Accuracy is 0.0% but 100.0% with labels in reverse."),
        ("noisy", "EV212 The same batch twice gave other logits for 40 of 40 examples"),
        ("training", "-> model.eval()"),
    ],
)
def test_faults_are_found_with_exit_code_3(mine: str, name: str, says: str):
    assert says in found(f"{mine}:{name}", "--data", "tiny")


def test_a_normalisation_that_is_put_in_front(mine: str):
    text = found(f"{mine}:centred", "--data", "tiny")
    assert "normalisation wrong" in text
    text = flat(done("check", f"{mine}:centred", "--data", "tiny", "--mean", "0.7", "--std", "0.5"))
    assert "nothing is wrong" in text
    text = found(f"{mine}:sound", "--data", "tiny", "--mean", "1", "--std", "1/255", "--limit", "8")
    assert "wrong" in text


def test_a_run(tiny: str, tmp_path: Path):
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(TINY.replace("steps: 12", "steps: 30"))
    done("train", recipe, "--out", tmp_path / "run")
    text = flat(done("check", tmp_path / "run"))
    assert "nothing is wrong" in text
    assert "all modules in inference mode" in text
    assert "evaluated on the data it was trained on" in failed("check", tmp_path / "run", "--data", "tiny")


def test_bad_input_is_one_sentence(mine: str):
    for arguments, says in {
        (f"{mine}:sound",): "give --data",
        (f"{mine}:lookup", "--data", "tiny"): "must be or return a torch.nn.Module",
        ("nowhere",): "there is no nowhere; give a run folder, an exported model",
        (f"{mine}:sound", "--data", "tiny", "--mean", "0.5"): "mean and std go together",
        (f"{mine}:sound", "--data", "tiny", "--mean", "x", "--std", "1"): "'x' is not a number",
        (f"{mine}:sound", "--data", "tiny", "--mean", "0", "--std", "0"): "every std must be positive",
    }.items():
        assert says in failed("check", *arguments)


def test_the_table_needs_no_torch():
    code = "import sys, toughen.report.tables.model_check; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
