"""What signals do to a run that hears them; runs that are told to stop are in `test_kills.py`."""

import os
import signal
import threading
from pathlib import Path

import pytest

from toughen.recipes import Recipe
from toughen.training import loop, stopping, train
from toughen.training.stopping import Stop, Stopped, listening


def test_a_first_signal_waits_for_the_batch_and_its_echo_too(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now)
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
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    with listening() as stop:
        assert [signal.getsignal(number) for number in stopping.SIGNALS] == [stop.hear] * 3
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == before
    found: list[Stop] = []

    def elsewhere() -> None:
        with listening() as stop:
            found.append(stop)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found[0].asked() == 0


def test_a_signal_at_the_last_batch_lets_the_run_end(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = Recipe.model_validate(
        {
            "data": "tiny",
            "model": {"name": "small_cnn", "width": 2},
            "method": "natural",
            "threat": "linf:0.1",
            "batch_size": 32,
            "steps": 3,
            "selection": {"suite": "pgd-1"},
        }
    )
    original, taken = loop.set_rate, []

    def signalling(*given: object) -> None:
        taken.append(1)
        if len(taken) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        original(*given)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(loop, "set_rate", signalling)
    assert train(recipe, tmp_path / "run")["steps"] == 3
