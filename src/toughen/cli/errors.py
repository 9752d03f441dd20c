"""What every command shares: errors in one sentence, the console, and silence about libraries' own warnings."""

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console

from toughen.errors import in_shell
from toughen.progress import Notice
from toughen.storage.compiler_cache import writable_cache
from toughen.storage.files import Damaged, Locked


@contextmanager
def plain_errors() -> Iterator[None]:
    """What a user can mend becomes one sentence and an exit code, never a traceback."""
    from toughen.evaluation import Unsound
    from toughen.models.batched import out_of_memory
    from toughen.models.refusals import first_line
    from toughen.parallel.ranks import Diverged, Lost
    from toughen.training.monitors import NonFinite
    from toughen.training.signals import Stopped

    before = _hear_termination()
    try:
        writable_cache(lambda said: print(f"note: {said}", file=sys.stderr))
        yield
        # What is still in the buffer must not fail after this, where nobody would catch it.
        sys.stdout.flush()
    except BrokenPipeError:
        # As in `toughen list | head`. The interpreter flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(141) from None
    except Locked as error:
        _fail(str(error), 76)
    except (Stopped, Lost) as error:
        _fail(str(error), 75)
    except (ValueError, NonFinite, Diverged, Damaged, Unsound) as error:
        _fail(in_shell(error), 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}; check the path, its permissions and the space left", 2)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        _fail(f"out of memory ({first_line(error)}); use a smaller model, smaller images or another device", 2)
    except KeyboardInterrupt:
        _fail("interrupted; the same command goes on from what is saved", 75)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _hear_termination() -> Any:
    """Let SIGTERM end a command as Ctrl-C does, in one sentence; its handler before, or None where there is none."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, signal.default_int_handler)


def _fail(message: str, code: int) -> None:
    for line in message.splitlines():
        # A name out of a stranger's file must not command the terminal.
        print("error: " + "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)[:4000], file=sys.stderr)
    raise typer.Exit(code)


def console() -> Console:
    """Standard output, as wide as a log line needs where it is no terminal."""
    return Console(width=None if sys.stdout.isatty() else 160)


@contextmanager
def show_warnings_briefly() -> Iterator[None]:
    """Libraries' warnings about themselves are no news to a user; notices of ours are a line each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", Notice)
        warnings.showwarning = lambda message, *_, **__: print(f"note: {message}", file=sys.stderr)
        yield
