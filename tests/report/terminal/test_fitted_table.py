import io

import pytest
from rich.console import Console

from toughen.report.blocks import Table, TableCell
from toughen.report.terminal.fitted_table import FRAME, WRAPPED, FittedTable

NAMES = ("row", "clean", "pgd-20", "minutes", "a long heading", "cost")


def table(rows: int = 2, **more: str) -> FittedTable:
    made = Table("table", "A title", NAMES)
    for row in range(rows):
        below = {name: "" if name in more else f"below-{name}" for name in NAMES}
        made.add(*(TableCell(more.get(name, f"{name} {row}"), row, below[name]) for name in NAMES))
    return FittedTable(made)


def printed(made: FittedTable, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(made)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("width", [40, 50, 60, 80, 120])
def test_every_cell_is_whole_at_every_width(width: int):
    text = printed(table(), width)
    assert max(map(len, text.splitlines())) <= width
    for name in NAMES[1:]:
        for cell in (f"{name} 0", f"{name} 1"):
            assert text.count(f" {cell} ") == 1
    groups = table().groups(width)
    assert [index for group in groups for index in group] == list(range(1, len(NAMES)))
    assert text.count(" row 0 ") == len(groups)
    assert text.count("A title") == 1


def test_groups_are_as_wide_as_fits_to_the_character():
    widths = [max(len(f"{name} 0"), len(f"below-{name}")) + FRAME for name in NAMES]
    whole = sum(widths) + 1
    assert table().groups(whole) == [[1, 2, 3, 4, 5]]
    assert table().groups(whole - 1) == [[1, 2, 3, 4], [5]]
    assert table().groups(1) == [[1], [2], [3], [4], [5]]


def test_a_sentence_is_broken_into_lines_before_it_pushes_its_neighbours_down():
    made = table(cost="word " * 40)
    assert made.groups(140) == [[1, 2, 3, 4, 5]]
    assert len("word " * 40) > WRAPPED


def test_a_table_without_rows_shows_its_headings():
    assert all(name in printed(table(rows=0), 100) for name in NAMES)


def test_lines_are_drawn_below_the_rows_that_ask_for_one():
    made = Table("table", "A title", ("row",))
    for row in range(4):
        made.add(TableCell(f"row {row}"), rule=row == 1)
    lines = printed(FittedTable(made), 40).splitlines()
    body = [line for line in lines if line.startswith(("│", "├"))]
    assert [line.strip("│ ├┤─") for line in body] == ["row 0", "row 1", "", "row 2", "row 3"]
