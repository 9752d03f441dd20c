"""Image data: named or local sources, splits that keep the test set apart, and batches that live on the device.

Example:
    data = load("mnist5k")
    train, validation, index = held_out(data, seed=0)
    batches = Batches(train, index, batch_size=128, seed=0, device="cpu", pad=2)      # batches[17] is a Batch

Extra, pseudo-labelled images: docs/methods/extra_data.md. Papers are called Free, Limits, IAAT and Bilateral as in
docs/methods/README.md, Papers.
"""

from toughen.data.base import ImageData, Split, held_out, subset
from toughen.data.crops import ResizeCrop
from toughen.data.image_source import Collection, ImageSource, RawDataset
from toughen.data.lazy_split import LazySplit
from toughen.data.loading.augment import augment, flip, pad_and_crop
from toughen.data.loading.batches import Batch, Batches
from toughen.data.sources.in_memory import from_pairs
from toughen.data.sources.registry import DATA, find, load, load_extra

__all__ = [
    "DATA",
    "Batch",
    "Batches",
    "Collection",
    "ImageData",
    "ImageSource",
    "LazySplit",
    "RawDataset",
    "ResizeCrop",
    "Split",
    "augment",
    "find",
    "flip",
    "from_pairs",
    "held_out",
    "load",
    "load_extra",
    "pad_and_crop",
    "subset",
]
