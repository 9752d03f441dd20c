"""CIFAR's Python layout: pickles of numpy arrays, read once and written as an .npz file that needs no pickle.

A pickle is a program. This one is run by an unpickler that knows how to build arrays and nothing else, so that a file
that asks for anything more is refused before that is done.

    import_folder(Path("cifar-10-batches-py"), Path("cifar10.npz"))
"""

import pickle
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toughen.data.files import PICKLE, unreadable, visible, what_it_is, write_npz
from toughen.storage.limits import shown

PIXELS = 3 * 32 * 32

# What a damaged or hostile stream makes the unpickler raise.
FAULTS = (
    pickle.UnpicklingError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    EOFError,
    MemoryError,
    OverflowError,
    RecursionError,
    AssertionError,
    struct.error,
)


@dataclass(frozen=True)
class PickleLayout:
    """Which files make a data set.

    Args:
        train: the training files.
        test: the test file.
        meta: the file with the classes' names.
        labels: what the labels are called in a file.
        names: what the classes' names are called in `meta`.
        classes: how many classes there are.
    """

    train: tuple[str, ...]
    test: str
    meta: str
    labels: str
    names: str
    classes: int


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
CIFAR10 = PickleLayout(_BATCHES, "test_batch", "batches.meta", "labels", "label_names", 10)
CIFAR100 = PickleLayout(("train",), "test", "meta", "fine_labels", "fine_label_names", 100)


def layout_of(folder: Path) -> PickleLayout | None:
    """The layout of which a folder holds Python files, or None."""
    if all((folder / name).is_file() for name in ("train", "test", "meta")):
        return CIFAR100
    return CIFAR10 if any((folder / name).is_file() for name in CIFAR10.train) else None


def import_folder(folder: Path, out: Path) -> dict[str, int]:
    """Write CIFAR-10 or CIFAR-100 in its Python layout (Krizhevsky 2009, the data's page) as an .npz file.

    Args:
        folder: with data_batch_1 to data_batch_5, test_batch and batches.meta, or train, test and meta.
        out: the file to write, *.npz; it must not exist.

    Returns:
        Number of images by split.

    Raises:
        ValueError: a file is missing, damaged, or asks for more than arrays; or `out` exists or has another ending.
        OSError: `out` cannot be written.
    """
    check_new_npz(out)
    if not folder.exists():
        raise ValueError(f"There is no folder {folder}; give one that holds CIFAR's Python layout, or a pickle.")
    inside = [path for path in visible(folder) if path.is_dir() and layout_of(path)]
    # torchvision's root, in which the folder lies.
    folder = inside[0] if len(inside) == 1 and layout_of(folder) is None else folder
    layout = layout_of(folder)
    if layout is None:
        if pickles := pickles_in(folder):
            raise ValueError(f"{folder} does not hold CIFAR's Python layout, but a pickle; give {pickles[0]}.")
        raise ValueError(
            f"{folder} does not hold CIFAR's Python layout (data_batch_1 to data_batch_5, test_batch and batches.meta, "
            "or train, test and meta); other data need no import, give their path as data=PATH."
        )
    arrays: dict[str, np.ndarray] = {}
    for part, names in (("train", layout.train), ("test", (layout.test,))):
        read = [_batch(folder / name, layout) for name in names]
        arrays[f"{part}_images"] = np.concatenate([images for images, _ in read])
        arrays[f"{part}_labels"] = np.concatenate([labels for _, labels in read])
    meta = folder / layout.meta
    names = _entry(read_pickle(meta), layout.names, meta)
    if not isinstance(names, list | tuple) or not all(isinstance(name, str | bytes) for name in names):
        raise ValueError(f"{meta} does not hold a list of names in {layout.names}; fetch the file again.")
    arrays["classes"] = np.array([_text(name) for name in names])
    out.parent.mkdir(parents=True, exist_ok=True)
    write_npz(out, arrays)
    return {part: len(arrays[f"{part}_labels"]) for part in ("train", "test")}


def pickles_in(folder: Path) -> list[Path]:
    """The pickles in a folder, sorted by name."""
    named = [path for path in visible(folder) if path.suffix in ("", ".pickle", ".pkl", ".p") and path.is_file()]
    return [path for path in named if what_it_is(path) == PICKLE]


def check_new_npz(out: Path) -> None:
    """Refuse a name for the file to write.

    Raises:
        ValueError: it does not end in .npz, or it exists.
    """
    if out.suffix != ".npz":
        raise ValueError(f"{out} must end in .npz; choose another name.")
    if out.exists():
        raise ValueError(f"{out} exists, and is not overwritten; remove it or choose another name.")


def read_pickle(path: Path) -> dict[str, Any]:
    """The dictionary in a pickle of plain Python values and arrays of numbers.

    Raises:
        ValueError: there is no such file, it is damaged or something else, or it asks for anything but arrays.
    """
    try:
        with path.open("rb") as file:
            found = ArraysOnly(file, encoding="bytes").load()
    except OSError as error:
        if not path.exists():
            raise ValueError(f"{path} is missing; fetch the data again.") from error
        raise unreadable(path, error) from error
    except Refused as error:
        raise ValueError(
            f"{path} asks for {error}, which no array of numbers needs, and it was not run; where you trust the file, "
            "write its images and labels with numpy.savez as image and label."
        ) from None
    except FAULTS as error:
        raise ValueError(
            f"{path} is {what_it_is(path)}, not a whole pickle ({type(error).__name__}); fetch the file again."
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, not a dictionary of arrays; fetch the file again.")
    named = {_text(key): value for key, value in found.items() if isinstance(key, str | bytes)}
    return {key: value.value if isinstance(value, Array) else value for key, value in named.items()}


class Refused(Exception):
    """A pickle asks for something that is not on the list."""


class ArraysOnly(pickle._Unpickler):
    """An unpickler that can build arrays of numbers, and to which no other name means anything.

    Python's own and not the one in C, which a short hostile file makes fill the memory or end with a SystemError.
    """

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the stream means: our own makers of arrays, never the named thing itself."""
        makers = {
            "numpy.core.multiarray._reconstruct": lambda *_: Array(),
            "numpy.core.multiarray.scalar": _scalar,
            "numpy.core.numeric._frombuffer": _from_buffer,
            "numpy.ndarray": lambda *_: Array(),
            "numpy.dtype": NumberType,
            "_codecs.encode": _encode,
            "__builtin__.bytes": lambda: b"",  # protocol 2 writes no bytes so
        }
        # Numpy 2 calls its core so.
        asked = f"{module}.{name}".replace("numpy._core.", "numpy.core.", 1)
        if asked not in makers:
            raise Refused(f"{module}.{name}")
        return Constructor(makers[asked])

    def persistent_load(self, pid: Any) -> Any:
        """Objects kept elsewhere: there are none."""
        raise Refused("an object outside the file")


class Constructor:
    """A function in the stream, which the stream can call and not change."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        """What it makes."""
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise Refused("a change of what makes arrays")


class NumberType:
    """A type of numbers in the stream."""

    def __init__(self, code: str | bytes, align: object = False, copy: object = False) -> None:
        if not re.fullmatch(r"[biuf][1248]", _text(code)):
            raise Refused(f"an array of type {_text(code)}")
        self.dtype = np.dtype(_text(code))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = _text(state[1])
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise Refused("an array of parts")
        self.dtype = self.dtype.newbyteorder(order)


class Array:
    """An array in the stream, empty until its state comes."""

    value: np.ndarray = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, content = state
        self.value = _numbers(content, kind).reshape(shape, order="F" if fortran else "C")


def _numbers(content: Any, kind: Any) -> np.ndarray:
    if not isinstance(kind, NumberType) or not isinstance(content, bytes | bytearray):
        raise Refused("an array of objects")
    return np.frombuffer(content, kind.dtype)


def _from_buffer(content: Any, kind: Any, shape: Any, order: Any) -> Array:
    """An array as protocol 5 writes it."""
    found = Array()
    found.value = _numbers(content, kind).reshape(shape, order="F" if _text(order) == "F" else "C")
    return found


def _scalar(kind: Any, content: Any) -> Any:
    """One number, as lists of labels may hold."""
    return _numbers(content, kind)[0].item()


def _encode(text: str, encoding: str | bytes) -> bytes:
    """Bytes, as protocol 2 writes them."""
    if _text(encoding) != "latin1":
        raise Refused(f"the encoding {_text(encoding)}")
    return text.encode("latin1")


def _batch(path: Path, layout: PickleLayout) -> tuple[np.ndarray, np.ndarray]:
    """(N, 32, 32, 3) uint8 images and (N,) int64 labels of one file."""
    found = read_pickle(path)
    pixels, labels = _entry(found, "data", path), np.asarray(_entry(found, layout.labels, path))
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (PIXELS,):
        raise ValueError(f"{path} does not hold uint8 data of shape (N, {PIXELS}); fetch the file again.")
    if labels.dtype.kind not in "iu" or labels.shape != (len(pixels),):
        raise ValueError(f"{path} does not hold one whole number for each of its images; fetch the file again.")
    if len(outside := ((labels < 0) | (labels >= layout.classes)).nonzero()[0]):
        raise ValueError(
            f"Image {outside[0]} of {path} has label {labels[outside[0]]}, but its {layout.classes} classes allow 0 to "
            f"{layout.classes - 1}; fetch the file again."
        )
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels.astype(np.int64)


def _entry(found: dict[str, Any], key: str, path: Path) -> Any:
    if key not in found:
        raise ValueError(f"{path} holds {shown(found) or 'nothing'}, but no {key}; fetch the file again.")
    return found[key]


def _text(value: str | bytes) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else value
