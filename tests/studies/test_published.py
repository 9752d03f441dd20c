import collections

import pytest

from toughen.studies.published import cells, check_filter, find_cells


def test_all_793_cells_are_there_once_each_with_its_unit():
    assert len(cells()) == len({cell.id for cell in cells()}) == 793
    # Cells of each paper's tables and texts, counted by hand when they were typed off.
    papers = collections.Counter(cell.record["seed"] for cell in cells())
    assert papers == {"001": 214, "002": 267, "003": 221, "004": 91}
    units = collections.Counter("%" if cell.unit == "%" else cell.unit == "minutes" for cell in cells())
    assert units == {"%": 751, True: 24, False: 18}
    assert all(cell.raw for cell in cells())


def test_a_number_is_found_by_what_it_is():
    (cell,) = find_cells(
        {"paper": "002", "table": "Table 7", "params": {"wa_tau": "0.995", "extra_data": None}}, metric="AA+MT"
    )
    assert (cell.value, cell.unit, cell.record["method"]) == (52.1, "%", "AT + WA")
    (cell,) = find_cells({"paper": "003", "table": "Table 12", "model": "ResNet-152"}, metric="train_time")
    assert cell.unit == "minutes"
    found = find_cells(
        {"paper": "003", "table": "Table 4", "model": "ResNet-50"}, metric="PGD-1000 random target", eps="4/255"
    )
    assert [c.record["method"] for c in found] == ["natural", "PGD-30 AT eps 16", "IAAT (warm-up)"]
    assert not find_cells({"paper": "001", "table": "Table 99"}, metric="clean")


def test_a_filter_that_cannot_match_is_refused():
    check_filter({"paper": "001", "params": {}})
    for wanted in ({"paper": "005"}, {"tabel": "Table 1"}):
        with pytest.raises(ValueError, match="is not a known"):
            check_filter(wanted)
