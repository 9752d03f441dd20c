"""The page that adds an attack, run as it stands but for a smaller budget."""

import re
import runpy
from pathlib import Path

import pytest
import torch

from processes import TOUGHEN, run_script
from toughen.attacks import ATTACKS, pgd
from toughen.attacks.contract import Attack
from toughen.noise import fixed
from toughen.testing import check_attack, toys
from toughen.threat import L2, Linf, Threat

PAGE = Path(__file__).parents[1] / "docs" / "adding-an-attack.md"
# So that it takes seconds. Nothing else of the page is changed.
SMALLER = {
    '"steps=200"': '"steps=3", "selection=pgd-1", "model.width=8"',
    '"heavy_ball.py:SUITE")': 'workflows.EvaluationSettings("heavy_ball.py:SUITE", limit=30))',
}


def blocks() -> dict[str, str]:
    """The page's files by name."""
    found = re.findall(r"^```python\n# (\S+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)
    return dict(found)


@pytest.fixture
def heavy_ball(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attack:
    """The attack of the page."""
    monkeypatch.setitem(ATTACKS, "heavy_ball", pgd)  # restored afterwards
    (tmp_path / "heavy_ball.py").write_text(blocks()["heavy_ball.py"], encoding="utf-8")
    return runpy.run_path(str(tmp_path / "heavy_ball.py"))["heavy_ball"]


def test_the_page_is_short_and_each_of_its_blocks_has_a_file():
    text = PAGE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 65
    assert list(blocks()) == ["heavy_ball.py", "run.py"]
    for number in SMALLER:
        assert text.count(number) == 1


def test_the_attack_of_the_page_is_trained_with_and_evaluated(tmp_path: Path):
    for name, text in blocks().items():
        for figure, smaller in SMALLER.items():
            text = text.replace(figure, smaller)
        (tmp_path / name).write_text(text, encoding="utf-8")
    done = run_script(tmp_path / "run.py", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "'robust_accuracy'" in done.stdout
    assert "name: heavy_ball" in (tmp_path / "runs/heavy/recipe.yaml").read_text()
    (result,) = tmp_path.glob("runs/heavy/evaluation/*/result.json")
    assert '"heavy-ball"' in result.read_text()


def test_the_command_of_the_page_takes_the_suite(tmp_path: Path):
    """On a model that was trained without the attack, of a file that holds it as a function."""
    (command,) = re.findall(r"`toughen (evaluate MODEL [^`]*)`", PAGE.read_text(encoding="utf-8"))
    (tmp_path / "heavy_ball.py").write_text(blocks()["heavy_ball.py"], encoding="utf-8")
    build = "lambda: build('small_cnn', num_classes=10, in_channels=1, width=2)"
    (tmp_path / "net.py").write_text(f"from toughen.models import build\nmodel = {build}\n", encoding="utf-8")
    options = ["--data", "mnist5k", "--threat", "linf:0.1", "--limit", "20"]
    arguments = [*command.replace("MODEL", "net.py:model").split(), *options]
    done = run_script(TOUGHEN, *arguments, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "heavy-ball" in done.stdout


def test_the_attack_of_the_page_keeps_every_promise(heavy_ball: Attack):
    check_attack(heavy_ball)


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.4)], ids=str)
def test_the_attack_of_the_page_is_what_it_says(heavy_ball: Attack, threat: Threat):
    model, x, y = toys.normed(torch.float64), toys.images(torch.float64), toys.labels()
    at = (x + threat.sample(x, fixed(8).child("heavy_ball", 0))).clamp(0, 1)
    g = torch.zeros_like(x)
    for _ in range(3):
        at.requires_grad_()
        (grad,) = torch.autograd.grad(torch.nn.functional.cross_entropy(model(at), y, reduction="sum"), at)
        g = 0.5 * g + grad
        at = (x + threat.project(at.detach() - x + threat.eps / 4 * threat.steepest(g))).clamp(0, 1)
    found = heavy_ball(model, x, y, threat=threat, steps=3, decay=0.5)
    torch.testing.assert_close(found, at, rtol=0, atol=1e-12)
