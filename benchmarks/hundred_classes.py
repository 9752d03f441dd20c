"""CIFAR-10 with 100 classes: each class in ten groups of similar colours and composition, found by k-means.

CIFAR-100 cannot be had everywhere; this has its number of classes and its number of images per class (on average), on
the same photographs. For benchmarks that need many classes, not for published figures.

    python benchmarks/hundred_classes.py ../shared/data/cifar10 OUT
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from toughen.data import load
from toughen.data.base import Examples
from toughen.noise import generator

GROUPS = 10


def features(split: Examples) -> Tensor:
    """4 x 4 thumbnails (N, 48)."""
    return F.adaptive_avg_pool2d(split.images.float() / 255, 4).flatten(1)


def centres(points: Tensor, key: int) -> Tensor:
    """k-means (Lloyd 1982) from random points, 50 rounds."""
    found = points[torch.randperm(len(points), generator=generator("groups", key))[:GROUPS]]
    for _ in range(50):
        nearest = torch.cdist(points, found).argmin(1)
        found = torch.stack([points[nearest == k].mean(0) if (nearest == k).any() else found[k] for k in range(GROUPS)])
    return found


def write(split: Examples, labels: Tensor, path: Path) -> None:
    """Parquet in the Hub's format, images as PNG."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    def png(image: Tensor) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, format="PNG")
        return buffer.getvalue()

    images = [{"bytes": png(image), "path": None} for image in split.images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"img": pa.array(images, kind), "label": pa.array(labels.tolist(), pa.int64())})
    pq.write_table(table, path)


def main() -> None:
    """Group, and write both splits."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", help="a folder of CIFAR-10 parquet files")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    data = load(arguments.source)
    arguments.out.mkdir(parents=True, exist_ok=True)
    train, test = features(data.train), features(data.test)
    of_train, of_test = data.train.labels * GROUPS, data.test.labels * GROUPS
    for label in range(len(data.classes)):
        found = centres(train[data.train.labels == label], label)
        for points, split, labels in ((train, data.train, of_train), (test, data.test, of_test)):
            rows = split.labels == label
            labels[rows] += torch.cdist(points[rows], found).argmin(1)
    write(data.train, of_train, arguments.out / "train-00000-of-00001.parquet")
    write(data.test, of_test, arguments.out / "test-00000-of-00001.parquet")


if __name__ == "__main__":
    main()
