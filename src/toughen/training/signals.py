"""Signals that ask a run to stop: heard at once, obeyed between two batches, after a checkpoint.

    with listening() as stop:
        ...                                 # set-up: a signal ends it there and then, for nothing can be lost
        stop.gentle = True
        while number < batches:
            train_batch(...)
            if signal := stop.asked():      # the same answer on every rank
                save(); raise Stopped(...)

A handler that did more than set a flag could meet the run amid an optimiser step or a collective operation.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from toughen.parallel import ranks

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""What a scheduler sends before it takes the machine away, Ctrl-C, and what Slurm is often told to send."""


ECHO = 1.0
"""Seconds in which a further signal is taken for the first one, passed on."""


class Stopped(KeyboardInterrupt):
    """A run was asked to stop and did; the same command goes on (RN511).

    Not an `Exception`, so that no library's own handler swallows it.
    """


class StopSignal:
    """Whether a signal was heard.

    Attributes:
        gentle: whether a first signal waits for the end of the batch; one a second later never waits.
        heard: the first signal that this rank has heard, or 0.
    """

    def __init__(self) -> None:
        self.gentle = False
        self.heard, self._since = 0, 0.0

    def hear(self, number: int, _frame: FrameType | None) -> None:
        """The handler."""
        # Ctrl-C in a terminal reaches torchrun and a study too, which pass it on.
        if self.heard and time.monotonic() < self._since + ECHO:
            return
        if self.heard or not self.gentle:
            where = "at once, after a second signal" if self.heard else "before the first batch of this sitting"
            raise Stopped(f"RN511 {called(number)}: stopped {where}. The same command goes on from what is saved.")
        self.heard, self._since = number, time.monotonic()

    def asked(self) -> int:
        """The signal that any rank has heard so far, or 0; every rank calls it between the same two batches."""
        return ranks.largest(self.heard)


def called(number: int) -> str:
    """What a signal is called."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


@contextmanager
def listening() -> Iterator[StopSignal]:
    """Hear the signals until the context ends; in a thread of its own, where Python allows no handlers, never."""
    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.hear) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
