"""matplotlib's drawings made fit for a page: no style attributes, no ids but those in use, black as the page's ink.

    with drawing((5.6, 3.0)) as (figure, axes):
        axes.plot(steps, losses, color=BLUE)
    svg = cleaned(figure, key="loss", title="Training loss", alt="Falls from 2.3 to 0.4.")

Colours are those of Okabe and Ito (2008), which people with any colour vision tell apart. What matplotlib draws in
`INK` becomes `currentColor`, so the same drawing is dark on white and light on black.
"""

import io
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from toughen.report.blocks import Figure
from toughen.report.csv import csv_text
from toughen.report.formatting import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"
INK, GREY = "#010203", "#7f868e"
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, INK)
STYLES = ("-", "--", "-.", ":")
MARKS = ("o", "s", "^", "D", "v", "P", "X")

_SVG = "http://www.w3.org/2000/svg"
_HREF = "{http://www.w3.org/1999/xlink}href"
_USES = re.compile(r"url\(#([^)]+)\)")
_NUMBER = re.compile(r"-?\d+\.\d+")

SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.18,
    "grid.color": INK,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 2.8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@contextmanager
def drawing(
    size: tuple[float, float], panels: int = 1, columns: int = 1, **given: Any
) -> "Iterator[tuple[Drawing, Any]]":
    """A figure of `size` inches with its axes, `panels` below each other in `columns`, in this page's style alone."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Drawing

    # Not through pyplot: it keeps figures and looks for a screen. Not the user's own style: equal runs, equal bytes.
    with mpl.rc_context(), warnings.catch_warnings():
        # Letters that a font lacks are drawn by the browser.
        warnings.simplefilter("ignore")
        mpl.rcdefaults()
        mpl.rcParams.update(SETTINGS)  # pyright: ignore[reportCallIssue, reportArgumentType]
        figure = Drawing(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(panels, columns, **given)
        yield figure, axes


def cleaned(figure: "Drawing", *, key: str, title: str, alt: str) -> str:
    """An `<svg>` element for a page, the same bytes for the same figure.

    Args:
        figure: drawn within `drawing`.
        key: begins every id, so that one page may hold several drawings; letters, digits and hyphens.
        title: read aloud first.
        alt: what is to be seen.
    """
    import matplotlib as mpl

    out = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": key}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(out.getvalue())
    used = dict.fromkeys(ident for element in root.iter() for ident in _referred(element))
    names = {ident: f"{key}-{number}" for number, ident in enumerate(used)}
    _strip(root)
    for element in root.iter():
        _clean(element, names)
    view = root.get("viewBox", "0 0 400 300")
    root.attrib.clear()
    root.attrib |= {
        "viewBox": view,
        "role": "img",
        "aria-labelledby": f"{key}-title {key}-desc",
        "fill": "currentColor",
    }
    root.attrib |= {"stroke-linejoin": "round", "font-family": "sans-serif", "color": "black"}
    for place, (tag, text) in enumerate((("title", title), ("desc", alt))):
        element = ElementTree.Element(f"{{{_SVG}}}{tag}", {"id": f"{key}-{tag}"})
        element.text = printable(text)
        root.insert(place, element)
    ElementTree.register_namespace("", _SVG)
    return ElementTree.tostring(root, encoding="unicode")


def _strip(element: ElementTree.Element) -> None:
    """Take out metadata, style sheets and comments; and groups that only group."""
    for child in list(element):
        if not isinstance(child.tag, str) or child.tag.split("}")[-1] in ("metadata", "style"):
            element.remove(child)
        else:
            _strip(child)


def _referred(element: ElementTree.Element) -> Iterator[str]:
    if href := element.get(_HREF):
        yield href.removeprefix("#")
    for value in element.attrib.values():
        yield from _USES.findall(value)


def _clean(element: ElementTree.Element, names: dict[str, str]) -> None:
    found = dict(element.attrib)
    element.attrib.clear()
    for part in found.pop("style", "").split(";"):
        name, _, value = (piece.strip() for piece in part.partition(":"))
        if name == "font":
            if size := re.search(r"([\d.]+)px", value):
                found["font-size"] = size[1]
            if "bold" in value:
                found["font-weight"] = "bold"
        elif name and name not in ("text-align", "mix-blend-mode", "-webkit-text-align"):
            found[name] = value
    for name, value in found.items():
        if name == "id":
            if value in names:
                element.set("id", names[value])
            continue
        if name == _HREF:
            name, value = "href", value if value.startswith("data:") else f"#{names[value.removeprefix('#')]}"
        value = _USES.sub(lambda use: f"url(#{names[use[1]]})", value)
        if not value.startswith("data:"):
            value = _NUMBER.sub(lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), value)
        if name in ("fill", "stroke") and value.lower() == INK:
            value = "currentColor"
        element.set(name, value)


def line_figure(
    figure: "Drawing", key: str, title: str, alt: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]
) -> Figure:
    """A block of a drawing in lines, with its data."""
    return Figure(key, title, alt, csv_text(columns, rows), svg=cleaned(figure, key=key, title=title, alt=alt))


def percent_axis(axes: "Axes", what: str = "accuracy") -> None:
    """Let the upright axis go from 0 to 100 %."""
    axes.set_ylim(-2, 102)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel(f"{what}, %")


def picture(figure: "Drawing") -> bytes:
    """A figure as PNG on white, for what takes too many lines to draw; the same bytes for the same figure."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return out.getvalue()


def series(number: int) -> dict[str, Any]:
    """Colour, dashes and mark of the nth line: no two of 49 have both colour and mark, nor differ by colour alone."""
    turns = number // len(COLOURS)
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": STYLES[(number + turns) % len(STYLES)],
        "marker": MARKS[(number + turns) % len(MARKS)],
    }


def legend(axes: "Axes", where: str = "lower", last: Sequence[str] = ()) -> None:
    """A legend of all axes, outside them, for which the figure grows, in as many columns as its longest text allows.

    Args:
        axes: of the figure, any of them.
        where: "lower" or "upper".
        last: texts that come after all others.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    named: dict[str, Any] = {}
    for one in figure.axes:
        for handle, text in zip(*one.get_legend_handles_labels(), strict=True):
            named.setdefault(text, handle)
    named |= {text: named.pop(text) for text in last if text in named}
    size, handle = (8.5, 8) if len(named) <= 20 else (7.0, 5)
    width = int(60 * figure.get_figwidth() / 5.2 * 8.5 / size)
    columns = max(1, min(len(named), width // (handle + max(map(len, named)))))
    figure.set_figheight(figure.get_figheight() + 0.1 + 0.19 * size / 8.5 * -(-len(named) // columns))
    # matplotlib's types know no legend outside the axes.
    given: Any = {"loc": f"outside {where} center", "ncols": columns, "fontsize": size}
    figure.legend(list(named.values()), list(named), **given)


def plain_ticks(axes: "Axes") -> None:
    """Numbers on a logarithmic axis as they are, few enough to be read: mathematical type is switched off."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}" if value < 1e3 else f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
