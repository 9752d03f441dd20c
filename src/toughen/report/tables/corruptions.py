"""Accuracy under common corruptions, by corruption and severity, with the means.

Example:
    console.print(render(describe_corruptions(read_json(folder / "result.json"))))
"""

from collections.abc import Iterable, Sequence

from toughen.progress import duration
from toughen.report.blocks import Block, JsonObject, Paragraph, Table, TableCell
from toughen.report.formatting import percent, with_interval
from toughen.report.records import CORRUPTED_MAIN

MEANS = {"mean_15": "mean over the 15 main corruptions", "mean_19": "mean over all 19"}


def corruption_table(
    key: str,
    caption: str,
    severities: Sequence[int],
    rows: Iterable[tuple[str, Sequence[float]]],
    *,
    narrow: bool = False,
) -> Table:
    """Accuracy under each corruption at each severity.

    Args (`key` and `caption` as for `Table`):
        severities: S of 1 to 5.
        rows: of each corruption its name, and S accuracies with their mean.
        narrow: as bare numbers under bare numbers, which fit a terminal of 80 columns.
    """
    headings = [str(level) if narrow else f"severity {level}" for level in severities]
    table = Table(key, caption, ("corruption, severity" if narrow else "corruption", *headings, "mean"))
    for name, accuracies in rows:
        cells = [TableCell.number(k, f"{100 * k:.1f}") if narrow else TableCell.share(k) for k in accuracies]
        # Below the line are those that the mean over 15 leaves out.
        table.add(name, *cells, rule=narrow and name == CORRUPTED_MAIN)
    return table


def describe_corruptions(result: JsonObject, error: JsonObject | None = None) -> list[Block]:
    """Accuracy under every corruption at every severity, the means, and the mean corruption error with its baseline.

    Args:
        result: the summary of a `CorruptionResult`.
        error: a mean corruption error with a baseline of the reader's choice; the result's own by default.
    """
    images = f"generated, constants of {result['constants']}, seed {result['seed']}"
    images = "published images" if result["origin"] == "published" else images
    caption = f"corruptions ({images}), {result['n']} test images: accuracy in per cent"
    rows = (
        (row["corruption"], [*(cell["accuracy"] for cell in row["cells"]), row["accuracy"]])
        for row in result["corruptions"]
    )
    lines = [f"clean {with_interval(result['clean_accuracy'], result['clean_interval'])}"]
    for key, name in MEANS.items():
        mean = result[key]
        measured = mean["accuracy"] is not None
        lines.append(
            f"{name} {with_interval(mean['accuracy'], mean['interval']) if measured else 'none: ' + mean['missing']}"
        )
    lines += _error_lines(error or result["mce"])
    lines.append(f"(95 % Wilson intervals, over the draw of the images; {duration(result['seconds'])})")
    lines += [f"note: {note}" for note in result["notes"]]
    table = corruption_table("corruptions", caption, result["severities"], rows, narrow=True)
    return [table, *(Paragraph(line, "") for line in lines)]


def _error_lines(error: JsonObject) -> list[str]:
    """The mean corruption error with its baseline, the unnormalised one, and why one is missing."""
    lines = []
    if error["value"] is not None:
        lines.append(f"mCE {error['value']:.2f} %, relative to {error['baseline']}")
    if error["unnormalised"] is not None:
        lines.append(f"mean corruption error, unnormalised {percent(error['unnormalised'] / 100)}")
    if error["why"] is not None:
        lines.append(f"{'no mCE' if error['value'] is None else 'note'}: {error['why']}")
    return lines
