"""MNIST's own files and their relatives': train-images-idx3-ubyte and train-labels-idx1-ubyte, t10k-... likewise.

Compressed by gzip or not, with a dot or a hyphen before `idx3`, in the folder or in its folder `raw`: as they are on
their authors' pages, for Fashion-MNIST, Kuzushiji-MNIST and EMNIST too (emnist-letters-train-images-idx3-ubyte.gz). A
file is a four-byte sign (two zeros, the type of its numbers, how many axes), each axis in four bytes, the most
significant first, then the numbers (LeCun et al. 1998, the data's page).

EMNIST's images are stored mirrored along their diagonal. They are taken so, because torchvision and TensorFlow Datasets
give them so, and models that are trained on either have never seen an upright one.

    found = find_idx(Path("downloads/MNIST/raw"))
"""

import gzip
import math
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from toughen.data.files import files_keys, unreadable, visible
from toughen.data.image_source import ArrayImages, Collection, RawDataset
from toughen.storage.limits import FREE, RATIO

NAME = re.compile(r"(?P<set>.*?)(?P<part>train|t10k|test)-(?P<kind>images|labels)[-.]idx[13]-ubyte(\.gz)?")

PARTS = {"train": "train", "t10k": "test", "test": "test"}

UBYTE = 8

MIRRORED = "EMNIST's images are taken as its files hold them, mirrored along the diagonal, as torchvision gives them"


def holds_idx(folder: Path) -> bool:
    """Whether a folder, or its folder `raw`, has such a file of images."""
    return any(match["kind"] == "images" for _, match in _named(folder))


def is_idx(path: Path) -> bool:
    """Whether a file is called like one of them."""
    return NAME.fullmatch(path.name.lower()) is not None


def find_idx(path: Path) -> RawDataset:
    """The images and labels of such files.

    Args:
        path: their folder; or one of them, which stands for all that belong to it.

    Raises:
        ValueError: there are files of several data sets, one is missing, or one is not what it is called; says which.
    """
    folder = path if path.is_dir() else path.parent
    chosen = NAME.fullmatch(path.name.lower()) if path.is_file() else None
    files: dict[str, dict[str, Path]] = {}
    sets = set()
    for file, match in _named(folder):
        if chosen is None or match["set"] == chosen["set"]:
            sets.add(match["set"])
            # Unpacked files come after their packed ones, and are read more quickly.
            files.setdefault(PARTS[match["part"]], {})[match["kind"]] = file
    if len(sets) > 1:
        example = next(file for file, match in _named(folder) if match["set"] == max(sets))
        names = ", ".join(sorted(name.strip("-") or "one without a name" for name in sets))
        raise ValueError(
            f"{folder} holds the files of {len(sets)} data sets ({names}); give a file of one, like {example}."
        )
    parts: dict[str, Collection] = {}
    every = {f"{part}/{kind}": file for part, pair in files.items() for kind, file in sorted(pair.items())}
    key, keys = files_keys(every, "idx")
    for part in ("train", "test"):
        if part not in files:
            continue
        for lacking in {"images", "labels"} - files[part].keys():
            (there,) = files[part].values()
            raise ValueError(f"{there} lies there without its {lacking}; put the file with them beside it.")
        images, labels = _numbers(files[part]["images"], 3), _numbers(files[part]["labels"], 1)
        if len(images) != len(labels):
            raise ValueError(
                f"{files[part]['images']} holds {len(images)} images, and the file of their labels {len(labels)}; "
                "fetch both again."
            )
        where = str(files[part]["images"])
        parts[part] = Collection(ArrayImages(images[..., None], where), labels.astype(np.int64), keys[part])
    notes = (MIRRORED,) if next(iter(sets)).startswith("emnist") else ()
    return RawDataset(folder.resolve().name, parts, (), key, notes)


def _named(folder: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    """The files of such names in a folder, or else in its folder `raw`, packed ones first."""
    for place in (folder, folder / "raw"):
        there = visible(place) if place.is_dir() else []
        found = [(file, match) for file in there if file.is_file() and (match := NAME.fullmatch(file.name.lower()))]
        if found:
            yield from sorted(found, key=lambda pair: (not pair[0].name.lower().endswith(".gz"), pair[0].name))
            return


def _numbers(path: Path, axes: int) -> np.ndarray:
    """The array in a file, of bytes with so many axes."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        size = path.stat().st_size
        with gzip.open(path) if packed else path.open("rb") as file:
            sign, shape = file.read(4), file.read(4 * axes)
            if len(shape) < 4 * axes or sign != bytes((0, 0, UBYTE, axes)):
                raise ValueError(
                    f"{path} is no idx file of bytes with {axes} {'axes' if axes > 1 else 'axis'}, as its name says; "
                    "fetch it again."
                )
            sides = struct.unpack(f">{axes}I", shape)
            count = math.prod(sides)
            # What is packed may unpack to so much and no more; what is not is as long as it says.
            if count > (max(FREE, RATIO * size) if packed else size) or not count:
                raise ValueError(f"{path} says that it holds {' x '.join(map(str, sides))} numbers; fetch it again.")
            content = file.read(count + 1)
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
            raise unreadable(path, error) from error
        raise ValueError(f"{path} is a damaged gzip file; fetch it again.") from error
    if len(content) != count:
        raise ValueError(f"{path} does not hold the {count:,} numbers that it speaks of; fetch it again.")
    return np.frombuffer(content, np.uint8).reshape(sides)
