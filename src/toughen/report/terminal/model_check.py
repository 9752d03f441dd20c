"""A check-up as a table for the terminal.

Example:
    console.print(checkup_table(check(model, images, labels).summary()))
"""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from toughen.report.terminal.tables import Record

STYLES = {"fine": "green", "wrong": "bold red", "not checked": "dim"}


def checkup_table(checkup: Record) -> Group:
    """What was looked at, how it stands and what to write; then how much of it is wrong, and what that cost.

    Args:
        checkup: a `Checkup.summary()`.
    """
    table = Table(
        title=Text(f"{checkup['examples']} images"), show_lines=any(item["remedy"] for item in checkup["items"])
    )
    table.add_column("what", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("evidence")
    for item in checkup["items"]:
        evidence = Text(" ".join(filter(None, (item["code"], item["evidence"]))))
        if item["remedy"]:
            evidence.append(f"\n-> {item['remedy']}", style="bold")
        table.add_row(Text(item["what"]), Text(item["verdict"], style=STYLES[item["verdict"]]), evidence)
    return Group(table, _verdict(checkup))


def _verdict(checkup: Record) -> Text:
    verdicts = [item["verdict"] for item in checkup["items"]]
    wrong, unknown = (verdicts.count(verdict) for verdict in ("wrong", "not checked"))
    text = Text()
    if wrong:
        text.append(f"{wrong} wrong", style=STYLES["wrong"])
    else:
        text.append("nothing is wrong", style=STYLES["fine"])
    if unknown:
        text.append(f", {unknown} not checked")
    examples = checkup["examples"]
    passes = (f"{checkup[kind] / examples:.1f} {kind.removesuffix('s')}" for kind in ("forwards", "backwards"))
    return text.append(f" ({' and '.join(passes)} passes of {examples} images)")
