"""One HTML page that needs nothing but itself: no network, no other file, and no script to be read.

    entries = build_entries(runs=[Path("runs/mine")])
    write_page(Path("page.html"), entries)
    write_figures(Path("figures"), entries)

The same folders give the same bytes. All text on the page is escaped; the browser is told to run the one script and to
use the one style sheet whose hashes it states, and to fetch nothing.
"""

import base64
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toughen.errors import Option, UsageError
from toughen.report.blocks import Figure, JsonObject, PageEntry, Table
from toughen.report.csv import csv_text
from toughen.report.formatting import printable
from toughen.report.page.run import build_run_entry
from toughen.report.page.study import build_comparison_entry, build_study_entry
from toughen.report.records import read_run
from toughen.storage import files as store

if TYPE_CHECKING:
    from markupsafe import Markup

BUDGET = 3_600_000
"""Bytes of figures on a page, divided evenly among its runs and studies."""

DETAILED = 12
"""Of more runs than this on one page only the results are shown."""

MARK = '<meta name="generator" content="toughen report">'
LIST = "FIGURES.csv"


def build_entries(runs: Sequence[Path] = (), studies: Sequence[tuple[Path, JsonObject]] = ()) -> list[PageEntry]:
    """Everything of a page: studies first, then runs side by side if there are several, then each run.

    Args:
        runs: run folders.
        studies: folders of studies, each with what `toughen.studies.results.collect` returns.

    Raises:
        ValueError: a folder is no run folder, or nothing was given.
    """
    if not runs and not studies:
        raise ValueError("there is nothing to report; give run folders or studies")
    unique = {os.path.realpath(path): path for path in runs}
    opened = [(read_run(path), f"run-{number}") for number, path in enumerate(unique.values(), 1)]
    anchors = {os.path.realpath(run.path): anchor for run, anchor in opened}
    entries = []
    for number, (path, found) in enumerate(studies, 1):
        counted = {name for row in found["rows"].values() for name in row["counted"]}
        targets = {name: anchors[there] for name in counted if (there := os.path.realpath(path / name)) in anchors}
        entries.append(build_study_entry(found, f"study-{number}", targets))
    if len(opened) > 1:
        entries.append(build_comparison_entry(opened))
    return [*entries, *(build_run_entry(run, anchor, brief=len(opened) > DETAILED) for run, anchor in opened)]


def write_page(path: Path, entries: Sequence[PageEntry]) -> int:
    """Write the page, in place of an earlier one; returns its size in bytes.

    Raises:
        ValueError: there is another file of that name.
        OSError: the folder is missing or cannot be written.
    """
    if path.exists() and not (path.is_file() and MARK.encode() in path.read_bytes()[:4096]):
        raise UsageError(f"{path} exists and is no page of toughen report; give another ", Option("out", python="path"))
    text = render_page(entries)
    path.parent.mkdir(parents=True, exist_ok=True)
    store.write_text(path, text)
    return len(text.encode())


def render_page(entries: Sequence[PageEntry]) -> str:
    """The page as text."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    def plain(value: Any) -> Any:
        return value if isinstance(value, Markup) else printable(value)

    here = Path(__file__).parent
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=plain, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"kind": lambda block: type(block).__name__, "data": _data, "svg": _svg}
    style, script = (_read(here / name) for name in ("style.css", "script.js"))
    # A closing tag within would end the element early, and no text of a user's comes here.
    assert "</" not in style + script
    return environment.from_string(_read(here / "template.html")).render(
        entries=entries,
        fitting=_fitting(entries),
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        mark=Markup(MARK),
    )


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip()


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _svg(figure: Figure) -> "Markup":
    from markupsafe import Markup

    # Written by `svg.cleaned`, which escapes every text. HTML knows the namespace by itself.
    return Markup(figure.svg.replace(' xmlns="http://www.w3.org/2000/svg"', "", 1))


def _fitting(entries: Sequence[PageEntry]) -> set[str]:
    """Keys of the figures that a page has room for, the first ones of each entry."""
    share, found = BUDGET / len(entries), set()
    for entry in entries:
        left = share
        for figure in _blocks([entry], Figure):
            left -= figure.weight
            if left >= 0:
                found.add(figure.key)
    return found


def _blocks(entries: Sequence[PageEntry], kind: type) -> Iterator[Any]:
    for entry in entries:
        for section in entry.sections:
            yield from (block for block in section.blocks if isinstance(block, kind))


def write_figures(folder: Path, entries: Sequence[PageEntry]) -> list[str]:
    """Write every figure as SVG or PNG, its data and every table as CSV; returns the files' names.

    Raises:
        ValueError: the folder holds other files.
        OSError: it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / LIST).is_file())):
        raise UsageError(
            f"{folder} holds other files; give a new or empty folder for ", Option("figures", python="the figures")
        )
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, bytes] = {}
    lines = []
    for figure in _blocks(entries, Figure):
        name = f"{figure.key}.svg" if figure.svg else f"{figure.key}.png"
        files[name] = figure.svg.encode() if figure.svg else figure.png
        files[f"{figure.key}.csv"] = figure.csv.encode()
        lines.append((name, figure.title, figure.alt))
    for table in _blocks(entries, Table):
        files[f"{table.key}.csv"] = table.csv.encode()
        lines.append((f"{table.key}.csv", table.caption, table.note))
    files[LIST] = csv_text(("file", "title", "what is to be seen"), lines).encode()
    # The list first: it makes the folder ours, so that the same command may go on after a kill.
    for name in (LIST, *sorted(files.keys() - {LIST})):
        store.replace_by(folder / name, lambda path, data=files[name]: path.write_bytes(data))
    return sorted(files)
