"""Image data: named or local sources, splits that keep the test set apart, and batches that live on the device.

Example:
    data = load("mnist5k")
    train, validation, index = held_out(data, seed=0)
    batches = Batches(train, index, batch_size=128, seed=0, device="cpu", pad=2)      # batches[17] is a Batch
"""

from toughen.data.augment import augment, flip, pad_and_crop
from toughen.data.base import ImageData, Split, held_out, subset
from toughen.data.batches import Batch, Batches
from toughen.data.registry import DATA, load

__all__ = [
    "DATA",
    "Batch",
    "Batches",
    "ImageData",
    "Split",
    "augment",
    "flip",
    "held_out",
    "load",
    "pad_and_crop",
    "subset",
]
