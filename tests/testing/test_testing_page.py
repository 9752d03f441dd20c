"""The page about testing parts of one's own: each of its files runs as it stands, and its sentence is what is said."""

import re
import runpy
from pathlib import Path

import pytest

from processes import run_script
from toughen.testing import BrokenPromise, check_attack

PAGE = Path(__file__).parents[2] / "docs" / "testing-your-own.md"


def blocks() -> dict[str, str]:
    """The page's files by name."""
    text = PAGE.read_text(encoding="utf-8")
    return dict(re.findall(r"^```python\n# (\S+)\n(.*?)^```$", text, flags=re.M | re.S))


def test_the_page_has_these_files():
    assert list(blocks()) == ["test_climb.py", "check_flipped.py", "check_network.py"]


@pytest.mark.parametrize("name", ["check_flipped.py", "check_network.py"])
def test_a_script_of_the_page_runs(tmp_path: Path, name: str):
    (tmp_path / name).write_text(blocks()[name], encoding="utf-8")
    runpy.run_path(str(tmp_path / name))


def test_pytest_shows_each_promise_of_the_page(tmp_path: Path):
    (tmp_path / "test_climb.py").write_text(blocks()["test_climb.py"], encoding="utf-8")
    options = ["-v", "-p", "no:cacheprovider", "-k", "box or ball or mates"]
    (tmp_path / "by_pytest.py").write_text(
        f"import pytest\nraise SystemExit(pytest.main({[*options, 'test_climb.py']}))\n"
    )
    done = run_script(tmp_path / "by_pytest.py", folder=tmp_path)
    assert done.returncode == 0, done.stdout
    for name in ("box", "ball", "batch mates"):
        assert f"test_climb[{name}] PASSED" in done.stdout


def test_the_sentence_of_the_page_is_what_is_said(tmp_path: Path):
    (tmp_path / "climb.py").write_text(blocks()["test_climb.py"], encoding="utf-8")
    climb = runpy.run_path(str(tmp_path / "climb.py"))["climb"]
    unclipped = blocks()["test_climb.py"].replace("(x.detach() + delta).clamp(0, 1)\n\n", "x.detach() + delta\n\n")
    (tmp_path / "unclipped.py").write_text(unclipped, encoding="utf-8")
    faulty = runpy.run_path(str(tmp_path / "unclipped.py"))["climb"]
    (said,) = re.findall(r"^```text\n(.*)\n```$", PAGE.read_text(encoding="utf-8"), flags=re.M)
    with pytest.raises(BrokenPromise) as error:
        check_attack(faulty)
    assert str(error.value) == said
    check_attack(climb, settings={"steps": 2}, norms=["l2"])
