from pathlib import Path

import pytest

from toughen.studies.text import StudyError, load

GOOD = """
title: t
base: mnist-free
columns: {pgd: pgd-2}
rows: {a: {}}
"""

FAULTS = {
    "rows: {a: {}}\n": ("", "there is no row; give rows, axes or both"),
    "columns: {pgd: pgd-2}": ("columns: {pgd: pgd-x}", "'pgd-x' is not a known suite"),
    "columns: {pgd: pgd-2} ": ("columns: {clean: {what: clean}}", "clean accuracy comes with an attack or corruptions"),
    "pgd: pgd-2": ("pgd: {what: minutes, suite: pgd-2}", "belong to attacks, and this column is minutes"),
    "pgd: pgd-2}": ("pgd: {what: transfer, suite: pgd-2, transfer_from: b}}", "transfer_from: there is no row 'b'"),
    "pgd: pgd-2}  ": ("pgd: {what: transfer, suite: pgd-2}}", "give a row's key, or {seed: N} for another training"),
    "title: t  ": ("title: t\ncheckpoint: newest", "Input should be 'best' or 'last'"),
    "pgd: pgd-2 ": ("pgd: {suite: bilateral, attack: ce-21}", "'ce-21' is not a known attack of suite bilateral"),
    "a: {}": ("a: {columns: [cw]}", "rows.a.columns: there is no column 'cw'; allowed: pgd"),
    "base: mnist-free": ("note: x", "rows.a: recipe is missing; give one, or a base for all rows"),
    "title: t": ("title: t\nseeds: [1, 1]", "seeds must be one or more numbers, none twice"),
    "title: t\n": ("title: t\nreproduces: {paper: '009'}\n", "'009' is not a known paper; allowed: 001, 002, 003, 004"),
    "a: {} ": ("a: {cells: {methud: x}}", "'methud' is not a known field of a published cell"),
    "{a: {}}": ("{a: {sed: 1}}", "did you mean 'seeds'?"),
    "title: t ": ("title: [", "write YAML like"),
}


@pytest.mark.parametrize("before", FAULTS)
def test_what_is_wrong_with_a_study_is_said(before: str, tmp_path: Path):
    after, sentence = FAULTS[before]
    assert before.rstrip(" ") in GOOD
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD.replace(before.rstrip(" "), after))
    with pytest.raises(StudyError) as caught:
        load(str(path))
    assert sentence in str(caught.value)
    assert "Value error" not in str(caught.value)


def test_a_name_that_is_none_and_a_file_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(StudyError, match=r"'free-table-2l' is no shipped study; did you mean 'free-table-"):
        load("free-table-2l")
    with pytest.raises(StudyError, match=r"nothing.yaml cannot be read: No such file or directory; check the path"):
        load(str(tmp_path / "nothing.yaml"))


def test_the_good_one_is_good(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text(GOOD)
    study = load(str(tmp_path / "mine.yaml"))
    assert (study.pick, study.checkpoint, study.seeds) == ("each", "best", (0,))
    assert study.columns["pgd"].suite == "pgd-2"
