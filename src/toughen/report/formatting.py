"""Names and numbers as a reader sees them. No string of a run is trusted: it comes out of users' files.

percent(0.4567), interval_text((0.43, 0.48)), radius_text(8 / 255)      # "45.7 %", "[43.0, 48.0]", "8/255"
"""

import math
import unicodedata
from collections.abc import Sequence
from typing import Any

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def printable(value: Any) -> str:
    """Text without what controls a terminal, a parser or the direction of the text: that is replaced."""
    text = str(value)
    if text.isascii() and text.isprintable():
        return text
    # Cc, Cf, Cs, Co and Cn: controls, bidirectional marks, half characters and what is no character.
    return "".join(
        char if char in "\n\t" or not unicodedata.category(char).startswith("C") else REPLACEMENT for char in text
    )


def label(value: Any, most: int = 40) -> str:
    """Text for a drawing: one line of at most so many letters. matplotlib keeps what begins with _ out of a legend."""
    text = " ".join(printable(value).split())
    text = text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return f" {text}" if text.startswith("_") else text or " "


def percent(share: float | None) -> str:
    """A fraction in per cent with one decimal, or a dash."""
    return "-" if share is None else f"{100 * share:.1f} %"


def interval_text(bounds: Sequence[float]) -> str:
    """Two fractions in per cent."""
    return f"[{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]"


def with_interval(share: float, bounds: Sequence[float]) -> str:
    """A fraction in per cent with its 95 % interval."""
    return f"{percent(share)}  {interval_text(bounds)}"


def radius_text(value: float) -> str:
    """A radius in pixel units as people write it: 0.2, or 8/255 where that is exact or nearly so, or a few decimals."""
    decimal, levels = f"{value:.6g}", value * 255
    if len(decimal) > 4 and math.isclose(levels, round(levels, 1), abs_tol=1e-6):
        return f"{round(levels, 1):g}/255"
    return decimal if len(decimal) <= 6 else f"{value:.4g}"
