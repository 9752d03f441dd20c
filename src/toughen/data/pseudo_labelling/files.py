"""The files of an extra set: images, labels and what was left out, as parquet that the Hub's tools read.

    for name in shard_names(len(label), shape):                    # train-00000-of-00003.parquet, ...
        write_shard(out / name, pool, {"label": label, "score": score, "pool_index": index}, classes)

`train-*` has an image column (PNG) and a column of class indices with the classes' names, which is all that a reader of
the Hub's layout needs; beside them are where in the pool an image was, its score and its distance from the test set.
The bytes of a file are a pure function of what goes in (and of the versions of Pillow and pyarrow).
"""

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

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


def shard_rows(shape: Sequence[int]) -> int:
    """How many images of shape (C, H, W) go into a file."""
    return max(1, min(SHARD_ROWS, SHARD_BYTES // int(np.prod(shape))))


def shard_names(rows: int, shape: Sequence[int]) -> list[str]:
    """The names of the files of so many images."""
    count = -(-rows // shard_rows(shape))
    return [f"train-{number:05d}-of-{count:05d}.parquet" for number in range(count)]


def write_shard(path: Path, pool: Pool, columns: Mapping[str, np.ndarray], names: Sequence[str]) -> None:
    """Write some images and what is known of them, a few megabytes at a time, whole or not at all.

    Args:
        path: the file.
        pool: where the images come from.
        columns: in the file's order, M rows each: `label` int64, class indices; perhaps `probabilities` (M, K) float32;
            and numbers, of which `pool_index` int64 says where in the pool an image is.
        names: of the classes.

    Raises:
        OSError: the disk is full or the folder may not be written.
    """
    import torch
    from datasets import ClassLabel, Features, List, Value
    from datasets import Image as ImageFeature

    special = {"label": ClassLabel(names=list(names)), "probabilities": List(Value("float32"))}
    kinds = {name: special.get(name, Value(str(column.dtype))) for name, column in columns.items()}
    schema = Features({"image": ImageFeature(), **kinds}).arrow_schema
    index = torch.from_numpy(columns["pool_index"])
    size = max(1, _GROUP_BYTES // pool.take(index[:1]).images.numel())

    def write(temporary: Path) -> None:
        with pq.ParquetWriter(temporary, schema) as writer:
            for start in range(0, len(index), size):
                part = slice(start, start + size)
                images = [{"bytes": png(image), "path": None} for image in pool.take(index[part]).images.numpy()]
                cells = {name: [*column[part]] if column.ndim > 1 else column[part] for name, column in columns.items()}
                writer.write_table(pa.table({"image": images, **cells}, schema=schema))

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
