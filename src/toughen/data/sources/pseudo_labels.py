"""Pseudo-labelled images in a pickle, as Carmon et al. 2019 gave out theirs: written once as an .npz file.

The file is a dictionary of `data`, uint8 images, and `extrapolated_targets`, a class for each (their release,
ti_500K_pseudo_labeled.pickle: 500,000 images of 32x32). It is read by the unpickler that knows arrays alone.

    import_pickle(Path("ti_500K_pseudo_labeled.pickle"), Path("500k.npz"))       # then data.extra=500k.npz
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from toughen.data.files import hash_file, write_npz
from toughen.data.sources.cifar_pickle import check_new_npz, read_pickle
from toughen.storage.limits import shown

LABELS = ("extrapolated_targets", "targets", "labels", "label")
"""What the labels may be called; Carmon et al.'s word first."""


def import_pickle(path: Path, out: Path) -> dict[str, int]:
    """Write pseudo-labelled images as an .npz file with `image`, `label` and, as JSON, `origin`.

    Args:
        path: the pickle: `data` (N, H, W, C), (N, C, H, W), (N, H, W), or (N, C H W) as CIFAR's rows are, square; the
            labels (N,) or (N, 1) whole numbers of any type, -1 for none, or (N, K) probabilities.
        out: the file to write, *.npz; it must not exist.

    Returns:
        Number of images by split.

    Raises:
        ValueError: the file is damaged, asks for more than arrays, or lacks images or labels; or `out` exists or has
            another ending.
        OSError: `out` cannot be written.
    """
    check_new_npz(out)
    found = read_pickle(path)
    if not {"batch_label", "filenames"}.isdisjoint(found):
        raise ValueError(f"{path} is one file of CIFAR's Python layout; give the folder that holds all of them.")
    key = next((name for name in LABELS if name in found), None)
    if "data" not in found or key is None:
        raise ValueError(
            f"{path} holds {shown(found) or 'nothing'}, but pseudo-labelled images are data and extrapolated_targets; "
            "give a file with both."
        )
    images, labels = _images(found["data"], path), _labels(found[key], key, path)
    if len(images) != len(labels):
        raise ValueError(f"{path} holds {len(images)} images and {len(labels)} labels; give one label an image.")
    origin = {"file": path.name, "sha256": hash_file(path), "labels": key, "images": len(images)}
    kind = "label" if labels.ndim == 1 else "probabilities"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_npz(out, {"image": images, kind: labels, "origin": np.array(json.dumps(origin))})
    return {"train": len(images)}


def _images(data: Any, path: Path) -> np.ndarray:
    """(N, H, W, C) uint8."""
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8:
        kind = data.dtype if isinstance(data, np.ndarray) else type(data).__name__
        raise ValueError(f"data in {path} is {kind}, but images must be uint8 in 0 to 255; convert them.")
    if not data.size:
        raise ValueError(f"{path} holds no images; give a file with some.")
    if data.ndim == 2 and (side := _side(data.shape[1])):
        data = data.reshape(len(data), -1, side, side)
    last, second = (data.ndim == 4 and data.shape[axis] in (1, 3) for axis in (-1, 1))
    if data.ndim == 3:
        return data[..., None]
    if last == second:
        raise ValueError(
            f"data in {path} is of shape {data.shape}, but must be (N, H, W, C), (N, C, H, W), (N, H, W), or rows of "
            "square images, with 1 or 3 channels; reshape it."
        )
    return data if last else data.transpose(0, 2, 3, 1)


def _side(numbers: int) -> int:
    """Of the square image that a row of so many numbers is, of one channel or three; 0 where it is none."""
    sides = (math.isqrt(numbers // channels) for channels in (1, 3))
    return next((side for side in sides if numbers and numbers in (side * side, 3 * side * side)), 0)


def _labels(given: Any, key: str, path: Path) -> np.ndarray:
    """(N,) int64 classes, or (N, K) float32 probabilities."""
    try:
        labels = np.asarray(given)
    except ValueError:
        # Lists of lists of unequal lengths.
        labels = np.empty(0, object)
    if labels.ndim == 2 and labels.shape[-1] == 1:
        labels = labels.reshape(-1)
    if labels.dtype.kind not in {1: "iuf", 2: "f"}.get(labels.ndim, ""):
        raise ValueError(
            f"{key} in {path} is {labels.dtype} of shape {labels.shape}, but must be a class for each image, or "
            "probabilities (N, K); convert it."
        )
    if labels.ndim == 2:
        return labels.astype(np.float32)
    with np.errstate(invalid="ignore"):
        classes = labels.astype(np.int64)
    if len(wrong := ((classes != labels) | (classes < -1)).nonzero()[0]):
        raise ValueError(
            f"Image {wrong[0]} of {path} has label {labels[wrong[0]]}, but classes are whole numbers from 0 on, and -1 "
            "for none; relabel or remove it."
        )
    return classes
