"""The files of an extra set: images, labels and what was left out, as parquet that the Hub's tools read.

    rows = Chosen(index, set, label, score, distance, probabilities=None)
    for number in range(shard_count(len(rows), shape)):
        write_shard(out, number, pool, rows, names)                # train-00000-of-00003.parquet

`train-*` has an image column (PNG) and a column of class indices with the classes' names, which is all that a reader of
the Hub's layout needs; beside them stand where in the pool an image was, its score and its distance from the test set.
The bytes of a file are a pure function of what goes in (and of the versions of Pillow and pyarrow).
"""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from toughen.data.pseudo_labelling.duplicates import Pool
from toughen.storage import files

SHARD_BYTES = 2**27
"""Most pixels of a shard, so that a file is some tens of megabytes."""

SHARD_ROWS = 50_000

_GROUP_BYTES = 2**24

DUPLICATES = "duplicates.parquet"
PERCEPTUAL = "perceptual.parquet"


@dataclass(frozen=True, eq=False)
class Chosen:
    """What is written of the chosen images, in the order of the rows.

    Args:
        index: (M,) int64, positions in the pool.
        set: (M,) int64, the size of the smallest set that holds each.
        label: (M,) int64, class indices.
        score: (M,) float64, the scorer's probability of the class that it predicts.
        distance: (M,) float64, L2 distance to the nearest test image, pixels in [0, 1].
        probabilities: (M, K) float32, the soft labels, or None.
    """

    index: np.ndarray
    set: np.ndarray
    label: np.ndarray
    score: np.ndarray
    distance: np.ndarray
    probabilities: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.index)


def shard_rows(shape: Sequence[int]) -> int:
    """How many images of shape (C, H, W) go into a file."""
    return max(1, min(SHARD_ROWS, SHARD_BYTES // int(np.prod(shape))))


def shard_names(rows: int, shape: Sequence[int]) -> list[str]:
    """The names of the files of so many images."""
    count = -(-rows // shard_rows(shape))
    return [f"train-{number:05d}-of-{count:05d}.parquet" for number in range(count)]


def write_shard(path: Path, pool: Pool, rows: Chosen, names: Sequence[str]) -> None:
    """Write some images and what is known of them, a few megabytes at a time, whole or not at all.

    Raises:
        OSError: the disk is full or the folder may not be written.
    """
    import torch
    from datasets import ClassLabel, Features, List, Value
    from datasets import Image as ImageFeature

    kinds: dict[str, Any] = {"image": ImageFeature(), "label": ClassLabel(names=list(names))}
    columns = {"label": rows.label}
    if rows.probabilities is not None:
        kinds["probabilities"] = List(Value("float32"))
    for name, dtype in (("score", "float64"), ("pool_index", "int64"), ("distance", "float64"), ("set", "int64")):
        kinds[name] = Value(dtype)
        columns[name] = rows.index if name == "pool_index" else getattr(rows, name)
    schema = Features(kinds).arrow_schema

    def write(temporary: Path) -> None:
        with pq.ParquetWriter(temporary, schema) as writer:
            for start in range(0, len(rows), size):
                part = slice(start, start + size)
                images = pool.take(torch.from_numpy(rows.index[part])).images
                arrays: dict[str, Any] = {"image": [{"bytes": png(image), "path": None} for image in images.numpy()]}
                arrays |= {name: column[part] for name, column in columns.items()}
                if rows.probabilities is not None:
                    arrays["probabilities"] = rows.probabilities[part].tolist()
                writer.write_table(pa.table({name: arrays[name] for name in kinds}, schema=schema))

    size = max(1, _GROUP_BYTES // int(np.prod(pool.take(torch.from_numpy(rows.index[:1])).images.shape[1:])))
    files.replace_by(path, write)


def png(image: np.ndarray) -> bytes:
    """An image (C, H, W) uint8, C 1 or 3, as a PNG file: lossless, and the same bytes each time."""
    pixels = np.ascontiguousarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_columns(path: Path, **columns: np.ndarray) -> None:
    """Write a table of plain columns, whole or not at all."""
    table = pa.table(dict(columns))
    files.replace_by(path, lambda temporary: pq.write_table(table, temporary))


def read_labels(path: Path) -> np.ndarray:
    """The class indices of a shard, (n,) int64."""
    return pq.read_table(path, columns=["label"]).column("label").to_numpy()


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """What was found of a chunk of the pool, as `write_npz` wrote it.

    Raises:
        Damaged: the file is not what was written.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return dict(stored)
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise files.Damaged(path.parent, f"{path.name}: {type(error).__name__}; delete this file") from error
