"""The pages of docs: links and sections resolve, every method and attack has its place, and defaults are the code's."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from design_page import ROOT, floors, orders
from toughen.attacks import ATTACKS, AttackSpec
from toughen.attacks.contract import GIVEN
from toughen.methods import METHODS
from toughen.methods.base import Robust
from toughen.settings import settings_of

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
# Of these: settings of every method in a ball are told once, on the index, and the name is the heading.
COMMON = {"name", *Robust.model_fields}
# Files of an earlier working place that no clone has, spelt so that this file does not name them itself.
LACKING = re.compile(r"METHOD" r"S,? (\d|section)|RELIABILIT" r"Y|ECOSYSTE" r"M|DESIG" r"N\.md|shared/(facts|papers)")
AUTHORS = {
    "Free": "Shafahi et al. 2019",
    "Limits": "Gowal et al. 2020",
    "IAAT": "Balaji et al. 2019",
    "Bilateral": "Wang & Zhang 2019",
}
INDEX = "docs/methods/README.md"


def texts() -> Iterator[tuple[Path, str]]:
    """Every text that people read, of the project's own folders."""
    paths = [ROOT / "Makefile", *ROOT.glob("*.md"), *ROOT.glob("*.toml")]
    for folder in ("src", "tests", "benchmarks", "tools", "docs"):
        paths += [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md", ".yaml", ".txt")]
    for path in sorted(paths):
        yield path, path.read_text(encoding="utf-8")


def headings(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.findall(r"^#+ (.+)$", text, flags=re.M)


def anchor(heading: str) -> str:
    """A heading's fragment, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_link_between_pages_resolves():
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, fragment = target.partition("#")
            found = (page.parent / name).resolve() if name else page
            assert found.exists(), f"{page.name} links to {target}"
            if fragment:
                assert fragment in map(anchor, headings(found)), f"{page.name} links to {target}"


def test_every_page_that_a_text_names_exists_with_its_section():
    named = 0
    for path, text in texts():
        # One line, without the marks of comments and lists, for references that go over two.
        flat = re.sub(r"\s*\n\s*(?:#|//|\*)?\s*", " ", text)
        for name, after in re.findall(r"\b(docs/[\w./-]+\.md)(.{0,80})", flat):
            named += 1
            assert (ROOT / name).exists(), f"{path} names {name}"
            if re.match(r", [A-Z]", after):
                section = [h for h in headings(ROOT / name) if re.match(rf"{re.escape(h)}[).,;:]", after[2:])]
                assert section, f"{path} names {name}{after[:40]}"
    assert named > 20


def test_no_text_cites_a_file_that_a_clone_lacks():
    for path, text in texts():
        found = LACKING.search(text)
        assert not found, f"{path.relative_to(ROOT)} cites {found[0] if found else ''}"


def test_a_paper_that_is_called_by_a_short_name_is_introduced():
    index = (ROOT / INDEX).read_text(encoding="utf-8")
    for name in AUTHORS:
        assert f"| **{name}** |" in index
    for path, text in texts():
        if path.suffix != ".py" or "src" not in path.parts:
            continue
        # Its package introduces a name, or the one around that.
        packages = [folder / "__init__.py" for folder in path.parents if (folder / "__init__.py").is_file()]
        around = text + "".join(package.read_text(encoding="utf-8") for package in packages)
        for name, authors in AUTHORS.items():
            cited = re.search(
                rf"\b{name}(?:'s)?,? (?:section|table|algorithm|equation|figure|appendix|supplement)", text
            )
            if cited:
                assert authors in around or INDEX in around, f"{path.relative_to(ROOT)} says {cited[0]}, but not who"


def documented() -> dict[str, dict[str, str]]:
    """For each name the settings that the tables of docs/methods give it, as text: {"free": {"replays": "8", ...}}."""
    found: dict[str, dict[str, str]] = {}
    for page in sorted((DOCS / "methods").glob("*.md")):
        for table in re.findall(r"^\| setting \|.*\n(?:\|.*\n)+", page.read_text(encoding="utf-8"), flags=re.M):
            header, _, *rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]
            for column, title in enumerate(header):
                if name := re.fullmatch(r"`(\w+)`", title):
                    assert name[1] not in found, f"{name[1]} has settings twice"
                    cells = {row[0].strip("`"): row[column] for row in rows}
                    found[name[1]] = {key: cell for key, cell in cells.items() if cell != "-"}
    return found


def test_every_name_with_settings_on_a_page_is_registered():
    assert set(documented()) <= {*METHODS, *ATTACKS, "ni_fgsm"}


@pytest.mark.parametrize("name", [*METHODS, *ATTACKS])
def test_a_page_has_every_setting_with_its_default(name: str):
    cells = documented()[name]
    given = {key: yaml.safe_load(cell) for key, cell in cells.items()}
    if name in METHODS:
        assert set(cells) == set(METHODS[name].model_fields) - COMMON
        assert METHODS[name].model_validate({"name": name, **given}) == METHODS[name].model_validate({"name": name})
    else:
        assert set(cells) == set(settings_of(ATTACKS[name], GIVEN).model_fields)
        assert AttackSpec.model_validate({"name": name, **given}) == AttackSpec.model_validate({"name": name})


@pytest.mark.parametrize("name", [*METHODS, *ATTACKS])
def test_the_index_leads_to_the_page_of_every_method_and_attack(name: str):
    rows = [row for row in (ROOT / INDEX).read_text(encoding="utf-8").splitlines() if re.match(rf"\| .*`{name}`", row)]
    (page,) = {target for row in rows for target in re.findall(r"\]\((\w+\.md)\)", row)}
    assert f"`{name}`" in (DOCS / "methods" / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", METHODS)
def test_the_module_of_a_method_names_its_page(name: str):
    assert f"docs/methods/{name}.md" in (inspect.getdoc(inspect.getmodule(METHODS[name])) or "")


def test_every_page_is_in_the_index():
    index = (ROOT / INDEX).read_text(encoding="utf-8")
    assert [page.name for page in (DOCS / "methods").glob("*.md") if f"({page.name})" not in index] == ["README.md"]


def test_the_design_gives_every_room_one_floor():
    numbers, rooms = list(floors()), [room for floor in floors().values() for room in floor]
    assert numbers == sorted(numbers, key=lambda number: (int(re.sub(r"\D", "", number)), number))
    assert len(rooms) == len(set(rooms)) > 20
    assert set(orders()) <= set(rooms)
    for groups in orders().values():
        modules = [module for group in groups for module in group]
        assert all(groups)
        assert len(modules) == len(set(modules))
