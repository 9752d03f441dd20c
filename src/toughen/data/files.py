"""What all sources on disk have in common: names of splits, kinds of images, keys, and files that are something else.

split_of("Val")                                          # "validation"
split_in("imagenet1k-train-0017.tar")                    # "train"
key, by_part = files_keys({"train/cat/1.png": Path("pets/train/cat/1.png")})
"""

import hashlib
import io
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from toughen.storage.files import replace_by

Value = TypeVar("Value")

SPLITS = ("train", "validation", "test")

WORDS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""What splits are called in the names of files and folders, in any case."""

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
"""How names of images end, in any case."""

# Pillow knows formats that start other programs (EPS); none of them is a photograph's.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")

HARMLESS = (".txt", ".md", ".csv", ".tsv", ".json", ".xml", ".parquet")

LARGE = 2**30

PIXELS = 2**26
"""More are no photograph: of some megabytes in a file, hundreds in memory."""

BY_SIZE = "sizes-"
"""Begins the keys that were made without reading the files."""

DATA = (".npz", ".npy", ".arrow", ".mat", ".h5", ".hdf5", ".pkl", ".pickle", ".bin", ".pt", ".pth", ".tfrecord", ".mdb")
"""How names of files end that hold many images at once."""

SAVE = "save its images and labels as image and label in an .npz file and give that"
"""What to do about images in a form that is not read."""

PACKED = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")

PICKLE = "a Python pickle"

SIGNATURES = (
    (b"PK", "a zip archive"),
    (b"\x1f\x8b", "compressed by gzip"),
    (b"BZh", "compressed by bzip2"),
    (b"\xfd7zXZ", "compressed by xz"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a rar archive"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd"),
    (b"\x93NUMPY", "a single numpy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"PAR1", "a parquet file"),
    (b"MATLAB", "a MATLAB file"),
    (b"ARROW1", "an arrow file"),
    (b"\xff\xff\xff\xff", "an arrow file"),
    (b"\x80", PICKLE),
    # Protocol 0 of a dictionary.
    (b"(dp", PICKLE),
    (b"<", "a web page"),
)


def split_of(word: str) -> str | None:
    """The split that a folder or an array of this name holds, or None."""
    return WORDS.get(word.lower())


def split_in(name: str) -> str | None:
    """The split that a file's name mentions, as train-00.tar or data-valid.tar do, or None.

    Raises:
        ValueError: it mentions two.
    """
    found = {WORDS[word] for word in re.split("[^a-z]+", name.lower()) if word in WORDS}
    if len(found) > 1:
        raise ValueError(f"The name of {name} speaks of {' and '.join(sorted(found))}; rename it to say one split.")
    return found.pop() if found else None


def by_split(where: str, splits: Mapping[str, Value], remedy: str) -> dict[str, Value]:
    """Train, validation and test among the splits of a source; a single one that is called otherwise is train.

    Args:
        where: the source, for the message.
        splits: by the source's own names.
        remedy: what to do where there are several, and none of them is called like a split.

    Raises:
        ValueError: they are called so.
    """
    named = {part: value for split, value in splits.items() if (part := split_of(split))}
    if not named and len(splits) == 1:
        return {"train": next(iter(splits.values()))}
    if not named:
        raise ValueError(
            f"{where} has the splits {', '.join(splits)}, of which none is called train, validation or test; {remedy}."
        )
    return {part: named[part] for part in SPLITS if part in named}


def refuse_gaps(paths: Iterable[Path]) -> None:
    """Refuse files whose names, like train-00000-of-00003, mention others that are not there.

    Raises:
        ValueError: one is missing; names it.
    """
    found: dict[tuple[Path, str, str], dict[int, str]] = {}
    for path in paths:
        if match := re.match(r"(.*?)(\d+)-of-(\d+)", path.name):
            found.setdefault((path.parent, match[1], match[3]), {})[int(match[2])] = match[2]
    for (folder, start, total), numbers in found.items():
        # Counted from 0 as the Hub does, or from 1.
        first = 1 if 0 not in numbers and int(total) in numbers else 0
        for number in range(first, first + int(total)):
            if number not in numbers:
                width = len(next(iter(numbers.values())))
                raise ValueError(
                    f"{folder} lacks {start}{number:0{width}}-of-{total}, one of the {int(total)} files that the names "
                    "of the others speak of; fetch it, or rename the others to do without."
                )


def harmless(name: str) -> bool:
    """Whether a file may lie among images without being one: hidden files, thumbnails, notes and tables."""
    hidden = name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini", "license", "readme")
    return hidden or name.lower().endswith(HARMLESS)


def visible(folder: Path) -> list[Path]:
    """What lies in a folder and is neither hidden nor harmless, sorted by name as text."""

    def skipped(path: Path) -> bool:
        return path.name.startswith(".") or path.name == "__MACOSX" if path.is_dir() else harmless(path.name)

    try:
        return sorted(path for path in folder.iterdir() if not skipped(path))
    except OSError as error:
        raise unreadable(folder, error) from error


def no_image(path: Path) -> ValueError:
    """The sentence for a file that lies among images and is none."""
    kind, name = what_it_is(path), path.name.lower()
    if name.endswith(PACKED):
        return ValueError(
            f"{path} is {kind}, not an image; unpack it and give the folder that comes of it, or, where that is done, "
            "take it away."
        )
    if name.endswith((*DATA, "-ubyte")):
        remedy = f"give {path} itself" if name.endswith((".npz", ".arrow")) else SAVE
        return ValueError(f"{path} is no image but holds data; {remedy}, or take it away where it is not wanted.")
    return ValueError(f"{path} is no image ({', '.join(IMAGES[:4])}, ...); take it out of the folder.")


def open_image(content: bytes | memoryview) -> Image.Image:
    """An encoded image with its header read. It is not turned as its EXIF data may ask, as ImageNet training never did.

    Raises:
        OSError, SyntaxError, ValueError and others: see `toughen.data.lazy_split.BROKEN`.
    """
    image = Image.open(io.BytesIO(content), formats=FORMATS)
    # Pillow itself only warns of these, and refuses twice as many.
    if image.width * image.height > PIXELS:
        raise Image.DecompressionBombError(f"more than {PIXELS:,} pixels")
    return image


def files_keys(files: Mapping[str, Path], *others: object) -> tuple[str, dict[str, str]]:
    """SHA-256 (hex) that tells a source from all others, of the files' names and bytes; and the same of each part.

    Of 1 GiB and more the names and sizes enter instead of the bytes, because nobody waits for that; such keys begin
    with `BY_SIZE`.

    Args:
        files: by the name that enters the key; what is before its first slash is the part.
        others: what else makes a difference, by its `repr`.

    Raises:
        ValueError: a file cannot be read.
    """
    paths = list(files.values())
    # Threads, because on a file server each answer is waited for.
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(_size, paths))
        large = sum(sizes) >= LARGE
        marks: Iterable[object] = sizes if large else pool.map(hash_file, paths)
        texts = ((name.partition("/")[0], f"{name!r}:{mark};") for name, mark in zip(files, marks, strict=True))
        return hash_texts(texts, BY_SIZE if large else "", repr(others))


def hash_texts(texts: Iterable[tuple[str, str]], prefix: str = "", start: str = "") -> tuple[str, dict[str, str]]:
    """SHA-256 (hex, after a prefix) of some texts, each of which comes with its part; and the same of each part."""
    whole, parts = hashlib.sha256(start.encode()), {}
    for part, text in texts:
        for digest in (whole, parts.setdefault(part, hashlib.sha256(start.encode()))):
            digest.update(text.encode())
    return prefix + whole.hexdigest(), {part: prefix + digest.hexdigest() for part, digest in parts.items()}


def unreadable(path: Path, error: OSError) -> ValueError:
    """The sentence for a file that is there by name and cannot be read."""
    link = path.is_symlink() and not path.exists()
    reason = "is a link to what is not there" if link else f"cannot be read ({type(error).__name__})"
    return ValueError(f"{path} {reason}; restore or remove it.")


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an uncompressed .npz file without pickles, whole or not at all.

    Raises:
        OSError: the disk is full, or the folder is missing or may not be written.
    """

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    replace_by(path, write)


def what_it_is(path: Path) -> str:
    """What a file seems to be by its first bytes, for messages: "a zip archive", or "no known kind of file"."""
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise unreadable(path, error) from error
    if not start:
        return "empty"
    if start[257:262] == b"ustar":
        return "a tar archive"
    return next((kind for sign, kind in SIGNATURES if start.lstrip().startswith(sign)), "of no known kind")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise unreadable(path, error) from error
