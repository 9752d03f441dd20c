"""The tables of a page in the terminal, with what its figures say in words.

for shown in plain(parts(runs=[Path("runs/mine")])):
    console.print(shown)
"""

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text as Styled

from toughen.report.blocks import Block, Figure, KeyFigures, Line, PageEntry, Table, TableCell, Text, shown
from toughen.report.terminal.fitted_table import FittedColumn, FittedTable

TONES = {"bad": "bold red", "good": "green", "dim": "dim", "missing": "dim", "note": "dim"}


def plain(made: Sequence[PageEntry]) -> Iterator[RenderableType]:
    """Everything but the drawings, in the page's order."""
    for part in made:
        yield Styled(shown(part.title), style="bold")
        yield Styled(shown(part.subtitle), style="dim")
        for section in part.sections:
            if any(not isinstance(block, Text) for block in section.blocks):
                yield Styled(f"\n{shown(section.title)}", style="bold underline")
            for block in section.blocks:
                yield from _block(block)


def _block(block: Block) -> Iterator[RenderableType]:
    if isinstance(block, Table):
        yield _table(block)
        if block.note:
            yield Styled(shown(block.note), style="dim")
    elif isinstance(block, KeyFigures):
        for name, value, below, tone in block.items:
            yield Styled(
                shown(f"{name}: {value} ({below})" if below else f"{name}: {value}"), style=TONES.get(tone, "")
            )
    elif isinstance(block, Figure):
        yield Styled(shown(f"{block.title}: {block.alt}"))
    elif isinstance(block, Line):
        command = f" {block.command} makes it." if block.command else ""
        yield Styled(shown(f"{block.text}{command}"), style=TONES.get(block.kind, ""))


def _table(table: Table) -> FittedTable:
    columns = [FittedColumn(shown(name), numeric) for name, numeric in zip(table.columns, table.numeric, strict=True)]
    return FittedTable(shown(table.caption), columns, [list(map(_cell, row)) for row in table.rows])


def _cell(cell: TableCell) -> Styled:
    below = f"\n{cell.below}" if cell.below else ""
    return Styled(shown(cell.text + below), style=TONES.get(cell.tone, ""))
