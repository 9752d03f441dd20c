import ast
import functools
import subprocess
import sys
from collections.abc import Collection
from graphlib import TopologicalSorter
from importlib import metadata
from pathlib import Path

from typer.testing import CliRunner

import toughen
from design_page import floors, orders
from toughen.cli import app as cli
from toughen.models.identity import identity_of

ROOT = Path(__file__).resolve().parents[1]


def loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_importing_the_package_the_report_and_the_help_loads_no_torch():
    for statement in (
        "import toughen",
        "import toughen.report",
        "import toughen.cli.app",
        "from typer.testing import CliRunner as R; from toughen.cli.app import app; R().invoke(app, ['train', '-h'])",
        "from typer.testing import CliRunner as R; from toughen.cli.app import app; R().invoke(app, ['--help'])",
    ):
        assert "torch" not in loaded_by(statement), statement


def test_every_public_name_is_there():
    for name in toughen.__all__:
        assert getattr(toughen, name) is not None
    assert set(toughen.__all__) <= set(dir(toughen))


def test_a_checkout_that_is_not_installed_knows_its_version(monkeypatch):
    assert metadata.version("toughen") == toughen.__version__
    version = metadata.version

    def of_others(name: str) -> str:
        if name == "toughen":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", of_others)
    assert identity_of()["version"] == toughen.__version__
    shown = CliRunner().invoke(cli.app, ["--version"])
    assert shown.output == f"toughen {toughen.__version__}\n"


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in (ROOT / "src" / "toughen").rglob("*.py"):
        parts = path.relative_to(ROOT / "src").with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports_of(tree: ast.AST, names: Collection[str]) -> set[str]:
    """The modules that a module imports, inside functions too; not what is for type checkers alone."""
    found = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0
            wanted = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in names else node.module for name in wanted}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        found |= imports_of(node, names)
    return {name for name in found if name in names}


@functools.cache
def graph() -> dict[str, set[str]]:
    """Which modules of the package each of them imports."""
    paths = modules()
    return {name: imports_of(ast.parse(path.read_text(encoding="utf-8")), paths) for name, path in paths.items()}


def room_of(module: str) -> str:
    """The room that a module lies in: what stands below the package."""
    return module.split(".")[1]


def test_a_room_imports_only_from_floors_below() -> None:
    storeys = list(floors().values())
    ground = storeys[0]
    floor_of = {room: number for number, rooms in enumerate(storeys) for room in rooms}
    inner = {name: wanted for name, wanted in graph().items() if name not in ("toughen", "toughen.__main__")}
    assert {room_of(name) for name in inner} == set(floor_of)
    for name, wanted in inner.items():
        room = room_of(name)
        for other in sorted(wanted - {"toughen"}):
            below = (
                floor_of[room_of(other)] < floor_of[room] or room_of(other) == room or {room, room_of(other)} <= ground
            )
            assert below, f"{name} imports {other}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    sorter = TopologicalSorter(graph())
    # A circle is an error that names the modules on it.
    assert set(sorter.static_order()) >= set(modules()) - {"toughen"}


def test_the_order_within_a_package() -> None:
    for package, groups in orders().items():
        floor_of = {f"toughen.{package}.{part}": number for number, parts in enumerate(groups) for part in parts}

        def part_of(module: str, floor_of: dict[str, int] = floor_of) -> str | None:
            """The longest of the parts in the table that a module lies in."""
            return max((part for part in floor_of if f"{module}.".startswith(f"{part}.")), key=len, default=None)

        for name, wanted in graph().items():
            for other in wanted:
                part, its = part_of(name), part_of(other)
                if part is not None and its is not None and part != its:
                    assert floor_of[its] < floor_of[part], f"{name} imports {other}"


def test_names_mean_one_thing() -> None:
    classes: dict[str, list[str]] = {}
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                classes.setdefault(node.name, []).append(module)
    assert not {name: where for name, where in classes.items() if len(where) > 1}


def test_no_file_is_longer_than_400_lines():
    for folder in ("src", "tests", "benchmarks", "tools"):
        for path in (ROOT / folder).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 400, path


def test_the_loop_fits_on_a_screen():
    text = (ROOT / "src/toughen/training/loop.py").read_text()
    body = text[text.index("def train_batch") :]
    assert len(body[: body.index("\n\n\n")].splitlines()) <= 40
