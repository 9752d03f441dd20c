"""The table of a measurement under common corruptions, from its result as it lies in a run folder.

Example:
    console.print(corruption_table(read_json(folder / "result.json")))
"""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from toughen.progress import duration
from toughen.report.terminal.tables import Record, percent, with_interval

LAST_OF_MAIN = "jpeg_compression"
"""A line below it: the mean over 15 is of those above."""

MEANS = {"mean_15": "mean over the 15 main corruptions", "mean_19": "mean over all 19"}


def corruption_table(result: Record, error: Record | None = None) -> Group:
    """Accuracy under every corruption at every severity, the means, and the mean corruption error with its baseline.

    Args:
        result: the summary of a `CorruptionResult`.
        error: a mean corruption error with a baseline of the reader's choice; the result's own by default.
    """
    table = Table(title=Text(f"corruptions ({_images(result)}), {result['n']} test images: accuracy in per cent"))
    # With a severity's number alone the table fits a terminal of 80 columns.
    table.add_column("corruption, severity", no_wrap=True)
    for severity in result["severities"]:
        table.add_column(str(severity), justify="right", no_wrap=True)
    table.add_column("mean", justify="right", no_wrap=True)
    for row in result["corruptions"]:
        figures = [*(cell["accuracy"] for cell in row["cells"]), row["accuracy"]]
        last = row["corruption"] == LAST_OF_MAIN
        table.add_row(Text(row["corruption"]), *(f"{100 * figure:.1f}" for figure in figures), end_section=last)
    lines = [f"clean {with_interval(result['clean_accuracy'], result['clean_interval'])}"]
    for key, name in MEANS.items():
        mean = result[key]
        measured = mean["accuracy"] is not None
        figure = with_interval(mean["accuracy"], mean["interval"]) if measured else f"none: {mean['missing']}"
        lines.append(f"{name} {figure}")
    return Group(
        table,
        *(Text(line) for line in lines),
        *(Text(line) for line in error_lines(error or result["mce"])),
        Text(f"(95 % Wilson intervals, over the draw of the images; {duration(result['seconds'])})"),
        *(Text(f"note: {note}") for note in result["notes"]),
    )


def error_lines(error: Record) -> list[str]:
    """The mean corruption error with its baseline, the unnormalised one, and why one is missing."""
    lines = []
    if error["value"] is not None:
        lines.append(f"mCE {error['value']:.2f} %, relative to {error['baseline']}")
    if error["unnormalised"] is not None:
        lines.append(f"mean corruption error, unnormalised {percent(error['unnormalised'] / 100)}")
    if error["why"] is not None:
        lines.append(f"{'no mCE' if error['value'] is None else 'note'}: {error['why']}")
    return lines


def _images(result: Record) -> str:
    if result["origin"] == "published":
        return "published images"
    return f"generated, constants of {result['constants']}, seed {result['seed']}"
