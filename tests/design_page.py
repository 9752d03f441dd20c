"""The lists in docs/design.md that tests hold the code to: they are written there, and nowhere else."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "design.md"


def floors() -> dict[str, frozenset[str]]:
    """The rooms of each floor by its number, like "1a", from the ground up (the section Floors)."""
    return {number: frozenset(_names(rooms)) for number, rooms in _rows("floor", "rooms")}


def orders() -> dict[str, list[frozenset[str]]]:
    """For each package whose inner order is told, its modules from the ground up, in groups without an order."""
    return {
        _names(name)[0]: [frozenset(_names(group)) for group in order.split("<")]
        for name, order in _rows("package", "order")
    }


def _rows(*header: str) -> list[list[str]]:
    """The rows of the page's one table with this header."""
    text = PAGE.read_text(encoding="utf-8")
    titles = re.escape(f"| {' | '.join(header)} |")
    (body,) = re.findall(rf"^{titles}\n\|[ |-]+\|\n((?:\|.*\|\n)+)", text, flags=re.M)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in body.splitlines()]


def _names(cell: str) -> list[str]:
    return re.findall(r"`([\w.]+)`", cell)
