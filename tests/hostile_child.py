"""Opens hostile files, each in a fork of one warm process: `python hostile_child.py JOBS`, a JSON line for each job.

JOBS is a JSON file of {"case", "cwd", "argv", "environment"}. A fork runs the command line as a user types it, under an
audit hook that notes everything that reading a file has no business to do, and within bounds of time and memory.
"""

import json
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CANARY = "toughen_canary"
WALL = int(os.environ.get("HOSTILE_WALL", "60"))
"""Seconds after which a child is killed."""
ROOM = 3 * 2**30
"""Bytes of address space that a child may take on top of what it starts with."""
NEVER = (
    *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "pty.spawn", "subprocess.Popen"),
    *("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "webbrowser.open"),
    *("pickle.find_class", "ctypes.dlopen", "code.__new__", "os.kill", "os.setxattr", "shutil.unpack_archive"),
)
CHANGES = ("os.remove", "os.rename", "os.link", "os.symlink", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def within(path: Any, folder: str) -> bool:
    """Whether a path, its links followed, lies in a folder; descriptors and what names no file do."""
    if isinstance(path, int) or path is None or path == -1:
        return True
    real = os.path.realpath(os.fsdecode(path))
    return real == folder or real.startswith(folder + os.sep) or real == os.devnull


def parent(path: Any) -> str:
    """The folder in which a name is changed."""
    return os.path.dirname(os.path.abspath(os.fsdecode(path)))


def watch(sandbox: str, noted: list[str]) -> None:
    """Note every forbidden event from now on."""
    busy = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal busy
        if busy:
            return
        busy = True
        try:
            if event in NEVER:
                # Numpy asks for itself while it is imported; a command has imported all that it needs.
                noted.append(f"{event} {arguments!r:.200}")
            elif event == "import" and str(arguments[0]).startswith(CANARY):
                noted.append(f"import {arguments[0]}")
            elif event in ("exec", "compile"):
                code = arguments[0] if event == "exec" else arguments[1]
                name = getattr(code, "co_filename", code)
                if isinstance(name, str) and os.path.isabs(name) and within(name, os.path.dirname(sandbox)):
                    noted.append(f"{event} {name}")
            elif event == "open":
                path, _, flags = arguments
                # Where a link is not followed, what counts is where it lies.
                place = parent(path) if isinstance(flags, int) and flags & os.O_NOFOLLOW else path
                if isinstance(flags, int) and flags & WRITING and not within(place, sandbox):
                    noted.append(f"open {path!r:.200} for writing")
            elif event in CHANGES:
                paths = arguments[:2] if event in ("os.rename", "os.link") else arguments[:1]
                # What is done to a link itself leaves what it points at alone.
                places = [parent(path) if event != "os.mkdir" else path for path in paths if not isinstance(path, int)]
                if not all(within(place, sandbox) for place in places):
                    noted.append(f"{event} {arguments!r:.200}")
        finally:
            busy = False

    sys.addaudithook(hook)


def run(argv: list[str], cwd: str, environment: dict[str, str], report: Path) -> int:
    """One command, as a user types it; its exit code."""
    os.chdir(cwd)
    os.environ |= environment
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(report / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sandbox, noted, before = os.path.realpath(cwd), [], set(sys.modules)
    tempfile.tempdir = sandbox
    handle = os.open(report / "noted", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    # The system's own pages count too, so this is a bound against bombs and no measure.
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + ROOM, held + ROOM))
    resource.setrlimit(resource.RLIMIT_CPU, (WALL, WALL))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.path.append(sandbox)
    sys.argv = ["toughen", *argv]
    watch(sandbox, noted)
    code = 1
    try:
        from toughen.cli.app import main

        main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:  # noqa: BLE001  # what a user would see
        import traceback

        traceback.print_exc()
    foreign = [
        f"module {name}"
        for name in set(sys.modules) - before
        if (file := getattr(sys.modules[name], "__file__", None)) and within(file, os.path.dirname(sandbox))
    ]
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(handle, json.dumps([*noted, *foreign]).encode())
    return code


def anonymous(pid: int) -> int:
    """Bytes that a process holds and that come from no file; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    kinds = ("RssAnon:", "RssShmem:")
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(kinds))


def opened(job: dict[str, Any], report: Path) -> dict[str, Any]:
    """Run a job in a fork, watching its memory; what became of it."""
    report.mkdir(parents=True, exist_ok=True)
    for name in ("stdout", "stderr", "noted"):
        (report / name).unlink(missing_ok=True)
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(run(job["argv"], job["cwd"], job["environment"], report))
        finally:
            os._exit(70)
    base = peak = 0
    while True:
        now = anonymous(pid)
        base, peak = base or now, max(peak, now)
        done, status, _ = os.wait4(pid, os.WNOHANG)
        seconds = time.monotonic() - began
        if done:
            break
        if seconds > WALL:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    noted = (report / "noted").read_text()
    return {
        **job,
        "code": os.waitstatus_to_exitcode(status),
        "seconds": round(seconds, 3),
        "memory": max(0, peak - base),
        "noted": json.loads(noted) if noted else ["it ended without a word"],
        "stdout": (report / "stdout").read_text(errors="backslashreplace"),
        "stderr": (report / "stderr").read_text(errors="backslashreplace"),
    }


def main() -> None:
    """Warm up on jobs called "warm", then do the others."""
    import torch

    torch.set_num_threads(1)
    # What commands import when they need it, so that no fork has to.
    import datasets  # noqa: F401
    import jinja2  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import rich.live  # noqa: F401
    import torch._weights_only_unpickler

    import toughen.cli.app
    import toughen.export
    import toughen.report.page.page
    import toughen.studies.measures
    import toughen.training
    import toughen.workflows.corruptions
    import toughen.workflows.evaluate
    import toughen.workflows.label  # noqa: F401
    from toughen import recipes
    from toughen.training import train

    # Torch imports more when a network is first trained.
    folder = Path(sys.argv[1]).parent
    train(recipes.load(str(folder / "whole/small.yaml")), folder / "warm")
    jobs = json.loads(Path(sys.argv[1]).read_text())
    for number, job in enumerate(jobs):
        report = Path(sys.argv[1]).parent / "reports" / f"{number:03d}"
        print(json.dumps(opened(job, report)), flush=True)


if __name__ == "__main__":
    main()
