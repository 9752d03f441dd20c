"""What a page is made of: tables, figures, sentences. The page, the terminal and the CSV files all show the same ones.

    table = Table("attacks", "What each attack took", ("attack", "broken"))
    table.add(Cell("pgd-20"), Cell.number(17))
    csv_text(table.columns, table.values)

No string in here is trusted: names, paths and messages come out of users' files.
"""

import csv
import io
import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def shown(value: Any) -> str:
    """Text as a reader may see it: what controls a terminal, a parser or the direction of the text is replaced."""
    text = str(value)
    if text.isascii() and text.isprintable():
        return text
    # Cc, Cf, Cs, Co and Cn: controls, bidirectional marks, half characters and what is no character.
    return "".join(
        char if char in "\n\t" or not unicodedata.category(char).startswith("C") else REPLACEMENT for char in text
    )


def label(value: Any, most: int = 40) -> str:
    """Text for a drawing: one line of at most so many letters. matplotlib keeps what begins with _ out of a legend."""
    text = " ".join(shown(value).split())
    text = text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return f" {text}" if text.startswith("_") else text or " "


def csv_text(columns: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """CSV with one header line. A text that a spreadsheet would take for a formula begins with a quote mark."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for row in (columns, *rows):
        writer.writerow([quoted(value) for value in row])
    return out.getvalue()


FORMULA = ("=", "+", "-", "@", "|", "%")


def quoted(value: Any) -> Any:
    """A cell of a CSV file: what a spreadsheet would take for a formula is quoted."""
    if not isinstance(value, str):
        return value
    text = shown(value)
    return f"'{text}" if text.lstrip().startswith(FORMULA) or text.startswith(("\t", "\r", "\n")) else text


def percent(share: float | None) -> str:
    """A fraction in per cent with one decimal, or a dash."""
    return "-" if share is None else f"{100 * share:.1f} %"


def radius_text(value: float) -> str:
    """A radius in pixel units as people write it: 0.2, or 8/255 where that is exact or nearly so, or a few decimals."""
    decimal, levels = f"{value:.6g}", value * 255
    if len(decimal) > 4 and math.isclose(levels, round(levels, 1), abs_tol=1e-6):
        return f"{round(levels, 1):g}/255"
    return decimal if len(decimal) <= 6 else f"{value:.4g}"


@dataclass(frozen=True)
class TableCell:
    """A cell of a table.

    Attributes:
        text: what is shown.
        value: what is sorted by and written to CSV; the text by default.
        below: a second, smaller line.
        tone: "good", "bad", "dim" or nothing.
        target: anchor of a section on the same page.
    """

    text: str
    value: Any = None
    below: str = ""
    tone: str = ""
    target: str = ""

    @property
    def plain(self) -> Any:
        """For CSV."""
        return self.text if self.value is None else self.value

    @property
    def key(self) -> str:
        """For sorting: numbers in full, else the text."""
        return repr(float(self.value)) if isinstance(self.value, int | float) else self.text

    @property
    def numeric(self) -> bool:
        """Whether it is set to the right."""
        return isinstance(self.value, int | float)

    @classmethod
    def number(cls, value: float | None, text: str | None = None, **more: Any) -> "TableCell":
        """A number, by default with thousands separated; None is a dash."""
        if value is None:
            return cls("-", **more)
        default = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
        return cls(default if text is None else text, value, **more)

    @classmethod
    def share(cls, value: float | None, bounds: Sequence[float] | None = None, **more: Any) -> "TableCell":
        """A fraction in per cent, with its 95 % interval below."""
        below = "" if bounds is None else f"[{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]"
        return cls.number(value, percent(value), **{"below": below, **more})


@dataclass
class Table:
    """A table with a caption.

    Attributes:
        key: names its file.
        caption: one line.
        columns: headings.
        rows: cells, as many in a row as there are columns.
        note: a sentence below.
        data: CSV that says more than the cells; made of them by default.
    """

    key: str
    caption: str
    columns: tuple[str, ...]
    rows: list[tuple[TableCell, ...]] = field(default_factory=list)
    note: str = ""
    data: str = ""

    def add(self, *cells: TableCell) -> None:
        """One more row."""
        assert len(cells) == len(self.columns), (self.columns, cells)
        self.rows.append(cells)

    @property
    def numeric(self) -> list[bool]:
        """For each column, whether it holds numbers and is set to the right."""
        return [any(row[at].numeric for row in self.rows) for at in range(len(self.columns))]

    @property
    def values(self) -> list[list[Any]]:
        """The rows for CSV, without what stands below in the cells."""
        return [[cell.plain for cell in row] for row in self.rows]

    @property
    def csv(self) -> str:
        """The table as CSV."""
        return self.data or csv_text(self.columns, self.values)


@dataclass(frozen=True)
class Tile:
    """A small picture in a grid: PNG bytes, what it shows for those who do not see it, and a caption."""

    png: bytes
    alt: str
    caption: str
    tone: str = ""


@dataclass(frozen=True)
class Figure:
    """A drawing with what it says in words and its data.

    Attributes:
        key: names its files.
        title: one line.
        alt: what is to be seen, for those who do not see it.
        csv: its data.
        svg: a drawing in lines, cleaned for a page (see `svg.cleaned`); or
        png: a picture; or
        tiles: rows of small pictures, each after its heading; `png` then holds all of them in one sheet.
        size: width and height in CSS pixels.
    """

    key: str
    title: str
    alt: str
    csv: str
    svg: str = ""
    png: bytes = b""
    tiles: tuple[tuple[str, tuple[Tile, ...]], ...] = ()
    size: tuple[int, int] = (0, 0)

    @property
    def weight(self) -> int:
        """Bytes on a page, about."""
        pictures = sum(len(tile.png) for _, row in self.tiles for tile in row) if self.tiles else len(self.png)
        return len(self.svg.encode()) + pictures * 4 // 3


@dataclass(frozen=True)
class Line:
    """A sentence: "missing" with the command that makes the part, "note", "bad" or "good"."""

    text: str
    kind: str = "note"
    command: str = ""


@dataclass(frozen=True)
class KeyFigures:
    """Numbers to be seen first: (what, number, smaller line below, tone)."""

    items: tuple[tuple[str, str, str, str], ...]


@dataclass(frozen=True)
class Text:
    """Text as it is, like a recipe."""

    title: str
    text: str


Block = Table | Figure | Line | KeyFigures | Text


@dataclass
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: list[Block] = field(default_factory=list)


@dataclass
class PageEntry:
    """A run or a study on the page.

    Attributes:
        anchor: its place on the page, such as "run-1".
        title: its name.
        subtitle: what it is.
        sections: in their order.
    """

    anchor: str
    title: str
    subtitle: str
    sections: list[Section]
