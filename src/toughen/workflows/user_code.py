"""Code of the user's own, run by naming it: `FILE.py:NAME` or `package.module:NAME`.

model = built("my_model.py:build")
"""

import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from toughen.models.refusals import OURS


def built(reference: str) -> nn.Module:
    """The module that a reference is, or that what it stands for returns.

    Raises:
        ValueError: as for `imported`; or it raises something, or returns no module.
    """
    build = imported(reference)
    try:
        model = build() if callable(build) and not isinstance(build, nn.Module) else build
    except (Exception, SystemExit) as error:
        raise ValueError(f"{reference!r} cannot be called: {_said(error, reference)}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{reference} gave {type(model).__name__}; it must be or return a torch.nn.Module")
    return model


def imported(reference: str) -> object:
    """What `package.module:name` or `path/to/file.py:name` stands for: code of the user's own, run by naming it.

    It may import what lies beside the file, or in the current folder.

    Raises:
        ValueError: there is no such module, file or name, or its code raises something.
    """
    place, _, name = reference.rpartition(":")
    # At the end, so that nothing there hides a module that is installed.
    beside = str(Path(os.path.realpath(place)).parent if place.endswith(".py") else Path.cwd())
    sys.path += [beside] if beside not in sys.path else []
    try:
        if place.endswith(".py"):
            # Under a name that is nobody's, where data classes and the like look their module up.
            spec = importlib.util.spec_from_file_location(f"__toughen__{Path(place).stem}", place)
            assert spec is not None
            assert spec.loader is not None
            module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    except FileNotFoundError:
        raise ValueError(f"{reference!r} cannot be imported: there is no {place}; check the path") from None
    except (ImportError, SyntaxError) as error:
        raise ValueError(f"{reference!r} cannot be imported: {error}") from None
    except (Exception, SystemExit) as error:
        raise ValueError(f"{reference!r} cannot be imported: {_said(error, reference)}") from error
    if not hasattr(module, name):
        raise ValueError(f"{place} has no {name!r}; give FILE.py:NAME or package.module:NAME")
    return getattr(module, name)


@contextmanager
def naming_code(reference: str) -> Iterator[None]:
    """What the code of a reference raises when it is run later on is one sentence that names it."""
    try:
        yield
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        theirs = [frame.filename for frame in reversed(frames)]
        inner = theirs[: next(at for at, file in enumerate(theirs) if file.startswith(OURS))]
        if not any(file == _file_of(reference) for file in inner):
            raise
        raise ValueError(f"{reference!r} fails: {_said(error, reference)}") from error


def _file_of(reference: str) -> str | None:
    """Where the code of a reference that was imported lies."""
    place = reference.rpartition(":")[0]
    module = sys.modules.get(f"__toughen__{Path(place).stem}" if place.endswith(".py") else place)
    return getattr(module, "__file__", None)


def _said(error: BaseException, reference: str) -> str:
    """What code of the user's own raised, and the last line of that code on the way there."""
    frames = traceback.extract_tb(error.__traceback__)
    place = Path(reference.rpartition(":")[0])
    own = [frame for frame in frames if place.suffix == ".py" and Path(frame.filename).name == place.name]
    frame = (own or frames)[-1]
    text = (str(error).strip().splitlines() or [""])[0][:200]
    return f"{type(error).__name__}{': ' * bool(text)}{text} ({frame.filename}, line {frame.lineno})"


def is_reference(text: str) -> bool:
    """Whether a text has the form of an import, `file.py:name` or `package.module:name`."""
    return re.fullmatch(r"(.+\.py|[A-Za-z_][\w.]*):[A-Za-z_]\w*", text) is not None
