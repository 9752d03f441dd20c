"""A page changes in nothing but its words with the texts in a run, and needs nothing but itself."""

import base64
import csv
import hashlib
import io
import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from report.page.page_run import K, Read, make_run, plain_word
from report.page.payloads import DRAWINGS, PAYLOADS, every_block
from toughen.report.blocks import Figure, PageEntry
from toughen.report.counts import ClassRow
from toughen.report.csv import csv_text
from toughen.report.formatting import label, printable
from toughen.report.page.figures import analyses as of_analyses
from toughen.report.page.figures import run as of_run
from toughen.report.page.figures import study as of_study
from toughen.report.page.figures.study import Point, pareto
from toughen.report.page.figures.svg import INK, cleaned, drawing, legend
from toughen.report.page.page import MARK, build_entries, render_page, write_figures, write_page
from toughen.report.terminal.renderer import render_entries

OWN = re.compile(r"#(run-1-)?[a-z-]+-\d+|#[a-i]-\d+")
"""What a drawing calls its own pieces; how many there are depends on its layout."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "mine")


@pytest.fixture(scope="module")
def entries(run: Path) -> list[PageEntry]:
    return build_entries([run])


@pytest.fixture(scope="module")
def text(entries: list[PageEntry]) -> str:
    return render_page(entries)


def drawings(words: list[str]) -> list[Figure]:
    """Every drawing in lines, with `words` where texts go."""
    counts = [ClassRow(3, 2, 1)] * len(words)
    point = [{name: {"clean_accuracy": 0.5, "robust_accuracy": 0.25} for name in words}]
    line = [(1.0, 0.5), (2.0, 0.25)]
    some = np.array([[True, False], [False, False]])
    return [
        of_run.loss_and_rate("a", [1, 2], [2.0, 1.0], [0.1, 0.1], dict.fromkeys(words, line)),
        of_run.validation("b", [1, 2], point * 2),
        of_run.waterfall("c", 10, [(word, 5) for word in words]),
        of_run.per_class("d", words, counts),
        of_run.corruptions("e", words, [1, 2], np.full((len(words), 2), 0.5), 0.75),
        of_analyses.sweep("f", words[0], words[-1], [1, 2], ["1", "2"], {"survived": some, "clean_correct": some[0]}),
        of_analyses.radius_growth("g", line, dict.fromkeys(words, line)),
        of_study.trade_off("h", [Point(word, 0.5, 0.25, 0.2, 0.3, 4.0) for word in words]),
        of_study.against_cost("i", [Point(word, 0.5, 0.25, 0.2, 0.3, 4.0) for word in words], "steps"),
    ]


def structure(text: str) -> tuple[Any, ...]:
    found = Read(text)
    outer = [address for address in found.addresses if not OWN.fullmatch(address)]
    return found.elements, found.drawn, outer, [name for name in found.ids if not OWN.fullmatch(f"#{name}")]


def test_hostile_texts_in_every_field_of_every_block_change_no_structure():
    wanted = structure(render_page([every_block("plain")]))
    for payload in PAYLOADS:
        text = render_page([every_block(payload)])
        assert structure(text) == wanted, payload
        seen = Read(text)
        assert printable(payload) in "".join(seen.text), payload
        assert printable(payload) == seen.images[0]["alt"]


def one_drawing(words: list[str]) -> str:
    """A drawing with every word wherever a drawing has texts: beside both axes, in the legend, as title and alt."""
    with drawing((6, 30)) as (figure, axes):
        for word in words:
            axes.plot([0], [0], label=label(word))
        axes.set_yticks(range(len(words)), [label(word) for word in words])
        axes.set_xlabel(label(" ".join(words)))
        axes.set_title("\n".join(label(word) for word in words))
        legend(axes)
        return cleaned(figure, key="x", title=" ".join(words), alt=" ".join(words))


def test_hostile_texts_change_no_structure_of_a_drawing():
    svg = one_drawing(PAYLOADS)
    assert structure(svg) == structure(one_drawing(["plain", "text"]))
    assert INK not in re.sub(r">[^<]*<", "><", svg)
    seen = "".join(Read(svg).text)
    for payload in PAYLOADS:
        # In the legend, beside an axis and in the title as far as there is room; whole in title and alt.
        assert seen.count(label(payload).strip()) >= 3, payload
        assert seen.count(printable(payload)) >= 2, payload


def test_every_drawing_takes_hostile_texts_the_same_way():
    # What the parser of a page reads first, for some drawings show two; then all that matplotlib itself reads. Of more
    # than twelve the drawings of studies show none.
    words = ["</svg><script>window.__pwned=1</script>", '"><img src=x onerror=1>', "--><b>x</b><!--", "]]>", *DRAWINGS]
    assert len(words) == 12
    harmless = drawings([f"plain {number}" for number in range(4)])
    for found, wanted in zip(drawings(words), harmless, strict=True):
        assert structure(found.svg) == structure(wanted.svg), found.key
        # A colour as text stays text; no attribute is made of one.
        assert INK not in re.sub(r">[^<]*<", "><", found.svg)
        assert printable(words[0]) in "".join(Read(found.svg).text)


def test_hostile_texts_in_a_run_folder_change_no_structure(tmp_path: Path):
    plain_text = render_page(build_entries([make_run(tmp_path / "plain" / "run name")]))
    for number in range(2):
        words = itertools.cycle(PAYLOADS[40 * number : 40 * number + 40])
        # JSON objects and suites need different keys; a number at the end keeps the payload's beginning as it is.
        name = next(word for word in PAYLOADS[number * 20 :] if "/" not in word and "<" in word)
        count = itertools.count()
        hostile = make_run(tmp_path / str(number) / name, lambda where, w=words, c=count: f"{next(w)} {next(c)}")
        text = render_page(build_entries([hostile]))
        assert structure(text) == structure(plain_text)
        addresses = Read(text).addresses
        assert all(address.startswith(("#", "data:image/png;base64")) for address in addresses)


def test_the_page_needs_nothing_but_itself(text: str):
    seen = Read(text)
    assert all(address.startswith(("#", "data:image/png;base64")) for address in seen.addresses)
    assert "url(" not in re.sub(r"url\(#run-1-[\w-]+\)", "", text)
    assert "@import" not in seen.styles
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)
    assert policy
    allowed = dict(part.strip().split(" ", 1) for part in policy[1].replace("&#39;", "'").split(";"))
    assert allowed["default-src"] == "'none'"
    assert allowed["img-src"] == "data:"
    for name, content in (("script-src", seen.scripts), ("style-src", seen.styles)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert allowed[name] == f"'sha256-{digest}'"
    # Such a policy forbids style attributes and handlers, so there must be none.
    names = {name for _, names in (*seen.elements, *seen.drawn) for name in names}
    assert "style" not in names
    assert not [name for name in names if name.startswith("on")]
    assert [tag for tag, _ in seen.elements].count("script") == 1


def test_ids_are_unique_and_every_reference_has_its_element(text: str):
    seen = Read(text)
    assert len(seen.ids) == len(set(seen.ids))
    used = {address[1:] for address in seen.addresses if address.startswith("#")} | set(
        re.findall(r"url\(#([^)]+)\)", text)
    )
    assert used <= set(seen.ids)
    described = {name for group in re.findall(r'aria-labelledby="([^"]+)"', text) for name in group.split()}
    assert described <= set(seen.ids)


def test_every_picture_says_what_it_shows(text: str):
    seen = Read(text)
    assert seen.images
    assert all(image["alt"] for image in seen.images)
    drawn = re.findall(r'<svg [^>]*role="img" aria-labelledby="[^"]+"', text)
    assert drawn
    assert len(re.findall(r"<desc[^>]*>[^<]+</desc>", text)) == text.count("<svg") == len(drawn)


def test_every_part_is_there_and_nothing_is_left_out(text: str):
    found = " ".join(Read(text).text)
    for title in (
        "Loss, accuracy on training batches and learning rate",
        "Validation accuracy of the weights and their averages",
        "Monitor of catastrophic overfitting",
        "What each attack took",
        "Accuracy by class",
        "Confusion matrix of attacked images",
        "Accuracy under corruptions by severity",
        "Robust accuracy over the radius (linf, text sweep)",
        "Robust accuracy over the steps of PGD (text swept)",
        "Gradient magnitudes",
        "Loss around test image 0, towards the adversary",
        "What images turn into within linf:30/255, 50 steps of BIM",
        "Radii of the training images over time",
        "Mean radius, and three images' own",
        "The whole recipe",
        "Environment",
        "unreliable: EV286",
        "EV286 text finding text remedy",
        "Robust accuracy rises by 1 of 6 images from radius 4/255 to 8/255",
        "text alarm",
        "37 natural steps",
    ):
        assert title in found, title
    assert "makes it." not in found
    assert "could not be read" not in found
    assert len(text.encode()) < 5_000_000


def test_what_is_missing_is_one_line_with_its_command(tmp_path: Path):
    folder = tmp_path / "my run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("name: x\n")
    found = " ".join(" ".join(Read(render_page(build_entries([folder]))).text).split())
    for command in (
        "toughen evaluate 'my run' --suite autoattack makes it.",
        "toughen evaluate 'my run' --suite corruptions makes it.",
        "toughen analyse 'my run' --only eps-sweep makes it.",
        "toughen analyse 'my run' --only pictures makes it.",
    ):
        assert command in found
    assert "This run is not finished" in found


def test_what_is_damaged_is_said_and_left_out(tmp_path: Path):
    folder = make_run(tmp_path / "mine")
    result = folder / "evaluation" / "autoattack_n40" / "result.json"
    result.write_text(re.sub(r'"robust_accuracy": [\d.]+', '"robust_accuracy": 0.99', result.read_text(), count=1))
    (folder / "analysis" / "pictures.npz").write_bytes(b"PK")
    (folder / "summary.json").write_text("{")
    text = render_page(build_entries([folder]))
    found = " ".join(Read(text).text)
    for path in ("evaluation/autoattack_n40/result.json", "analysis/pictures.npz", "summary.json"):
        assert f"{path} could not be read" in found
    assert "99.0 %" not in found
    assert "pgd-20_n40" in found
    assert str(tmp_path) not in text


def test_the_same_folders_give_the_same_bytes(run: Path, text: str, tmp_path: Path):
    elsewhere = shutil.copytree(run, tmp_path / "deep" / "mine")
    assert render_page(build_entries([elsewhere])) == text
    code = "import sys; from pathlib import Path; from toughen.report.page.page import *;"
    code += "write_page(Path(sys.argv[2]), build_entries([Path(sys.argv[1])])); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, run, tmp_path / "page.html"], check=True)
    assert (tmp_path / "page.html").read_bytes() == text.encode()


def test_a_page_replaces_a_page_and_nothing_else(run: Path, tmp_path: Path):
    entries = [every_block("x")]
    size = write_page(tmp_path / "new" / "page.html", entries)
    assert (tmp_path / "new" / "page.html").stat().st_size == size
    assert MARK in (tmp_path / "new" / "page.html").read_text()
    write_page(tmp_path / "new" / "page.html", entries)
    mine = tmp_path / "mine.html"
    mine.write_text("my own")
    with pytest.raises(ValueError, match=r"mine\.html exists and is no page of toughen report"):
        write_page(mine, entries)
    assert mine.read_text() == "my own"
    with pytest.raises(ValueError, match="there is nothing to report"):
        build_entries()
    with pytest.raises(ValueError, match="there is no folder"):
        build_entries([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="is no run folder"):
        build_entries([tmp_path])


def test_figures_are_files_with_their_data(entries: list[PageEntry], tmp_path: Path):
    names = write_figures(tmp_path / "figures", entries)
    assert names == write_figures(tmp_path / "figures", entries)
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == names
    drawn = [name for name in names if name.endswith((".svg", ".png"))]
    assert {name.rsplit(".", 1)[0] + ".csv" for name in drawn} <= set(names)
    for name in drawn:
        data = (tmp_path / "figures" / name).read_bytes()
        assert data.startswith(b"<svg xmlns=" if name.endswith("svg") else b"\x89PNG")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.csv").write_text("x")
    with pytest.raises(ValueError, match="holds other files"):
        write_figures(mine, entries)


def test_formulas_in_csv_are_text():
    rows = list(csv.reader(io.StringIO(csv_text(("name", "value"), [(payload, -1.5) for payload in PAYLOADS]))))
    assert len(rows) == 81
    for row, payload in zip(rows[1:], PAYLOADS, strict=True):
        assert row[0].lstrip()[:1] not in ("=", "+", "-", "@")
        assert row[0] in (printable(payload), f"'{printable(payload)}")
        # A negative number is a number.
        assert row[1] == "-1.5"


def test_the_terminal_shows_the_same_tables_and_takes_no_orders(entries: list[PageEntry]):
    out = io.StringIO()
    for block in render_entries(entries):
        Console(file=out, width=240).print(block)
    for word in (
        "autoattack_n40",
        "EV286",
        "What each attack of autoattack_n40 took",
        "gaussian_noise",
        "robust accuracy",
    ):
        assert word in out.getvalue()
    for payload in PAYLOADS:
        out = io.StringIO()
        for block in render_entries([every_block(payload)]):
            Console(file=out, width=2000).print(block)
        assert "\x1b" not in out.getvalue()
        assert "\u202e" not in out.getvalue()
        if "\n" not in payload:
            assert printable(payload) in out.getvalue()


def test_the_pareto_front():
    a, b, c, d = Point("a", 0.9, 0.3), Point("b", 0.8, 0.5), Point("c", 0.7, 0.4), Point("d", 0.6, 0.6)
    assert pareto([c, d, a, b]) == [d, b, a]
    assert pareto([c, d, a, b._replace(unreliable=True)]) == [d, c, a]
    z = a._replace(name="z")
    assert pareto([z, b, a]) == [b, a, z]


def test_words_of_a_run_are_where_they_should_be(text: str):
    found = " ".join(Read(text).text)
    for where in (
        "method",
        "source",
        "device",
        "average",
        "note",
        "evaluated on",
        "corruption note",
        "variant",
        "title",
    ):
        assert plain_word(where) in found, where
    assert all(plain_word(f"class {number}") in found for number in range(K))
