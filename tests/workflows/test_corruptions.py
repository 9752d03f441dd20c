"""`toughen evaluate --suite corruptions`: what it measures, where it puts it, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cli.test_app import TINY, done, everything, failed
from conftest import tiny_data
from toughen.corruptions import CORRUPTIONS, MAIN, corrupt
from toughen.evaluation.corruption.result import CorruptionResult
from toughen.workflows import ModelSource, measure_corruptions

MINE = """
import torch

def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4)).eval()

def other():
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4)).eval()
"""

SUITE = ("--suite", "corruptions")


@pytest.fixture
def mine(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    return "mine.py"


def by_hand(corruption: str, severity: int, n: int, seed: int = 0) -> float:
    """Accuracy of `build` on the first images, counted here."""
    test = tiny_data().test
    images = corrupt(test.images[:n], corruption, severity, seed=seed)
    scope: dict = {}
    with torch.random.fork_rng():
        exec(MINE, scope)
        says = scope["build"]()(images.float() / 255).argmax(1)
    return int((says == test.labels[:n]).sum()) / n


def test_a_model_of_ones_own(mine: str):
    text = done("evaluate", f"{mine}:build", "--data", "tiny", *SUITE, "--limit", 20, "--seed", 3)
    folder = Path("evaluation/mine-py-build/corruptions_n20_seed3")
    assert f"results: {folder / 'result.json'}" in text
    assert f"per example: {folder / 'examples.parquet'}" in text
    assert "no mCE: mCE divides by another model's errors" in text
    result = json.loads((folder / "result.json").read_text())
    assert [row["corruption"] for row in result["corruptions"]] == list(CORRUPTIONS)
    assert (result["n"], result["seed"], result["origin"], result["constants"]) == (20, 3, "generated", "cifar")
    for name, severity in (("gaussian_noise", 5), ("contrast", 3), ("pixelate", 2)):
        row = result["corruptions"][CORRUPTIONS.index(name)]
        assert row["cells"][severity - 1]["accuracy"] == by_hand(name, severity, 20, seed=3)
    every = [cell["accuracy"] for row in result["corruptions"] for cell in row["cells"]]
    assert result["mean_19"]["accuracy"] == pytest.approx(sum(every) / 95, abs=1e-12)
    before = everything(folder)
    assert text == done("evaluate", f"{mine}:build", "--data", "tiny", *SUITE, "--limit", 20, "--seed", 3)
    assert everything(folder) == before


def test_a_run_with_a_baseline(mine: str):
    Path("tiny.yaml").write_text(TINY)
    done("train", "tiny.yaml", "--out", "run")
    given = ("--data", "tiny", *SUITE, "--limit", 20, "--out", "natural")
    done("evaluate", f"{mine}:build", *given)
    text = done("evaluate", "run", *SUITE, "--limit", 20, "--baseline", "natural/result.json")
    assert {path.name for path in Path("run/evaluation").iterdir()} == {"corruptions_n20"}
    found, other = (CorruptionResult.read(Path(place)) for place in ("run/evaluation/corruptions_n20", "natural"))
    ratios = [
        (~found.correct[found.corruptions.index(name)]).sum() / (~other.correct[other.corruptions.index(name)]).sum()
        for name in MAIN
    ]
    assert f"mCE {100 * sum(ratios) / 15:.2f} %, relative to natural/result.json" in text
    done("evaluate", "run", *SUITE, "--limit", 10, "--weights", "weights", "--checkpoint", "last")
    assert {path.name for path in Path("run/evaluation").iterdir()} == {"corruptions_n20", "corruptions_n10_weights"}
    assert "a run is evaluated on the data it was trained on" in failed("evaluate", "run", *SUITE, "--data", "tiny")
    said = failed("evaluate", "run", *SUITE, "--limit", 10, "--baseline", "natural")
    assert "natural (model" in said
    assert "was measured on other images" in said


def test_a_published_set(mine: str):
    test = tiny_data().test
    folder = Path("TINY-C")
    folder.mkdir()
    for name in MAIN:
        every = torch.cat([corrupt(test.images, name, severity, seed=9) for severity in range(1, 6)])
        np.save(folder / f"{name}.npy", every.permute(0, 2, 3, 1).numpy())
    np.save(folder / "labels.npy", np.tile(test.labels.numpy(), 5))
    text = done("evaluate", f"{mine}:build", "--data", "tiny", *SUITE, "--published", folder)
    into = Path("evaluation/mine-py-build/corruptions_published")
    result = json.loads((into / "result.json").read_text())
    assert (result["n"], result["origin"], result["constants"]) == (40, "published", None)
    assert "published images" in text
    assert "mean over all 19 none: no speckle_noise, gaussian_blur, spatter, saturate was measured" in text
    assert result["corruptions"][9]["cells"][4]["accuracy"] == by_hand("fog", 5, 40, seed=9)
    np.save(folder / "labels.npy", np.tile(1 - test.labels.numpy() % 2, 5))
    said = failed("evaluate", f"{mine}:build", "--data", "tiny", *SUITE, "--published", folder)
    assert "says that image 0 is of class 1, but the test image 0 is of class 0" in said
    assert "is no folder; give the unpacked folder" in failed(
        "evaluate", f"{mine}:build", "--data", "tiny", *SUITE, "--published", "nowhere"
    )


def test_what_does_not_fit_is_said_in_a_sentence(mine: str):
    whole = ("evaluate", f"{mine}:build", "--data", "tiny", "--limit", 5)
    for option in (("--threat", "linf:0.1"), ("--step-size", "1/255"), ("--independent",), ("--keep", "uint8")):
        said = failed(*whole, *SUITE, *option)
        assert f"suite corruptions runs no attack, so {option[0]} has no meaning there; leave it out" in said
    assert "--threat, --keep has no meaning" in failed(*whole, *SUITE, "--threat", "linf:0.1", "--keep", "uint8")
    for option in (("--published", "folder"), ("--baseline", "alexnet")):
        assert "go with --suite corruptions alone" in failed(*whole, "--threat", "linf:0.1", *option)
    assert "limit is 41, but there are 40 test images" in failed(*whole[:-1], 41, *SUITE)
    assert "is no result.json of the suite corruptions" in failed(*whole, *SUITE, "--baseline", "nowhere.json")
    # Before any work.
    assert not Path("evaluation").exists()
    said = failed(*whole, *SUITE, "--baseline", "alexnet")
    assert "AlexNet's errors are those on ImageNet's 1,000 classes, and this model has 4" in said
    said = failed("evaluate", f"{mine}:other", *whole[2:], *SUITE, "--out", "evaluation/mine-py-build/corruptions_n5")
    assert "EV271" in said
    assert "another model" in said


def test_from_python(mine: str):
    seen = []
    found, error, folder = measure_corruptions(ModelSource(f"{mine}:build", data="tiny"), limit=6, progress=seen.append)
    assert folder == Path("evaluation/mine-py-build/corruptions_n6")
    assert found.accuracy("contrast", 1) == by_hand("contrast", 1, 6)
    assert error.value is None
    assert len(seen) == 96
