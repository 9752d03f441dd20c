"""The first ten minutes with a GPU: is it right there, then how fast; each figure is written down as it comes.

    python benchmarks/gpu_session.py --seconds 540            # what is not yet known of this device, the dearest last
    python benchmarks/gpu_session.py waits compiled           # these parts, anew
    python benchmarks/gpu_session.py --toy                    # small sizes, on the pretended device of tests/gpu

Figures go to `gpu.jsonl` and the page `gpu.md` in `--out`. A second call goes on where the first one ended: what is
known of this device and this torch is not measured again. A part that fails or hangs leaves its error as a row, and the
next one begins in a new process. `--seconds` counts from the start of the command to its end.

For a machine that reaches no network, `make gpu-kit` prepares what is needed there (wheels, the CPU's answers,
CIFAR-10) in pieces, of which one fits into each journey of the checkout. Where a tool runs a command on such a machine
in a copy of the checkout, with an ignored folder that it carries and a folder $OUT that comes back, the sequence is:

    make gpu-kit CIFAR10=FOLDER                                                        here; it lists the pieces
    carry .gpu-kit/1:  python3 benchmarks/gpu_session.py --seconds 400 --out $OUT      is it right? how fast?
    carry .gpu-kit/2:  python3 benchmarks/gpu_session.py --seconds 20 --out $OUT       every piece of data but the last
    carry .gpu-kit/3:  python3 benchmarks/gpu_session.py --seconds 240 --out $OUT      the last: the speed-run

Each call first copies its piece out of the checkout, so that the next may take its place. The last pieces of all, of
large wheels, are needed only where rows say that a module is missing. A training that the end of the time stops goes on
in the next call if that meets the same machine. In the end `gpu.jsonl` and `gpu.md` from $OUT go to
benchmarks/results; with them there, a session on another machine goes on too.
"""

import argparse
import datetime
import json
import os
import queue
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpu_kit
from gpu_page import page

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
USUAL = 540
"""Seconds for which the shares below are made; a longer session has longer ones."""

GRACE = 15
"""Seconds in which a training that is told to stop saves."""

SHARES = {
    "attacks": 60,
    "methods": 90,
    "verdicts": 90,
    "resumed": 120,
    "waits": 60,
    "compiled": 120,
    "ceilings": 30,
    "steps": 240,
    "evaluation": 150,
    "speedrun": 400,
    "profile": 60,
    "more_steps": 200,
    "peers": 90,
}
"""What is asked, in this order, and for how many seconds at most. What each is: `gpu_checks` and `gpu_speed`."""


@dataclass
class Rows:
    """The figures, one line each.

    Args:
        folder: where `gpu.jsonl` and `gpu.md` are written.
        earlier: further folders whose `gpu.jsonl` counts, and that of the last is kept like ours.
    """

    folder: Path
    earlier: list[Path]

    def __post_init__(self) -> None:
        files = [self.file(folder) for folder in (*self.earlier, self.folder)]
        known = [line for file in files if file.exists() for line in file.read_text(encoding="utf-8").splitlines()]
        self._write("".join(f"{line}\n" for line in dict.fromkeys(known)), "w")

    def file(self, folder: Path | None = None) -> Path:
        """Where they are."""
        return (folder or self.folder) / "gpu.jsonl"

    def _write(self, text: str, mode: str) -> None:
        for folder in (self.earlier[-1], self.folder):
            folder.mkdir(parents=True, exist_ok=True)
            with self.file(folder).open(mode, encoding="utf-8") as file:
                file.write(text)

    def add(self, row: dict[str, Any]) -> None:
        """Write one down, and the page anew."""
        row = row | {"date": now()}
        print(json.dumps(row), flush=True)
        self._write(json.dumps(row) + "\n", "a")
        lines = self.file().read_text(encoding="utf-8").splitlines()
        (self.folder / "gpu.md").write_text(page([json.loads(line) for line in lines]), encoding="utf-8")


def now() -> str:
    """The time, as rows have it."""
    return datetime.datetime.now().isoformat(timespec="seconds")


class Worker:
    """A process that takes one part after the other, and says what it finds in lines of JSON."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self._log = log
        with log.open("ab") as file:
            # In a session of its own, so that what it starts ends with it.
            self._process = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=file, start_new_session=True
            )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.decode())
        self._lines.put(None)

    def message(self, seconds: float) -> dict[str, Any] | None:
        """What it says next; None at its end.

        Raises:
            queue.Empty: it says nothing for so many seconds.
        """
        line = self._lines.get(timeout=max(seconds, 0))
        return None if line is None else json.loads(line)

    def stop(self) -> str:
        """End it and all that it started, gently first; how it ended, with its last words."""
        for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, 5)):
            until = time.monotonic() + patience
            while time.monotonic() < until and self._tell(number):
                number = 0
                self._process.poll()
                time.sleep(0.05)
        code = self._process.poll()
        if code is None:
            # A driver that hangs lets nobody go.
            return "the process could not be killed"
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        words = self._log.read_text(encoding="utf-8", errors="replace").strip().rsplit("\n", 1)[-1]
        return f"the process ended with {code}: {words[-300:]}"

    def _tell(self, number: int) -> bool:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
            return True
        return False


def measure(parts: list[str], rows: Rows, start: Callable[[list[str]], Worker], left: Callable[[], float]) -> None:
    """Take the parts in their order, in as few processes as do not fail, while there is time.

    Args:
        parts: names.
        rows: what is found goes there.
        start: begins a worker on some parts.
        left: seconds that are left.
    """
    scale, about = max(1.0, left() / USUAL), {}
    while parts and left() > 0:
        worker, found, share, began = start(parts), 0, left(), time.monotonic()
        why = ""
        while not why:
            try:
                said = worker.message(min(began + share - time.monotonic(), left()))
            except queue.Empty:
                why = "the time is over" if left() <= 0 else f"took longer than its share of {share:.0f} s"
                break
            if said is None:
                break
            event = said.pop("event")
            if event == "hello":
                about = said
            elif event == "bye":
                parts = []
            elif event == "begun":
                parts = parts[parts.index(said["part"]) :]
                found, share, began = 0, scale * SHARES[parts[0]], time.monotonic()
            elif event == "ended":
                parts = parts[1:]
                rows.add(about | said)
            else:
                found += 1
                rows.add(about | said)
        ended = worker.stop()
        if not parts or left() <= 0:
            return
        if why or not found:
            rows.add({**about, "part": parts[0], "name": "", "error": why or ended})
            parts = parts[1:]


def main() -> None:
    """Bring what is needed to its place, and measure until the time is over."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*SHARES, []], help="measured anew; all that is unknown by default")
    parser.add_argument("--seconds", type=float, default=USUAL, help="after which all is over")
    parser.add_argument("--out", type=Path, help="the folder of gpu.jsonl and gpu.md; that of all results by default")
    parser.add_argument("--toy", action="store_true", help="small sizes, on the pretended device of tests/gpu")
    given = parser.parse_args()
    out = given.out or (Path(tempfile.mkdtemp()) if given.toy else RESULTS)
    # Where it stays between the calls, and is no part of a checkout.
    work = out / "work" if given.toy else Path(tempfile.gettempdir()) / f"toughen-gpu-{os.getuid()}"
    site = work / "site" if given.toy else gpu_kit.unpack(ROOT / gpu_kit.KIT, work)
    rows = Rows(out, [work] if given.toy else [RESULTS, work])
    paths = [*map(str, (ROOT / "src", ROOT / "tests", ROOT / "benchmarks", site)), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    if given.toy:
        environment["GPU_SESSION_TOY"] = "1"
    asked = {"work": str(work), "rows": str(rows.file()), "since": now(), "anew": given.parts, "toy": given.toy}

    def start(parts: list[str]) -> Worker:
        command = [sys.executable, __file__, "--as", "gpu_worker", json.dumps(asked | {"parts": parts})]
        return Worker(command, environment, rows.folder / "gpu.log")

    # What is running when the time is over is given GRACE to end.
    measure(given.parts or list(SHARES), rows, start, lambda: began + given.seconds - GRACE - time.monotonic())


def run_as(module: str) -> None:
    """Run a module as `python -m` does; in toy sizes on a device that is pretended before torch is imported."""
    if os.environ.get("GPU_SESSION_TOY"):
        gpu = ROOT / "tests" / "gpu"
        sys.path.append(str(gpu))
        import pretended

        if not pretended.missing():
            pretended.begin(Path(os.environ.get("PRETENDED", gpu / ".compiled")))
            import torch

            # A compiler would ask for the chip that it compiles for.
            torch.compile = lambda function, **settings: function
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as"]:
        module = sys.argv[2]
        sys.argv = sys.argv[2:]
        run_as(module)
    else:
        main()
