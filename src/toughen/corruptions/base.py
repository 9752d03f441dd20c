"""What every corruption shares: its signature and the way back to eight bits."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Generators = Iterator[np.random.Generator]
# (N, C, H, W) uint8 with C 1 or 3, the constants of one severity, one generator per image (made when asked for) ->
# the same shape and type.
Corruption = Callable[[Images, Any, Generators], Images]

# A level that goes through [0, 1] in float64 and back comes out one lower for some levels: the definitions truncate.
ROUND_TRIP = (np.arange(256) / 255.0 * 255).astype(np.uint8)


def to_levels(values: NDArray[np.floating]) -> Images:
    """Values in [0, 1], clipped, as grey levels; truncated, not rounded, as the definitions do. Overwrites `values`."""
    np.clip(values, 0, 1, out=values)
    values *= 255
    return values.astype(np.uint8)
