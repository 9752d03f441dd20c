"""The catalogue lists every registry, with what each member says of itself."""

import pytest

from toughen import recipes
from toughen.attacks import ATTACKS
from toughen.cli.listing import SECTIONS, catalogue, first_line
from toughen.data import DATA
from toughen.data.sources.registry import FORMS
from toughen.evaluation import SUITES
from toughen.methods import METHODS
from toughen.models import MODELS

REGISTRIES = {"methods": METHODS, "attacks": ATTACKS, "models": MODELS, "data": DATA, "suites": SUITES}


def names(lines: list[str]) -> list[str]:
    return [line.split()[0] for line in lines if line.startswith("  ")]


@pytest.mark.parametrize("section", REGISTRIES)
def test_a_section_has_every_member_with_its_first_line(section: str):
    lines = catalogue(section)
    assert lines[0] == f"{section}:"
    more = {"data": [*FORMS], "suites": ["corruptions"]}
    assert names(lines) == [*REGISTRIES[section], *more.get(section, [])]
    for line in lines[1:]:
        assert len(line.split()) > 2, line


def test_recipes_with_the_first_line_of_their_files():
    lines, texts = catalogue("recipes"), recipes.shipped()
    assert names(lines) == [*texts]
    for line, name in zip(lines[1:], texts, strict=True):
        twin = "" if name.startswith(("mnist-", "finetune")) else " [also as -small]"
        assert line.endswith(texts[name].splitlines()[0].removeprefix("# ") + twin)
    assert "  cifar10-trades " in "\n".join(lines)
    assert "cifar10-trades-small" not in "\n".join(lines)


def test_methods_say_what_they_cost():
    costs = {line.split()[0]: line.rpartition("[")[2][:-1] for line in catalogue("methods")[1:]}
    assert costs["natural"] == costs["free"] == "1 natural step a replay"
    assert costs["adversarial"] == "(2K + 3)/3 natural steps: 7.67 with K = 10"


def test_all_sections_are_listed_in_order_with_a_line_between():
    lines = catalogue()
    assert [line[:-1] for line in lines if line.endswith(":") and line[0] != " "] == list(SECTIONS)
    assert lines.count("") == len(SECTIONS) - 1
    assert [line for section in SECTIONS for line in catalogue(section)] == [line for line in lines if line]


def test_a_member_from_outside_is_listed(monkeypatch: pytest.MonkeyPatch):
    def mine(model, x, y, *, threat, noise=None):
        """An attack of my own.

        More of it.
        """

    monkeypatch.setitem(ATTACKS, "mine", mine)
    monkeypatch.setitem(SUITES, "own", {"short": mine})
    assert any(line.split() == ["mine", "An", "attack", "of", "my", "own."] for line in catalogue("attacks"))
    assert "own" in names(catalogue("suites"))
    assert first_line({"short": mine}) == ""
    assert first_line(lambda: 3) == ""


def test_an_unknown_section_names_the_nearest():
    with pytest.raises(ValueError, match=r"'modles' .*recipes, methods, attacks, models, data, suites.*'models'"):
        catalogue("modles")
