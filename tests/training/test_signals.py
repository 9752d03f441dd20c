"""What signals do to a run that hears them; runs that are told to stop are in `test_kills.py`."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from tiny_runs import digest, tiny_recipe
from toughen.training import early_stopping, loop, run, signals, train
from toughen.training.signals import Stopped, StopSignal, listening


def test_a_first_signal_waits_for_the_batch_and_its_echo_too(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr(signals.time, "monotonic", lambda: now)
    with listening() as stop:
        stop.gentle = True
        assert stop.asked() == 0
        os.kill(os.getpid(), signal.SIGTERM)
        now += 0.9
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked() == signal.SIGTERM
        now += 0.2
        with pytest.raises(Stopped, match="RN511 Ctrl-C: stopped at once, after a second signal"):
            os.kill(os.getpid(), signal.SIGINT)


def test_before_the_first_batch_a_signal_stops_at_once():
    with listening(), pytest.raises(Stopped, match="RN511 SIGUSR1: stopped before the first batch of this sitting"):
        os.kill(os.getpid(), signal.SIGUSR1)


def test_handlers_are_given_back_and_a_thread_has_none():
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    with listening() as stop:
        assert [signal.getsignal(number) for number in signals.SIGNALS] == [stop.hear] * 3
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before
    found: list[StopSignal] = []

    def elsewhere() -> None:
        with listening() as stop:
            found.append(stop)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found[0].asked() == 0


def signalled(monkeypatch: pytest.MonkeyPatch, place: object, name: str, at: int) -> list[int]:
    """SIGTERM as a function is called for the `at`-th time, from 0; the list grows with each call that returns."""
    original, returned, calls = getattr(place, name), list[int](), iter(range(10**6))

    def signalling(*given: Any, **named: Any) -> Any:
        if next(calls) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        found = original(*given, **named)
        returned.append(1)
        return found

    monkeypatch.setattr(place, name, signalling)
    return returned


# Four validations of three candidates: within the first, at the start of one, within the last.
@pytest.mark.parametrize(("call", "step"), [(1, 15), (3, 30), (11, 48)])
def test_a_signal_amid_a_validation_cuts_it_short_and_loses_nothing(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, step: int
):
    train(tiny_recipe(), tmp_path / "whole")
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        returned = signalled(patch, early_stopping, "evaluate", call)
        with pytest.raises(Stopped, match=f"RN511 SIGTERM: saved step {step} in "):
            train(tiny_recipe(), out)
        assert len(returned) == call
    # The next sitting makes up for it first, and may be stopped amid that too.
    with monkeypatch.context() as patch:
        returned = signalled(patch, early_stopping, "evaluate", 0)
        with pytest.raises(Stopped, match=f"RN511 SIGTERM: saved step {step} in "):
            train(tiny_recipe(), out)
        assert not returned
    train(tiny_recipe(), out)
    assert digest(out) == digest(tmp_path / "whole")


def test_a_signal_at_the_last_batch_leaves_the_last_validation_to_the_next_sitting(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    train(tiny_recipe(), tmp_path / "whole")
    with monkeypatch.context() as patch:
        signalled(patch, loop, "set_rate", 47)
        with pytest.raises(Stopped, match="RN511 SIGTERM: saved step 48 in "):
            train(tiny_recipe(), tmp_path / "run")
    assert train(tiny_recipe(), tmp_path / "run")["steps"] == 48
    assert digest(tmp_path / "run") == digest(tmp_path / "whole")


def test_a_signal_that_comes_when_nothing_is_left_to_do_stops_nothing(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    signalled(monkeypatch, run, "finish", 0)
    assert train(tiny_recipe(), tmp_path / "run")["steps"] == 48
