"""A table for the terminal that is never squeezed: columns that do not fit go on below the others.

Example:
    console.print(FittedTable(Table("runs", "Side by side", ("run", "clean"), [(TableCell("a"), TableCell("96.7"))])))
"""

from collections.abc import Iterator

from rich.console import Console, ConsoleOptions
from rich.table import Table as RichTable
from rich.text import Text

from toughen.report.blocks import Table
from toughen.report.formatting import printable

STYLES = {"bad": "bold red", "good": "green", "dim": "dim", "busy": "cyan", "missing": "dim", "note": "dim"}
"""What rich calls the tones of cells and the kinds of paragraphs."""

WRAPPED = 30
"""Columns wider than this are texts, which may be broken into lines."""

FRAME = 3
"""What a column takes besides its text: a space on either side and a line."""


class FittedTable:
    """A table whose first column says what the rows are, and comes again before each group of columns that fits."""

    def __init__(self, table: Table):
        self._table = table
        self._rows = [
            [
                Text(printable("\n".join(filter(None, (cell.text, cell.below)))), style=STYLES.get(cell.tone, ""))
                for cell in row
            ]
            for row in table.rows
        ]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RichTable]:
        """The groups, one below the other."""
        for number, group in enumerate(self.groups(options.max_width)):
            drawn = RichTable(title=None if number else Text(printable(self._table.caption)))
            for index in (0, *group):
                justify = "right" if self._table.numeric[index] else "left"
                drawn.add_column(Text(printable(self._table.columns[index])), justify=justify)
            for at, row in enumerate(self._rows):
                drawn.add_row(*(row[index] for index in (0, *group)), end_section=at in self._table.rules)
            yield drawn

    def groups(self, width: int) -> list[list[int]]:
        """Indices of the columns after the first, in groups of which each fits into so many characters."""
        widths = [self._width(index) + FRAME for index in range(len(self._table.columns))]
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
        texts = [Text(printable(self._table.columns[index])), *(row[index] for row in self._rows)]
        return min(WRAPPED, max(line.cell_len for text in texts for line in text.split(allow_blank=True)))
