import io

import pytest
from rich.console import Console
from rich.text import Text

from toughen.report.terminal.fitted_table import FRAME, WRAPPED, FittedColumn, FittedTable

NAMES = ("row", "clean", "pgd-20", "minutes", "a long heading", "cost")


def table(rows: int = 2, **more: str) -> FittedTable:
    cells = [[Text(more.get(name, f"{name} {row}\nbelow-{name}")) for name in NAMES] for row in range(rows)]
    return FittedTable("A title", [FittedColumn(name, numeric=name != "row") for name in NAMES], cells)


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
