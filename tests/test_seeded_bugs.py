"""The tests can fail: each slip of `seeded_bugs/` turns one of them red."""

import ast
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from conftest import Faults
from seeding import PACKAGE, TESTS, Bench, Bug, bugs

FEW = ("intervals of 90 %", "a log is not cut back")
"""The small form: of two rooms, with tests of milliseconds."""

HARMLESS = Bug("no bug at all", "outcomes.py", 'CLEAN = "clean"', 'CLEAN = str("clean")', ("test_outcomes.py",))


def test_every_bug_has_its_place_and_its_tests() -> None:
    found = bugs()
    assert len(found) >= 45
    assert len({bug.name for bug in found}) == len(found)
    for bug in found:
        text = bug.applied((PACKAGE / bug.file).read_text(encoding="utf-8"))
        assert bug.old != bug.new, bug.name
        if bug.file.endswith(".py"):
            ast.parse(text)
        assert bug.tests, bug.name
        for test in bug.tests:
            path, _, name = test.partition("::")
            assert (TESTS / path).is_file(), test
            function = re.escape(name.partition("[")[0])
            assert not name or re.search(rf"^def {function}\(", (TESTS / path).read_text(encoding="utf-8"), re.M), test


@pytest.mark.faults
def test_a_seeded_bug_turns_a_test_red(tmp_path: Path, faults: Faults) -> None:
    found = bugs()
    chosen = found if faults.full else [bug for bug in found if bug.name in FEW]
    assert len(chosen) == faults.trials(small=len(FEW), full=len(found))
    workers, started = faults.trials(small=1, full=2), time.monotonic()
    with ExitStack() as stack, ThreadPoolExecutor(workers) as pool:
        benches = [stack.enter_context(Bench(tmp_path / str(number))) for number in range(workers)]
        # As they are, the tests are green.
        code, said = benches[0].run(dict.fromkeys(test for bug in chosen for test in bug.tests))
        assert code == 0, said
        assert benches[0].tried(HARMLESS) == "no bug at all (outcomes.py): no test turned red"
        parts = pool.map(lambda n: [benches[n].tried(bug) for bug in chosen[n::workers]], range(workers))
        missed = [sentence for part in parts for sentence in part if sentence]
    assert not missed, "\n".join(missed)
    faults.tell(
        "12 the tests can fail",
        f"{len(chosen)} seeded bugs in {len({bug.file for bug in chosen})} files, one at a time: each turned at least "
        f"one of its tests red, in {time.monotonic() - started:.0f} s",
    )
