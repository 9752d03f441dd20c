import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from typer.testing import CliRunner

import toughen
from toughen.cli import app as cli
from toughen.evaluation.resume import identity_of

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


FLOORS = [
    {"naming", "noise", "threat", "losses", "modes", "models", "distributed", "outcomes", "store", "checkpoint",
     "bounds", "schedule", "averaging", "sharding", "counting", "display", "batched", "fusion", "exported"},
    {"attacks", "data"},
    {"corruptions"},
    {"methods", "evaluation"},
    {"recipes", "report"},
    {"training"},
    {"demo", "catalogue", "export", "studies", "testing"},
    {"command"},
    {"cli_study"},
    {"cli"},
    {"__main__", "__init__"},
]  # fmt: skip


def test_a_room_imports_only_from_floors_below():
    floor_of = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    source = ROOT / "src" / "toughen"
    for path in source.rglob("*.py"):
        room = path.relative_to(source).parts[0].removesuffix(".py")
        text = re.sub(r"if TYPE_CHECKING:\n(?:    .*\n|\n)+", "", path.read_text())
        for match in re.finditer(r"^\s*(?:from|import) toughen\.(\w+)|^\s*from toughen import (.+)$", text, re.M):
            names = [match[1]] if match[1] else re.findall(r"\w+", match[2])
            for name in names:
                if name not in floor_of or name == room:
                    continue
                below = floor_of[name] < floor_of[room] or (floor_of[name] == floor_of[room] == 0)
                assert below, f"{path.relative_to(ROOT)} imports {name}"


def test_no_file_is_longer_than_400_lines():
    for folder in ("src", "tests", "benchmarks", "tools"):
        for path in (ROOT / folder).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 400, path


def test_the_loop_fits_on_a_screen():
    text = (ROOT / "src/toughen/training/loop.py").read_text()
    body = text[text.index("def train_batch") :]
    assert len(body[: body.index("\n\n\n")].splitlines()) <= 40
