"""The command: what it prints, what it writes, and its exit codes."""

import json
import os
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from conftest import FULL
from toughen import recipes
from toughen.cli import demo
from toughen.cli.app import app
from toughen.cli.listing import SECTIONS, catalogue
from toughen.recipes.text import build, parse_yaml
from toughen.storage import files
from toughen.training import run as run_module
from toughen.training.monitors import NonFinite

TINY = """
data: tiny
model: {name: small_cnn, width: 2}
method: {name: free, replays: 3}
threat: linf:0.1
batch_size: 32
steps: 12
selection: {suite: pgd-2, every: 6}
log_every: 6
"""


def toughen(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments: object) -> str:
    result = toughen(*arguments)
    assert result.exit_code == 0, (result.stderr, result.exception)
    return result.stdout


def failed(*arguments: object, code: int = 2) -> str:
    """The message of a command that the user can mend: lines on stderr, no traceback."""
    result = toughen(*arguments)
    assert result.exit_code == code, (result.stderr, result.exception)
    assert isinstance(result.exception, SystemExit)
    assert result.stderr
    assert all(line.startswith("error: ") for line in result.stderr.splitlines())
    assert "Traceback" not in result.output
    return result.stderr


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


@pytest.fixture
def recipe(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def test_a_dry_run_prints_a_recipe_that_loads_again_and_its_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    text = done("train", "cifar10-free", "threat=linf:4/255", "--dry-run")
    assert build(parse_yaml(text, "dry run")) == recipes.load("cifar10-free", ["threat=linf:4/255"])
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert "10000 batches of 128, 80000 optimiser steps" in comments[0]
    assert "8 forward and 8 backward passes (8.00 natural steps)" in comments[1]
    assert not list(tmp_path.iterdir())


def test_train_and_evaluate_and_both_again(recipe: Path, tmp_path: Path):
    out = tmp_path / "run"
    text = done("train", recipe, "--out", out)
    assert f"next: toughen evaluate {out} --suite pgd-20" in text
    assert "12 forward and 12 backward passes (12 natural steps, predicted 12)" in " ".join(text.split())
    weights = {path: data for path, data in everything(out).items() if path.suffix == ".safetensors"}
    assert weights
    assert f"{out} is complete" in done("train", recipe, "--out", out)
    assert weights == {path: data for path, data in everything(out).items() if path.suffix == ".safetensors"}

    folder = out / "evaluation" / "pgd-3_n20"
    text = done("evaluate", out, "--suite", "pgd-3", "--limit", 20)
    assert f"results: {folder / 'result.json'}" in text
    result = json.loads((folder / "result.json").read_text())
    assert result.keys() >= {"clean_accuracy", "robust_accuracy", "clean_interval", "robust_interval", "attacks"}
    assert (result["n"], result["suite"], result["threat"], result["seed"]) == (20, "pgd-3", "linf:0.1", 0)
    assert f"{100 * result['robust_accuracy']:.1f} %" in text
    done("evaluate", out, "--suite", "pgd-3", "--limit", 20)
    again = json.loads((folder / "result.json").read_text())
    assert {**again, "seconds": 0} == {**result, "seconds": 0}
    done("evaluate", out, "--suite", "pgd-3", "--threat", "linf:4/255", "--seed", 5, "--checkpoint", "last")
    assert (out / "evaluation" / "pgd-3_linf-4over255_weights_seed5" / "result.json").is_file()

    refused = {
        ("--suite", "pdg-20"): "did you mean 'pgd-K'",
        ("--suite", "pgd-2", "--threat", "linf"): "write linf:RADIUS",
        ("--suite", "pgd-2", "--threat", "linf:x"): "is not a number",
        ("--suite", "pgd-2", "--threat", "linf:2"): "(0, 1]",
        ("--suite", "pgd-2", "--limit", "41"): "limit is 41, but there are 40",
        ("--suite", "pgd-2", "--checkpoint", "first"): "must be best or last",
        ("--suite", "pgd-2", "--weights", "average-0.5"): "it has weights",
    }
    before = everything(tmp_path)
    for arguments, says in refused.items():
        assert says in failed("evaluate", out, *arguments)
    with files.lock(out):
        assert "RN531" in failed("train", recipe, "--out", out, code=76)
    assert "another recipe (seed: 0 there, 1 here)" in failed("train", recipe, "seed=1", "--out", out)
    after = everything(tmp_path)
    assert {p: d for p, d in before.items() if ".lock" not in p.name} == {
        p: d for p, d in after.items() if ".lock" not in p.name
    }


BAD = {
    ("mnist-fre",): "did you mean 'mnist-free'",
    ("none.yaml",): "none.yaml cannot be read: No such file",
    ("tiny.yaml", "stepz=3"): "did you mean 'steps'",
    ("tiny.yaml", "steps"): "write key=value",
    ("tiny.yaml", "steps=0", "seed=-1"): "error: seed: input should be",
    ("tiny.yaml", "data=/nowhere/images"): "/nowhere/images does not exist",
    ("tiny.yaml", "data=~nobody-of-this-name/images"): "images does not exist",
    ("tiny.yaml", "data=tinny"): "did you mean 'tiny'",
    ("tiny.yaml", "optimizer={lr: 1, momentum: 0, nesterov: true}"): "contradicts",
    ("tiny.yaml", "threat=linf:0"): "(0, 1]",
    ("tiny.yaml", "batch_size=500"): "batch_size is 500",
    ("tiny.yaml", "data.validation=150"): "150 validation images",
    ("tiny.yaml", "device=cuda:99"): "cuda:99",
    ("tiny.yaml", "device=meta"): "device",
    ("tiny.yaml", "--out", "file"): "file exists and is no run folder",
    ("tiny.yaml", "--out", "thesis"): "thesis exists and is no run folder",
    ("tiny.yaml", "--out", "file/run"): "Not a directory",
    ("file",): "holds no mapping",
    ("thesis",): "recipe.yaml cannot be read",
    ("tiny.yaml", "method={name: adversarial, attack: {name: pgd, stepz: 3}}"): "did you mean 'steps'",
    ("tiny.yaml", "x={? [1]: 2}"): "key",
}


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_a_bad_training_is_refused_in_a_sentence_and_leaves_nothing(
    arguments: tuple[str, ...], recipe: Path, tmp_path: Path
):
    (tmp_path / "file").write_text("text")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    before = everything(tmp_path)
    assert BAD[arguments] in failed("train", *arguments)
    assert everything(tmp_path) == before


def test_evaluating_what_is_no_run(recipe: Path, tmp_path: Path):
    before = everything(tmp_path)
    for folder in (tmp_path, recipe):
        assert "is no run folder" in failed("evaluate", folder)
    assert f"there is no {tmp_path / 'none'}; give a run folder, an exported model" in failed(
        "check", tmp_path / "none", "--data", "tiny"
    )
    assert f"there is no folder {tmp_path / 'none'}; give" in failed("export", tmp_path / "none", "--out", "out")
    assert everything(tmp_path) == before
    run_module.claim(recipes.load(str(recipe)), tmp_path / "new")
    assert "no checkpoint yet" in failed("evaluate", tmp_path / "new")


def test_half_of_an_exported_model(recipe: Path, tmp_path: Path):
    half = tmp_path / "half"
    half.mkdir()
    (half / "config.json").write_text("{}")
    for given in ((), ("--data", "tiny")):
        assert (
            "half has config.json but no model.safetensors, so it is no whole exported model; export again"
            in failed("evaluate", half, *given)
        )
    (half / "config.json").rename(half / "model.safetensors")
    assert "model.safetensors but no config.json" in failed("evaluate", half, "--data", "tiny")
    (half / "model.safetensors").unlink()
    assert "half is no run folder" in failed("evaluate", half, "--data", "tiny")


def test_the_next_command_can_be_pasted(recipe: Path, tmp_path: Path):
    out = tmp_path / "my ünï $(run)"
    line = done("train", recipe, "--out", out).splitlines()[-1]
    assert shlex.split(line) == ["next:", "toughen", "evaluate", str(out), "--suite", "pgd-20"]
    line = done("export", out, "--out", tmp_path / "ex port").splitlines()[-1]
    assert shlex.split(line) == ["next:", "toughen", "evaluate", str(tmp_path / "ex port"), "--data", "tiny"]


def test_the_version():
    assert done("--version") == f"toughen {metadata.version('toughen')}\n"


@pytest.mark.parametrize("what", [(), pytest.param(("recipes",), marks=FULL)])
def test_a_reader_that_hangs_up_is_no_error(what: tuple[str, ...]):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as output:
        command = [sys.executable, "-m", "toughen", "list", *what]
        found = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, check=False)
    assert (found.returncode, found.stderr) == (141, "")


def test_exit_codes_of_failures_in_a_run(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def raising(error: BaseException):
        def loop(*arguments: object):
            raise error

        return loop

    for error, code, says in (
        (NonFinite("AT111 not finite"), 2, "error: AT111 not finite\n"),
        (OSError(28, "No space left on device", "run/x"), 2, "error: run/x: No space left on device; check"),
        (KeyboardInterrupt(), 75, "error: interrupted; the same command goes on"),
    ):
        monkeypatch.setattr(run_module, "fit", raising(error))
        assert says in failed("train", recipe, "--out", tmp_path / str(code) / type(error).__name__, code=code)
    monkeypatch.setattr(run_module, "fit", raising(ZeroDivisionError()))
    assert toughen("train", recipe, "--out", tmp_path / "bug").exit_code == 1


def test_a_run_named_in_markup_ends_well(recipe: Path, tmp_path: Path):
    assert "[b] mine" in done("train", recipe, "name='[b] mine'", "--out", tmp_path / "run")


@pytest.mark.parametrize("section", ["", *SECTIONS])
def test_list(section: str):
    assert done("list", *([section] if section else [])).splitlines() == catalogue(section)


def test_list_of_nonsense():
    text = failed("list", "nonsense")
    assert all(section in text for section in SECTIONS)
    assert "did you mean 'recipes'" in failed("list", "recipees")


def test_the_demo_prints_one_table_of_its_runs(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    methods = {
        "mnist-natural": "natural",
        "mnist-free": "free",
        "mnist-pgd": {"name": "adversarial", "attack": {"name": "pgd", "steps": 2}},
    }
    tiny = parse_yaml(TINY, "tiny")
    monkeypatch.setattr(demo.recipes, "load", recipes_of(methods, tiny, monkeypatch))
    monkeypatch.setattr(demo, "SUITE", "pgd-3")
    text = done("demo", "--out", "all")
    rows = [line for line in text.splitlines() if line.startswith("│ mnist-")]
    assert [row.split()[1] for row in rows] == list(methods)
    for column in ("clean", "robust", "forwards", "backwards", "natural steps", "seconds"):
        assert column in text
    # 12 steps each: natural and free 12 passes of either kind (free has m = 8, so two batches), PGD-2 three times that.
    costs = [[cell.strip() for cell in row.split("│")][4:7] for row in rows]
    assert costs == [["12", "12", "12"], ["16", "16", "16"], ["36", "36", f"{12 * 7 / 3:.0f}"]]
    assert "40 test digits, robust: pgd-3 within linf:0.1" in text
    assert "next: toughen train mnist-free threat=linf:0.1 --out runs/mine" in text

    monkeypatch.setattr(demo, "BUDGET_SECONDS", 0.0)
    text = done("demo", "--out", "short")
    rows = [line for line in text.splitlines() if line.startswith("│ mnist-")]
    assert [row.split()[1] for row in rows] == ["mnist-natural", "mnist-free"]
    assert "mnist-pgd is left out" in text
    assert not (tmp_path / "short" / "mnist-pgd").exists()
    # What is there already costs nothing.
    assert "left out" not in done("demo", "--out", "all")


def recipes_of(methods: dict[str, object], base: dict, monkeypatch: pytest.MonkeyPatch):
    """A `recipes.load` for the demo's names; paths, as run folders are opened with, go to the true one."""
    true = recipes.load

    def load(name: str, changes: tuple[str, ...] = ()):
        return build({**base, "name": name, "method": methods[name]}) if name in methods else true(name, changes)

    return load
