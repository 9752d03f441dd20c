"""Pages in Chromium: silent, alone, harmless, sorted by a click; readable on a phone, on paper, in the dark."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from report.page.browser import FOUND, Browser, Tab
from report.page.page_run import make_run
from report.page.payloads import PAYLOADS, every_block
from tiny_study import write_tiny_study
from toughen.report.blocks import PageEntry, Section, Table, TableCell
from toughen.report.page.page import build_entries, render_page
from toughen.studies.create import create_folder
from toughen.studies.results import collect
from toughen.studies.text import load
from toughen.studies.worker import work

pytestmark = pytest.mark.skipif(FOUND is None, reason="there is no Chromium here: apt-get install chromium")

HARMLESS = "plain"
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')

ELEMENTS = "[...document.querySelectorAll('*')].map(e => [e.localName, e.getAttributeNames().sort().join()].join(' '))"

TOUCH_ALL = """
(async () => {
  const kinds = ["click", "mouseover", "focus", "toggle", "load", "error"];
  for (const element of document.querySelectorAll("*"))
    for (const kind of kinds) element.dispatchEvent(new Event(kind, { bubbles: true, cancelable: true }));
  for (const element of document.querySelectorAll("a, button")) element.click();
  await new Promise((done) => setTimeout(done, 50));
  return window.__pwned === undefined;
})()
"""

# Elements with a text of their own whose colour is too close to the nearest background below them: WCAG 2, level AA.
FAINT = r"""
(() => {
  const numbers = (text) => text.match(/[\d.]+/g).map(Number);
  const light = (text) => {
    const [r, g, b] = numbers(text).map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if (numbers(colour)[3] !== 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const faint = new Set();
  for (const element of document.querySelectorAll("body *:not(script)")) {
    if (![...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
    const style = getComputedStyle(element), drawn = element.namespaceURI.endsWith("svg");
    if (drawn && style.fill === "none" || element.closest("desc, title")) continue;
    const a = light(drawn ? style.fill : style.color), b = light(ground(element));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) faint.add([element.localName, element.className, ratio.toFixed(2)].join(" "));
  }
  return [...faint];
})()
"""

# Elements whose content is hidden, cut off, or reaches beyond the paper.
CUT = """
[...document.querySelectorAll("main *")].filter((e) =>
  !e.closest("svg *") && (e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX !== "visible"
    || e.scrollHeight > e.clientHeight + 1 && getComputedStyle(e).overflowY !== "visible"
    || getComputedStyle(e).display === "none"
    || e.getBoundingClientRect().right > innerWidth + 1)).map((e) => e.localName + " " + e.className)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "page.html"
    path.write_text(render_page(build_entries([make_run(path.parent / "mine")])))
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two rows that was trained and measured, with its runs."""
    folder = tmp_path_factory.mktemp("study")
    begun = create_folder(load(str(write_tiny_study(folder))), "toy", folder / "out")
    work(begun.path, note=lambda _: None)
    runs = sorted(path.parent for path in begun.path.rglob("summary.json"))
    assert len(runs) == 2
    path = folder / "page.html"
    path.write_text(render_page(build_entries(runs, [(begun.path, collect(begun))])))
    return path


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Every payload in every field of every block and in a run; that without its policy; the same of plain words."""
    folder = tmp_path_factory.mktemp("hostile")
    words, count = itertools.cycle(PAYLOADS), itertools.count()
    name = next(word for word in PAYLOADS if "/" not in word and "<" in word)
    made = make_run(folder / name, lambda _: f"{next(words)} {next(count)}", analyses=False)
    # The first one is the title of the page.
    ordered = sorted(PAYLOADS, key=lambda word: "</title>" not in word)
    blocks = [every_block(word, f"part-{number}") for number, word in enumerate(ordered)]
    text = render_page([*blocks, *build_entries([made])])
    assert next(count) >= 30
    plain = render_page([*(every_block(HARMLESS, part.anchor) for part in blocks), *build_entries([made])])
    paths = folder / "hostile.html", folder / "without.html", folder / "plain.html"
    bare, removed = POLICY.subn("", text)
    assert removed == 1
    for path, content in zip(paths, (text, bare, plain), strict=True):
        path.write_text(content)
    return paths


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


def test_pages_are_silent_ask_for_nothing_and_run_nothing_but_their_own(
    tmp_path: Path, run: Path, study: Path, hostile: tuple[Path, Path, Path]
):
    with Browser(tmp_path) as browser:
        for path in (run, study, *hostile[:2]):
            tab = browser.open(path)
            assert tab.run("document.querySelectorAll('th button').length") > 5
            assert tab.run(TOUCH_ALL)
            assert tab.run("location.href").startswith(path.as_uri())
            assert tab.messages == []
            assert tab.requests == [path.as_uri()]
    assert browser.asked() == set()


def test_what_is_loud_or_asks_is_seen(tmp_path: Path, run: Path):
    """The test above, and its probe for what runs, on pages that do what no page may."""
    held, free = "http://example.invalid/held.png", "http://example.invalid/free.png"
    image = f"<img src={held} onerror=window.__pwned=1>"
    bad, worse = tmp_path / "bad.html", tmp_path / "worse.html"
    bad.write_text(run.read_text().replace("</main>", f"{image}</main>"))
    worse.write_text(POLICY.sub("", bad.read_text()).replace(held, free))
    with Browser(tmp_path) as browser:
        tab = browser.open(bad)
        # The policy holds and says so: nothing left, though the page wished it. The handler did not run.
        assert tab.run(TOUCH_ALL)
        assert "Content Security Policy" in json.dumps(tab.messages)
        assert tab.requests == [bad.as_uri(), held]
        tab = browser.open(worse)
        assert not tab.run(TOUCH_ALL)
        assert tab.requests == [worse.as_uri(), free]
        assert tab.messages
    asked = browser.asked()
    assert free in asked
    assert held not in asked


def test_hostile_texts_change_no_element_as_a_browser_reads_them(browser: Browser, hostile: tuple[Path, Path, Path]):
    *both, plain = hostile
    wanted = browser.open(plain).run(ELEMENTS)
    assert len(wanted) > 4000
    for path in both:
        tab = browser.open(path)
        # One element of the page's own is the policy that was taken out.
        assert tab.run(ELEMENTS) == [one for one in wanted if path is both[0] or one != "meta content,http-equiv"]
        assert tab.run("getComputedStyle(document.body).display") == "block"


def rows(tab: Tab) -> list[str]:
    return tab.run("[...document.querySelector('tbody').rows].map(row => row.cells[0].textContent)")


def sort_by(tab: Tab, column: int) -> tuple[list[str], list[str | None]]:
    tab.run(f"document.querySelectorAll('th button')[{column}].click()")
    heads = "[...document.querySelectorAll('thead th')].map(head => head.getAttribute('aria-sort'))"
    return rows(tab), tab.run(heads)


def test_tables_are_sorted_by_a_click_on_a_heading(browser: Browser, tmp_path: Path):
    table = Table("t", "A table", ("name", "share", "word"))
    table.add(TableCell("a"), TableCell.count(19, 200), TableCell("pear"))
    table.add(TableCell("b"), TableCell.number(None), TableCell(""))
    table.add(TableCell("c"), TableCell.number(12_000.0, "12,000"), TableCell("m = 10"))
    table.add(TableCell("d"), TableCell.number(-3), TableCell("apple"))
    table.add(TableCell("e"), TableCell(""), TableCell("-", below="zebra"))
    table.add(TableCell("f"), TableCell.number(1e-7), TableCell("m = 9"))
    table.add(TableCell("g"), TableCell("not evaluated"), TableCell("Fig"))
    path = tmp_path / "page.html"
    path.write_text(render_page([PageEntry("run-1", "x", "", [Section("x", [table])])]))
    tab = browser.open(path)
    assert rows(tab) == list("abcdefg")
    # -3, 1e-7, 0.095, 12,000, then a word, then what is missing, in the order in which it stood.
    assert sort_by(tab, 1) == (list("dfacgbe"), [None, "ascending", None])
    assert sort_by(tab, 1) == (list("cafdgbe"), [None, "descending", None])
    # apple, Fig, m = 9, m = 10, pear.
    assert sort_by(tab, 2) == (list("dgfcabe"), [None, None, "ascending"])
    assert sort_by(tab, 2) == (list("acfgdbe"), [None, None, "descending"])
    assert sort_by(tab, 0) == (list("abcdefg"), ["ascending", None, None])
    # By the keyboard, too.
    tab.run("document.querySelectorAll('th button')[1].focus()")
    for kind in ("keyDown", "keyUp"):
        tab.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13)
    assert rows(tab) == list("dfacgbe")


def test_every_table_of_a_page_keeps_its_rows_and_knows_its_order(browser: Browser, study: Path):
    tab = browser.open(study)
    found = tab.run(
        "[...document.querySelectorAll('table.sortable')].flatMap(table => {"
        "  const texts = () => [...table.tBodies[0].rows].map(row => row.innerText);"
        "  const before = texts().sort().join();"
        "  return [...table.tHead.rows[0].cells].flatMap((head, column) => ['ascending', 'descending'].map(way => {"
        "    head.firstChild.click();"
        "    const keys = [...table.tBodies[0].rows].map(row => row.cells[column].dataset.sort);"
        "    const marked = [...table.querySelectorAll('[aria-sort]')];"
        "    const right = marked.length === 1 && marked[0] === head && head.getAttribute('aria-sort') === way;"
        "    return [way, keys, right && texts().sort().join() === before]; })) })"
    )
    assert len(found) > 50
    for way, keys, right in found:
        assert right
        numbers = [float(key) for key in keys if re.fullmatch(r"-?[\d.]+(e[-+]?\d+)?", key)]
        assert numbers == sorted(numbers, reverse=way == "descending")


@pytest.mark.parametrize("name", ["run", "study", "hostile"])
def test_a_phone_need_not_scroll_sideways(name: str, browser: Browser, request: pytest.FixtureRequest):
    found = request.getfixturevalue(name)
    tab = browser.open(found[0] if isinstance(found, tuple) else found, width=380)
    widths = "[innerWidth, document.documentElement.scrollWidth]"
    assert tab.run(widths) == [380, 380]
    # What is wider than the window would be seen.
    tab.run("document.body.style.width = '500px'")
    assert tab.run(widths)[1] >= 500


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_its_ground(scheme: str, browser: Browser, run: Path, study: Path):
    for path in (run, study):
        tab = browser.open(path, prefers_color_scheme=scheme)
        light = "getComputedStyle(document.body).backgroundColor"
        assert tab.run(light) == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(15, 19, 24)")
        assert tab.run(FAINT) == []


def test_paper_shows_everything_in_black_on_white(browser: Browser, run: Path, study: Path, tmp_path: Path):
    wide = Table("t", "Sixteen columns", ("row", *(f"pgd-{number}" for number in range(14)), "runs"))
    shares = (TableCell.count(4567, 10_000) for _ in range(14))
    wide.add(TableCell("CIFAR-100, IAAT"), *shares, TableCell("runs/cifar10-natural-w32-10-small-198318f4"))
    (tmp_path / "wide.html").write_text(render_page([PageEntry("run-1", "x", "", [Section("x", [wide])])]))
    for path in (run, study, tmp_path / "wide.html"):
        # A4 less its margins, from a browser that is set to dark.
        tab = browser.open(path, width=688, media="print", prefers_color_scheme="dark")
        assert tab.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert tab.run("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
        assert tab.run(FAINT) == []
        assert tab.run(CUT) == []


def test_without_scripts_the_same_words_are_read(browser: Browser, run: Path):
    words = "document.querySelector('main').innerText"
    tab = browser.open(run, scripts=False)
    assert tab.run("document.querySelectorAll('button').length") == 0
    assert tab.messages == []
    assert tab.run(words) == browser.open(run).run(words)
