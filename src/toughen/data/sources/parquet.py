"""Images and labels in parquet files in the format of the Hugging Face Hub.

The files are read with pyarrow; what the columns mean (which one is the image, what the classes are called) is read
from their schema by HF `datasets`. Files of 1 GiB and more are written once more as arrow files in the cache, which can
be read from anywhere in the middle. (The builder of `datasets` copies every set into its own cache, and neither it nor
`pyarrow.dataset` bounds the rows that a header claims.)

    data = load_folder(Path("downloads/cifar10"))        # train-*.parquet, test-*.parquet
    data.train.images.shape                              # (50000, 3, 32, 32)
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from toughen.data import cache
from toughen.data.base import ImageData
from toughen.data.crops import ResizeCrop
from toughen.data.decode import assemble
from toughen.data.files import (
    BY_SIZE,
    LARGE,
    SPLITS,
    hash_file,
    hash_texts,
    refuse_gaps,
    split_in,
    split_of,
    what_it_is,
)
from toughen.data.image_source import Collection, RawDataset
from toughen.data.sources.arrow import TableImages, map_tables
from toughen.data.sources.image_folder import holds_images_within
from toughen.storage.files import replace_by

PROBABILITIES = "probabilities"
LABELS = ("label", "labels", "fine_label")

Table = pa.Table | tuple[str, ...]
"""A table, or the arrow files that hold it."""


def load_folder(folder: Path, view: ResizeCrop | None = None) -> ImageData:
    """The data set in a folder of train-*.parquet and perhaps test-*.parquet and validation-*.parquet files.

    Several files of a split are joined in the order of their names. The data set is called like the folder. Files that
    name no split are all training. What is the test split without test-*.parquet says `toughen.data.decode`.

    Args:
        folder: where the files are, or where its folder `data` is that has them; or one file.
        view: what images are made into; None takes them as they are.

    Returns:
        The data, with nothing set aside; decoded, from the cache where the same files were decoded before.

    Raises:
        ValueError: the folder is missing, or the files do not hold images and labels.
    """
    files, name = split_files(folder), _name(folder)
    key, keys = source_keys(files)
    path = cache.entry("parquet", key)
    if view is None and (data := cache.read(path, name)) is not None:
        return data
    found = read_tables(name, _opened(files, key), key, keys)
    return assemble(found, view) if view else cache.write(path, assemble(found))


def find_parquet(folder: Path, *, unlabelled: bool = False) -> RawDataset:
    """What the parquet files of a folder hold, or one of them.

    Args:
        folder: as for `load_folder`.
        unlabelled: whether a column of labels may be missing; they are -1 then.

    Raises:
        ValueError: the folder is missing, or the files do not hold images and labels.
    """
    files = split_files(folder)
    key, keys = source_keys(files)
    return read_tables(_name(folder), _opened(files, key), key, keys, unlabelled=unlabelled)


def split_files(folder: Path) -> dict[str, list[Path]]:
    """The parquet files of each split, sorted by name; or a single file, by the split that its name mentions.

    Raises:
        ValueError: a split lacks files that the names of the others mention.
    """
    if folder.is_file():
        return {split_in(folder.stem) or "train": [folder]}
    place = _place(folder)
    paths = sorted(place.glob("*.parquet"))
    files = {part: [path for path in paths if split_in(path.stem) == part] for part in SPLITS}
    for path in sorted(path for path in place.iterdir() if path.is_dir()):
        if part := split_of(path.name):
            files[part] += sorted(path.glob("*.parquet"))
    if not any(files.values()):
        files["train"] = paths
    refuse_gaps(path for paths in files.values() for path in paths)
    return {part: paths for part, paths in files.items() if paths}


def holds_parquet(folder: Path) -> bool:
    """Whether a folder has parquet files, itself, in its folder `data`, or in folders that are called like splits.

    Where there are images too, only files whose names say train, test or the like count: others are notes on them.
    """
    place = _place(folder)
    inside = [path for path in place.iterdir() if path.is_dir() and split_of(path.name)]
    files = [file for path in (place, *inside) for file in path.glob("*.parquet")]
    return bool(files) and (any(split_in(file.stem) for file in files) or not holds_images_within(folder))


def source_keys(files: dict[str, list[Path]]) -> tuple[str, dict[str, str]]:
    """SHA-256 (hex) of the files' bytes, split by split in the order of reading; and the same of each split.

    Of 1 GiB and more the names and sizes enter instead of the bytes (see `files.files_keys`).
    """
    large = _large(files)
    pairs = [(part, path) for part, paths in files.items() for path in paths]
    marks = ((path.name, path.stat().st_size) if large else hash_file(path) for _, path in pairs)
    texts = ((part, f"{part}:{mark};") for (part, _), mark in zip(pairs, marks, strict=True))
    return hash_texts(texts, BY_SIZE if large else "")


def read_tables(
    name: str,
    tables: Mapping[str, Table],
    key: str,
    keys: Mapping[str, str] | None = None,
    *,
    unlabelled: bool = False,
) -> RawDataset:
    """What some tables hold.

    Args:
        name: what the data set is called.
        tables: by split.
        key: what tells them from all others.
        keys: by split, what tells each from all others, where that is known split by split.
        unlabelled: whether a column of labels may be missing.

    Returns:
        The data set; its classes are called as the label column's schema says, or by their numbers.

    Raises:
        ValueError: columns cannot be told apart, or parts differ in their classes.
    """
    from datasets import Features

    parts: dict[str, Collection] = {}
    classes: tuple[str, ...] = ()
    for part, held in tables.items():
        table = map_tables(held) if isinstance(held, tuple) else held
        if part != "train" and not len(table):
            continue
        where = f"the {part} split of {name}"
        features = Features.from_arrow_schema(table.schema)
        image_column = find_image(features, where)
        label_column = find_label(features, where, unlabelled=unlabelled)
        images = TableImages(held if isinstance(held, tuple) else table.select([image_column]), image_column, where)
        parts[part] = Collection(images, _labels(table, label_column, where), (keys or {}).get(part, ""))
        named = (getattr(features.get(column), "names", None) for column in (label_column, *LABELS))
        names = tuple(next(filter(None, named), ()))
        if names and classes and names != classes:
            raise ValueError(
                f"The classes of {where} are called otherwise than in training; give one data set's files."
            )
        classes = classes or names
    return RawDataset(name, parts, classes, key)


def find_image(features: Mapping[str, Any], where: str) -> str:
    """The name of the column of type Image, or of bytes and a path.

    Raises:
        ValueError: there is none, or there are several.
    """
    from datasets import Image as ImageFeature

    images = [
        column
        for column, feature in features.items()
        if isinstance(feature, ImageFeature) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})
    ]
    if len(images) != 1:
        raise ValueError(
            f"The columns of {where} ({', '.join(features)}) hold {len(images)} columns of images; give files with one."
        )
    return images[0]


def find_label(features: Mapping[str, Any], where: str, *, unlabelled: bool = False) -> str:
    """The name of the column of probabilities, or of type ClassLabel, or of integers.

    Probabilities are lists of floats in a column `probabilities`. Among several others it is the first called label,
    labels or fine_label; "" where there is none and `unlabelled` allows it.

    Raises:
        ValueError: there is no such column, or there are several that the names do not tell apart.
    """
    from datasets import ClassLabel, Value

    if unlabelled and PROBABILITIES in features:
        return PROBABILITIES
    named = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
    integers = [
        column
        for column, feature in features.items()
        if isinstance(feature, Value) and feature.dtype.removeprefix("u").startswith("int")
    ]
    preferred = [column for column in LABELS if column in (named or integers)]
    if preferred or len(named) == 1:
        return (preferred or named)[0]
    if unlabelled and not named and not integers:
        return ""
    if strange := next((column for column in LABELS if column in features), ""):
        kind = getattr(features[strange], "dtype", type(features[strange]).__name__)
        raise ValueError(
            f"The column {strange} of {where} is of type {kind}, but labels must be integers or ClassLabel; number the "
            "classes from 0 on and store that."
        )
    raise ValueError(
        f"The columns of {where} ({', '.join(features)}) hold no single column of labels; "
        f"name the column of class indices one of {', '.join(LABELS)}."
    )


def _labels(table: pa.Table, name: str, where: str) -> np.ndarray:
    if not name:
        return np.full(len(table), -1)
    column = table.column(name)
    if column.null_count:
        missing = column.is_null().to_numpy().argmax()
        raise ValueError(f"Example {missing} of {where} has no label; remove it or give it one.")
    if name == PROBABILITIES:
        rows = column.to_pylist()
        if len({len(row) for row in rows}) > 1:
            raise ValueError(f"The probabilities of {where} differ in number; give every example one for each class.")
        return np.array(rows, np.float32).reshape(len(rows), -1)
    if not pa.types.is_integer(column.type):
        raise ValueError(
            f"The labels of {where} are stored as {column.type}, but must be integers; store class indices."
        )
    return column.to_numpy().astype(np.int64)


def _name(path: Path) -> str:
    return path.stem if path.is_file() else path.resolve().name


def _place(folder: Path) -> Path:
    inside = folder / "data"
    return inside if inside.is_dir() and not any(folder.glob("*.parquet")) and any(inside.glob("*.parquet")) else folder


def _large(files: dict[str, list[Path]]) -> bool:
    return sum(path.stat().st_size for paths in files.values() for path in paths) >= LARGE


def _row_groups(path: Path) -> Iterator[pa.Table]:
    """A file's rows, part by part: first none of them, for the columns."""
    try:
        with pq.ParquetFile(path) as file:
            # An image has a byte at least. What is said once for all rows takes none, and fills the memory.
            if (rows := file.metadata.num_rows) > path.stat().st_size:
                raise ValueError(f"{path} claims {rows:,} examples and has fewer bytes; fetch the file again.")
            yield file.schema_arrow.empty_table()
            for number in range(file.num_row_groups):
                yield file.read_row_group(number)
    except (pa.ArrowException, OSError) as error:
        kind = what_it_is(path)
        seems = "" if kind in ("a parquet file", "of no known kind") else f"; it is {kind}"
        raise ValueError(
            f"{path} cannot be read as parquet ({type(error).__name__}){seems}; fetch the file again."
        ) from error


def _unlike(part: str, paths: list[Path]) -> ValueError:
    return ValueError(
        f"The {part}-*.parquet files in {paths[0].parent} differ in their columns; give files of one data set."
    )


def _opened(files: dict[str, list[Path]], key: str) -> Mapping[str, Table]:
    """The files' tables: in memory, or in arrow files if they are large."""
    if _large(files):
        return {part: (str(_as_arrow(part, paths, key)),) for part, paths in files.items()}
    return {part: _joined(part, paths) for part, paths in files.items()}


def _joined(part: str, paths: list[Path]) -> pa.Table:
    groups = [group for path in paths for group in _row_groups(path)]
    try:
        return pa.concat_tables(groups)
    except pa.ArrowException as error:
        raise _unlike(part, paths) from error


def _as_arrow(part: str, paths: list[Path], key: str) -> Path:
    """The arrow file in the cache with the rows of some parquet files."""
    arrow = cache.entry(f"arrow-{part}", key).with_suffix(".arrow")

    def write(temporary: Path) -> None:
        groups = (group for path in paths for group in _row_groups(path))
        schema = next(groups).schema
        with pa.ipc.new_stream(str(temporary), schema) as writer:
            for group in groups:
                if group.schema != schema:
                    raise _unlike(part, paths)
                writer.write_table(group)

    if not arrow.exists():
        arrow.parent.mkdir(parents=True, exist_ok=True)
        replace_by(arrow, write)
    return arrow
