"""Where each of the 793 published cells is reproduced, or why it is not.

coverage()["001-T1-006"]                         # [Place(study="free-table-1", row="free-m2", column="clean")]
reasons()["002-T5-000"]                          # "Pang et al.'s network is not one of these papers'"
"""

import functools
from dataclasses import dataclass
from importlib import resources

from toughen.recipes.text import parse_yaml
from toughen.settings import Settings
from toughen.studies.published import PublishedNumber, cells, check_filter, find_cells
from toughen.studies.text import load, shipped


@dataclass(frozen=True)
class Place:
    """A figure of a shipped study."""

    study: str
    row: str
    column: str


class Reason(Settings, frozen=True):
    """Why some cells are in no study.

    Attributes:
        cells: a filter, see `published`.
        metric: of the cells; null for all.
        reason: in a sentence.
    """

    cells: dict[str, object]
    metric: str | None = None
    reason: str

    def matches(self, cell: PublishedNumber) -> bool:
        """Whether a cell is meant."""
        return (self.metric is None or cell.metric == self.metric) and cell.matches(self.cells)


@functools.cache
def coverage() -> dict[str, list[Place]]:
    """Cell -> its places in the shipped studies; cells without one are left out."""
    found: dict[str, list[Place]] = {}
    for name in shipped():
        study = load(name)
        for key, row in study.all_rows().items():
            for column in row.columns or study.columns:
                spec = study.columns[column]
                for wanted in row.cells if spec.metric else ():
                    for cell in find_cells({**study.reproduces, **wanted}, metric=spec.metric or "", eps=spec.eps):
                        found.setdefault(cell.id, []).append(Place(name, key, column))
    return found


@functools.cache
def reasons() -> dict[str, str]:
    """Cell -> why it is in no study."""
    folder = resources.files("toughen.studies") / "reasons"
    found: dict[str, str] = {}
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        for entry in parse_yaml(file.read_text(encoding="utf-8"), file.name):
            reason = Reason.model_validate(entry)
            check_filter(reason.cells)
            found |= {cell.id: reason.reason for cell in cells() if reason.matches(cell)}
    return found
