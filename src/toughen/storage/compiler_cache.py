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

CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""Names the folder in the environment."""


def writable_cache(note: Callable[[str], None]) -> None:
    """Choose another folder where the user's cannot be written, and tell `note`.

    Raises:
        OSError: no temporary folder can be written either.
    """
    if not (folder := os.environ.get(CACHE)):
        return
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        os.environ[CACHE] = tempfile.mkdtemp(prefix="torchinductor_")
        atexit.register(shutil.rmtree, os.environ[CACHE], ignore_errors=True)
        said = error.strerror or error
        note(f"{CACHE}: {folder} cannot be written ({said}); until this command ends it is {os.environ[CACHE]}")
