"""What a report consists of: tables, figures, paragraphs. Page, terminal and CSV files are made of the same ones.

    table = Table("attacks", "What each attack took", ("attack", "broken"))
    table.add("pgd-20", 17)
    table.csv                        # two lines: attack,broken and pgd-20,17

A text in a block may be anything: whoever shows it escapes it and takes out what is not printable.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from toughen.outcomes import interval
from toughen.report.csv import csv_text
from toughen.report.formatting import interval_text, percent

JsonObject = Mapping[str, Any]
"""An object of a file of a run's, which a block is described from."""


@dataclass(frozen=True)
class TableCell:
    """A cell of a table.

    Attributes:
        text: what is shown.
        value: what is sorted by and written to CSV; the text by default.
        below: a second, smaller line.
        tone: "good", "bad", "busy", "dim" or nothing.
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
    def share(cls, value: float | None) -> "TableCell":
        """A fraction in per cent; None is a dash."""
        return cls.number(value, percent(value))

    @classmethod
    def count(cls, k: int, n: int) -> "TableCell":
        """k of n in per cent, with the 95 % interval below."""
        return cls.number(k / n, percent(k / n), below=interval_text(interval(k, n)))


def _cell(value: TableCell | str | float | None) -> TableCell:
    if isinstance(value, TableCell):
        return value
    return TableCell(value) if isinstance(value, str) else TableCell.number(value)


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
        rules: numbers of the rows that a terminal draws a line below.
    """

    key: str
    caption: str
    columns: tuple[str, ...]
    rows: list[tuple[TableCell, ...]] = field(default_factory=list)
    note: str = ""
    data: str = ""
    rules: set[int] = field(default_factory=set)

    def add(self, *cells: TableCell | str | float | None, rule: bool = False) -> None:
        """One more row, in a terminal with a line below it if `rule`. Texts, numbers and None (a dash) become cells."""
        assert len(cells) == len(self.columns), (self.columns, cells)
        if rule:
            self.rules.add(len(self.rows))
        self.rows.append(tuple(map(_cell, cells)))

    @property
    def numeric(self) -> list[bool]:
        """For each column, whether it holds numbers and is set to the right."""
        return [any(row[at].numeric for row in self.rows) for at in range(len(self.columns))]

    @property
    def csv(self) -> str:
        """The table as CSV, without what is below in the cells."""
        return self.data or csv_text(self.columns, ([cell.plain for cell in row] for row in self.rows))


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
        broad: whether it takes the page's whole width, for it has panels side by side.
    """

    key: str
    title: str
    alt: str
    csv: str
    svg: str = ""
    png: bytes = b""
    tiles: tuple[tuple[str, tuple[Tile, ...]], ...] = ()
    size: tuple[int, int] = (0, 0)
    broad: bool = False

    @property
    def weight(self) -> int:
        """Bytes on a page, about."""
        pictures = sum(len(tile.png) for _, row in self.tiles for tile in row) if self.tiles else len(self.png)
        return len(self.svg.encode()) + pictures * 4 // 3


@dataclass(frozen=True)
class Paragraph:
    """A text of its own.

    Attributes:
        text: what it says.
        kind: "missing" for a part that is not there, "note", "bad", "good", or nothing.
        command: of a missing part, what makes it.
    """

    text: str
    kind: str = "note"
    command: str = ""

    @classmethod
    def missing(cls, what: str, command: object) -> "Paragraph":
        """For a part that is not there, with the command that makes it."""
        return cls(f"No {what} yet.", "missing", str(command))


@dataclass(frozen=True)
class KeyFigures:
    """Numbers to be seen first: (what, number, smaller line below, tone)."""

    items: tuple[tuple[str, str, str, str], ...]


@dataclass(frozen=True)
class Verbatim:
    """A text with a title, shown as it is, like a recipe."""

    title: str
    text: str


Block = Table | Figure | Paragraph | KeyFigures | Verbatim


@dataclass
class Section:
    """A heading and what is below it."""

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
