"""What a session with a GPU needs on a machine that reaches no network: wheels, the CPU's answers, and CIFAR-10.

    make gpu-kit CIFAR10=FOLDER        # or: python benchmarks/gpu_kit.py --data FOLDER
    .gpu-kit/1                         # wheels that a machine with torch may lack, and references.json
    .gpu-kit/2, ...                    # a part of data.tar, of packages.tar; `unpack` joins them

The folder is ignored by git. A piece and the checkout together are at most 64 MiB, for so much travels in one call.
Without CIFAR-10 the session works on digits that ship with the package and on random images, and leaves out the
speed-run. Wheels are for Python 3.12 on Linux, x86-64, in the versions of the lock; torch is never among them.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KIT = ".gpu-kit"
TOGETHER = 64 * 2**20
"""Bytes of the checkout and a piece together."""

MOST = 60 * 10**6
"""Bytes of a piece, however small the checkout is."""

SLACK = 2**20
LARGE = 5 * 10**6
"""Bytes of a wheel that travels apart: numpy, scipy and the like, which machines with torch mostly have."""

PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (39, 35, 34, 31, 28, 27, 24, 17, 5)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux1_x86_64", "linux_x86_64"]
REFERENCES = ["torchattacks==3.5.1"]
"""What AutoAttack is measured beside; pyautoattack would take a piece of its own for the weights inside it."""


def unpack(kit: Path, work: Path) -> Path:
    """Copy what of the kit is in the checkout to where it stays, and install what this machine lacks.

    Args:
        kit: the folder of the pieces, one or all of them, or none.
        work: afterwards holds `references.json`, `data` and whatever has been there before.

    Returns:
        The folder that Python has to look for packages in.
    """
    for piece in sorted(kit.glob("[0-9]*")):
        shutil.copytree(piece, work, dirs_exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    for first in work.glob("*.tar.0-of-*"):
        name, _, count = first.name.rpartition(".0-of-")
        parts = [work / f"{name}.{number}-of-{count}" for number in range(int(count))]
        if all(part.exists() for part in parts):
            whole = work / name
            with whole.open("wb") as file:
                for part in parts:
                    file.write(part.read_bytes())
            with tarfile.open(whole) as tar:
                tar.extractall(work, filter="data")
            for path in (whole, *parts):
                path.unlink()
    site = work / "site"
    if any((work / "wheels").glob("*.whl")):
        install(work / "wheels", site)
    return site


def install(wheels: Path, site: Path) -> None:
    """Put those of our requirements into a folder that this Python lacks, and whatever these need."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    look = [*pip, "--find-links", str(wheels), "--dry-run", "--report", "-", *requirements()]
    resolved = subprocess.run(look, capture_output=True, text=True)
    if resolved.returncode:
        print(f"gpu_kit: {resolved.stderr.strip()}", file=sys.stderr)
        return
    chosen = [found["download_info"]["url"] for found in json.loads(resolved.stdout)["install"]]
    # They ask for what they do not need.
    chosen += [str(path) for name in REFERENCES for path in wheels.glob(f"{name.replace('==', '-')}-*.whl")]
    subprocess.run([*pip, "--no-deps", "--upgrade", "--target", str(site), *chosen], check=True)


def requirements() -> list[str]:
    """What the package needs, as pyproject.toml says."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]


def closure() -> list[str]:
    """What the package needs, and what that needs, as it is installed here, without torch and what only torch needs."""
    found: dict[str, str] = {}
    waiting = [name_of(wanted) for wanted in requirements()]
    while waiting:
        name = waiting.pop()
        if name in found or name == "torch":
            continue
        about = metadata.distribution(name)
        found[name] = about.version
        # What is wanted for an extra, or elsewhere, is not installed here or does no harm.
        needed = [wanted for wanted in about.requires or [] if "extra ==" not in wanted]
        waiting += [each for each in map(name_of, needed) if is_installed(each)]
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def name_of(requirement: str) -> str:
    """The package that a requirement names."""
    matched = re.match(r"[\w.-]+", requirement)
    assert matched is not None
    return matched[0].lower().replace("_", "-")


def is_installed(name: str) -> bool:
    """Whether this Python has a package."""
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def download(names: list[str], folder: Path) -> None:
    """Wheels of so many packages, and nothing that these need."""
    target = ["--python-version", "3.12", "--implementation", "cp", "--only-binary", ":all:", "--no-deps"]
    target += [part for platform in PLATFORMS for part in ("--platform", platform)]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *target, "--dest", str(folder), *names], check=True)


def room() -> int:
    """Bytes that a piece may have beside the checkout as it is."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    checkout = sum((ROOT / name).stat().st_size for name in names if name and (ROOT / name).is_file())
    return min(MOST, TOGETHER - SLACK - checkout)


def pack(folder: Path, name: str, kit: Path, most: int) -> None:
    """Make pieces of a folder, each in a folder of its own with the next free number."""
    tar = kit / f"{name}.tar"
    with tarfile.open(tar, "w") as file:
        file.add(folder, arcname=name, filter=without_owner)
    number, count = len(list(kit.glob("[0-9]*"))) + 1, -(-tar.stat().st_size // most)
    with tar.open("rb") as file:
        for part in range(count):
            piece = kit / str(number + part)
            piece.mkdir()
            (piece / f"{tar.name}.{part}-of-{count}").write_bytes(file.read(most))
    tar.unlink()


def without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """An entry that says nothing of who made it."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def main() -> None:
    """Make the kit anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of CIFAR-10's parquet files")
    parser.add_argument(
        "--toy", action="store_true", help="the CPU's answers for `gpu_session.py --toy`, and no wheels"
    )
    parser.add_argument("--out", type=Path, default=ROOT / KIT)
    given = parser.parse_args()
    if given.data and not list(given.data.glob("*.parquet")):
        print(f"{given.data} holds no parquet files of CIFAR-10; give --data a folder that does", file=sys.stderr)
        raise SystemExit(2)
    # It imports torch, which whoever unpacks the kit need not have yet.
    sys.path.append(str(ROOT / "tests"))
    import gpu_checks

    shutil.rmtree(given.out, ignore_errors=True)
    wheels, large = given.out / "1" / "wheels", given.out / "wheels"
    wheels.mkdir(parents=True)
    answers = json.dumps(gpu_checks.on_the_cpu(given.toy))
    (given.out / "1" / "references.json").write_text(answers, encoding="utf-8")
    most = room()
    if given.data:
        pack(given.data, "data", given.out, most)
    if not given.toy:
        download([*closure(), *REFERENCES], wheels)
        large.mkdir()
        for wheel in wheels.iterdir():
            if wheel.stat().st_size > LARGE:
                wheel.rename(large / wheel.name)
        pack(large, "wheels", given.out, most)
        shutil.rmtree(large)
    for piece in sorted(given.out.glob("[0-9]*")):
        files = [path for path in piece.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        print(f"{piece}: {size / 1e6:.1f} MB, {files[0].name if len(files) == 1 else f'{len(files)} files'}")
    if not given.data:
        print("without CIFAR-10: the session leaves out the speed-run; all else is on digits and random images")


if __name__ == "__main__":
    main()
