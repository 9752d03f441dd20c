"""What the analyses found: arrays and a few settings, each a file of its own that a report can draw.

    sweep = eps_sweep(model, x, y, radii=[2 / 255, 4 / 255, 8 / 255])
    sweep.write(folder / "eps-sweep.json")
    EpsSweep.read(folder / "eps-sweep.json").accuracies

A file ending in .json holds everything as JSON. One ending in .npz holds each array under its name and all else as
JSON in the array `record` (UTF-8 bytes). Both hold a `summary` of derived numbers, which are recomputed when the file
is read. No torch is imported here.
"""

import json
import tokenize
import zipfile
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, get_origin

import numpy as np

from toughen.outcomes import interval
from toughen.storage import files
from toughen.storage.limits import check_zip

DAMAGE = (
    *(ValueError, TypeError, KeyError, EOFError, AttributeError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError, SyntaxError, RecursionError, OverflowError, MemoryError),
)
"""What numpy raises for a damaged .npz file."""


@dataclass(frozen=True, eq=False)
class Analysis:
    """The base of all results: fields of JSON's types and arrays, checked, written and read.

    Wherever they occur, `index` is the example ids (N,), `label` the classes (N,), `threat` the threat model as text
    and `seed` that of the random draws.

    Raises:
        ValueError: arrays whose shapes do not fit each other.
    """

    ARRAYS: ClassVar[dict[str, tuple[str, str]]] = {}
    """Type and dimensions of every array field, from its annotation: a letter is one size throughout a result."""

    def __init_subclass__(cls) -> None:
        """Find the arrays: a field `radii: Annotated[np.ndarray, "float64", "R"]` is one."""
        hints = cls.__annotations__.items()
        cls.ARRAYS = {name: hint.__metadata__ for name, hint in hints if get_origin(hint) is Annotated}

    def __post_init__(self) -> None:
        sizes: dict[str, int] = {}
        for name, (kind, dimensions) in self.ARRAYS.items():
            array = np.array(getattr(self, name), dtype=kind)
            shape = tuple(sizes.setdefault(*pair) for pair in zip(dimensions, array.shape, strict=False))
            if len(dimensions) != array.ndim or shape != array.shape:
                raise ValueError(
                    f"{name!r} has shape {array.shape}; it must be ({', '.join(dimensions)}) with "
                    + ", ".join(f"{letter} = {size}" for letter, size in sizes.items())
                )
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    def summary(self) -> dict[str, Any]:
        """The numbers that a table or a caption shows, in JSON's types; accuracies are fractions."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """Everything in JSON's types: `kind`, the fields, and `summary`."""
        return {**self._record(), **{name: getattr(self, name).tolist() for name in self.ARRAYS}}

    def write(self, path: Path) -> None:
        """Write a .json or .npz file, whole or not at all; equal results give equal bytes.

        Raises:
            ValueError: another ending, a value that is not finite in JSON, or more than 64 MiB of JSON.
            OSError: the folder is missing or cannot be written.
        """
        if _ending(path) == ".json":
            files.write_json(path, self.to_json())
            return
        record = np.frombuffer(files.encode(self._record()), dtype=np.uint8)
        arrays = {name: getattr(self, name) for name in self.ARRAYS}

        def save(temporary: Path) -> None:
            # A handle: given a name, numpy adds an ending of its own.
            with open(temporary, "wb") as file:
                np.savez_compressed(file, record=record, **arrays)

        files.replace_by(path, save)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The result in a file that `write` made.

        Raises:
            ValueError: another ending, another kind of result, missing or further fields, or numbers that do not
                follow from the arrays beside them.
            OSError: the file cannot be read.
        """
        stored = files.read_json(path) if _ending(path) == ".json" else _unpacked(path)
        if not isinstance(stored, dict) or stored.get("kind") != cls.__name__:
            kind = stored.get("kind") if isinstance(stored, dict) else type(stored).__name__
            raise ValueError(f"{path} is no {cls.__name__}: its kind is {kind!r}")
        values = {name: value for name, value in stored.items() if name not in ("kind", "summary")}
        if values.keys() != {field.name for field in fields(cls)}:
            raise ValueError(f"{path} is no {cls.__name__}: its fields are {', '.join(values)}")
        try:
            found = cls(**values)
            recomputed = json.loads(json.dumps(found.summary()))
        except (ValueError, TypeError, LookupError, ArithmeticError) as error:
            raise ValueError(f"{path} is no {cls.__name__}: {error}") from None
        if recomputed != stored.get("summary"):
            raise ValueError(f"{path} says {stored.get('summary')}, but the arrays beside it say {recomputed}")
        return found

    def _record(self) -> dict[str, Any]:
        plain = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in self.ARRAYS}
        return {"kind": type(self).__name__, "summary": self.summary(), **plain}


def _ending(path: Path) -> str:
    if path.suffix not in (".json", ".npz"):
        raise ValueError(f"{path.name!r} ends in {path.suffix!r}; write and read .json or .npz")
    return path.suffix


def _unpacked(path: Path) -> dict[str, Any]:
    try:
        # A handle: given a name, numpy leaves the file open where it is damaged.
        check_zip(path)
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = dict(arrays)
        record = files.decode(found.pop("record").tobytes(), path)
    except DAMAGE as error:
        raise ValueError(f"{path} is not an .npz file of toughen's ({error})") from None
    return {**record, **found} if isinstance(record, dict) else {}


def accuracy(correct: np.ndarray) -> float:
    """Share of a boolean array (N,) that is true.

    Raises:
        ZeroDivisionError: it is empty.
    """
    return int(correct.sum()) / len(correct)


def accuracy_with_interval(correct: np.ndarray) -> dict[str, Any]:
    """Accuracy and its 95 % Wilson interval of a boolean array (N,)."""
    return {"accuracy": accuracy(correct), "interval": list(interval(int(correct.sum()), len(correct)))}
