"""The page of what was measured with GPUs, from the rows of `gpu_session`."""

from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
FAILED = {"error", "missing"}
"""What a row has in place of figures."""

Cells = Callable[[Row], list[str]]


def answer(row: Row) -> str:
    """Whether it is as it should be."""
    return "as on the CPU" if row["ok"] else "**NO**"


def listed(row: Row) -> str:
    """Lines for which the host waits."""
    return "; ".join(f"`{line}` {times}" for line, times in row["lines"].items()) or "-"


def or_none(value: float | None, form: str) -> str:
    """A number, if there is one."""
    return "-" if value is None else format(value, form)


TABLES: dict[str, tuple[str, list[str], Cells]] = {
    "attacks": (
        "Attacks in float64: how far from the CPU's example",
        ["largest distance", ""],
        lambda row: [f"{row['far']:.1e}", answer(row)],
    ),
    "methods": (
        "One batch of every method: its loss. Draws are a device's own, so losses are alike and not equal",
        ["loss", "on the CPU", ""],
        lambda row: [f"{row['loss']:.4f}", f"{row['cpu']:.4f}", "finite, and alike" if row["ok"] else "**NO**"],
    ),
    "verdicts": (
        "Verdicts on digits, the frozen robust network: broken here and on the CPU, and where they differ",
        ["of", "broken", "on the CPU", "differ", "of these not marginal", ""],
        lambda row: [*(str(row[key]) for key in ("n", "broken", "cpu", "differ", "clear")), answer(row)],
    ),
    "resumed": (
        "`fast: off`: the same bits again, and after a kill",
        ["two runs equal", "a killed one equal"],
        lambda row: ["yes" if row["again"] else "**NO**", "yes" if row["resumed"] else "**NO**"],
    ),
    "waits": (
        "For what the host waits in a batch, by torch's own warnings",
        ["waits in the step", "in making the batch", "where"],
        lambda row: [str(row["waits"]), str(row["batch"]), listed(row)],
    ),
    "compiled": (
        "Compiled graphs beside plain kernels: the loss of four batches",
        ["plain", "graphs", "seconds with compiling", ""],
        lambda row: [f"{row['plain']:.5f}", f"{row['graphs']:.5f}", f"{row['seconds']:.0f}", answer(row)],
    ),
    "ceilings": (
        "What the device does at most",
        ["bf16 products, TFLOP/s", "copies, TB/s"],
        lambda row: [f"{row['flops'] / 1e12:.3g}", f"{row['bytes'] / 1e12:.3g}"],
    ),
    "steps": (
        "Steps of training",
        ["ms a step", "TFLOP/s", "of the measured rate", "making the batch, of the step", "GB", "first batch, s"],
        lambda row: [
            f"{row['ms']:.2f}",
            f"{row['flops'] / 1e12:.3g}",
            f"{row['share']:.1%}",
            f"{row['data']:.1%}",
            f"{row['gigabytes']:.1f}",
            f"{row['first']:.0f}",
        ],
    ),
    "evaluation": (
        "Evaluations of digits, and the reference's",
        ["of", "clean", "robust", "forwards", "backwards", "seconds"],
        lambda row: [
            *(str(row[key]) for key in ("n", "clean", "robust", "forwards", "backwards")),
            f"{row['seconds']:.1f}",
        ],
    ),
    "speedrun": (
        "Whole runs",
        ["seconds in all", "of training", "clean", "suite", "robust"],
        lambda row: [
            or_none(row["seconds"], ".1f"),
            f"{row['training']:.1f}",
            f"{row['clean']:.2%}",
            row["suite"],
            f"{row['robust']:.2%}",
        ],
    ),
    "profile": (
        "A batch kernel by kernel",
        ["ms", "matrix work", "idle", "the rest, most first"],
        lambda row: [
            f"{row['ms']:.2f}",
            f"{row['matrix']:.1%}",
            f"{row['idle']:.1%}",
            "; ".join(f"`{name}` {share:.1%}" for name, share in row["others"]),
        ],
    ),
    "peers": (
        "A PGD-10 step by others",
        ["network", "batch", "ms a step"],
        lambda row: [row["network"], str(row["batch"]), f"{row['ms']:.2f}"],
    ),
}
"""Part -> heading, columns beside name, device and date, and a row's cells in them."""

ALSO = {"more_steps": "steps"}
"""Parts that stand in another's table."""


def newest(rows: list[Row]) -> list[Row]:
    """Of each thing on each device the last figure; one that failed takes the place of none that was measured."""
    found: dict[tuple[str, ...], Row] = {}
    for row in rows:
        where = (row.get("device", "?"), row.get("torch", "?"))
        if row["name"] == "ended" and not row["failed"]:
            # What ended it before is mended.
            found.pop((row["part"], "", *where), None)
        key = (row["part"], row["name"], *where)
        if not FAILED & row.keys() or FAILED & found.get(key, row).keys():
            found[key] = row
    return list(found.values())


def page(rows: list[Row]) -> str:
    """Faults first, then a table for each part."""
    rows = [row for row in newest(rows) if row["name"] != "ended"]
    measured = [row for row in rows if not FAILED & row.keys()]
    lines = ["# On a GPU", "", "By `benchmarks/gpu_session.py`; each row says on what and when.", ""]
    wrong = [row for row in measured if not row.get("ok", True)]
    failed = [row for row in rows if "error" in row]
    missing = [row for row in rows if "missing" in row]
    lines += [f"- **Not as it should be**: {row['part']}, {row['name']}" for row in wrong]
    lines += [f"- **Failed**: {row['part']}, {row['name']}: {row['error']}".replace("\n", " ") for row in failed]
    lines += [] if wrong or failed else ["- Nothing failed, and all is as it should be."]
    lines += [f"- Not measured: {row['part']}, {row['name']}: {row['missing']}" for row in missing]
    lines.append("")
    for part, (heading, columns, cells) in TABLES.items():
        found = [row for row in measured if ALSO.get(row["part"], row["part"]) == part]
        if found:
            titles = ["", *columns, "device", "date"]
            lines += [f"## {heading}", "", line_of(titles), line_of(["---"] * len(titles))]
            for row in found:
                where = f"{row['device']}, torch {row['torch']}"
                lines.append(line_of([row["name"], *cells(row), where, row["date"].partition("T")[0]]))
            lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def line_of(cells: list[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"
