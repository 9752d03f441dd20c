from toughen.studies.coverage import coverage, reasons
from toughen.studies.published import cells


def test_every_published_cell_is_in_a_study_or_has_a_reason_and_none_has_both():
    found, why = coverage(), reasons()
    assert not set(found) & set(why)
    assert {cell.id for cell in cells()} == set(found) | set(why)
    assert all(len(reason.split()) > 4 for reason in why.values())


def test_no_row_and_column_stands_beside_two_cells_of_one_table():
    tables = {cell.id: (cell.record["seed"], cell.record["table"]) for cell in cells()}
    places: dict[tuple[object, tuple[str, str]], list[str]] = {}
    for cell, found in coverage().items():
        for place in found:
            places.setdefault((place, tables[cell]), []).append(cell)
    assert not [pair for pair in places.items() if len(pair[1]) > 1]
