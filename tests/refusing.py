"""A disk that refuses: every call by which a run folder is written can be made to fail, once or from then on.

with Disk(run) as disk:                          # counts: disk.calls names every call of an undisturbed run
    train(recipe, run)
with Disk(run, Refusal(call, errno.ENOSPC, lasting=True)):
    train(recipe, run)
"""

import builtins
import errno
import io
import os
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

Call = tuple[str, str, int]
"""What is done ("write"), to which file of the run folder, and the how-manieth time."""

NAMES = ("fsync", "rename", "replace", "link", "mkdir", "rmdir", "unlink", "scandir", "open")
FREEING = ("unlink", "rmdir", "scandir")
"""What a full disk still does."""


@dataclass(frozen=True)
class Refusal:
    """Which call fails, how, and for how long.

    Args:
        call: the first that fails.
        code: an errno, or 0 for half a write and then ENOSPC.
        lasting: whether all later ones fail too, those that free space on a full disk excepted.
    """

    call: Call
    code: int
    lasting: bool

    def hits(self, call: Call, begun: bool) -> bool:
        """Whether it fails this call."""
        full = self.code in (0, errno.ENOSPC, errno.EDQUOT)
        return call == self.call or (begun and self.lasting and not (full and call[0] in FREEING))


class Disk:
    """The calls that write below a folder, watched and refused.

    Args:
        run: the folder.
        refusal: what fails; nothing by default.
        before: is called right before the first refusal.
    """

    def __init__(self, run: Path, refusal: Refusal | None = None, before: Callable[[], object] = lambda: None) -> None:
        self.run, self.refusal, self._before = str(run), refusal, before
        self.calls: list[Call] = []
        self.refused = 0
        self._counts: Counter[tuple[str, str]] = Counter()
        self._patch = pytest.MonkeyPatch()
        self._lock, self._inside = threading.RLock(), threading.local()

    def __enter__(self) -> Self:
        for name in NAMES:
            self._patch.setattr(os, name, self._watched(name, getattr(os, name)))
        for module in (builtins, io):
            self._patch.setattr(module, "open", self._opening(builtins.open if module is builtins else io.open))
        return self

    def __exit__(self, *exception: object) -> None:
        self._patch.undo()

    def check(self, name: str, path: str) -> bool:
        """Note a call, and fail it if it is its turn; whether half a write is to be done."""
        place = self._place(path)
        if place is None or getattr(self._inside, "yes", False):
            return False
        with self._lock:
            self._counts[name, place] += 1
            call = (name, place, self._counts[name, place])
            self.calls.append(call)
            if not self.refusal or not self.refusal.hits(call, self.refused > 0):
                return False
            if not self.refused:
                self._inside.yes = True
                self._before()
                self._inside.yes = False
            self.refused += 1
        if self.refusal.code == 0 and name == "write":
            return True
        code = self.refusal.code or errno.ENOSPC
        raise OSError(code, os.strerror(code), path)

    def _place(self, path: str) -> str | None:
        if not (path == self.run or path.startswith(self.run + os.sep)):
            return None
        # Temporary names are drawn anew each time.
        return re.sub(r"\.tmp-[0-9]+-[0-9a-f]+", ".tmp", os.path.relpath(path, self.run))

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(target: Any, *given: Any, **keywords: Any) -> Any:
            place = given[0] if name in ("rename", "replace", "link") else target
            if isinstance(place, int):
                place = os.readlink(f"/proc/self/fd/{place}")
            elif (folder := keywords.get("dir_fd")) is not None:
                place = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fspath(place))
            self.check(name, os.path.abspath(os.fspath(place)))
            return real(target, *given, **keywords)

        return call

    def _opening(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def opened(path: Any, mode: str = "r", *given: Any, **keywords: Any) -> Any:
            where = "" if isinstance(path, int) else os.path.abspath(os.fspath(path))
            if self._place(where) is None:
                return real(path, mode, *given, **keywords)
            self.check("read" if set(mode) <= set("rb") else "create", where)
            file = real(path, mode, *given, **keywords)
            return file if set(mode) <= set("rb") else Written(self, file, where)

        return opened


class Written:
    """A file whose writes can be refused."""

    def __init__(self, disk: Disk, file: Any, path: str) -> None:
        self._disk, self._file, self._path = disk, file, path

    def write(self, data: Any) -> int:
        if self._disk.check("write", self._path):
            self._file.write(memoryview(data)[: len(data) // 2])
            self._file.flush()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)
        return self._file.write(data)

    def truncate(self, size: int) -> int:
        self._disk.check("truncate", self._path)
        return self._file.truncate(size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
