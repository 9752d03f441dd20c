"""Extra sets in .npz files and shards, and batches that mix them in."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toughen.data import Batch, Batches, LazySplit, Split, load_extra
from toughen.data.loading.batches import Extra
from toughen.progress import Notice

N = 90
RNG = np.random.default_rng(1)
IMAGES = RNG.integers(0, 256, (N, 8, 6, 3), dtype=np.uint8)
LABELS = RNG.integers(0, 5, N)
SOFT = RNG.dirichlet(np.ones(5), N).astype(np.float32)
SHAPE = (3, 8, 6)
TRAIN = Split(
    torch.randint(0, 256, (40, *SHAPE), generator=torch.Generator().manual_seed(0)).byte(), torch.arange(40) % 5
)


def extra(source: str | Sequence[str], **changes: Any) -> Split | LazySplit:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        return load_extra(source, **{"shape": SHAPE, "classes": 5, **changes})


def batches(examples: Split | LazySplit, **changes: Any) -> Batches:
    settings = {"batch_size": 16, "seed": 0, "device": "cpu", "pad": 1, "flip": True, "classes": 5, "workers": 0}
    return Batches(TRAIN, torch.arange(40), extra=Extra(examples, 40, 0.25), **{**settings, **changes})


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("x", "y", "index", "extra"))


def shards(
    folder: Path, save: Callable[..., None] = np.savez, name: str = "gen-{:05d}.npz", first: int = 0, **labels: Any
) -> Path:
    """Four files of different lengths."""
    folder.mkdir(exist_ok=True)
    for number, rows in enumerate(np.split(np.arange(N), (13, 50, 51)), first):
        save(folder / name.format(number), image=IMAGES[rows], **{key: value[rows] for key, value in labels.items()})
    return folder


def stored(path: Path, images: np.ndarray, save: Callable[..., None] = np.savez, **labels: Any) -> str:
    save(path, image=images, **(labels or {"label": LABELS}))
    return str(path)


RECIPE: dict[str, Any] = {
    "data": {"source": "tiny", "validation": 22, "workers": 0},
    "model": {"name": "small_cnn", "width": 2},
    "method": "natural",
    "threat": "linf:0.1",
    "batch_size": 32,
    "steps": 6,
    "selection": {"suite": "pgd-1", "every": 6},
    "save_every": 4,
}
