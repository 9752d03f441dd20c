"""Argument lists that nobody should type, for every command: done or refused in a sentence, and nothing is harmed."""

import collections
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from typer.testing import Result

from cli.test_app import TINY, done, everything, toughen
from cli.test_evaluate import MINE
from conftest import tiny_data
from recipes.fuzzed_recipes import garbled, slip
from tiny_study import write_tiny_study
from toughen.data import DATA
from toughen.storage import files

pytestmark = pytest.mark.faults

# Each is cheap, and what is dear in it is not left out when it is changed.
EVALUATE = ["--suite", "pgd-1", "--limit", "4", "--batch-size", "3", "--seed", "1"]
MODEL = ["mine.py:build", "--data", "tiny", "--threat", "linf:0.1"]
COMMANDS: list[list[str]] = [
    ["train", "--dry-run", "tiny.yaml", "steps=8", "threat=linf:4/255", "--out", "new"],
    ["train", "--dry-run", "mnist-free", "optimizer.lr=1e-3"],
    ["evaluate", "run", *EVALUATE, "--out", "new", "--keep", "uint8", "--step-size", "1/255", "--independent"],
    ["evaluate", "run", *EVALUATE, "--checkpoint", "last", "--weights", "weights", "--threat", "l2:0.1"],
    ["evaluate", *MODEL, *EVALUATE, "--mean", "0.5", "--std", "0.5"],
    ["evaluate", "small_cnn=net.pt", "--data", "tiny", "--threat", "linf:0.1", *EVALUATE],
    ["evaluate", "exported", "--data", "tiny", *EVALUATE, "--suite", "mine.py:SUITE"],
    ["evaluate", "run", "--suite", "corruptions", "--limit", "2", "--published", "empty", "--baseline", "alexnet"],
    ["analyse", "run", "--limit", "2", "--only", "gradients", "--batch-size", "4", "--seed", "1", "--out", "new"],
    ["analyse", *MODEL, "--only", "eps-sweep", "--limit", "2", "--checkpoint", "best"],
    ["check", "run", "--limit", "4"],
    ["check", "mine.py:build", "--data", "tiny", "--mean", "0.5", "--std", "0.5", "--limit", "4"],
    ["export", "run", "--out", "new", "--format", "safetensors", "--checkpoint", "last", "--licence", "mit"],
    ["export", "run", "--out", "exported", "--weights", "weights", "--public"],
    ["label", "tiny", "--scorer", "run", "--against", "tiny", "--count", "4", "--out", "new", "--threshold", "1/255"],
    [
        "label",
        "tiny",
        "--scorer",
        "mine.py:build",
        "--against",
        "tiny",
        "--count",
        "4",
        "--out",
        "new",
        "--threshold",
        "1/255",
    ],
    ["report", "run", "--plain"],
    ["report", "run", "study", "--out", "page.html", "--figures", "figures"],
    ["list", "suites"],
    ["import", "empty", "--out", "new.npz"],
    ["demo", "--out", "new"],
    ["study", "run", "tiny-study.yaml", "--dry-run", "--scale", "toy", "--jobs", "2", "--shard", "1/2", "--out", "new"],
    ["study", "run", "tiny-study.yaml", "seed=1", "--dry-run", "--executor", "slurm", "--executor-set", "a=b"],
    ["study", "status", "study"],
    ["study", "table", "study", "--csv"],
    ["study", "work", "study", "--shard", "1/1"],
]
NUMBERS = [
    "-1",
    "0",
    "1",
    "2.5",
    "1e3",
    "9" * 30,
    "9" * 5000,
    "nan",
    "inf",
    "1e999",
    "8/0",
    "0x10",
    "1_0",
    "٣",
    "²",
    "½",
]
PATHS = [
    ".",
    "..",
    "/",
    "thesis",
    "file.txt",
    "none",
    "empty",
    "run",
    "exported",
    "study",
    "/dev/null",
    "/proc/self/mem",
]
PATHS += [
    "run/recipe.yaml",
    "run/LATEST",
    "net.pt",
    "broken.yaml",
    "broken.pt",
    "deep.yaml",
    "file.txt/x",
    "a" * 5000,
    "~",
    "locked",
]
PATHS += ["thesis/thesis.tex", "half", "page.html", "~nobody-of-this-name/x", "loop", "new/new/new", "tiny-study.yaml"]
WORDS = [
    "",
    " ",
    "-",
    "=",
    "a=b",
    "=a",
    "a.b=",
    "[b]",
    "[/b]",
    "%s",
    "{}",
    "{0}",
    "\n",
    "\x1b[31m",
    "é",
    "\udcff",
    "a\udcff.pt",
    "$(x)",
]
WORDS += [
    "linf:8/255",
    "linf:2",
    "l7:1",
    "linf:",
    "0/0",
    "2/1",
    "1,2",
    ",",
    "pgd-0",
    "pgd-" + "9" * 30,
    "pgd-K",
    "best",
    "average-0.9",
]
WORDS += [
    "mine.py:build",
    "mine.py:nothing",
    "mine.py:",
    ":",
    "os:getcwd",
    "os:environ",
    "json.tool:x",
    "mine.py:lookup",
    "mine.py:BAD",
]
WORDS += [
    "small_cnn=net.pt",
    "small_cnn=file.txt",
    "wrn-10-1=net.pt",
    "resnet18=none.pt",
    "timm:",
    "hub:",
    "hub:a",
    "mnist5k",
    "tiny",
]
WORDS += [
    "safetensors,onnx,",
    "robustbench",
    "radii,radii",
    "corruptions",
    "--help",
    "--version",
    "float32",
    "1/3",
    "steps=0",
    "x" * 5000,
]
KEPT = {"--suite", "--only", "--dry-run", "--limit", "corruptions", "pgd-1", "gradients", "radii"}


def spoilt(draw: Random, arguments: list[str]) -> list[str]:
    """The arguments after one to three slips."""
    made, start = list(arguments), 2 if arguments[0] == "study" else 1
    for _ in range(draw.choice([1, 1, 2, 3])):
        junk = draw.choice(draw.choice([NUMBERS, PATHS, WORDS]))
        free = [i for i in range(start, len(made)) if made[i] not in KEPT]
        i = draw.choice(free) if free else len(made)
        kind = draw.randrange(8)
        if kind <= 2 and i < len(made):
            made[i] = junk
        elif kind == 3 and i < len(made):
            del made[i]
        elif kind == 4 and i < len(made):
            made[i:i] = [made[i]] if draw.random() < 0.5 else made[i : i + 2]
        elif kind == 5 and i < len(made) and made[i]:
            made[i] = slip(draw, made[i])
        elif kind == 6:
            options = [word for command in COMMANDS for word in command if word.startswith("--") and word not in KEPT]
            made[i:i] = [draw.choice([*options, "--nothing", "-x"]), junk][: draw.choice([1, 2])]
        else:
            made.insert(i, draw.choice([junk, "--", "=", f"--out={junk}", f"--seed={junk}", f"--threat={junk}"]))
    return made


OUTSIDE: list[tuple[Any, ...]] = []
"""What was written outside the folders in which something may be written, while it is watched."""

_inside: list[Path] = []
_running: list[bool] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not _running or event not in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink"):
        return
    if event == "open" and not (
        isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    ):
        return
    for path in arguments[: 2 if event in ("os.rename", "os.link", "os.symlink") else 1]:
        if isinstance(path, str | bytes | os.PathLike):
            there = Path(os.path.realpath(os.fsdecode(path)))
            if there != Path("/dev/null") and not any(there.is_relative_to(folder) for folder in _inside):
                OUTSIDE.append((event, there))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a run, an exported model, a study, and things that are none of these; it is the current one."""
    here = tmp_path_factory.mktemp("fuzz") / "here"
    home = here.with_name("home")
    for folder in (here, home):
        folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setitem(DATA, "tiny", tiny_data)
        patch.setenv("HOME", str(home))
        # Where a library asks for the network it is refused at once.
        patch.setenv("HF_HUB_OFFLINE", "1")
        Path("tiny.yaml").write_text(TINY)
        done("train", "tiny.yaml", "--out", "run")
        done("export", "run", "--out", "exported")
        import torch

        from toughen import load_model
        from toughen.studies import create, text

        torch.save(load_model("exported").net.state_dict(), "net.pt")
        write_tiny_study(here).rename("tiny-study.yaml")
        create.create_folder(text.load("tiny-study.yaml"), "toy", Path("study"), name="tiny-study")
        Path("tiny.yaml").write_text(TINY)
        Path("mine.py").write_text(MINE)
        for name in ("thesis", "empty", "half", "locked"):
            Path(name).mkdir()
        Path("thesis/thesis.tex").write_text("years of work")
        Path("file.txt").write_text("text")
        Path("broken.yaml").write_bytes(b"data: \xff\xfe [")
        Path("deep.yaml").write_text("[" * 20_000)
        Path("broken.pt").write_bytes(Path("net.pt").read_bytes()[:100])
        Path("half/config.json").write_text("{}")
        Path("loop").symlink_to("loop")
        for name, what in (
            ("train", "toughen.training"),
            ("demo", "toughen.cli.demo"),
            ("work", "toughen.studies.worker"),
        ):
            patch.setattr(f"{what}.{name}", _dear)
        for name in ("run_here", "run_on_slurm", "run_on_ray"):
            patch.setattr(f"toughen.studies.executors.{name}", _dear)
        sys.addaudithook(_watch)
        cache = Path(os.environ["TOUGHEN_CACHE"])
        # A lock that somebody holds.
        with files.lock(here / "locked"):
            _inside[:] = [here, home, cache]
            yield here
            _inside.clear()


def _dear(*arguments: object, **keywords: object) -> None:
    raise ValueError("this would take long")


def unharmed(here: Path, before: dict[Path, bytes]) -> None:
    """All files that were there hold what they held, but for those that a command may replace, and locks.

    What is new is taken away, for the next command.
    """
    after = everything(here)
    for path, content in before.items():
        assert path in after, f"{path} is gone"
        if path.relative_to(here).parts[0] != "exported" and ".lock" not in path.name:
            assert after[path] == content, f"{path} has changed"
    for path in here.iterdir():
        if path not in before:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def judged(arguments: list[str]) -> Result:
    """The result of a command that ended in one of the ways that are documented."""
    _running.append(True)
    result = toughen(*arguments)
    _running.clear()
    said = f"{arguments!a}: {result.exit_code} {result.stderr[-3000:]} {result.exception!r}"
    assert result.exception is None or isinstance(result.exception, SystemExit), said
    assert result.exit_code in (0, 2, 3, 76, *([1] if "study" in arguments else [])), said
    assert "Traceback" not in result.output + result.stderr, said
    if result.exit_code == 2:
        lines = result.stderr.splitlines()
        if not lines or not lines[0].startswith("error: "):
            # The parser's own words; without arguments it prints the help.
            assert re.search(r"^Error: \S", result.stderr, re.MULTILINE) or "--help" in result.output, said
        else:
            assert len(lines) <= 8, said
            assert len(result.stderr) > len("error: a short sentence"), said
            assert not re.search(
                r"codec can't|object has no|NoneType|unexpected keyword|positional arg|Errno", result.stderr
            ), said
    elif result.exit_code == 0:
        assert not re.search(r"^error:", result.stderr, re.MULTILINE), said
    return result


def test_spoilt_arguments_end_in_a_sentence_and_harm_nothing(world: Path, faults):
    n, codes = faults.trials(small=100, full=2000), collections.Counter[int]()
    kept = everything(world)
    for number in range(n):
        draw = Random(f"arguments {number}")
        arguments = spoilt(draw, COMMANDS[number % len(COMMANDS)])
        codes[judged(arguments).exit_code] += 1
        unharmed(world, kept)
        assert not OUTSIDE, (arguments, OUTSIDE)
    assert codes[2] > n / 3
    assert codes[0] > n / 20
    ends = ", ".join(f"{count} with {code}" for code, count in sorted(codes.items()))
    faults.tell(
        "6 command line", f"{n} argument lists: {ends}; 0 tracebacks, nothing harmed, nothing written elsewhere"
    )


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_the_commands_that_are_spoilt_are_sound(world: Path, arguments: list[str]):
    """As far as they are not dear or refused on purpose."""
    kept = everything(world)
    result = judged(arguments)
    unharmed(world, kept)
    refused = {"demo", "import", "work", "--public", "corruptions"}
    assert result.exit_code == 2 if refused & set(arguments) else result.exit_code in (0, 3), result.stderr
    assert not OUTSIDE


REFUSED: list[list[str]] = [
    ["evaluate", *MODEL, *EVALUATE, "--out=a\udcff.pt"],
    ["evaluate", "nothing.py:build", "--data", "tiny"],
    ["evaluate", "run", *EVALUATE, "--out", "thesis"],
    ["analyse", "run", "--only", "gradients", "--limit", "2", "--out", "thesis"],
    ["export", "run", "--out", "thesis"],
    ["label", "tiny", "--scorer", "run", "--against", "tiny", "--count", "4", "--out", "thesis"],
    ["report", "loop", "--plain"],
    ["report", "run", "--out", "thesis/thesis.tex"],
    ["report", "run", "--figures", "thesis"],
    ["import", "empty", "--out", "net.npz"],
    ["study", "run", "tiny-study.yaml", "--dry-run", "--scale", "toy", "--out", "thesis"],
    ["train", "--dry-run", "mnist-free", f"steps={'9' * 30}"],
    ["train", "--dry-run", "deep.yaml"],
]


@pytest.mark.parametrize("arguments", REFUSED, ids=ascii)
def test_what_would_harm_or_stumble_is_refused(world: Path, arguments: list[str]):
    kept = everything(world)
    assert judged(arguments).exit_code == 2
    assert {path for path in everything(world) if ".lock" not in path.name} <= kept.keys()
    unharmed(world, kept)
    assert not OUTSIDE


DATALESS = ("null", "true", "[a]", "{extra: true}", "{source: a, extra: [b]}", "''")


def test_garbled_studies_end_in_a_sentence(world: Path, faults):
    text, run = Path("tiny-study.yaml").read_text(), ("study", "run", "spoilt.yaml", "--dry-run", "--out", "new")
    kept = everything(world)
    spoilt = [f"{text}set: {{data: {data}}}\n".encode() for data in DATALESS]
    spoilt += [
        f"{text}set: {{{'a.' * 5000}b: 1}}\n".encode(),
        f"{text}axes: [{{a: {{cells: {{params: 3}}}}}}]\n".encode(),
    ]
    spoilt += [garbled(Random(f"study {number}"), text) for number in range(faults.trials(small=25, full=500))]
    for content in spoilt:
        Path("spoilt.yaml").write_bytes(content)
        for scale in ("toy", "paper"):
            judged([*run, "--scale", scale])
        unharmed(world, kept)
        assert not OUTSIDE
    faults.tell("6 command line", f"{len(spoilt)} spoilt studies at 2 scales: 0 tracebacks, nothing harmed")
