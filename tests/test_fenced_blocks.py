"""Every fenced block of README.md and docs is run, or says in a comment above itself why it is not.

    <!-- not run: needs four GPUs -->
    ```console
    $ torchrun --nproc-per-node=4 -m toughen train cifar10-pgd
    ```

Blocks of Python, YAML and commands are run as they are printed, one after the other. What they take for granted (`net`,
`x`, a pool of images) is in `SETTINGS` and `world`, and what makes them small is in `SMALLER`. Three pages are run by
tests of their own (`ELSEWHERE`). Of a block that is not run, its commands are known and their options too.
"""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import test_adding_a_method
import test_adding_an_attack
from conftest import tiny_split
from data.sources.test_routes import write_parquet
from design_page import ROOT
from models.pretrained.test_timm import Timm
from named_remedies import options
from recipes.test_finetune import trained, write
from testing import test_testing_page
from toughen.attacks import fgsm
from toughen.cli.app import app
from toughen.data import DATA, ImageData, Split
from toughen.evaluation import time_left
from toughen.methods import METHODS
from toughen.studies import cost, executors
from toughen.studies.create import create_folder
from toughen.studies.text import load
from toughen.studies.worker import work
from toughen.threat import Linf

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?^ *```(?P<language>\w*)\n(?P<text>.*?)^ *```$", re.M | re.S)
RUN = ("console", "python", "yaml")
"""Languages of the blocks that are run here."""
ELSEWHERE = {
    "docs/adding-a-method.md": test_adding_a_method.blocks,
    "docs/adding-an-attack.md": test_adding_an_attack.blocks,
    "docs/testing-your-own.md": test_testing_page.blocks,
}
"""Pages whose blocks are the files of a small project: what each of their tests writes and runs, by the file's name."""


class Block(NamedTuple):
    """A fenced block: its page, the line of its fence, its language, its text, and why it is not run ("": it is)."""

    page: str
    line: int
    language: str
    text: str
    reason: str


def blocks_of(page: str, text: str) -> Iterator[Block]:
    """The blocks of a page's text."""
    for found in FENCE.finditer(text):
        reason = (found["mark"] or "").partition("not run: ")[2]
        line = text.count("\n", 0, found.end()) - found["text"].count("\n")
        yield Block(page, line, found["language"], found["text"], reason)


def every_block() -> list[Block]:
    return [
        block
        for path in PAGES
        for block in blocks_of(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    ]


def unmarked(language: str) -> list[Block]:
    """The blocks of a language that are to be run here."""
    return [block for block in every_block() if block.language == language and not block.reason and runs_here(block)]


def runs_here(block: Block) -> bool:
    return block.page not in ELSEWHERE


def complaint(block: Block) -> str:
    """Why a block is neither run nor marked; "" where it is."""
    if block.reason:
        return ""
    if not runs_here(block):
        files = {f"# {name}\n{text}" for name, text in ELSEWHERE[block.page]().items()}
        return "" if block.text in files else "is no file that the page's own test runs"
    return "" if block.language in RUN else f"is of a language that is not run ({block.language or 'none'})"


def test_every_block_is_run_or_says_why_it_is_not():
    found = every_block()
    assert len(found) > 20
    for path in PAGES:
        assert path.read_text(encoding="utf-8").count("```") == 2 * sum((ROOT / b.page) == path for b in found), path
    wrong = [f"{b.page}:{b.line} {says}" for b in found if (says := complaint(b))]
    assert not wrong, f"{wrong}; run it in this file, or write <!-- not run: REASON --> on the line above it"


def test_a_new_block_is_noticed(world: Path):
    """Of another language, on a page of files, without a reason, and one of which a command has gone."""
    page = "docs/adding-a-method.md"
    (other,) = blocks_of("README.md", "```julia\nf(x) = x\n```\n")
    (file,) = blocks_of(page, "<!-- not run: -->\n```python\n# another.py\nraise ValueError\n```\n")
    (marked,) = blocks_of(page, "text\n\n<!-- not run: needs a printer -->\n```julia\nf(x) = x\n```\n")
    assert [bool(complaint(block)) for block in (other, file, marked)] == [True, True, False]
    assert (marked.line, marked.reason) == (4, "needs a printer")
    with pytest.raises(AssertionError, match="toughen lists recipes"):
        run("lists recipes")
    with pytest.raises(AssertionError, match="list has no"):
        known("list recipes --longer")


# --- commands


def commands(text: str) -> list[str]:
    """The lines of a block that stand after a prompt, with what goes on below them."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line[2:] for line in lines if line.startswith("$ ")]


def words_of(command: str) -> list[str]:
    return shlex.split(command.removeprefix("toughen "), comments=True)


SMALLER: dict[str, list[str]] = {
    "train": ["batch_size=8", "steps=8", "selection.suite=pgd-1"],
    "train mnist-free": ["data.limit=60", "data.validation=20", "model.width=2"],
    "train cifar10": ["model={name: small_cnn, width: 2, norm: batch}", "data.validation=8"],
    "train cifar10-limits-trades": ["batch_size=4"],
    "train finetune": ["data.size=32", "data.workers=0"],
    # The stand-in for timm was trained with other numbers.
    "train finetune data=photos model=timm": ["normalize=pretrained"],
    # So far that nothing stands it, whatever it learned in eight steps.
    "evaluate runs/free --suite a": ["--threat", "linf:0.9"],
    "evaluate": ["--limit", "4"],
    "analyse": ["--limit", "4"],
}
"""What is given besides what is printed, by how a command begins."""
NUMBERS = {"200000": "10", "500000": "20"}
"""The pool is as small."""
SIZES = {"train": 60, "test": 20}
"""Images of each part of a hidden set."""


def run(command: str) -> None:
    """Run a printed command, in small."""
    words = words_of(command)
    more = [word for start, given in SMALLER.items() if " ".join(words).startswith(start) for word in given]
    instead = NUMBERS if has_onnx() else {**NUMBERS, "onnx": "safetensors"}
    done = CliRunner().invoke(app, [instead.get(word, word) for word in words] + more)
    # `check` ends with 3 where it finds something.
    allowed = (0, 3) if words[0] == "check" else (0,)
    assert done.exit_code in allowed, f"toughen {' '.join(words)}: {done.stderr or done.exception}"


def has_onnx() -> bool:
    try:
        import onnx  # noqa: F401  # pyright: ignore[reportMissingImports]
        import onnxscript  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        return False
    return True


def known(command: str) -> None:
    """Whether there is such a command with such options, without running it."""
    words = words_of(command)
    name = " ".join(words[:2]) if " ".join(words[:2]) in options() else words[0]
    lacks = [word for word in words if word.startswith("--") and word.partition("=")[0] not in options().get(name, ())]
    assert name in options(), f"toughen {command}: there is no such command"
    assert not lacks, f"toughen {command}: {name} has no {lacks}"


NET = """
from torch import nn


def build():
    return nn.Sequential(nn.AdaptiveAvgPool2d(16), nn.Flatten(), nn.Linear(768, 10))
"""


def coloured(name: str) -> ImageData:
    grey = [tiny_split(f"{name}-{part}", n, side=32) for part, n in SIZES.items()]
    parts = [Split(part.images.repeat(1, 3, 1, 1), part.labels) for part in grey]
    return ImageData(name, parts[0], None, parts[1], tuple(f"class {number}" for number in range(10)))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a reader gives the commands: images, weights and a network of her own, and small sets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "timm", Timm())
    monkeypatch.setitem(DATA, "cifar10", lambda: coloured("cifar10"))
    monkeypatch.setitem(DATA, "pool", lambda: coloured("pool"))
    write(Path("photos"), {"beach": 14, "forest": 12, "street": 10})
    draw = np.random.default_rng(0)
    parts = {part: (draw.integers(0, 256, (n, 16, 16, 3), "uint8"), np.arange(n) % 2) for part, n in SIZES.items()}
    for folder in ("path/to/parquet", "data/ten", "data/hundred"):
        write_parquet(Path(folder), parts)
    with torch.random.fork_rng():
        torch.save(trained("resnet50", width=2), "resnet50.pth")
    Path("my_model.py").write_text(NET)
    # How long AutoAttack would take is counted by `evaluation/test_time_left.py`, and takes seconds.
    monkeypatch.setattr(time_left, "_COSTS", {})
    monkeypatch.setattr(time_left, "_counted", lambda *given: 1)
    # What a study's workers do is tested with small studies, and below with the printed one.
    monkeypatch.setattr(executors, "run_here", lambda *given, **more: None)
    monkeypatch.setattr(cost, "cost_lines", lambda *given, **more: [])
    return tmp_path


def test_the_commands_run_one_after_the_other(world: Path):
    printed = [line for block in unmarked("console") for line in commands(block.text)]
    assert len(printed) > 20
    run("train cifar10-free --out runs/natural")
    create_folder(load("free-table-1"), "small", Path("runs/studies/free-table-1-small"), name="free-table-1")
    for line in printed:
        assert line.startswith("toughen "), line
        run(line)
    assert Path("free.html").stat().st_size > 10_000


def test_commands_that_are_not_run_are_known():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    seen = 0
    for block in every_block():
        if block.reason and block.language in ("console", "bash"):
            text = block.text.replace("\\\n", " ")
            for target in re.findall(r"^\$ make ([\w-]+)", text, re.M):
                assert re.search(rf"^{target}:", makefile, re.M), target
                seen += 1
            for command in re.findall(r"(?:^\$|-m) toughen (.*)$", text, re.M):
                known(command)
                seen += 1
    assert seen >= 6


# --- Python and the study


def settings() -> dict[str, Any]:
    """What the blocks of Python take for granted: a network, images with its labels, and an attack of one's own.

    The network's classes differ in what is left of an image without its channels' means, which is hardly anything: any
    attack breaks every image at once.
    """
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(10, 3, 64, generator=draw)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 10, bias=False))
    net[1].weight = nn.Parameter((weight - weight.mean(2, keepdim=True)).flatten(1))
    x = 0.5 + 1e-3 * torch.randn(3, 3, 8, 8, generator=draw)
    return {
        "net": net,
        "x": x,
        "y": net(x).argmax(1),
        "my_attack": lambda model, x, y, eps: fgsm(model, x, y, threat=Linf(eps)),
    }


def test_the_blocks_of_python_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(METHODS, "noisy", METHODS["natural"])  # restored afterwards
    names = settings()
    found = unmarked("python")
    assert len(found) == 3
    for block in found:
        exec(compile(block.text, f"{block.page}:{block.line}", "exec"), names)  # what the page prints
    assert (names["net"](names["x_adv"]).argmax(1) != names["y"]).all()
    assert (names["found"].clean_accuracy, names["found"].robust_accuracy) == (1, 0)
    assert METHODS["noisy"] is names["Noisy"]


def test_the_study_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """At toy scale, by a worker in this process: four rows of two seeds, each trained and measured."""
    monkeypatch.chdir(tmp_path)
    folders = []
    for number, block in enumerate(unmarked("yaml")):
        Path(f"study-{number}.yaml").write_text(block.text, encoding="utf-8")
        folders.append(create_folder(load(f"study-{number}.yaml"), "toy", Path(f"out-{number}")))
    # The README's is run; that of docs/figures.md is made, with what it draws.
    folder, drawn = folders
    assert len(drawn.tasks()) == 8
    assert (drawn.path / "figure.json").is_file()
    assert len(folder.tasks()) == 12
    work(folder.path)
    assert all(folder.done(task) for task in folder.tasks())
