"""Blocks in the terminal: tables, texts, and what the drawings say in words.

for shown in render_entries(build_entries(runs=[Path("runs/mine")])):
    console.print(shown)
"""

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from toughen.report.blocks import Block, Figure, KeyFigures, PageEntry, Paragraph, Table, Verbatim
from toughen.report.formatting import printable
from toughen.report.terminal.fitted_table import STYLES, FittedTable


def render(blocks: Iterable[Block]) -> Group:
    """Blocks one below the other, for a rich console."""
    return Group(*(shown for block in blocks for shown in _render_block(block)))


def render_entries(entries: Sequence[PageEntry]) -> Iterator[RenderableType]:
    """Everything of a page but the drawings, in its order."""
    for entry in entries:
        yield Text(printable(entry.title), style="bold")
        yield Text(printable(entry.subtitle), style="dim")
        for section in entry.sections:
            if any(not isinstance(block, Verbatim) for block in section.blocks):
                yield Text(f"\n{printable(section.title)}", style="bold underline")
            for block in section.blocks:
                yield from _render_block(block)


def _render_block(block: Block) -> Iterator[RenderableType]:
    if isinstance(block, Table):
        yield FittedTable(block)
        if block.note:
            yield Text(printable(block.note), style="dim")
    elif isinstance(block, KeyFigures):
        for name, value, below, tone in block.items:
            text = f"{name}: {value} ({below})" if below else f"{name}: {value}"
            yield Text(printable(text), style=STYLES.get(tone, ""))
    elif isinstance(block, Figure):
        yield Text(printable(f"{block.title}: {block.alt}"))
    elif isinstance(block, Paragraph):
        command = f" {block.command} makes it." if block.command else ""
        yield Text(printable(f"{block.text}{command}"), style=STYLES.get(block.kind, ""))
