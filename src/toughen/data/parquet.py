"""Images and labels from parquet files in the format of the Hugging Face Hub, decoded to uint8.

The files are read with pyarrow; what the columns mean (which one is the image, what the classes are called) is read
from their schema by HF `datasets`. Nothing is left behind but the decoded copy in the cache, whose key is the SHA-256
of the source files' bytes.

    data = load_folder(Path("downloads/cifar10"))        # train-*.parquet, test-*.parquet
    data.train.images.shape                              # (50000, 3, 32, 32)
"""

import hashlib
import io
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from toughen.data import cache
from toughen.data.base import ImageData

PARTS = ("train", "validation", "test")
LABELS = ("label", "labels", "fine_label")
CHANNELS = {"L": 1, "RGB": 3}

Table = tuple[Mapping[str, Any], pa.Table]
"""What HF `datasets` says of each column, and the columns."""


def load_folder(folder: Path) -> ImageData:
    """The data set in a folder of train-*.parquet, test-*.parquet and perhaps validation-*.parquet files.

    Several files of a split are joined in the order of their names. The data set is called like the folder.

    Args:
        folder: where the files are.

    Returns:
        The decoded data, from the cache where the same files were decoded before.

    Raises:
        ValueError: the folder or a split is missing, or the files do not hold images and labels.
    """
    files = split_files(folder)
    path = cache.entry("parquet", source_key(files))
    name = folder.resolve().name
    return cache.read(path, name) or cache.write(path, decode(name, read_tables(files)))


def split_files(folder: Path) -> dict[str, list[Path]]:
    """The parquet files of each split, sorted by name.

    Raises:
        ValueError: there is no such folder, or it holds no training or no test files.
    """
    if not folder.is_dir():
        raise ValueError(f"The folder {folder} does not exist; give a folder that holds train-*.parquet files.")
    files = {part: sorted(folder.glob(f"{part}-*.parquet")) for part in PARTS}
    for part in ("train", "test"):
        if not files[part]:
            raise ValueError(
                f"The folder {folder} holds no {part}-*.parquet; give one with train-*.parquet and test-*.parquet."
            )
    return {part: paths for part, paths in files.items() if paths}


def source_key(files: dict[str, list[Path]]) -> str:
    """SHA-256 (hex) of the files' bytes, split by split in the order of reading."""
    digest = hashlib.sha256()
    for part, paths in files.items():
        for path in paths:
            with path.open("rb") as file:
                digest.update(f"{part}:{hashlib.file_digest(file, 'sha256').hexdigest()};".encode())
    return digest.hexdigest()


def read_tables(files: dict[str, list[Path]]) -> dict[str, Table]:
    """The files' columns and what they mean, by split.

    Raises:
        ValueError: a file is no parquet file, or files of one split have different columns.
    """
    import datasets

    tables = {}
    for part, paths in files.items():
        read = []
        for path in paths:
            try:
                read.append(pq.ParquetFile(path).read())
            except (pa.ArrowException, OSError) as error:
                raise ValueError(
                    f"{path} cannot be read as parquet ({_brief(error)}); fetch the file again."
                ) from error
        try:
            joined = pa.concat_tables(read)
        except pa.ArrowException as error:
            raise ValueError(
                f"The {part}-*.parquet files in {paths[0].parent} differ in their columns; give files of one data set."
            ) from error
        tables[part] = (datasets.Features.from_arrow_schema(joined.schema), joined)
    return tables


def decode(name: str, tables: Mapping[str, Table]) -> ImageData:
    """Images and labels of each split, decoded.

    Args:
        name: what the data set is called.
        tables: by split ("train", "test" and perhaps "validation"), the columns' meaning and the columns.

    Returns:
        The data; classes are called as the label column's schema says, or by their numbers.

    Raises:
        ValueError: a split is missing or empty, columns cannot be told apart, or an example is not like the others.
    """
    arrays: dict[str, np.ndarray] = {}
    classes: tuple[str, ...] | None = None
    mode_and_size: tuple[str, tuple[int, int]] | None = None
    for part in ("train", "test"):
        if part not in tables or not len(tables[part][1]):
            raise ValueError(f"{name} holds no {part} images; give data with a train and a test split.")
    for part in PARTS:
        if part not in tables or not len(tables[part][1]):
            continue
        features, table = tables[part]
        where = f"the {part} split of {name}"
        image_column, label_column = find_columns(features, where)
        encoded = table.column(image_column)
        mode_and_size = mode_and_size or _first(encoded, where)
        arrays[f"{part}_images"] = _images(encoded, where, *mode_and_size)
        arrays[f"{part}_labels"] = _labels(table.column(label_column), where)
        names = getattr(features[label_column], "names", None)
        if names and classes and tuple(names) != classes:
            raise ValueError(
                f"The classes of {where} are called otherwise than in training; give one data set's files."
            )
        classes = classes or (tuple(names) if names else None)
    return cache.from_arrays(name, arrays, classes or _numbered(arrays["train_labels"], name))


def find_columns(features: Mapping[str, Any], where: str) -> tuple[str, str]:
    """The names of the image and the label column.

    The image column is the one of type Image, or of bytes and a path. The label column is the one of type ClassLabel,
    or else of integers; among several, the first called label, labels or fine_label.

    Raises:
        ValueError: there is no such column, or there are several that the names do not tell apart.
    """
    from datasets import ClassLabel, Value
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
    named = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
    integers = [
        column
        for column, feature in features.items()
        if isinstance(feature, Value) and feature.dtype.removeprefix("u").startswith("int")
    ]
    preferred = [column for column in LABELS if column in (named or integers)]
    if preferred or len(named) == 1:
        return images[0], (preferred or named)[0]
    raise ValueError(
        f"The columns of {where} ({', '.join(features)}) hold no single column of labels; "
        f"name the column of class indices one of {', '.join(LABELS)}."
    )


def _numbered(labels: np.ndarray, name: str) -> tuple[str, ...]:
    # A label beyond the number of images is a broken file, and would ask for that many names.
    if labels.max() >= len(labels):
        raise ValueError(
            f"Example {labels.argmax()} of the train split of {name} has label {labels.max()}, but "
            f"{len(labels)} images without class names allow 0 to {len(labels) - 1}; number the classes from 0 on."
        )
    return tuple(str(number) for number in range(int(labels.max()) + 1))


def _labels(column: pa.ChunkedArray, where: str) -> np.ndarray:
    if column.null_count:
        missing = column.is_null().to_numpy().argmax()
        raise ValueError(f"Example {missing} of {where} has no label; remove it or give it one.")
    if not pa.types.is_integer(column.type):
        raise ValueError(
            f"The labels of {where} are stored as {column.type}, but must be integers; store class indices."
        )
    return column.to_numpy().astype(np.int64)


def _first(encoded: pa.ChunkedArray, where: str) -> tuple[str, tuple[int, int]]:
    image = _open(next(_contents(encoded)), 0, where)
    if image.mode not in CHANNELS:
        raise ValueError(
            f"Example 0 of {where} is an image of mode {image.mode}, but only {' and '.join(CHANNELS)} are read; "
            "convert the images."
        )
    return image.mode, image.size


def _images(encoded: pa.ChunkedArray, where: str, mode: str, size: tuple[int, int]) -> np.ndarray:
    width, height = size
    images = np.empty((len(encoded), height, width, CHANNELS[mode]), np.uint8)
    # One thread: with two, the interpreter's lock costs more than Pillow's decoding outside it gains (measured).
    for number, content in enumerate(_contents(encoded)):
        image = _open(content, number, where)
        if (image.mode, image.size) != (mode, size):
            raise ValueError(
                f"Example {number} of {where} is {image.mode} of {image.size[0]}x{image.size[1]} pixels, but the first "
                f"training image is {mode} of {width}x{height}; bring all images to one mode and size."
            )
        images[number] = np.asarray(image).reshape(images.shape[1:])
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _contents(encoded: pa.ChunkedArray) -> Iterator[pa.Scalar]:
    """Each example's encoded bytes, not copied."""
    for chunk in encoded.chunks:
        yield from (
            chunk if pa.types.is_binary(chunk.type) or pa.types.is_large_binary(chunk.type) else chunk.field("bytes")
        )


def _open(content: pa.Scalar, number: int, where: str) -> Image.Image:
    buffer = content.as_buffer() if content.is_valid else None
    if not buffer:
        raise ValueError(f"Example {number} of {where} holds no image; give files that hold the images themselves.")
    try:
        image = Image.open(io.BytesIO(buffer))
        image.load()
    # What Pillow raises on broken images, format by format.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(
            f"Example {number} of {where} is a broken image ({_brief(error)}); remove or replace it."
        ) from error
    return image


def _brief(error: Exception) -> str:
    """An error's type alone: its text may be of several lines, or name an object in memory."""
    return type(error).__name__
