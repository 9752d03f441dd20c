"""The page that adds a method, run as it stands but for a smaller budget and a weaker attack."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

from steps import batch, network
from toughen.methods import METHODS
from toughen.testing import check_method
from toughen.threat import Linf

PAGE = Path(__file__).parents[1] / "docs" / "adding-a-method.md"
# So that it takes seconds. Nothing else of the page is changed.
SMALLER = {
    "steps: 200": "steps: 3\nselection: pgd-1",
    '"pgd-40")': 'workflows.EvaluationSettings("pgd-1", limit=50))',
}


def blocks() -> dict[str, str]:
    """The page's files by name."""
    found = re.findall(r"^```\w+\n# (\S+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)
    return dict(found)


def test_the_page_is_short_and_each_of_its_blocks_has_a_file():
    text = PAGE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    assert list(blocks()) == ["half_and_half.py", "half.yaml", "run.py"]
    assert text.count("```") == 2 * len(blocks())
    for number in SMALLER:
        assert text.count(number) == 1


def test_the_method_of_the_page_is_registered_trained_and_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """As `python run.py` beside its files does, without another process, which would import torch once more."""
    monkeypatch.setitem(METHODS, "half_and_half", METHODS["natural"])  # restored afterwards
    monkeypatch.delitem(sys.modules, "half_and_half", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in blocks().items():
        for figure, smaller in SMALLER.items():
            text = text.replace(figure, smaller)
        (tmp_path / name).write_text(text, encoding="utf-8")
    runpy.run_path("run.py", run_name="__main__")
    assert "'clean_accuracy'" in capsys.readouterr().out
    resolved = (tmp_path / "runs/half/recipe.yaml").read_text()
    assert "name: half_and_half" in resolved
    assert "steps: 4" in resolved
    assert "width: 8" in resolved  # the base's network


def test_the_method_of_the_page_is_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(METHODS, "half_and_half", METHODS["natural"])  # restored afterwards
    (tmp_path / "half_and_half.py").write_text(blocks()["half_and_half.py"], encoding="utf-8")
    runpy.run_path(str(tmp_path / "half_and_half.py"))

    def losses(name: str, **settings: object) -> torch.Tensor:
        method = METHODS[name].model_validate({"name": name, **settings}).resolved(Linf(0.1))
        objective = next(iter(method.losses(network().train(), batch(), {})))
        assert torch.equal(objective(), objective())
        return objective()

    check_method(METHODS["half_and_half"])
    attack = {"attack": {"name": "pgd", "steps": 2, "step_size": 0.05}}
    clean, robust = losses("natural"), losses("adversarial", **attack)
    assert torch.allclose(losses("half_and_half", **attack), (clean + robust) / 2, rtol=0, atol=1e-12)
