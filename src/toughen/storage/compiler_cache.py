"""The folder of torch's compiler, which must be there before torch is asked for much: no torch here.

    writable_cache(print)           # "TORCHINDUCTOR_CACHE_DIR: /full cannot be written (...); until this command ..."

torch imports its compiler at the first optimiser, and on its meta device, with or without graphs, and the import makes
the folder, or raises.
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""Names the folder in the environment."""


def writable_cache(note: Callable[[str], None]) -> None:
    """Choose another folder where the user's cannot be written, and tell `note`.

    Raises:
        OSError: no temporary folder can be written either.
    """
    folder = os.environ.get(CACHE)
    if not folder or (said := _hindrance(Path(folder))) is None:
        return
    os.environ[CACHE] = instead = tempfile.mkdtemp(prefix="torchinductor_")
    atexit.register(shutil.rmtree, instead, ignore_errors=True)
    note(f"{CACHE}: {folder} cannot be written ({said}); until this command ends it is {instead}")


def _hindrance(folder: Path) -> str | None:
    """Why a folder, or what it would be made in, cannot be written; looked at and not tried."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.exists(place))
    if not there.is_dir():
        return "Not a directory"
    return None if os.access(there, os.W_OK | os.X_OK) else "Permission denied"
