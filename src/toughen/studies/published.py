"""The published numbers: 793 cells of the papers' tables, each with its place and what it is.

    cells = find({"paper": "001", "table": "Table 1", "method": "Free", "params": {"m": 8}}, metric="PGD-20")
    cells[0].value                                   # 46.82, in the cell's unit

`published.json` is data: fields and oddities are those of the paper, `raw` is the text as printed.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from toughen.settings import known

FIELDS = ("id", "table", "method", "params", "model", "dataset", "eps", "train_eps", "norm")
"""What a filter may ask for, besides the paper."""


@dataclass(frozen=True)
class PublishedNumber:
    """One number as published.

    Attributes:
        id: like `001-T1-000`.
        metric: what it is, in the words of the file, like "PGD-20, 10 restarts".
        value: in `unit`; None where the print cannot be read.
        unit: "%", "minutes", or what the table says.
        std: printed deviation over several trainings, if any.
        raw: as printed.
        record: all that the file holds.
    """

    id: str
    metric: str
    value: float | None
    unit: str
    std: float | None
    raw: str
    record: Mapping[str, Any]

    def matches(self, wanted: Mapping[str, Any]) -> bool:
        """Whether each field of a filter is this cell's; of `params` those that are asked for."""
        for key, value in wanted.items():
            if key == "paper":
                if self.record["seed"] != value:
                    return False
            elif key == "params":
                # As text, which is how YAML gives numbers here.
                params = {name: str(given) for name, given in self.record["params"].items()}
                if any(params.get(name) != str(given) for name, given in value.items()):
                    return False
            elif self.record.get(key) != value:
                return False
        return True


@functools.cache
def cells() -> tuple[PublishedNumber, ...]:
    """All of them, in the papers' order."""
    text = (resources.files("toughen.studies") / "published.json").read_text(encoding="utf-8")
    return tuple(_cell(record) for record in json.loads(text))


def _cell(record: Mapping[str, Any]) -> PublishedNumber:
    units = {"value_percent": "%", "minutes": "minutes", "value": record.get("unit", "")}
    key = next(key for key in units if key in record)
    given = record[key], units[key], record.get("std"), record["raw"]
    return PublishedNumber(record["id"], record["metric"], *given, record)


@functools.cache
def _by_paper() -> dict[str, tuple[PublishedNumber, ...]]:
    papers: dict[str, list[PublishedNumber]] = {}
    for cell in cells():
        papers.setdefault(cell.record["seed"], []).append(cell)
    return {paper: tuple(found) for paper, found in papers.items()}


def check_filter(wanted: Mapping[str, Any]) -> None:
    """Refuse what no cell can be asked for.

    Raises:
        ValueError: names the field, or the paper or table that is not in the file.
    """
    for key in wanted:
        if key != "paper":
            known(key, FIELDS, "field of a published cell")
    if "paper" in wanted:
        known(str(wanted["paper"]), _by_paper(), "paper")


def find_cells(wanted: Mapping[str, Any], *, metric: str, eps: str | None = None) -> list[PublishedNumber]:
    """The cells that a filter, a metric and a radius select, in the order of the file."""
    asked = {**wanted, **({"eps": eps} if eps is not None else {})}
    pool = _by_paper().get(asked["paper"], ()) if "paper" in asked else cells()
    return [cell for cell in pool if cell.metric == metric and cell.matches(asked)]
