"""Images with a table of their labels beside them: labels.csv, train.csv and test.csv, val_annotations.txt, val.txt.

    pets/labels.csv                                          # filename,label
    pets/images/1.jpg  pets/images/2.jpg  ...                # anywhere in the folder of the table

A table is comma-, semicolon- or tab-separated text with a line of headers; one without, like Tiny ImageNet's
val_annotations.txt or a val.txt of `name label`, begins with an image and its label. One column names the images, by
path or name and with or without the ending; one has their labels, class indices or names, which are then numbered in
the order of the names as text; one may say which split an image is of. They are found by what they are called and by
what they hold. Without a column of splits the table's name says the split, or else the folders that the images lie in;
where neither does, the table is all there is. Images that no table names are left aside.

    found = find_table(Path("pets"))
"""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
from pyarrow.csv import ConvertOptions, ParseOptions, ReadOptions, read_csv

from toughen.data.files import IMAGES, LARGE, SPLITS, files_keys, split_of, unreadable
from toughen.data.image_source import Collection, RawDataset
from toughen.data.sources.image_files import FileImages, images_in

ENDINGS = (".csv", ".tsv", ".txt")


def plain(name: str) -> str:
    """A header without what its spellings differ in: "Image_IDs" is "imageid"."""
    return re.sub(r"[^a-z]", "", name.lower()).removesuffix("s")


FILES = (
    *("filename", "file", "filepath", "path", "image", "imagefilename", "imagefile", "imagepath", "imagename"),
    *("imageid", "img", "imgpath", "imgname", "fname", "name", "relpath", "id", "fileid", "idcode"),
)
"""What columns of images are called, most telling first."""

LABELS = tuple(
    plain(name)
    for name in (
        *("label", "class", "target", "category", "y", "label_name", "class_name", "label_id", "class_id", "label_idx"),
        *("class_idx", "label_index", "class_index", "category_id", "target_class", "fine_label", "ground_truth", "gt"),
        *("species", "breed", "digit", "diagnosis", "dx", "prediction_string"),
    )
)
"""What columns of labels are called, most telling first."""

PARTS = ("split", "subset", "partition", "set", "dataset", "phase")
"""What columns of splits are called; the first three are never called so for anything else."""

HEADER = 2**20
"""Bytes within which the first line ends."""

TRIED = 64
"""Rows that show which column names images."""

WHOLE = re.compile(r"[+-]?\d{1,15}(\.0*)?")
"""A class index; of more digits it is a name, such as the number of a patient."""

MOST_COLUMNS = 1000


@dataclass(frozen=True)
class LabelledFile:
    """A row of a table.

    Attributes:
        part: the split; "" where nothing says it.
        file: the image's path in the folder.
        label: the cell; "" where there is none.
        where: the row, for messages.
    """

    part: str
    file: str
    label: str
    where: str


class ImageIndex:
    """The images in a folder, to be found by what a table calls them.

    Args:
        folder: where they all are.
    """

    def __init__(self, folder: Path) -> None:
        self.files = frozenset(images_in(folder, folder, strict=False))
        self._named: dict[str, list[str]] = {}
        for file in sorted(self.files):
            name = PurePosixPath(file).name
            for key in {name, _without_ending(name)}:
                self._named.setdefault(key, []).append(file)

    def find(self, called: str, part: str = "", below: str = "") -> list[str]:
        """The images that a text may mean: one, none, or several that it does not tell apart.

        Args:
            called: a path or a name, with or without its ending.
            part: of several, those in a folder that is called like this split.
            below: of several, those in this folder.
        """
        path = called.strip().replace("\\", "/").removeprefix("./")
        if path in self.files:
            return [path]
        name = PurePosixPath(path).name
        stem = f"/{_without_ending(path)}"
        # A path may begin above the folder or below it, and must not contradict where an image lies.
        found = [
            file
            for file in self._named.get(name) or self._named.get(_without_ending(name)) or ()
            if (lies := f"/{_without_ending(file)}").endswith(stem) or stem.endswith(lies)
        ]
        if below and len(found) > 1:
            found = [file for file in found if file.startswith(f"{below}/")] or found
        if part and len(found) > 1:
            found = [file for file in found if part in map(split_said, PurePosixPath(file).parts[:-1])] or found
        return found


def holds_table(folder: Path) -> bool:
    """Whether a folder, or one in it, has a table that names images in the folder with their labels."""
    return bool(tables_in(folder)) and next(read_rows(folder), None) is not None


def is_table(path: Path) -> bool:
    """Whether a file is called like a table."""
    return path.name.lower().endswith(ENDINGS)


def find_table(path: Path, *, unlabelled: bool = False) -> RawDataset:
    """The images in a folder that its tables name, with their labels.

    Args:
        path: the folder; or one table, for the images in its folder.
        unlabelled: whether labels may be missing; they are -1 then.

    Raises:
        ValueError: a table names an image that is not there, or one twice, or has no label for it; says which line.
    """
    folder = path if path.is_dir() else path.parent
    rows = list(read_rows(folder, [path] if path.is_file() else tables_in(folder)))
    if not rows:
        raise ValueError(
            f"{path} has no column that names images in {folder} and one of their labels; write a first line like "
            "filename,label above the file names and the class indices or names."
        )
    classes = _check(rows, unlabelled)
    inside = {part: [row for row in rows if (row.part or "train") == part] for part in SPLITS}
    files = {f"{part}/{row.file}": folder / row.file for part, of_part in inside.items() for row in of_part}
    numbers = {
        part: np.array([_number(row.label, classes) for row in of_part], np.int64) for part, of_part in inside.items()
    }
    key, keys = files_keys(files, "table", classes, *(labels.tolist() for labels in numbers.values()))
    parts = {
        part: Collection(FileImages(str(folder), tuple(row.file for row in of_part)), numbers[part], keys[part])
        for part, of_part in inside.items()
        if of_part
    }
    every = ImageIndex(folder).files
    left = len(every) - len(rows)
    notes = (f"{left} of the {len(every)} images are not named in a table, and are left aside",) if left else ()
    return RawDataset(folder.resolve().name, parts, classes, key, notes)


def files_by_class(folder: Path, part: str, place: Path) -> dict[str, list[str]]:
    """By the class that a table in `folder` names, the paths in `place` of the images there, a split's folder in it."""
    start = f"{place.relative_to(folder).as_posix()}/"
    rows = [row for row in read_rows(folder) if row.file.startswith(start) and row.part in ("", part)]
    _check(rows, unlabelled=False)
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row.label, []).append(row.file.removeprefix(start))
    return {label: sorted(found[label]) for label in sorted(found)}


def read_rows(folder: Path, tables: Sequence[Path] | None = None) -> Iterator[LabelledFile]:
    """The rows of some tables in a folder, all by default, that name images in it with their labels.

    Raises:
        ValueError: a table cannot be read, or a row names no image or several; says which.
    """
    index = ImageIndex(folder)
    for path in tables_in(folder) if tables is None else tables:
        if path.suffix.lower() == ".txt" and not index.find(re.split(r"[,;\t ]", _first_line(path))[0]):
            continue
        cells = _read(path)
        if not cells or len(cells[0]) < 2:
            continue
        header, body = [plain(name) for name in cells[0]], cells[1:]
        file = next((number for number, cell in enumerate(cells[0]) if index.find(cell)), None)
        # An image may be called like a column.
        if file is not None and not {*header} & {*FILES, *LABELS}:
            label, split, body = (1 if file == 0 else 0), None, cells
        elif (file := _file_column(header, body, index)) is None:
            continue
        else:
            split = _split_column(path, header, body)
            label = _label_column(header, (file, split))
        if label is None:
            continue
        said = split_said(path.stem)
        below = "" if path.parent == folder else path.parent.relative_to(folder).as_posix()
        for number, row in enumerate(body, 1):
            where = f"Row {number} of {path}"
            part = said if split is None else split_of(row[split].strip()) or ""
            found = index.find(row[file], part, below)
            if len(found) != 1:
                raise ValueError(_unclear(where, row[file], found, folder))
            text = row[label].strip()
            text = text.partition(" ")[0] if header[label] == "predictionstring" else text
            above = _splits_above(found[0])
            yield LabelledFile(part or (above[0] if above else ""), found[0], text, where)


def split_said(name: str) -> str:
    """The split that the name of a table or folder says, as trainLabels.csv and val_images do; or ""."""
    words = re.split(r"[^a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())
    parts = {part for word in words if (part := split_of(word))}
    return parts.pop() if len(parts) == 1 else ""


def tables_in(folder: Path) -> list[Path]:
    """The tables in a folder and in the folders in it, but for templates of submissions."""
    places = [
        folder,
        *sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))),
    ]
    found = [path for place in places for path in sorted(place.iterdir()) if is_table(path) and path.is_file()]
    return [path for path in found if not path.name.startswith(".") and "submission" not in path.name.lower()]


def _first_line(path: Path) -> str:
    """What a file begins with, as text, whatever it is."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            return file.readline(HEADER)
    except OSError as error:
        raise unreadable(path, error) from error


def _read(path: Path) -> list[list[str]]:
    """The rows of a table, each of as many cells as the first, as text."""
    line = _first_line(path)
    try:
        if path.stat().st_size > LARGE or len(line) == HEADER:
            raise ValueError(f"{path} is too large for a table of labels; give a smaller one.")
        separator = max(",;\t " if path.suffix.lower() == ".txt" else ",;\t", key=line.count)
        columns = [f"f{number}" for number in range(len(next(csv.reader([line], delimiter=separator), [])))]
        if not columns:
            return []
        if len(columns) > MOST_COLUMNS:
            raise ValueError(
                f"{path} has {len(columns):,} columns, more than a table of labels; leave most of them out."
            )
        table = read_csv(
            path,
            ReadOptions(column_names=columns),
            ParseOptions(delimiter=separator, newlines_in_values=True),
            ConvertOptions(column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False),
        )
    except OSError as error:
        raise unreadable(path, error) from error
    except (pa.ArrowException, csv.Error) as error:
        reason = str(error).partition("\n")[0].rstrip(".").replace(". ", "; ")
        raise ValueError(f"{path} is no table of comma-separated text ({reason}); write it again as UTF-8.") from error
    return [list(row) for row in zip(*(column.to_pylist() for column in table.columns), strict=True)]


def _file_column(header: Sequence[str], body: Sequence[Sequence[str]], index: ImageIndex) -> int | None:
    """The column that names images: one that is called so, or else the one that does so most often."""
    some = body[:: max(1, len(body) // TRIED)]
    hits = [sum(bool(index.find(row[number])) for row in some) for number in range(len(header))]
    called = [header.index(name) for name in FILES if name in header and hits[header.index(name)]]
    others = [number for number, name in enumerate(header) if hits[number] and name not in LABELS]
    return called[0] if called else max(others, key=hits.__getitem__, default=None)


def _split_column(path: Path, header: Sequence[str], body: Sequence[Sequence[str]]) -> int | None:
    for number in (header.index(name) for name in PARTS if name in header):
        strange = next((row[number] for row in body if not split_of(row[number].strip())), None)
        if strange is None:
            return number
        if header[number] in PARTS[:3]:
            raise ValueError(f"The column {header[number]} of {path} says {strange!r}; write train, val or test there.")
    return None


def _label_column(header: Sequence[str], taken: Sequence[int | None]) -> int | None:
    """The column of labels: one that is called so, or else the only other one; a column without name numbers rows."""
    free = {name: number for number, name in enumerate(header) if number not in taken and name not in ("", "unnamed")}
    called = next((free[name] for name in LABELS if name in free), None)
    return next(iter(free.values())) if called is None and len(free) == 1 else called


def _unclear(where: str, called: str, found: Sequence[str], folder: Path) -> str:
    if not found:
        return f"{where} names {called!r}, but {folder} holds no such image; restore it, or take the row out."
    return f"{where} names {called!r}, which may be {found[0]} or {found[1]}; write its whole path."


def _check(rows: Sequence[LabelledFile], unlabelled: bool) -> tuple[str, ...]:
    """The classes' names; none where the labels are class indices.

    Raises:
        ValueError: an image is named twice, or has no label.
    """
    seen: dict[str, str] = {}
    for row in rows:
        if row.file in seen:
            raise ValueError(f"{row.where} names {row.file}, as {seen[row.file]} does already; leave one of them out.")
        seen[row.file] = row.where
        if not row.label and not unlabelled:
            raise ValueError(f"{row.where} gives {row.file} no label; write one, or take the row out.")
    names = {row.label for row in rows if row.label}
    return () if all(map(WHOLE.fullmatch, names)) else tuple(sorted(names))


def _number(label: str, classes: Sequence[str]) -> int:
    if not label:
        return -1
    return classes.index(label) if classes else int(float(label))


def _without_ending(name: str) -> str:
    """A file's path without the ending of an image."""
    stem, dot, ending = name.rpartition(".")
    return stem if f"{dot}{ending.lower()}" in IMAGES else name


def _splits_above(file: str) -> list[str]:
    """The splits that folders above a file are called like, outermost first."""
    return [part for name in PurePosixPath(file).parts[:-1] if (part := split_of(name))]
