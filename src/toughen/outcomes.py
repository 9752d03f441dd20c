"""What became of every example under every attack, and every number computed from that.

An evaluation is kept as a long table with one row per attack and example actually attempted; accuracies, counts and
intervals are recomputed from it and stored nowhere else as truth. "clean", the image itself, is the first attack. An
example that is wrong on it counts as broken and is attempted by no other.

    outcomes = Outcomes.read(folder / "examples.parquet")
    low, high = interval(outcomes.robust_correct, outcomes.n)
    outcomes.per_attack()["pgd-20"]["broken"]

No torch is imported here: a report reads these tables on machines that have none.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Self, TypedDict

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

CLEAN = "clean"

COLUMNS: dict[str, str] = {
    "attack": "str",
    "index": "int64",
    "label": "int64",
    "prediction": "int64",
    "survived": "bool",
    "distance": "float64",
    "loss": "float32",
    "margin": "float32",
    "marginal": "bool",
    "forwards": "int32",
    "backwards": "int32",
    "seed": "int64",
    "aside": "bool",
}
"""The columns of the table with their numpy types, in the order of the file."""


class Tally(TypedDict):
    """What one attack of a cascade did.

    Attributes:
        attempted: examples that it was run on.
        broken: examples that it broke.
        accuracy: share of all examples that survived this attack and those before it; attacks aside break nobody.
        alone: share of all examples that survive the clean image and this attack; None where the attack was not run
            on every correctly classified example, because the examples it got were chosen by earlier attacks.
        forwards: forward passes of all examples together, without the evaluator's own.
        backwards: backward passes likewise.
    """

    attempted: int
    broken: int
    accuracy: float
    alone: float | None
    forwards: int
    backwards: int


def interval(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion of which k of n were seen (Wilson 1927).

    (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n) with p = k / n and z the normal quantile of
    (1 + level) / 2. Unlike p -+ z sqrt(p (1 - p) / n) it stays in [0, 1] and keeps a width at k = 0 and k = n.

    Args:
        k: successes, 0 to n.
        n: trials, at least 1.
        level: confidence, between 0 and 1.

    Returns:
        The lower and the upper end; exactly 0 below at k = 0 and exactly 1 above at k = n.

    Raises:
        ValueError: for arguments outside these ranges.
    """
    if n < 1 or not 0 <= k <= n:
        raise ValueError(f"an interval needs 0 <= k <= n and n >= 1, got k = {k} of n = {n}")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must lie between 0 and 1, like 0.95")
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = k + z * z / 2
    spread = z * math.sqrt(k * (n - k) / n + z * z / 4)
    low = 0.0 if k == 0 else (centre - spread) / (n + z * z)
    high = 1.0 if k == n else (centre + spread) / (n + z * z)
    return low, high


@dataclass(frozen=True, eq=False)
class Outcomes:
    """The table: one array (R,) per column, R the number of attack-example pairs attempted.

    Args:
        attack: name of the attack; "clean" for the image itself.
        index: example id.
        label: true class.
        prediction: class predicted on the example that the attack returned, by the evaluator's own forward pass.
        survived: whether the prediction is the label; also true of an example that a minimal-norm attack left outside
            the ball, whatever its prediction.
        distance: norm of x_adv - x in the threat's norm and unit, computed in float64; 0 for clean.
        loss: cross-entropy there.
        margin: highest other logit minus the label's; positive where the example is broken.
        marginal: the two highest logits differ by less than 1e-5, so that rounding may turn the prediction.
        forwards: forward passes that the example took in this attack.
        backwards: backward passes likewise.
        seed: seed of the evaluation.
        aside: whether the attack ran in a ball of its own, beside the worst case: its outcome is reported alone.

    Raises:
        ValueError: columns of unequal length, an id twice under one attack, or, in a table with clean rows, an attack
            on an example that has none.
    """

    attack: np.ndarray
    index: np.ndarray
    label: np.ndarray
    prediction: np.ndarray
    survived: np.ndarray
    distance: np.ndarray
    loss: np.ndarray
    margin: np.ndarray
    marginal: np.ndarray
    forwards: np.ndarray
    backwards: np.ndarray
    seed: np.ndarray
    aside: np.ndarray

    def __post_init__(self) -> None:
        for name, kind in COLUMNS.items():
            column = np.array(getattr(self, name), dtype=kind)
            if column.shape != (np.size(self.attack),):
                raise ValueError(
                    f"column {name!r} has shape {column.shape}; every column holds one value for each of "
                    f"{np.size(self.attack)} rows"
                )
            column.setflags(write=False)
            object.__setattr__(self, name, column)
        clean = self._ids(CLEAN)
        for attack in self.attacks:
            ids, counts = np.unique(self._ids(attack), return_counts=True)
            if (counts > 1).any():
                raise ValueError(f"attack {attack!r} has example {ids[counts > 1][0]} more than once")
            if len(clean) and not np.isin(ids, clean).all():
                stray = ids[~np.isin(ids, clean)][0]
                raise ValueError(f"attack {attack!r} has example {stray}, of which there is no {CLEAN!r} row")

    def __len__(self) -> int:
        return len(self.index)

    @classmethod
    def concatenate(cls, parts: Sequence["Outcomes"]) -> Self:
        """The rows of several tables, in their order.

        Raises:
            ValueError: for no tables, or tables that do not make one (see the class).
        """
        if not parts:
            raise ValueError("there are no tables to concatenate; give at least one")
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS})

    @classmethod
    def read(cls, path: Path) -> Self:
        """The table in a parquet file.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is not parquet, or its columns are not those of `COLUMNS`.
        """
        import pyarrow.parquet as pq

        # Not pq.read_table, which reads further columns out of folder names such as seed=0.
        with pq.ParquetFile(path) as file:
            found = file.schema_arrow
            if not found.equals(_schema()):
                given = ", ".join(f"{name} {kind}" for name, kind in zip(found.names, found.types, strict=True))
                allowed = ", ".join(f"{field.name} {field.type}" for field in _schema())
                raise ValueError(f"{path} is no table of outcomes: its columns are {given}; they must be {allowed}")
            table = file.read()
        return cls(**{name: np.asarray(table[name].to_pylist(), dtype=kind) for name, kind in COLUMNS.items()})

    def write(self, path: Path) -> None:
        """Write parquet: the same rows give the same bytes, under one version of pyarrow.

        Raises:
            OSError: the file cannot be written.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = _schema()
        columns = [pa.array(getattr(self, field.name), type=field.type) for field in schema]
        pq.write_table(pa.Table.from_arrays(columns, schema=schema), path, compression="zstd")

    @property
    def attacks(self) -> list[str]:
        """The attacks, "clean" among them, in the order of their first rows."""
        return list(dict.fromkeys(self.attack.tolist()))

    @property
    def n(self) -> int:
        """Examples evaluated.

        Raises:
            ValueError: the table has no clean rows, without which there is no accuracy.
        """
        n = len(self._ids(CLEAN))
        if not n:
            raise ValueError(f"the table has no {CLEAN!r} rows, so no accuracy can be computed from it")
        return n

    @property
    def clean_correct(self) -> int:
        """Examples classified correctly without an attack."""
        return len(self._ids(CLEAN, survived=True))

    @property
    def robust_correct(self) -> int:
        """Examples that survived every attack attempted on them, the clean image included."""
        return int((~np.isin(self._ids(CLEAN), self.index[~self.survived & ~self.aside])).sum())

    @property
    def clean_accuracy(self) -> float:
        """`clean_correct` as a share of `n`."""
        return self.clean_correct / self.n

    @property
    def robust_accuracy(self) -> float:
        """`robust_correct` as a share of `n`: an example wrong on the clean image counts as broken."""
        return self.robust_correct / self.n

    @property
    def marginal_examples(self) -> int:
        """Examples with at least one marginal row."""
        return len(np.unique(self.index[self.marginal]))

    def per_attack(self) -> dict[str, Tally]:
        """What each attack did, in the order of the cascade."""
        n, unbroken, correct = self.n, self._ids(CLEAN), self._ids(CLEAN, survived=True)
        tallies: dict[str, Tally] = {}
        for attack in self.attacks:
            rows = self.attack == attack
            broken = self._ids(attack, survived=False)
            if not self.aside[rows].any():
                unbroken = unbroken[~np.isin(unbroken, broken)]
            independent = bool(np.isin(correct, self.index[rows]).all())
            tallies[attack] = Tally(
                attempted=int(rows.sum()),
                broken=len(broken),
                accuracy=len(unbroken) / n,
                alone=int((~np.isin(correct, broken)).sum()) / n if independent else None,
                forwards=int(self.forwards[rows].sum()),
                backwards=int(self.backwards[rows].sum()),
            )
        return tallies

    def _ids(self, attack: str, *, survived: bool | None = None) -> np.ndarray:
        rows = self.attack == attack
        return self.index[rows if survived is None else rows & (self.survived == survived)]


def _schema() -> "pa.Schema":
    """`COLUMNS` as a parquet schema."""
    import pyarrow as pa

    kinds = {
        name: pa.string() if kind == "str" else pa.from_numpy_dtype(np.dtype(kind)) for name, kind in COLUMNS.items()
    }
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in kinds.items()])


assert [field.name for field in fields(Outcomes)] == list(COLUMNS), "the fields and the columns are one list"
