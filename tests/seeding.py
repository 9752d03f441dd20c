"""Slips that somebody could make in src/toughen, each with the tests of which at least one must turn red.

They stand in `seeded_bugs/*.txt`, each as what it changes in one place, like a patch:

    # the ascent descends: attacks/ascent.py
    -moved = x_adv - x + per_example(length, x) * step
    +moved = x_adv - x - per_example(length, x) * step
    ? attacks/test_ascent.py::test_linf_optimum_of_a_linear_model

Tests below `gpu/` run in a process of their own, as torch is to find other devices there. The text behind "-", of one
line or several, stands exactly once in the file. A bug is put into a copy of the package, in an environment of its own
whose processes, and theirs, import that copy: the package that is installed stays as it is, whoever works on it
meanwhile. Run as a script, this file is the process in such an environment that forks once for each bug, so that torch
is imported once.
"""

import json
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import traceback
import venv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "src" / "toughen"

CRASHES = {"ImportError", "ModuleNotFoundError", "SyntaxError", "IndentationError", "NameError", "UnboundLocalError"}
"""What a bug may not end in: it would say that the slip was written down wrongly, not that a test looks for it."""


@dataclass(frozen=True)
class Bug:
    """A slip.

    Attributes:
        name: what it does.
        file: in the package.
        old: what stands there, exactly once.
        new: what the slip would put in its place.
        tests: below the folder of tests: files, or functions in them.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, text: str) -> str:
        """The file with the bug in it."""
        assert text.count(self.old) == 1, f"{self.name}: {self.file} has {text.count(self.old)} times {self.old!r}"
        return text.replace(self.old, self.new)


def bugs() -> list[Bug]:
    """All of them."""
    blocks = [block for path in sorted((TESTS / "seeded_bugs").glob("*.txt")) for block in _blocks(path)]
    return [_bug(block) for block in blocks]


def _blocks(path: Path) -> Iterable[str]:
    return re.split(r"\n\n(?=# )", path.read_text(encoding="utf-8").rstrip("\n"))


def _bug(block: str) -> Bug:
    head, *lines = block.split("\n")
    name, _, file = head.removeprefix("# ").rpartition(": ")
    parts = {mark: "\n".join(line[1:] for line in lines if line.startswith(mark)) for mark in "-+?"}
    assert all(line[:1] in "-+?" for line in lines), block
    return Bug(name, file, parts["-"], parts["+"], tuple(parts["?"].split()))


class Bench:
    """A copy of the package in an environment of its own.

    Args:
        folder: a new one.
    """

    def __init__(self, folder: Path) -> None:
        self._package = folder / "src" / "toughen"
        shutil.copytree(PACKAGE, self._package, copy_function=_brought)
        venv.create(folder / "venv", symlinks=True, with_pip=False)
        (lib,) = (folder / "venv").glob("lib/python*/site-packages")
        # One after the other: the copy is found before whatever is installed beside pytest, the package included.
        installed = [sysconfig.get_path("purelib"), *site.getsitepackages()]
        found = [f"import site; site.addsitedir({path!r})" for path in dict.fromkeys(installed)]
        (lib / "copy.pth").write_text("\n".join([str(self._package.parent), *found]) + "\n")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "250"}
        # What is compiled lies beside the copy, whatever the caller's process does with its own.
        for name in ("PYTHONPATH", "PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE"):
            environment.pop(name, None)
        self._log, self._python, self._environment = folder / "said", folder / "venv" / "bin" / "python", environment
        self._server = subprocess.Popen(
            [self._python, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=TESTS.parent,
            env=environment,
            text=True,
        )
        assert self._asked({"where": True}) == str(self._package), "the installed package was found before its copy"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """End the process."""
        self._server.communicate()

    def _asked(self, what: dict[str, Any]) -> str:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(what) + "\n")
        self._server.stdin.flush()
        return self._server.stdout.readline().strip()

    def tried(self, bug: Bug) -> str:
        """What became of the tests of a bug: nothing where one has turned red, else a sentence."""
        path = self._package / bug.file
        whole = path.read_text(encoding="utf-8")
        path.unlink()
        path.write_text(bug.applied(whole), encoding="utf-8")
        # Python knows a compiled file by the second and the size of its source, which a bug may share with another.
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
            compiled.unlink()
        try:
            code, said = self.run(bug.tests)
        finally:
            path.write_text(whole, encoding="utf-8")
            for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
                compiled.unlink()
        red = re.findall(r"^(?:FAILED|ERROR) \S+(?: - (\w+))?", said, re.M)
        if code == 1 and red and not CRASHES & set(red):
            return ""
        outcome = "no test turned red" if code == 0 else f"pytest ended with {code}: {said[-1500:]}"
        return f"{bug.name} ({bug.file}): {outcome}"

    def run(self, tests: Iterable[str]) -> tuple[int, str]:
        """Exit code and output of pytest on some tests, up to the first that fails."""
        options = ["-x", "-q", "-rfE", "-p", "no:cacheprovider", "--tb=line"]
        code, said, chosen = 0, "", list(tests)
        if plain := [str(TESTS / test) for test in chosen if not test.startswith("gpu/")]:
            code = int(self._asked({"pytest": [*options, *plain], "said": str(self._log)}))
            said = self._log.read_text(encoding="utf-8", errors="replace")
        on_devices = [str(TESTS / test) for test in chosen if test.startswith("gpu/")]
        if on_devices and not code:
            pytest = [self._python, "-m", "pytest", *options, "-n", "0", *on_devices]
            done = subprocess.run(
                pytest, capture_output=True, text=True, env=self._environment, cwd=TESTS.parent, check=False
            )
            code, said = done.returncode, said + done.stdout + done.stderr
        return code, said


def _brought(source: str, target: str) -> None:
    """Code as a copy with its time, by which Python knows what is compiled; data by name alone."""
    if source.endswith((".py", ".pyc", ".yaml")):
        shutil.copy2(source, target)
    else:
        os.symlink(source, target)


def serve() -> None:
    """Answer each line of the input by a line: where the package is found, or how pytest ended in a fork."""
    import pytest
    import torch

    # One thread, so that forking is safe.
    torch.set_num_threads(1)
    for line in sys.stdin:
        asked = json.loads(line)
        heard, to = os.pipe()
        if (child := os.fork()) == 0:
            os.close(heard)
            answer = "1"
            try:
                if "where" in asked:
                    import toughen

                    answer = str(Path(toughen.__file__).parent)
                else:
                    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                    os.dup2(os.open(asked["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 1)
                    os.dup2(1, 2)
                    answer = str(int(pytest.main(asked["pytest"])))
            except BaseException:  # noqa: BLE001  # what pytest itself stumbles over is told, not taken for a red test
                answer = "3"
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os.write(to, answer.encode())
                os._exit(0)
        os.close(to)
        with open(heard, encoding="utf-8") as said:
            answer = said.read()
        os.waitpid(child, 0)
        print(answer, flush=True)


if __name__ == "__main__":
    serve()
