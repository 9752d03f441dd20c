"""The data sets with a name, and the way from one text, a name or a path, to the data.

`DATA` is a plain dict: a data set of your own is one more entry, a function without arguments that returns an
`ImageData`, or a `RawDataset` whose images are decoded when they are asked for. Everything else is a path or
`hub:owner/name` (`FORMS` lists them). Which part of a source is training, validation and test says
`toughen.data.decode`.

    data = load("mnist5k")                           # 5,000 real digits that ship with toughen
    data = load("downloads/cifar10")                 # train-*.parquet, test-*.parquet, perhaps validation-*.parquet
    data = load("imagenet", ResizeCrop(224))         # photographs, cropped and resized when they are asked for
    DATA["mine"] = lambda: ImageData("mine", train, None, test, classes)
"""

import difflib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np

from toughen.data.base import Examples, ImageData
from toughen.data.cache import from_arrays
from toughen.data.crops import ResizeCrop
from toughen.data.decode import make_image_data
from toughen.data.extra_set import make_extra_set
from toughen.data.image_source import RawDataset
from toughen.data.sources import npz_shards, parquet
from toughen.data.sources.detect import find_path, locate, name_of, said
from toughen.data.sources.hub import find_hub, is_cached, kind_of, load_hub
from toughen.errors import UsageError, image_size

HUB = "hub:"


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


def svhn() -> ImageData:
    """SVHN from the Hub, 3x32x32: 73,257 training and 26,032 test images of house numbers (Netzer et al. 2011)."""
    return load_hub("svhn", "ufldl-stanford/svhn:cropped_digits")


def svhn_extra() -> RawDataset:
    """SVHN's 531,131 further, easier images from the Hub, 3x32x32: meant as an extra set (Netzer et al. 2011)."""
    return find_hub("svhn_extra", "ufldl-stanford/svhn:cropped_digits", part="extra")


def mnist() -> ImageData:
    """MNIST from the Hub, 1x28x28: 60,000 training and 10,000 test images (LeCun et al. 1998)."""
    return load_hub("mnist", "ylecun/mnist")


def fashion_mnist() -> ImageData:
    """Fashion-MNIST from the Hub, 1x28x28: 60,000 training and 10,000 test images (Xiao et al. 2017)."""
    return load_hub("fashion_mnist", "zalando-datasets/fashion_mnist")


def imagenet() -> RawDataset:
    """ImageNet-1k from the Hub, whose terms must be accepted: 1,281,167 training, 50,000 test images; needs data.size.

    The test split is ImageNet's validation split, as everybody's is (Russakovsky et al. 2015).
    """
    return find_hub("imagenet", "ILSVRC/imagenet-1k")


DATA: dict[str, Callable[[], ImageData | RawDataset]] = {
    "mnist5k": mnist5k,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "svhn": svhn,
    "svhn_extra": svhn_extra,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "imagenet": imagenet,
}

SIZES: dict[str, tuple[tuple[int, int, int] | None, int]] = {
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
    "svhn": ((3, 32, 32), 10),
    "svhn_extra": ((3, 32, 32), 10),
    "mnist": ((1, 28, 28), 10),
    "fashion_mnist": ((1, 28, 28), 10),
    "imagenet": (None, 1000),
}
"""Images (C, H, W), where they are all alike, and classes of what is fetched from the Hub."""

_FETCHED = tuple(DATA[name] for name in SIZES)

FORMS = {
    "hub:OWNER/NAME": "Any data set of the Hub with a column of images and one of labels; hub:OWNER/NAME:CONFIG.",
    "FOLDER": "Class folders, with or without train, val and test above; images with a table like labels.csv; "
    "train-*.parquet and perhaps test-*.parquet; what HF datasets' save_to_disk wrote; webdataset's train-*.tar and "
    "test-*.tar; CIFAR's binary files; MNIST's own files.",
    "FILE.npz": "train_images, train_labels, test_images, test_labels, or x_train and the like, or image and label; "
    "several such files as FOLDER/*.npz.",
}
"""What else may be given, for `toughen list data`."""

PHOTOGRAPHS = ("imagenet",)
"""Names whose images are of all sizes."""


def is_fetched(source: str) -> bool:
    """Whether a source comes from the Hub, and is not in the cache as `load` keeps it."""
    if source.startswith(HUB):
        return not is_cached(kind_of(_repository(source)))
    return DATA.get(source) in _FETCHED and not is_cached(source)


def find(source: str | Sequence[str], *, unlabelled: bool = False) -> RawDataset | ImageData:
    """What a source holds, before it is decoded; data of names that are small come decoded.

    Args:
        source: as for `load`; or several .npz files, which are joined in their order.
        unlabelled: whether labels may be missing, as in a pool of images; they are -1 then.

    Raises:
        ValueError: as for `load`.
    """
    if not isinstance(source, str):
        return _find_files([Path(os.path.expanduser(name)) for name in source], unlabelled)
    if source in DATA:
        return DATA[source]()
    if paths := npz_shards.matching(os.path.expanduser(source)):
        return _find_files(paths, unlabelled)
    if source.startswith(HUB):
        return find_hub(_hub_name(source), _repository(source), unlabelled=unlabelled)
    return find_path(_path(source), unlabelled=unlabelled)


def load(source: str, view: ResizeCrop | None = None, *, whole: bool = False) -> ImageData:
    """The data set of a name, a path or a name on the Hub.

    Args:
        source: a name of `DATA`, `hub:owner/name` or `hub:owner/name:configuration`, or the path of a folder or file
            (see `FORMS`), or a pattern of .npz files that are joined. A folder that is called like a name of `DATA` is
            given as ./name.
        view: what images are made into when they are asked for; None takes them as they are.
        whole: whether a source that is one part alone comes as it is, all of it as the test split, for a model that was
            not trained on it. Else a fifth of it is set aside as the test split.

    Returns:
        The data; without training images where the source has a test part alone. Without a view images are decoded, and
        kept in memory and in the user's cache, unless the training images would take more than 4 GiB.

    Raises:
        ValueError: there is no such name or path, the Hub cannot be reached, or the files do not hold what they must.
    """
    if source in PHOTOGRAPHS and view is None:
        raise UsageError(f"{source} holds photographs of all sizes; give ", image_size(like=224), ".")
    if source.startswith(HUB) and view is None:
        repository = _repository(source)
        found = load_hub(_hub_name(source), repository, kind=kind_of(repository))
    elif source in DATA or source.startswith(HUB) or npz_shards.matching(os.path.expanduser(source)):
        found = find(source)
    else:
        path = _path(source)
        place = locate(path)
        # The files' key alone says whether their images are in the cache, before the files are opened.
        if place.is_dir() and parquet.holds_parquet(place):
            held = parquet.load_folder(place, view)
            where = said(path, place)
            found = replace(held, name=name_of(path, held.name), notes=(*where, *held.notes)) if where else held
            return make_image_data(found, None, whole=whole)
        found = find_path(path)
    kind = "" if source in DATA else "decoded"
    return make_image_data(found, view, kind=kind, whole=whole)


def load_extra(
    source: str | Sequence[str],
    *,
    shape: tuple[int, int, int],
    classes: int | Sequence[str],
    view: ResizeCrop | None = None,
) -> Examples:
    """The training part of a source (see `find`), all of it, as an extra set; see `toughen.data.extra_set`.

    Raises:
        ValueError: as for `load`; or images are of another shape, or labels are not of these classes.
    """
    return make_extra_set(find(source, unlabelled=True), shape=shape, classes=classes, view=view)


def _find_files(paths: Sequence[Path], unlabelled: bool) -> RawDataset:
    if other := next((path for path in paths if path.suffix.lower() != ".npz" or not path.is_file()), None):
        raise ValueError(f"{other} is no .npz file, and only such files are joined; check the list of files.")
    if not paths:
        raise ValueError("The list of files is empty; give one .npz file at least.")
    return npz_shards.find_shards(paths, paths[0].stem, unlabelled=unlabelled)


def _repository(source: str) -> str:
    repository = source.removeprefix(HUB)
    owner, slash, name = repository.partition("/")
    if not (owner and slash and name) or "/" in name or name.count(":") > 1:
        raise ValueError(f"{source!r} is no name on the Hub; write hub:owner/name or hub:owner/name:configuration.")
    return repository


def _hub_name(source: str) -> str:
    return _repository(source).partition("/")[2].replace(":", "-")


def _path(source: str) -> Path:
    if not source.strip():
        raise ValueError(f"The name of the data is empty; give one of {', '.join(DATA)}, or the path of your own.")
    path = Path(os.path.expanduser(source))
    if path.exists() or any(separator in source for separator in {"/", os.sep}) or path.suffix == ".npz":
        return path
    near = difflib.get_close_matches(source, DATA, n=1)
    guess = f"did you mean {near[0]!r}, or " if near else ""
    raise ValueError(
        f"There is no data set {source!r}; {guess}give one of {', '.join(DATA)}, hub:owner/name, or the path of a "
        "folder or an .npz file."
    )
