"""The data sets with a name, and the way from a name or a folder to the data.

A source is a name of `DATA` or a folder of parquet files in the Hub's format. `DATA` is a plain dict: a data set of
your own is one more entry, a function without arguments that returns an `ImageData`.

    data = load("mnist5k")                           # 5,000 real digits that ship with toughen
    data = load("downloads/cifar10")                 # train-*.parquet, test-*.parquet, perhaps validation-*.parquet
    DATA["mine"] = lambda: ImageData("mine", train, None, test, classes)
"""

import difflib
import os
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np

from toughen.data.base import ImageData
from toughen.data.cache import from_arrays
from toughen.data.hub import load_hub
from toughen.data.parquet import load_folder


def mnist5k() -> ImageData:
    """5,000 of the MNIST digits, 1x28x28: 3,600 training, 400 validation and 1,000 test images, even over the classes.

    The split is ours, so its results do not compare with published ones; see NOTICE for origin and licence.
    """
    with (resources.files("toughen.data") / "mnist5k.npz").open("rb") as file, np.load(file) as stored:
        return from_arrays("mnist5k", dict(stored), tuple("0123456789"))


def cifar10() -> ImageData:
    """CIFAR-10 from the Hub, 3x32x32: 50,000 training and 10,000 test images (Krizhevsky 2009)."""
    return load_hub("cifar10", "uoft-cs/cifar10")


def cifar100() -> ImageData:
    """CIFAR-100 from the Hub, 3x32x32, fine labels: 50,000 training and 10,000 test images (Krizhevsky 2009)."""
    return load_hub("cifar100", "uoft-cs/cifar100")


DATA: dict[str, Callable[[], ImageData]] = {
    "mnist5k": mnist5k,
    "cifar10": cifar10,
    "cifar100": cifar100,
}


def load(source: str) -> ImageData:
    """The data set of a name or of a folder.

    Args:
        source: a name of `DATA`, or the path of a folder with train-*.parquet and test-*.parquet (and perhaps
            validation-*.parquet) in the format of the Hugging Face Hub. A folder that is called like a name of `DATA`
            is given as ./name.

    Returns:
        The decoded data; decoded images are kept in the user's cache.

    Raises:
        ValueError: there is no such name or folder, the Hub cannot be reached, or the files do not hold what they must.
    """
    if source in DATA:
        return DATA[source]()
    path = Path(os.path.expanduser(source))
    if path.exists() or any(separator in source for separator in {"/", os.sep}):
        return load_folder(path)
    near = difflib.get_close_matches(source, DATA, n=1)
    guess = f"did you mean {near[0]!r}, or " if near else ""
    raise ValueError(
        f"There is no data set {source!r}; {guess}give one of {', '.join(DATA)} or the path of a folder with "
        "train-*.parquet files."
    )
