"""Learning-rate schedules as closed forms: share of the budget -> factor of the base rate.

    factor = warmed_up(multistep(milestones=(0.5, 0.75), decay=0.1), share=0.05)
    rate = base_rate * factor(step / steps)

The share counts optimiser steps and lies in [0, 1): a recipe keeps its shape when its budget changes, and a resumed run
needs nothing but its step. A new schedule is a function here and one line in `SCHEDULES`. Who uses which is on
docs/methods/weights.md, Schedules, and what papers Free and Limits are on docs/methods/README.md, Papers.
"""

import bisect
import math
from collections.abc import Callable
from typing import Annotated

from toughen.settings import OpenShare, Positive, Some

Factor = Callable[[float], float]


def constant() -> Factor:
    """1 throughout."""
    return lambda done: 1.0


def multistep(milestones: Annotated[tuple[OpenShare, ...], Some] = (0.5, 0.75), decay: Positive = 0.1) -> Factor:
    """decay^k after the k-th milestone (Free's code: 0.1 at 1/2 and 3/4 of 80,000 steps; Limits, section 3.1)."""
    ordered = sorted(milestones)
    return lambda done: decay ** bisect.bisect_right(ordered, done)


def cosine() -> Factor:
    """(1 + cos(pi t)) / 2: from 1 to 0 (Loshchilov & Hutter 2017; Limits, section 3.1 with extra data)."""
    return lambda done: (1 + math.cos(math.pi * done)) / 2


def exponential(final: Positive = 0.01) -> Factor:
    """final^t: from 1 to `final`, by the same ratio at every step."""
    return lambda done: final**done


def one_cycle(peak: OpenShare = 0.4) -> Factor:
    """Linear from 0 to 1 at the share `peak`, then linear to 0 (the "cyclic" rate of Wong et al. 2020)."""
    return lambda done: done / peak if done < peak else (1 - done) / (1 - peak)


SCHEDULES: dict[str, Callable[..., Factor]] = {
    "constant": constant,
    "multistep": multistep,
    "cosine": cosine,
    "exponential": exponential,
    "one_cycle": one_cycle,
}


def warmed_up(factor: Factor, share: float) -> Factor:
    """Linear from 0 to 1 over the first `share` of the budget, then the schedule over the rest."""
    if share == 0:
        return factor
    return lambda done: done / share if done < share else factor((done - share) / (1 - share))
