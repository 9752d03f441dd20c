"""Tables as CSV that a spreadsheet opens without running anything."""

import csv
import io
from collections.abc import Iterable
from typing import Any

from toughen.report.formatting import printable

FORMULA = ("=", "+", "-", "@", "|", "%")


def csv_text(columns: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """CSV with one header line. A text that a spreadsheet would take for a formula begins with a quote mark."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for row in (columns, *rows):
        writer.writerow([_quote(value) for value in row])
    return out.getvalue()


def _quote(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.lstrip().startswith(FORMULA) or text.startswith(("\t", "\r", "\n")) else text
