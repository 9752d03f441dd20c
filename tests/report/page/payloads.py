"""Eighty texts that would do harm on a page, in a drawing, in a terminal or in a spreadsheet that believed them."""

from toughen.report.blocks import Figure, KeyFigures, PageEntry, Paragraph, Section, Table, TableCell, Tile, Verbatim
from toughen.report.formatting import printable

_TAGS = [
    "<script>window.__pwned=1</script>",
    "</script><script>window.__pwned=1</script>",
    "<img src=x onerror=window.__pwned=1>",
    '"><img src=x onerror=window.__pwned=1>',
    "'><svg onload=window.__pwned=1>",
    "<svg><script>window.__pwned=1</script></svg>",
    "<a href=javascript:window.__pwned=1>a</a>",
    "<iframe src=https://example.org></iframe>",
    "<iframe srcdoc='<script>1</script>'>",
    "<link rel=stylesheet href=//example.org/a.css>",
    "<meta http-equiv=refresh content=0;url=//example.org>",
    "<base href=//example.org>",
    "<form action=//example.org><input autofocus onfocus=window.__pwned=1>",
    "<style>*{display:none}</style>",
    "</style><script>window.__pwned=1</script>",
    "</title><script>window.__pwned=1</script>",
    "</table></td></tr><h1>x</h1>",
    "</pre><b>x",
    "</svg><p>x",
    "</text></g><foreignObject><p>x</p></foreignObject>",
    "<!-- x",
    "--><b>x</b><!--",
    "<![CDATA[<b>x</b>]]>",
    "]]>",
    "<?xml version='1.0'?><x/>",
    "<!DOCTYPE html>",
    "<plaintext>",
    "<textarea>",
    "<template><b>",
    "<math><mtext><script>1</script>",
    "<details open ontoggle=window.__pwned=1>",
    "<video><source onerror=window.__pwned=1>",
    "<object data=data:text/html,x>",
    "<embed src=javascript:1>",
    "<body onload=window.__pwned=1>",
]
_ATTRIBUTES = [
    '" onmouseover="window.__pwned=1',
    "' onmouseover='window.__pwned=1",
    "` onmouseover=`1",
    '" style="position:fixed',
    '" id="run-1',
    "x onclick=1",
    "javascript:window.__pwned=1",
    "JaVaScRiPt:window.__pwned=1",
    "data:text/html,<script>1</script>",
    "//example.org/x",
    "https://example.org/?a=1&b=2",
    "file:///etc/hostname",
    "#run-2",
]
_TEMPLATES = [
    "{{ 7 * 7 }}",
    "{% for x in y %}",
    "{{ self.__init__.__globals__ }}",
    "{# x #}",
    "${7*7}",
    "<%= 7 %>",
    "&lt;b&gt;",
    "&#60;b&#62;",
    "&amp;amp;",
    "&",
    "\\u003cscript\\u003e",
    "%3Cscript%3E",
]
DRAWINGS = ["$\\frac{", "$x^2$", "\\$", "_nolegend_", "__", "\\input{/etc/hostname}", "url(#run-1-loss-0)", "#010203"]
_FORMULAS = ["=1+1", "+1+1", "-1+1", "@SUM(1)", "=cmd|' /C calc'!A0"]
_CONTROLS = ["a\nb", "\x1b[2J\x1b[31mred", "\u202egnp.exe", "a\x07b\u200fc", "[bold red]x[/] [link=//x]y[/link]"]
_LONG = ["x" * 300, "\u0130\U0001f600\u4e2d\u0e01\u0301"]

PAYLOADS = [*_TAGS, *_ATTRIBUTES, *_TEMPLATES, *DRAWINGS, *_FORMULAS, *_CONTROLS, *_LONG]
assert len(PAYLOADS) == len(set(PAYLOADS)) == 80, len(PAYLOADS)


def every_block(word: str, anchor: str = "run-1") -> PageEntry:
    """An entry with `word` in every text field."""
    table = Table("t", word, (word, word), note=word)
    table.add(TableCell(word, below=word, tone="bad", target="run-1"), TableCell.number(1.0, word, below=word))
    tile = Tile(b"png", printable(word), word, "good")
    blocks = [
        table,
        Figure("f", word, word, "", png=b"png", size=(1, 1)),
        Figure("g", word, word, "", png=b"png", tiles=((word, (tile,)),)),
        Paragraph(word, "missing", word),
        KeyFigures(((word, word, word, "bad"),)),
        Verbatim(word, word),
    ]
    return PageEntry(anchor, word, word, [Section(word, blocks)])
