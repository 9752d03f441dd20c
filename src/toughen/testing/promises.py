"""What a promise is: something that a part of toughen relies on, a look at whether it holds, and a sentence if not.

suite = Suite()

@suite.promise("end with x_adv.clamp(0, 1)")
def box(attack):
    '''Every pixel is in [0, 1].'''
    expect(low >= 0, f"pixels go down to {low}")

for promise in suite.of(attack, "my_attack"):
    promise()                                 # raises BrokenPromise
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch

from toughen.devices import begun, own_draws

T = TypeVar("T")


class BrokenPromise(AssertionError):
    """One sentence: which promise, what was found, what to do."""


class Observation(AssertionError):
    """What `expect` found; a promise makes a sentence of it."""


def expect(condition: object, found: str) -> None:
    """Go on where the condition holds.

    Raises:
        Found: it does not.
    """
    if not condition:
        raise Observation(found)


@dataclass(frozen=True, eq=False)
class Promise:
    """One promise of one attack, method or model; called, it is looked at.

    Attributes:
        name: in a word or two, as pytest shows it.
        says: the promise, without a full stop.
        subject: what is looked at, by name.
        remedy: what to do where it is broken.
        look: raises where it is.
    """

    name: str
    says: str
    subject: str
    remedy: str
    look: Callable[[], None]

    def __call__(self) -> None:
        """Look; global random states are afterwards as they were.

        Raises:
            BrokenPromise: it does not hold, or looking ended in an error.
        """
        try:
            with own_randomness():
                self.look()
        except Observation as found:
            raise BrokenPromise(self._sentence(str(found))) from None
        except Exception as error:
            first = (str(error).strip() or "no words").splitlines()[0]
            raise BrokenPromise(self._sentence(f"it raised {type(error).__name__}: {first}")) from error

    def _sentence(self, found: str) -> str:
        return f"{self.subject} breaks the promise {self.name!r} ({self.says}): {found}; {self.remedy}"


@dataclass
class PromiseSuite:
    """Promises in the order in which they are looked at: what comes first explains what comes later."""

    members: list[tuple[Callable[[Any], None], str, Callable[[Any], bool]]] = field(default_factory=list)

    def promise(
        self, remedy: str, when: Callable[[Any], bool] = lambda one: True
    ) -> Callable[[Callable[[T], None]], Callable[[T], None]]:
        """Add a function that looks at one promise; its name and its docstring are the promise's.

        Args:
            remedy: what to do where it is broken.
            when: whether the promise is one for this subject.
        """

        def add(look: Callable[[T], None]) -> Callable[[T], None]:
            self.members.append((look, remedy, when))
            return look

        return add

    def of(self, one: Any, subject: str) -> list[Promise]:
        """The promises of one subject."""
        return [
            Promise(_words(look.__name__), _line(look), subject, remedy, lambda look=look: look(one))
            for look, remedy, when in self.members
            if when(one)
        ]


def parametrize(promises: Sequence[Promise]) -> Any:
    """A pytest mark by which each promise is a test of its own.

    Example:
        @parametrize(attack_promises(my_attack))
        def test_my_attack(promise):
            promise()
    """
    import pytest

    return pytest.mark.parametrize("promise", promises, ids=[promise.name for promise in promises])


def keep(promises: Sequence[Promise]) -> None:
    """Look at each in turn.

    Raises:
        BrokenPromise: the first that does not hold.
    """
    for promise in promises:
        promise()


@contextmanager
def own_randomness() -> Iterator[None]:
    """Global random states are afterwards as they were, whatever happens inside."""
    states = random.getstate(), np.random.get_state()
    try:
        with own_draws(begun()):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def random_states() -> list[Any]:
    """The global random states that a library could move: torch's, numpy's and Python's."""
    return [torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()]


def seed_everything(seed: int) -> None:
    """Put all of them somewhere else."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def refusal(call: Callable[[], object], given: str) -> None:
    """See that a call is refused with a sentence.

    Raises:
        Found: it is not, or with another error than a ValueError.
    """
    try:
        call()
    except ValueError as error:
        expect(str(error).strip(), f"{given} is refused without a word")
        return
    except Exception as error:
        first = (str(error).strip() or "no words").splitlines()[0]
        raise Observation(f"{given} ends in {type(error).__name__}: {first}") from error
    raise Observation(f"{given} is taken")


def _words(name: str) -> str:
    return name.strip("_").replace("_", " ")


def _line(look: Callable[..., object]) -> str:
    text = (look.__doc__ or "").strip().splitlines()[0].rstrip(".")
    return text[:1].lower() + text[1:]
