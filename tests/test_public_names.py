"""What a package says is public, in `__all__`, is what its registry holds and what the documentation names."""

import ast
import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

from toughen import attacks, corruptions, data, evaluation, methods, models
from toughen.attacks import ATTACKS
from toughen.methods import METHODS, Method, Robust, Wrapper

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(path.parent.name for path in (ROOT / "src" / "toughen").glob("*/__init__.py"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_ATTACKS = {
    *("ATTACKS", "AttackSpec", "Rule", "ascend", "attack", "for_norm", "from_image", "from_starts", "minimal_norm"),
}
"""What attacks are called by and made of."""


def package(name: str) -> ModuleType:
    return importlib.import_module(f"toughen.{name}")


@pytest.mark.parametrize("name", PACKAGES)
def test_public_names_are_there(name: str):
    public = getattr(package(name), "__all__", [])
    assert len(set(public)) == len(public)
    for one in public:
        assert hasattr(package(name), one), one


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_that_only_collects_names_exports_each(name: str):
    """An import in an `__init__` that defines nothing itself has no other use."""
    tree = ast.parse((ROOT / "src" / "toughen" / name / "__init__.py").read_text(encoding="utf-8"))
    if any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body):
        assert package(name).__all__
        return
    brought = [alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(brought) == sorted(getattr(package(name), "__all__", []))


def test_attacks_are_those_of_the_registry():
    missing = set(ATTACKS) - set(attacks.__all__)
    assert not missing, f"import these in toughen/attacks/__init__.py and name them in its __all__: {sorted(missing)}"
    assert set(attacks.__all__) == set(ATTACKS) | NOT_ATTACKS
    for name, function in ATTACKS.items():
        assert getattr(attacks, name) is function
        assert function.__name__ == name


def test_methods_are_those_of_the_registry():
    kinds = {kind.__name__: kind for kind in METHODS.values()}
    missing = set(kinds) - set(methods.__all__)
    assert not missing, f"import these in toughen/methods/__init__.py and name them in its __all__: {sorted(missing)}"
    public = {name: getattr(methods, name) for name in methods.__all__}
    found = {name: value for name, value in public.items() if isinstance(value, type) and issubclass(value, Method)}
    assert found == kinds | {"Method": Method, "Robust": Robust, "Wrapper": Wrapper}


def test_each_registry_is_public():
    registries = {
        attacks: "ATTACKS",
        methods: "METHODS",
        models: "MODELS",
        data: "DATA",
        evaluation: "SUITES",
        corruptions: "CORRUPTIONS",
    }
    for room, name in registries.items():
        assert name in room.__all__
    assert tuple(corruptions.REGISTRY) == corruptions.CORRUPTIONS


def imported_by(text: str) -> list[tuple[str, str]]:
    """(module, name) of each import from toughen in the Python blocks of a page or the examples of a docstring."""
    found = re.findall(r"^ *from (toughen[\w.]*) import ([\w, ]+)", text, re.M)
    return [(module, name.split(" as ")[0].strip()) for module, names in found for name in names.split(",")]


def docstrings() -> list[str]:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "src" / "toughen").rglob("*.py")]
    return [ast.get_docstring(tree) or "" for tree in trees]


def test_what_the_documentation_imports_is_public():
    texts = [page.read_text(encoding="utf-8") for page in PAGES] + docstrings()
    wanted = [found for text in texts for found in imported_by(text)]
    assert ("toughen.attacks", "AttackSpec") in wanted
    assert ("toughen.testing", "check_attack") in wanted
    for module, name in wanted:
        home = importlib.import_module(module)
        assert hasattr(home, name), f"{module}.{name}"
        assert name in getattr(home, "__all__", [name]), f"{name} is not in {module}.__all__"


def test_what_the_documentation_calls_by_its_full_name_is_public():
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    named = {name for text in texts for name in re.findall(r"`(toughen(?:\.\w+)+)", text)}
    assert "toughen.testing" in named
    for name in named:
        whole, _, last = name.rpartition(".")
        home = importlib.import_module(whole)
        assert hasattr(home, last) or importlib.import_module(name), name
        # What a package holds besides its modules it lists.
        if not isinstance(getattr(home, last, home), ModuleType):
            assert last in getattr(home, "__all__", [last]), f"{last} is not in {whole}.__all__"


def test_what_the_readme_says_lies_in_a_package_is_public():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (names, room), *_ = re.findall(r"((?:`\w+`[\w\s,]*)+), all in `toughen\.(\w+)`", text)
    found = re.findall(r"`(\w+)`", names)
    assert len(found) >= 7
    assert set(found) <= set(package(room).__all__)
