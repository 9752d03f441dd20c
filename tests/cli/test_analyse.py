"""`toughen analyse`: what it says, where the files go, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cli.test_app import TINY, done, everything, failed
from toughen.evaluation import EpsSweep, LossSurface
from toughen.workflows import analysis_kinds

MINE = """
import torch

def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4)).eval()
"""


@pytest.fixture(name="mine")
def _mine(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(analysis_kinds, "POINTS", 3)
    (tmp_path / "mine.py").write_text(MINE)
    return "mine.py:build"


def test_a_run_and_again(mine: str):
    Path("tiny.yaml").write_text(TINY)
    done("train", "tiny.yaml", "--out", "run")
    text = done("analyse", "run", "--limit", 10)
    assert "eps-sweep.json 10 of 10 images" in text
    folder = Path("run/analysis")
    names = {path.name for path in folder.iterdir()}
    surfaces = {f"surface-{number}.npz" for number in range(4)}
    made = {"eps-sweep.json", "step-sweep.json", "gradients.json", "turns-into.npz", "pictures.npz", *surfaces}
    assert names == {*made, "identity.json", "clean_logits.safetensors", ".lock"}
    assert set(text.splitlines()) >= {str(folder / name) for name in made}
    before = everything(folder)
    again = [line for line in done("analyse", "run", "--limit", 10).splitlines() if not line.startswith("note: ")]
    assert sorted(again) == sorted(f"{folder / name} (was there)" for name in made)
    said = failed("analyse", "run", "--limit", 11)
    assert "EV271 run/analysis holds analyses of another number of images (10, given 11)" in said
    assert "give another folder with --out, or delete it" in said
    assert "there are 40 test images" in failed("analyse", "run", "--limit", 41)
    assert "keeps no radii of training images" in failed("analyse", "run", "--limit", 10, "--only", "radii")
    assert "a run is evaluated on the data it was trained on" in failed("analyse", "run", "--data", "tiny")
    assert everything(folder) == before
    # The run goes on to be one, for whoever trains and evaluates it.
    assert "run is complete" in done("train", "tiny.yaml", "--out", "run")


def test_a_model_of_ones_own(mine: str):
    given = ("analyse", mine, "--data", "tiny", "--threat", "linf:0.1", "--only", "gradients,surface-1", "--seed", 3)
    done(*given, "--only", "turns-into")
    folder = Path("analysis/mine-py-build")
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "gradients.json",
        "surface-1.npz",
        "turns-into.npz",
        "identity.json",
        "clean_logits.safetensors",
        ".lock",
    }
    identity = json.loads((folder / "identity.json").read_text())
    assert (identity["images"], identity["threat"], identity["seed"], identity["radii"]) == (40, "linf:0.1", 3, None)
    done(*given, "--out", "elsewhere")
    assert (Path("elsewhere") / "gradients.json").read_bytes() == (folder / "gradients.json").read_bytes()


def test_what_does_not_fit_is_said_in_a_sentence(mine: str):
    model = ("analyse", mine)
    assert "is a model without data; give --data" in failed(*model)
    assert "does not say within which ball; give --threat" in failed(*model, "--data", "tiny")
    whole = (*model, "--data", "tiny", "--threat", "linf:0.1")
    assert "'eps' is not a known analysis; allowed: eps-sweep, step-sweep" in failed(*whole, "--only", "eps")
    assert "keeps no radii" in failed(*whole, "--only", "radii-smallest")
    assert "(0, 1]" in failed(*whole[:-1], "linf:0")
    assert not Path("analysis").exists()
    Path("notes").mkdir()
    Path("notes/mine.txt").touch()
    assert "EV271 notes holds other files (mine.txt)" in failed(*whole, "--out", "notes")


def test_an_attack_that_is_too_weak_is_said(mine: str):
    given = ("analyse", mine, "--data", "tiny", "--threat", "linf:0.1", "--limit", 5, "--only", "eps-sweep")
    done(*given)
    path = Path("analysis/mine-py-build/eps-sweep.json")
    sweep = EpsSweep.read(path)
    found = {"clean_correct": np.full(5, True), "survived": np.full((9, 5), True), "marginal": np.full((9, 5), False)}
    replace(sweep, **found).write(path)
    assert "note" not in done(*given)
    found["survived"][3, :2] = False
    replace(sweep, **found).write(path)
    assert "note: Robust accuracy rises by 2 of 5 examples from radius 0.075 to 0.1" in done(*given)


def test_surfaces_of_any_images_in_both_planes(mine: str):
    given = ("analyse", mine, "--data", "tiny", "--threat", "linf:0.1", "--only", "surface")
    text = done(*given, "--images", "0,17", "--directions", "random,adversarial")
    folder = Path("analysis/mine-py-build")
    planes = [(image, name) for image in (0, 17) for name in ("random", "adversarial")]
    found = [LossSurface.read(folder / f"surface-of-{image}-{name}.npz") for image, name in planes]
    named = {"random": "rademacher", "adversarial": "adversarial"}
    assert [(one.index.tolist(), one.directions) for one in found] == [([at], named[name]) for at, name in planes]
    assert all(str(folder / f"surface-of-{image}-{name}.npz") in text for image, name in planes)
    # The first direction belongs to the image, so both planes of one share it, and their middle.
    for both in (found[:2], found[2:]):
        assert np.array_equal(both[0].first, both[1].first)
        assert not np.array_equal(both[0].second, both[1].second)
        assert both[0].loss[0, 1, 1] == both[1].loss[0, 1, 1]
    done(*given, "--directions", "random")
    # Without images the usual ones, the last.
    assert LossSurface.read(folder / "surface-of-39-random.npz").index.tolist() == [39]


def test_images_and_directions_that_are_none_are_refused_before_anything_is_computed(mine: str):
    given = ("analyse", mine, "--data", "tiny", "--threat", "linf:0.1")
    assert "there is no test image 40; there are 40, so give 0 to 39 for --images" in failed(*given, "--images", "3,40")
    assert "'-1', which is no position; give whole numbers from 0, like 0,1" in failed(*given, "--images=-1")
    assert "'', which is no position" in failed(*given, "--images", "1,")
    wrong = failed(*given, "--directions", "rondom")
    assert "'rondom' is not a known direction; allowed: random, adversarial; did you mean 'random'?" in wrong
    said = failed(*given, "--images", "1", "--only", "gradients")
    assert "images and directions are of loss surfaces; add surface to --only" in said
    assert not Path("analysis").exists()
