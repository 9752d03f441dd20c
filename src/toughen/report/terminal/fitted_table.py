"""A table for the terminal that is never squeezed: what does not fit beside the rest goes on below it.

Example:
    console.print(Fitted("Side by side", [Column("run"), Column("clean", numeric=True)], [[Text("a"), Text("96.7")]]))
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

WRAPPED = 30
"""Columns wider than this are texts, which may be broken into lines."""

FRAME = 3
"""What a column takes beside its text: a space on either side and a line."""


@dataclass(frozen=True)
class FittedColumn:
    """A heading, and whether numbers stand under it."""

    name: str
    numeric: bool = False


@dataclass(frozen=True)
class FittedTable:
    """A table whose first column says what the rows are, and stands again before each group of columns that fits.

    Attributes:
        title: above the first group.
        columns: the first is that of the rows' names.
        rows: one text a column.
        lines: whether there is a line between rows.
    """

    title: str
    columns: Sequence[FittedColumn]
    rows: Sequence[Sequence[Text]]
    lines: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        """The groups, one below the other."""
        for number, group in enumerate(self.groups(options.max_width)):
            table = Table(title=None if number else Text(self.title), show_lines=self.lines)
            for index in (0, *group):
                column = self.columns[index]
                table.add_column(Text(column.name), justify="right" if column.numeric else "left")
            for row in self.rows:
                table.add_row(*(row[index] for index in (0, *group)))
            yield table

    def groups(self, width: int) -> list[list[int]]:
        """Indices of the columns after the first, in groups of which each fits into so many characters."""
        widths = [self._width(index) + FRAME for index in range(len(self.columns))]
        groups: list[list[int]] = [[]]
        left = room = width - 1 - widths[0]
        for index in range(1, len(widths)):
            if groups[-1] and widths[index] > left:
                groups.append([])
                left = room
            groups[-1].append(index)
            left -= widths[index]
        return groups

    def _width(self, index: int) -> int:
        texts = [Text(self.columns[index].name), *(row[index] for row in self.rows)]
        return min(WRAPPED, max(line.cell_len for text in texts for line in text.split(allow_blank=True)))
